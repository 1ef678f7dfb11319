"""Where a clause ends, what it denies, and what it is without the marks around it."""

import re
from collections.abc import Iterator

from envs.questions.judge.notation import FUNCTIONS, LETTERS, TEXT
from envs.questions.judge.numbers import FRACTIONS, OPERATIONS, PRODUCT

_TYPED = ("abs", "floor", "ceil", "cbrt", "binom", "choose", "asin", "acos", "atan")
MATH_WORDS = frozenset({"and", "or", "sqrt", "mod", "inf", "infinity", "oo", *FUNCTIONS, *LETTERS, *_TYPED})
HEDGES = "or|maybe|perhaps|possibly|probably|otherwise|else|alternatively"
_GOES_ON = "|".join((*sorted(MATH_WORDS), HEDGES, "plus", "minus", "less", "times"))
"""Behind a comma, before more of the same answer."""
SENTENCE_END = re.compile(
    r"\n|(?<!approx)(?<!\bi\.e)(?<!\be\.g)(?<!\bsq)\.(?=\s|$)|\?(?=\s|$)|(?<=[A-Za-z]{2})!(?=\s|$)|\*\*(?=\s)"
)
BECAUSE = r"\b(?:because|since|as)\b"
_EXPLAINED = r"\s(?:because|since|which|but|as in|where|i\.e\.|that is)(?!\w)"
_CLAUSE_END = re.compile(
    rf",\s+(?!(?:{_GOES_ON})\b)(?=[A-Za-z]{{2}})|;(?!\s*(?:(?:{_GOES_ON})\b|[A-Za-z]\w{{0,2}}\s*=|[-+$\\(]*[0-9]))|"
    rf"{_EXPLAINED}|\s[-:]+\s(?!(?:{'|'.join(MATH_WORDS)}|(?!my|by|why|try){PRODUCT.pattern})(?![A-Za-z]))"
    r"(?=[A-Za-z]{2}|I\b)"
)
CLAUSES = re.compile(rf"{SENTENCE_END.pattern}|{_CLAUSE_END.pattern}")
"""Where a clause ends."""
ENDS = re.compile(rf"{SENTENCE_END.pattern}|{_EXPLAINED}")
"""Where an answer may end that has full stops or commas of its own; of a list its beginning is no answer."""
DENIAL = (
    r"\b(?:not|never|neither|nor|cannot|nunca|keinesfalls|jamais|nicht|no es|não é|non è)\b|n't\b|n'est pas|"
    r"不是|并非|不可能|では(?:ない|ありません)"
)
NEGATION = re.compile(
    rf"{DENIAL}|\b(?:except|instead of|rather than|other than|anything but|far from|unlike|"
    r"incorrect|wrong)\b",
    re.IGNORECASE,
)
GUARD = re.compile(
    r"\b(?:between|(?:less|more|greater|fewer|smaller|larger|higher|lower|bigger) than\b(?=.{0,60}[0-9])|"
    r"at (?:least|most)|close to|almost|hardly|short of|supposed to|"
    r"(?:under|over|below|above)(?=\s+(?:about\s+)?\W{0,3}[0-9])|below zero|divisible|up to|"
    rf"{'|'.join((*OPERATIONS, *FRACTIONS))}|to the power|"
    r"or (?:more|less|fewer|greater|higher|lower)|twice|double|triple|thrice|"
    r"(?!(?:(?<=leaves a )|(?<=gives a )|(?<=has a )|(?<=have a ))(?:sum|remainder) of \W?[0-9][0-9.,]*\W*$)"
    r"(?:sum|product|difference|quotient|ratio|square|cube|root|power|average|mean|gcd|lcm|remainder|"
    r"determinant|derivative|integral|multiple|factor|divisor|logarithm|"
    r"complement|supplement|opposite|reciprocal|inverse) of)\b"
    r"|(?:不到|不足|超过|大于|小于|多于|少于|\b(?:mehr|weniger) als|\b(?:más|menos|plus|moins) de)\s*[0-9]"
    r"|[0-9]\s*(?:\\?%|per ?cent|/\s*[0-9]+)\s+of\s+\$?[0-9]|[0-9]\s*(?:to|-)\s*\$?[0-9]",
    re.IGNORECASE,
)
"""What makes of the number beside it another one."""
_WORKED_OUT = re.compile(rf"{GUARD.pattern}|[0-9]\s*[-+*/]\s*[0-9]", re.IGNORECASE)
_WHICH_IS = re.compile(
    r"which\s+(?:(?:is(?: equal to)?|equals|makes|gives|"
    r"(?:comes|simplifies|reduces|works out|comes out) to)\s)?"
)
_NO = re.compile(r"\W*(?:no|nope|wait|hmm)\b", re.IGNORECASE)
_CONTRAST = re.compile(r"(?<=\S)\s+(?:(?:instead of|rather than|as opposed to)\s.*|and not\s\S+$)")
_EXCEPTED = re.compile(r"\b(?:numbers|reals|integers|solutions?)\b.*\b(?:but|except|where|not|cannot)\b")
_MINUS = re.compile(r"^(?:minus|negative)\s+(?=\W?[0-9]|infinity|\\infty)", re.IGNORECASE)
_BEFORE = re.compile(
    r"^\s*(?:[iI]n(?=\s+(?:1[0-9]|20)[0-9]{2}\W{0,4}$)|\\text\s*\{[^{}]*(?:\bis|\bare|:|=)\s*\}|\\approx|\\sim|~|[aA]pprox\.|[-=]+>)\s*(?=\S)"
)
"""Before an answer, without being a part of it."""
_DELIMITERS = re.compile(r"(?<!\\)\$+|\\[()\[\]]|\\displaystyle")
_NO_PROSE = re.compile(TEXT.pattern + r"|\\(?:begin|end|operatorname|mathbb|mathcal|text)\s*\{[^{}]*\}")
_WORD = re.compile(
    r"(?<![\\A-Za-z])(?:[^\W\d_]{3,}|(?i:is|so|it|we|of|at|by|he|us|me|to|an|my|ok|oh|hm|no)(?![A-Za-z]))|[\u3040-\u9fff\uac00-\ud7af]+"
)
_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_YES_OR_NO = re.compile(rf"\W{{0,9}}({'|'.join(_OPPOSITES)})(?![\w'-]| \w)", re.IGNORECASE)
"""What may stand before its own explanation."""


def first_clause(said: str) -> str | None:
    """The first thing that is said, up to where it ends or is explained; of "not 41 but 42", 42."""
    said = said.strip()
    end = SENTENCE_END.search(said)
    if end and end[0] == "?" and _NO.match(said, end.end()):
        return None
    sentence = said[: end.start()] if end else said
    if _EXCEPTED.search(sentence):
        return sentence
    first, *others = (without_contrast(clause.strip()) for clause in _CLAUSE_END.split(sentence))
    if others and others[0].startswith("which ") and _WORKED_OUT.search(first):
        return f"{first} = {_WHICH_IS.sub('', others[0], count=1)}"
    if NEGATION.match(first):
        return next((clause for clause in others if not NEGATION.search(clause)), first)
    return with_sign(first) or None


def yes_or_no(said: str) -> str | None:
    """The "yes" or "no" with which it begins, "" if it then says the opposite, ``None`` if there is none.

    "Yes. No other number divides it." does not say the opposite.
    """
    if (first := _YES_OR_NO.match(said)) is None:
        return None
    word = first[1].lower()
    opposite = re.compile(rf"(?<![\w'-]){_OPPOSITES[word]}(?![\w'-]|[\"*]{{0,3}} \w)", re.IGNORECASE)
    return "" if opposite.search(said, first.end()) else word


def with_sign(said: str) -> str:
    """With the minus that is said before a number as its sign."""
    return _MINUS.sub("-", said)


def without_contrast(clause: str) -> str:
    """Without what it is said to be instead of."""
    return _CONTRAST.sub("", clause)


def tidy(answer: str) -> str:
    r"""Without the marks around it; of ``$x$``, ``**x**`` or ``x.``, ``x``."""
    answer = _BEFORE.sub("", _DELIMITERS.sub("", answer))
    answer = answer.strip(" \t\n*`").removesuffix("\\").lstrip(" \n\t,;:=").rstrip(" \n\t.,;:=?")
    calm = answer.rstrip("!")
    if len(calm) > 1 and calm[-2:].isalpha():  # 5! and n! are factorials
        answer = calm
    if len(answer) > 1 and answer[0] == answer[-1] and answer[0] in "\"'_":
        answer = answer.strip(answer[0])
    if re.search(r"[0-9][)\]]$", answer[-2:]) and not set("([,") & set(answer):  # (Answer: 42)
        answer = answer[:-1]
    return answer.strip("*` ").rstrip(".")


def prose(text: str) -> Iterator[str]:
    """The words in it that mathematics does not know."""
    words = (word[0] for word in _WORD.finditer(_NO_PROSE.sub("", text)))
    return (word for word in words if word.lower() not in MATH_WORDS)


def has_prose(text: str) -> bool:
    """Whether there are such words."""
    return any(prose(text))
