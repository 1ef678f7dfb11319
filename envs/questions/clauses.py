"""What a clause says: the formula or number among its words, and where it ends."""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import islice

from envs.questions.notation import FUNCTIONS, LETTERS, TEXT
from envs.questions.numbers import MAX_CHARS as MAX_ANSWER_CHARS
from envs.questions.numbers import (
    NUMBER,
    PRODUCT,
    SCALES,
    UNITS,
    PlainNumber,
    compare_numbers,
    is_converted,
    plain_number,
    unit_of,
)

MAX_ARITHMETIC = 64
"""Characters of sums and products that are worked out: numbers may have exponents."""
MAX_FORMULAS = 32
"""Of a clause."""
MAX_VERBS = 8
"""How many of a clause are looked at, the first ones."""
_TYPED = ("abs", "floor", "ceil", "cbrt", "binom", "choose", "asin", "acos", "atan")
_MATH_WORDS = frozenset({"and", "or", "sqrt", "mod", "inf", "infinity", "oo", *FUNCTIONS, *LETTERS, *_TYPED})
_HEDGES = "or|maybe|perhaps|possibly|probably|otherwise|else|alternatively"
_GOES_ON = "|".join((*_MATH_WORDS, _HEDGES, "plus", "minus", "less", "times"))
"""Behind a comma, before more of the same answer."""
_SENTENCE_END = re.compile(
    r"\n|(?<!approx)(?<!\bi\.e)(?<!\be\.g)(?<!\bRs)(?<!\bsq)\.(?=\s|$)|\?(?=\s|$)|(?<=[A-Za-z]{2})!(?=\s|$)|\*\*(?=\s)"
)
_EXPLAINED = re.compile(r"\s(?:because|since|which|but|as in|where|i\.e\.|that is)(?!\w)")
_CLAUSE_END = re.compile(
    rf",\s+(?!(?:{_GOES_ON})\b)(?=[A-Za-z]{{2}})|;(?!\s*(?:(?:{_GOES_ON})\b|[A-Za-z]\w{{0,2}}\s*=|[-+$\\(]*[0-9]))|"
    rf"{_EXPLAINED.pattern}|\s[-:]+\s(?!(?:{'|'.join(_MATH_WORDS)}|(?!my|by|why|try){PRODUCT.pattern})(?![A-Za-z]))"
    r"(?=[A-Za-z]{2}|I\b)"
)
CLAUSES = re.compile(rf"{_SENTENCE_END.pattern}|{_CLAUSE_END.pattern}")
"""Where a clause ends."""
ENDS = re.compile(rf"{_SENTENCE_END.pattern}|{_EXPLAINED.pattern}")
"""Where an answer may end that has full stops or commas of its own; of a list its beginning is no answer."""
NEGATION = re.compile(
    r"\b(?:not|never|neither|nor|cannot|except|instead of|rather than|other than|anything but|far from|"
    r"unlike|incorrect|wrong|nunca|keinesfalls|jamais)\b|n't\b|不是|并非|不可能|"
    r"\bnicht\b|\bno es\b|n'est pas|\bnão é\b|\bnon è\b",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"^\s*(?:\\text\s*\{[^{}]*(?:\bis|\bare|:|=)\s*\}|\\approx|\\sim|~|[aA]pprox\.|=+>)\s*(?=\S)"
)
"""Before an answer, without being a part of it."""
_DELIMITERS = re.compile(r"(?<!\\)\$+|\\[()\[\]]")
_MATH = re.compile(
    r"(?<!\\)\$([^$]+)\$(?![0-9])|\\\(((?:[^\\]|\\(?![()]))+)\\\)|\\\[((?:[^\\]|\\(?![\[\]]))+)\\\]"
)
_NO_PROSE = re.compile(TEXT.pattern + r"|\\(?:begin|end|operatorname|mathbb|mathcal|text)\s*\{[^{}]*\}")
_WORD = re.compile(
    r"(?<![\\A-Za-z])(?:[^\W\d_]{3,}|(?i:is|so|it|we|of|at|by|he|us|me|to|an|my|ok|oh|hm|no)(?![A-Za-z]))|[\u3040-\u9fff\uac00-\ud7af]+"
)
_REASON = re.compile(r"(?:^|\s)(?:because|since|as in)\b[^.,;\n]*", re.IGNORECASE)
_REMARK = re.compile(
    r"(?:^|(?<=[.!?\n✓]))[\s*_]*+(?:(?:let me know|do you|would you|(?:I )?hope|feel free|note that|"
    r"I'm (?:about )?[0-9]+ ?% )\b[^.!?\n]*[.!?]*|(?:how|what|which|who|where|when)\b[^.!?\n]*\?)",
    re.IGNORECASE,
)
"""A sentence that says no answer: a question, or a word to the reader."""
_ASIDE = re.compile(
    r"\s(?:ways?|when|where|while|attained|achieved|(?:which )?occur(?:s|ring)|with equality)\b"
)
_CONDITION = re.compile(
    r"\W*(?:where(?!\s+(?:the|its)\b)|when|attained|achieved|reached|"
    r"(?:which )?occur(?:s|ring)|with equality|(?:down|up) from|compared (?:to|with))\b"
)
"""Behind a result, before under what conditions it is one."""
_WHY = re.compile(
    r"\W*(?:explanation|reason(?:ing)?|justification|(?:this is )?because|since|here's (?:why|how)|steps?|"
    r"solution)\b",
    re.IGNORECASE,
)
_SECOND_THOUGHT = re.compile(
    r"\b(?:hold on|wait|actually|oops|sorry|correction|mistake|forgot|wrong|incorrect)\b", re.IGNORECASE
)
_VALUE = re.compile(
    r"(?P<bullet>[-*•]\s+|[0-9]{1,2}[.)]\s+)?(?P<value>(?:\\[(\[]|\$*)\s*"
    r"(?:(?P<name>[A-Za-z])\s*=[^=A-Za-z+*]*(?:\\[A-Za-z][^=]*)?|(?(bullet)-?[0-9][0-9.,/]*\$*)))"
)
"""A line of a list, with a value, of a variable or not."""
_AND_OR = re.compile(r"(?:and|or)\W*", re.IGNORECASE)
_FORMULA = re.compile(r"[0-9]|\\[A-Za-z]{2}")
"""What a formula has, or a number."""
_PIECES = re.compile(r"((?<![\\A-Za-z])[^\W\d_]+(?:['-][^\W\d_]+)*)")
_TERMS = re.compile(r"([-+]?)\s*([^-+]+)")
_ABOUT = re.compile(r"^\s*(?:or\s+)?(?:about|approximately|approx\.?|roughly|around|nearly|\\approx|~)\s*")
_AGAIN = re.compile(r"\s+or\s+|\s*\(|\)")
_WITHIN = re.compile(r"\s+(?!(?:long|wide|tall|high|deep|thick)\b)(?:\$?[0-9]|[A-Za-z]{1,})")
"""Behind an "in" that is no inch."""
_LOOSE_END = re.compile(r"\s\([^()]*$|[\s,]+(?:and|or)\s*$|^\s*(?:and|or)\s|^\s+[-:]\s+")
_EXPLANATION = re.compile(
    r"\s\((?!mod)(?:[^()\\]*[A-Za-z]{3}|\s*(?:or|=|i\.e\.|\\approx)|\s*\$?[-.0-9])[^()\\]*\)"
)
_HEDGE = re.compile(rf"\s\((?:(?:{_HEDGES}|if not|but|could be|might be)\b[\s,]*)+", re.IGNORECASE)
YES_OR_NO = frozenset({"yes", "no", "true", "false"})
"""What may stand before its own explanation."""
_GUARD = re.compile(
    r"\b(?:between|(?:less|more|greater|fewer|smaller|larger|higher|lower|bigger) than\b(?=.{0,60}[0-9])|"
    r"at (?:least|most)|close to|almost|hardly|short of|supposed to|"
    r"under|over|below|above|divisible|up to|plus|minus|times|divided|multiplied|added|"
    r"subtracted|half|third|quarter|"
    r"or (?:more|less|fewer|greater|higher|lower)|twice|double|triple|thrice|squared|cubed|factorial|modulo|"
    r"choose|to the power|halves|thirds|quarters|fifths|sixths|eighths|tenths|hundredths|thousandths|"
    r"(?:sum|product|difference|quotient|ratio|square|cube|root|power|average|mean|gcd|lcm|remainder|"
    r"determinant|derivative|integral|multiple|percent|factor|divisor|logarithm) of)\b"
    r"|[0-9]\s*(?:\\?%|per ?cent|/\s*[0-9]+)\s+of\s+\$?[0-9]|[0-9]\s*(?:to|-)\s*\$?[0-9]",
    re.IGNORECASE,
)
"""What makes of the number beside it another one."""
_EXPLAINS = frozenset(
    re.findall(
        r"\w+",
        "out of per for from with when at after before each on by if given where who that every in since "
        "towards because using made making among old than",
    )
)
"""A number behind these words is no part of the one before."""
_CASES = re.compile(
    r"\botherwise\b|\b(?:and|but)\s+\W{0,2}[0-9][0-9.,/]*\s+(?:for|when|if|in|otherwise)\b", re.IGNORECASE
)
"""What makes of a number one of several, as in 42 for even n and 41 for odd n."""
_BREAKDOWN = re.compile(r":\s+|,\s+namely\s+|\s\((?=[^()]*[0-9],[^()]*\)$)")
"""Between a count or a sum and what is counted or added."""
_BETWEEN = re.compile(r"[\s,;]*(?:(?:and|or)\b)?\s*|\s*\\approx\s*")
"""Between formulas that are one answer."""
_EQUALS = re.compile(r"(?<!or)\s(?:equals?|is equal to|is|makes|gives|=)\s")
_LEADS = re.compile(
    r"\W*(?:about|approximately|roughly|around|exactly|only|just|approx\.?)?\s*[-+$€£\\]*[0-9]", re.IGNORECASE
)
_WHICH_IS = re.compile(
    r"^which\s+(?:(?:is(?: equal to)?|equals|makes|gives|"
    r"(?:comes|simplifies|reduces|works out|comes out) to)\s)?"
)
_NO = re.compile(r"\W*(?:no|nope|wait|hmm)\b", re.IGNORECASE)
_CONTRAST = re.compile(r"(?<=\S)\s+(?:(?:instead of|rather than|as opposed to)\s.*|and not\s\S+$)")
_EXCEPTED = re.compile(r"\b(?:numbers|reals|integers|solutions?)\b.*\b(?:but|except|where|not|cannot)\b")
_MINUS = re.compile(r"^(?:minus|negative)\s+(?=\W?[0-9]|infinity|\\infty)", re.IGNORECASE)
_VERB = re.compile(
    r"(?<!to )\b(?:is|are|was|were|equals?|makes?|gives?|costs?|leaves?|yields?|be|so|has|have|had|"
    r"get|gets)\b",
    re.IGNORECASE,
)


def formula_in(said: str) -> str:
    """The formula or number that a clause gives, without the words around it; the clause if there is none.

    It is the first one, since explanations come after. Where the words make of it another number, as in "not
    42", "6 times 7" or "3 apples and 20 pears", it is the clause.
    """
    shorter = _EXPLANATION.sub(_kept, said)
    said = shorter if re.search("[0-9]", shorter) else said
    if not said or plain_number(said) or NEGATION.search(said):
        return said
    if _CASES.search(said):
        return said
    if total := _broken_down(said):
        return total
    first, *others = re.split(r",?\s+or\s+", said)
    number = tidy(formula_in(first)) if others else ""
    if others and all(_is_restated(number, tidy(other)) for other in others):
        return number  # 42 minutes, or 0.7 hours
    if others and all(re.match(r"\W*[0-9]", part) for part in (first, *others)):
        return said
    if not has_prose(said):
        return said
    if _GUARD.search(said):
        *before, result = _EQUALS.split(said)
        return formula_in(result) if before else said
    if typeset := [*islice(_MATH.finditer(said), MAX_FORMULAS)]:
        return _typeset(said, typeset)
    formulas, between, at = [""], [""], 0
    for piece in _PIECES.split(said):
        is_unit = re.search(r"[0-9]\s$", formulas[-1]) and (
            piece in SCALES or unit_of(piece) in UNITS.values()
        )
        is_unit = is_unit and not (piece == "in" and _WITHIN.match(said, at + 2))
        at += len(piece)
        if _PIECES.fullmatch(piece) and not (piece.lower() in _MATH_WORDS or is_unit or _is_letter(piece)):
            between[-1] += f" {piece.lower()}"
        elif between[-1] and piece.strip():
            formulas.append(piece)
            between.append("")
        else:
            formulas[-1] += piece
    found = [n for n, formula in enumerate(formulas) if _FORMULA.search(formula)]
    if not found:
        return said
    formula, behind = formulas[found[0]], " ".join(between[found[0] : found[1]] if len(found) > 1 else [])
    is_alone = len(found) == 1 or formulas[found[1]].lstrip(" ,").startswith("(")
    if not is_alone and not _EXPLAINS & set(behind.split()) and not re.search(r"\bto [a-z]", behind):
        return said
    return tidy(_LOOSE_END.sub("", formula)) or said


def _typeset(said: str, formulas: Sequence[re.Match[str]]) -> str:
    """The first of the formulas between dollars, with those that belong to it; all if that cannot be told."""
    first = last = formulas[0]
    for formula in formulas[1:]:
        between = said[last.end() : formula.start()]
        if not _BETWEEN.fullmatch(between):
            words = between.lower().split()
            is_apart = words != ["of"] and _EXPLAINS & set(words)
            return tidy(said[first.start() : last.end()]) if is_apart else said
        last = formula
    return tidy(said[first.start() : last.end()])


def _broken_down(said: str) -> str | None:
    """The number before a list of what is counted, or added, as 9 of "9: 4 apples, 5 pears"."""
    found = _BREAKDOWN.search(said)
    if found is None or ":" in said[found.end() :]:
        return None
    head = formula_in(said[: found.start()])
    total = plain_number(head)
    parts = [part for part in NUMBER.finditer(said, found.end()) if part["decimal"]]
    values = [number.value for part in parts if (number := plain_number(part[0].strip(" ,")))]
    return head if total and len(values) > 1 and total.value in (len(values), sum(values)) else None


def first_clause(said: str) -> str | None:
    """The first thing that is said, up to where it ends or is explained; of "not 41 but 42", 42."""
    said = said.strip()
    end = _SENTENCE_END.search(said)
    if end and end[0].startswith("?") and _NO.match(said, end.end()):
        return None
    sentence = said[: end.start()] if end else said
    if _EXCEPTED.search(sentence):
        return sentence
    clauses = [_CONTRAST.sub("", clause.strip()) for clause in _CLAUSE_END.split(sentence)]
    is_worked_out = _GUARD.search(clauses[0]) or re.search(r"[0-9]\s*[-+*/]\s*[0-9]", clauses[0])
    if len(clauses) > 1 and is_worked_out and clauses[1].startswith("which "):
        result = _WHICH_IS.sub("", clauses[1])
        return f"{clauses[0]} = {result}"
    if NEGATION.match(clauses[0]) and len(clauses) > 1:
        return next((clause for clause in clauses[1:] if not NEGATION.search(clause)), clauses[0])
    return _MINUS.sub("-", clauses[0]) or None


def last_said(text: str, is_text: bool) -> str | None:
    """The answer of a text that does not say where it stands; ``is_text`` is as in ``final_answer``."""
    lines = _REMARK.sub("", text).strip().splitlines()
    if not lines:
        return None
    text = "\n".join(lines)
    first, last = tidy(lines[0]), tidy(lines[-1])
    if len(lines) > 1 and _is_explained(first, lines[1:], is_text):
        return first
    if (listed := _listed(lines)) is not None:
        return listed
    if last and (plain_number(last) or not has_prose(last)):
        return last
    sentences = [sentence for sentence in map(tidy, _SENTENCE_END.split(lines[-1])) if sentence]
    if is_text:
        is_said_first = sentences and sentences[0].casefold() in YES_OR_NO
        return next(iter(sentences if is_said_first else reversed(sentences)), None)
    if (
        last
        and _LEADS.match(last)
        and not ("=" in sentences[0] or _VERB.search(sentences[0]))
        and formula_in(sentences[0]) != sentences[0]
    ):
        return formula_in(sentences[0])
    clauses = (_CONTRAST.sub("", clause) for clause in CLAUSES.split(_REASON.sub("", text)))
    told = [clause for clause in clauses if not NEGATION.search(clause)]
    found = next(filter(None, map(_conclusion, reversed(told))), None)
    if not found and len(text) <= MAX_ANSWER_CHARS // 8:
        found = text
    return tidy(found or "") or None


def _is_explained(first: str, others: Sequence[str], is_text: bool) -> bool:
    """Whether an answer stands in the first line, and the others say why, and nothing else."""
    if is_text:
        return first.casefold() in YES_OR_NO and not any(
            tidy(word).casefold() in YES_OR_NO for word in others[-1].split()
        )
    rest = "\n".join(others).strip()
    if plain_number(first) is None or _SECOND_THOUGHT.search(rest):
        return False
    says_more = _VERB.search(rest) or "=" in rest or plain_number(tidy(others[-1]))
    return _WHY.match(rest) is not None or not says_more


def _listed(lines: Sequence[str]) -> str | None:
    """The values that are listed at the end, a line each; ``None`` if it is no such list.

    They are those of one variable, or of one each; without bullets they have to be announced, or lines with
    "or" between them: else they may be steps on the way to the last one.
    """
    found: list[re.Match[str]] = []
    above, has_or = "", False
    for line in map(str.strip, reversed(lines)):
        if (item := _VALUE.fullmatch(line)) and item["value"]:
            found.insert(0, item)
        elif found and _AND_OR.fullmatch(line):
            has_or = True
        else:
            above = line.rstrip("*")
            break
    values = [tidy(item["value"]) for item in found]
    names = {item["name"] for item in found}
    bullets = sum(item["bullet"] is not None for item in found)
    is_told = has_or or above.endswith(":")
    if len(found) < 2 or bullets not in (0, len(found)) or not (is_told or (bullets and None not in names)):
        return None
    different = {plain_number(value.partition("=")[2].strip()) or value for value in values}
    is_of_one = len(names) == 1 and len(different) == len(found)
    return ", ".join(values) if is_of_one or (is_told and len(names) == len(found)) else None


def tidy(answer: str) -> str:
    r"""Without the marks around it; of ``$x$``, ``**x**`` or ``x.``, ``x``."""
    answer = _BEFORE.sub("", _DELIMITERS.sub("", answer).replace("\\displaystyle", ""))
    answer = answer.strip(" \t\n*`").removesuffix("\\").lstrip(" \n\t,;:=").rstrip(" \n\t.,;:=?")
    calm = answer.rstrip("!")
    if len(calm) > 1 and calm[-2:].isalpha():  # 5! and n! are factorials
        answer = calm
    if len(answer) > 1 and answer[0] == answer[-1] and answer[0] in "\"'_":
        answer = answer.strip(answer[0])
    return answer.strip("*` ").rstrip(".")


def _conclusion(clause: str) -> str | None:
    """What a clause comes to: what stands behind its first verb that has a formula or number behind it."""
    if not _FORMULA.search(clause) or _CONDITION.match(clause):
        return None
    starts = [verb.end() for verb in islice(_VERB.finditer(clause), MAX_VERBS)]
    for start in (*starts, 0):
        part = _ASIDE.split(clause[start:].strip(" \n\t*_`.,:;"), maxsplit=1)[0]
        found = tidy(formula_in(_MINUS.sub("-", part)))
        is_whole = sum(c in "([{" for c in found) == sum(c in ")]}" for c in found)
        are_units = plain_number(found) or all(unit_of(word) in UNITS.values() for word in _prose(found))
        if is_whole and are_units and _FORMULA.search(found):
            return found
    return None if _GUARD.search(clause) else _last_formula(clause)


def _last_formula(text: str) -> str | None:
    """The last formula between dollars and the like, or number, whichever ends last."""
    text = _EXPLANATION.sub("", text)
    end, found = 0, None
    for match in _MATH.finditer(text):
        end, found = match.end(), next(group for group in match.groups() if group)
    for match in NUMBER.finditer(text):
        if match.end() > end and any(character.isdigit() for character in match[0]):
            end, found = match.end(), match[0]
    return found


def _prose(text: str) -> Iterator[str]:
    words = (word[0] for word in _WORD.finditer(_NO_PROSE.sub("", text)))
    return (word for word in words if word.lower() not in _MATH_WORDS)


def has_prose(text: str) -> bool:
    """Whether there are words in it that mathematics does not know."""
    return any(_prose(text))


def _kept(explanation: re.Match[str]) -> str:
    """What is left of a remark in parentheses: all, if it says another number, as in 5 (or 6), 5 (6 + 7)."""
    said = explanation.string[: explanation.start()].rpartition(")")[2][-MAX_ANSWER_CHARS:]
    inner = explanation[0].strip(" ()")
    if not has_prose(inner) and re.match(r"\$?[-.0-9]", inner):
        return "" if _is_restated(formula_in(said), inner) else explanation[0]
    hedge = _HEDGE.match(explanation[0])
    hedged = explanation[0][hedge.end() :].strip(" ,)") if hedge else ""
    other = plain_number(hedged) or _worked_out(hedged)
    first = plain_number(formula_in(said)) if other else None
    is_other = other and first and other.unit == first.unit and compare_numbers(other, first)
    return explanation[0] if is_other else ""


def _is_restated(first: str, other: str) -> bool:
    """Whether a number is said once more: worked out, rounded with a word, in percent, or in another unit."""
    number = plain_number(first)
    *_, result = other.split("=")
    rounded = _ABOUT.sub("", result)
    again = plain_number(rounded.strip()) or _worked_out(result)
    if number is None or again is None:
        return False
    is_rate = "" != number.unit != again.unit and re.search(r"\bper\b", other)
    if compare_numbers(again, number) is None or is_rate or is_converted(again, number):
        return True
    return rounded != result and abs(again.value - number.value) <= abs(number.value) / 100


def said_once(answer: str) -> str:
    """The number of 1/4 (0.25), of 1/3 or 33.3%, and of about 8; any other answer as it is."""
    first, *others = map(tidy, _AGAIN.split(_ABOUT.sub("", TEXT.sub(r" \1 ", answer))))
    is_number = plain_number(first) and all(_is_restated(first, other) for other in others if other)
    return first if is_number else answer


def _worked_out(text: str) -> PlainNumber | None:
    """The result of a few sums, products and quotients of numbers."""
    if not text.strip() or len(text) > MAX_ARITHMETIC:
        return None
    total = Fraction(0)
    for sign, product in _TERMS.findall(text.replace("x", "*")):
        factors = re.split(r"([*/])", product)
        value = Fraction(1)
        for operator, factor in zip(("*", *factors[1::2]), factors[::2], strict=True):
            number = plain_number(factor.strip())
            if number is None or (operator == "/" and number.value == 0):
                return None
            value = value * number.value if operator == "*" else value / number.value
        total += -value if sign == "-" else value
    return PlainNumber(value=total)


def _is_letter(word: str) -> bool:
    """Whether it may be a variable."""
    return len(word) == 1 and word.isascii() and word not in "aAI"
