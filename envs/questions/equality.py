"""Whether an answer is the right one, as far as that can be said without a parser of mathematics."""

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from envs.questions.clauses import YES_OR_NO
from envs.questions.notation import SIZES, TEXT, unstyled
from envs.questions.numbers import PRODUCT, PlainNumber, compare_numbers, plain_number
from envs.questions.options import DENIALS, chosen, labelled, labelled_value, without_label
from envs.questions.sets import SIGN, as_set
from envs.questions.typed import AND, NAMES, as_latex, bracket_end

MAX_ITEMS = 32
"""Of a list that is compared item by item."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an answer is right, and why."""

    is_correct: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Undecided:
    """What a parser must compare, as LaTeX: of two lists only the items in which they may differ."""

    answer: str
    gold: str


_SPACES = re.compile(r"\\(?:left|right|quad|[,;:! ])|(?<![0-9])\s+|\s+(?![0-9])")
_ONE = re.compile(r"([_^])\{(\w)\}")
_ARTICLE = re.compile(r"(?:the|an?)\s+", re.IGNORECASE)
_RATIO = re.compile(
    r"(?P<ratio>[0-9]{1,9}(?:\.[0-9]{1,9})?(?:\s*:\s*[0-9]{1,9}(?:\.[0-9]{1,9})?){1,9})"
    r"(?:\s*(?P<half>[apAP])\.?\s?[mM]\b\.?)?"
)
"""A ratio, or a time of day with its half of the day."""
_RATIO_IN_WORDS = re.compile(r"^(?:.*\bis )?([0-9.]{1,9})\s+to\s+([0-9.]{1,9})$")
_TIME = re.compile(r"[0-9]{1,2}(?::[0-5][0-9]){1,2}")
_BASED = re.compile(r"\s*\(?(-?[0-9A-F]+)\)?_\{?([0-9]+)\}?\s*")
"""A number with its base."""
_WORD = re.compile(
    rf"(?<![\\A-Za-z])(?!(?:{NAMES}|sqrt|cbrt|abs|floor|ceil|a(?:sin|cos|tan)|mod|inf|infinity|oo|and|or)(?![A-Za-z]))"
    rf"(?:[^\W\d_]{{4,}}|[^\W\d_]{{2,3}})(?![A-Za-z])"
)
_MAYBE_PRODUCT = re.compile(r"(?!(?:yes|no)$)[a-z]{2,3}")
_OPENING = re.compile(
    r"^(?:(?:hence|thus|so|therefore|it's|it is|on|in|definitely|certainly|clearly)\b,?\s*)+", re.IGNORECASE
)
_BECAUSE = re.compile(r",?\s+(?:because|since|as)\b")
_SAYS = re.compile(r"\b(?:is|are|was|were|be|equals|has|have|called|falls? on)\s+")
_NAME = re.compile(
    r"\(?\s*\\?[A-Za-z][A-Za-z ]*(?:_\{?\w+\}?)?'?(?:\([\w, ]*\))?"
    r"(?:\s*,\s*[A-Za-z](?:_\{?\w+\}?)?)*\s*\)?\s*"
)
_POINT = re.compile(r"\s*([A-Z]'?)(?:\s|\\,|:)*(?=\([^()]*,)")
"""Before its coordinates."""
_NUMBERED = re.compile(r"\\(?:text|math)(?:bf)?\s*\{\s*\(([0-9]+)\)\s*\}")
"""A number set as the wiki of a contest sets it."""
_HIDDEN = "\x00"
_EQUALS = re.compile(r"(?<![<>!\\:])=(?!=)|\\in(?![A-Za-z])|:=")
_TWO_EQUATIONS = re.compile(r"=[^=]*[0-9}](?:\\q?quad|\\[,;: ]|\s)+\\?[A-Za-z]\w*\s*=")
_SEPARATOR = re.compile(r"(?<!\\)[,;<>]")
_RELATION = re.compile(r"=|<|>|\\(?:leq?|geq?|lt|gt|ne|neq|in|approx|equiv)(?![A-Za-z])")
_ABOUT = re.compile(r"\\approx(?![A-Za-z])")
_BOUND = re.compile(SIGN)
_VARIABLE = re.compile(
    r"(?<![\\A-Za-z])(?![ei](?![A-Za-z]))[A-Za-z](?![A-Za-z])|\\(?:alpha|beta|gamma|theta|phi|lambda|mu|omega|rho|tau|sigma|delta)\b"
)

_POWER_OF_TEN = re.compile(
    r"(?<=[0-9])[eE][-+]?[0-9]+|\s*(?:\*|\\times|\\cdot|x)\s*10\s*(?:\^|\*\*)\s*[{(]?[-+]?[0-9]{1,3}[})]?"
)
_SPACING = re.compile(r"\\(?:left|right|quad|[,;:! ])")
_FORMAL = {
    "calculus": r"\\(?:i*int|o?int|sum|prod|lim)(?![A-Za-z])|\\[dt]?frac\s*\{\s*(?:d|\\partial)\b|"
    r"\bd/d[a-z]\b|\b(?:sum|prod|int|lim|integral|derivative)\b\s*[_(]",
    "number theory": r"\b(?:gcd|lcm|det|[bp]?mod|max|min|[lr]?floor|[lr]?ceil)(?![A-Za-z])|"
    r"\\begin\s*\{vmatrix\}|(?<![A-Za-z])[CP]\s*\(\s*[0-9]",
}
"""Operations that stand for a result, whatever they are applied to."""
_NUMERIC = {
    "sum": r"[0-9A-Za-z)}\]!|%]\s*[-+]\s*[^\s}]",
    "product": r"[0-9)}!|%]\s*(?:\*|\\times|\\cdot)\s*[-+]?[{(\[|]*\s*[-+]?(?:[0-9.]|\\[dt]?frac)|\)\s*\(|"
    r"(?<!_)(?<!_[0-9])[0-9]\s*\(\s*[-+]?[0-9.]+\s*\)|\\[dt]?frac\s*\{[^{}]*\}\s*\{[^{}]*\}\s*\(\s*[-+]?(?:[0-9.]|\\[dt]?frac)|"
    r"\\sqrt\s*\{[^{}]*\}\s*(?:\*|\\times|\\cdot)?\s*\\sqrt",
    "quotient": r"\\div(?![A-Za-z])",
    "binomial": r"\\[dt]?binom(?![A-Za-z])|\bchoose\b",
    "logarithm": r"\b(?:log|ln|lg)(?![A-Za-z])",
    "function": r"\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])|\b(?:arc)?(?:sin|cos|tan)\s*\(",
    "absolute value": r"\||\\[lr]vert|\babs\b",
}
"""Operations that can be carried out where all is numbers."""
_OPERATIONS = {name: re.compile(pattern) for name, pattern in (_FORMAL | _NUMERIC).items()}


def compare(answer: str, gold: str) -> Decision | Undecided:
    """Compare two answers that have been read and are short."""
    if same_text(answer, gold):
        return Decision(True, "the same")
    letter, words = labelled(gold)
    if letter and (option := chosen(answer)):
        return _decision(option == letter)
    if letter and words:
        return compare(answer, words)
    if not letter and (value := labelled_value(answer)):
        return compare(value, gold)
    answer, gold = as_set(_numbered(answer)), as_set(gold)
    if answer == gold:
        return Decision(True, "the same")
    if (based := _BASED.fullmatch(answer)) and (gold_based := _BASED.fullmatch(gold)):
        return _decision(based.groups() == gold_based.groups())
    ratios = [_RATIO.fullmatch(_RATIO_IN_WORDS.sub(r"\1:\2", unstyled(text))) for text in (answer, gold)]
    if ratios[0] and ratios[1]:
        return _decision(_same_ratio(ratios[0], ratios[1]))
    bare = _without_bounds(answer)
    stated = [side.replace(_HIDDEN, "=") for side in _EQUALS.split(bare)]
    sides = [number for side in stated if (number := plain_number(side))]
    if any(_disagree(side, sides[-1]) for side in sides):
        return Decision(False, "says that different numbers are equal")
    left, right = _values(SIZES.sub("", answer), SIZES.sub("", gold))
    number, gold_number = plain_number(left), plain_number(right)
    if number is None and gold_number is not None and _unfinished(left, right):
        # Repeating the problem does not solve it; in 8 = 5 + 3 it is solved, in a list of guesses it is not.
        if not sides or _TWO_EQUATIONS.search(bare) or any(map(_is_list, stated)):
            return Decision(False, "not worked out")
        number = sides[-1]
    if number is not None and gold_number is not None:
        difference = compare_numbers(number, gold_number)
        return Decision(difference is None, difference or "equal")
    items, gold_items = _items(left), _items(right)
    if gold_number is not None and items and items.opening in ("(", "["):
        return Decision(False, "not equal")
    if any(_is_range(one) and _are_values(other) for one, other in ((answer, gold), (gold, answer))):
        return Decision(False, "not equal")
    if items and gold_items:
        compared = _compare_items(_ordered(items, gold_items), _ordered(gold_items, items))
        if compared is not None:
            return compared
    if is_text(right) and (is_text(left) or not _MAYBE_PRODUCT.fullmatch(right)):
        return _decision(_says(left, right))
    if any(is_text(text) and not _MAYBE_PRODUCT.fullmatch(text) for text in (left, right)):
        return _decision(False)
    if gold_items and _BOUND.search(left) and _unfinished(left, right):
        return Decision(False, "not worked out")
    if items is None and gold_items is None:
        exact, *rounded = (part.strip() for part in _ABOUT.split(left))
        if rounded and any(part and _is_equal(part, right) for part in (exact, rounded[0])):
            return Decision(True, "equal")
        left = exact or left
        if _unfinished(left, right):
            return Decision(False, "not worked out")
    typed = as_latex(left), as_latex(right)
    return Decision(True, "the same") if same_text(*typed) else Undecided(*typed)


def same_text(answer: str, gold: str) -> bool:
    """Whether two answers are the same but for spaces and, where they are words, case."""
    first, second = (_ONE.sub(r"\1\2", TEXT.sub(r"\1", _SPACES.sub("", text))) for text in (answer, gold))
    if first == second:
        return True
    first, second = (_ARTICLE.sub("", unstyled(text), count=1).strip(" ().\"'") for text in (answer, gold))
    return is_text(second) and " ".join(first.casefold().split()) == " ".join(second.casefold().split())


def same_words(answer: str, gold: str) -> bool:
    """As ``same_text``, where the words may have commas between them."""
    words, gold_words = (" ".join(text.casefold().split()) for text in (answer, gold))
    return same_text(answer, gold) or (words == gold_words and is_text(gold.replace(",", " ")))


def is_text(answer: str) -> bool:
    """Whether it is words, and so to be compared as such; a product of letters, such as xy, is none."""
    plain = unstyled(answer)
    if re.search(r"[\\=<>^+*/{}|$]|[0-9]\s*[A-Za-z]|,", plain):
        return False
    words = [word[0] for word in _WORD.finditer(plain)]
    return (
        any(not PRODUCT.fullmatch(word) for word in words) or re.search("[\u3040-\uffdc]", plain) is not None
    )


def _decision(is_correct: bool) -> Decision:
    return Decision(is_correct, "equal" if is_correct else "not equal")


def _says(answer: str, gold: str) -> bool:
    """Whether a sentence or an option ends in the words that are asked for, and does not deny them."""
    plain = _OPENING.sub("", unstyled(answer))
    said = [plain, re.sub(r"\s*\([^()]*\)$", "", plain), without_label(plain)]
    said += [first for first in [re.split(r"[,.;:]|\s-\s", plain)[0]] if first.casefold() in YES_OR_NO]
    claim = _BECAUSE.split(plain)[0]
    if DENIALS.findall(claim) == DENIALS.findall(gold):
        said += [claim, *(claim[verb.end() :] for verb in _SAYS.finditer(claim))]
        said += [claim[-len(unstyled(gold)) :]] if DENIALS.search(gold) else []
    return any(same_text(text, gold) for text in said)


def _values(answer: str, gold: str) -> tuple[str, str]:
    """Both without what they set equal to it, where that is no part of the answer."""
    name, value = _named(answer)
    gold_name, gold_value = _named(gold)
    names = {"".join(text.split()).casefold() for text in (name, gold_name) if text is not None}
    if len(names) > 1:
        return answer, gold
    if gold_name is not None and not _NAME.fullmatch(gold_name):
        return answer, gold
    return value, gold_value


def _named(text: str) -> tuple[str | None, str]:
    """What stands left of the last equals sign, and what right of it; the sign may be a membership, too."""
    if (point := _POINT.match(text)) and bracket_end(text[point.end() :]) == len(
        text.rstrip()
    ) - point.end() - 1:
        return point[1], text[point.end() :]
    equals = list(_EQUALS.finditer(text))
    if not equals:
        return None, text
    name, value = text[: equals[-1].start()].strip(), text[equals[-1].end() :].strip()
    # In "x = 1, y = 2" and 3 < x = y there is no name.
    is_list = _RELATION.search(value) or _is_list(name) or _TWO_EQUATIONS.search(text)
    if not value or (is_list and not _NAME.fullmatch(name)):
        return None, text
    if _NAME.fullmatch(value) and plain_number(name):  # 2 = x
        return value, name
    return name, value


def _numbered(answer: str) -> str:
    """The number of an answer that is set as the wiki of a contest sets it; any other answer as it is."""
    number = _NUMBERED.fullmatch(answer.strip())
    return number[1] if number else answer


def _is_range(text: str) -> bool:
    """Whether it is all that lies between two bounds."""
    return len(_BOUND.findall(text)) == 2 or re.search(r"\\in\s*[(\[]", text) is not None


def _are_values(text: str) -> bool:
    """Whether it is a list of values, or a set of them."""
    items = _items(text)
    return items is not None and items.is_set and not _BOUND.search(text)


def _without_bounds(text: str) -> str:
    """The text with the equals signs of subscripts hidden, as in a sum's bounds."""
    return re.sub(r"_\s*\{[^{}]*\}", lambda bounds: bounds[0].replace("=", _HIDDEN), text)


def _is_list(text: str) -> bool:
    """Whether it may be several answers."""
    return plain_number(text) is None and (AND.search(text) or _SEPARATOR.search(text)) is not None


def _disagree(side: PlainNumber, other: PlainNumber) -> bool:
    """Whether the sides of an equation are two numbers; not if one is rounded, or is in another unit."""
    if compare_numbers(side, other) is None or "" != side.unit != other.unit != "":
        return False
    is_whole = side.value.denominator == other.value.denominator == 1
    return is_whole or abs(side.value - other.value) > abs(other.value) / 100


def _same_ratio(answer: re.Match[str], gold: re.Match[str]) -> bool:
    """Whether two times of day are the same, or two ratios."""
    if all(_TIME.fullmatch(time["ratio"]) for time in (answer, gold)):
        return _is_same_time(answer, gold)
    parts, gold_parts = ([Fraction(part) for part in m["ratio"].split(":")] for m in (answer, gold))
    total, gold_total = sum(parts), sum(gold_parts)
    return (
        not (answer["half"] or gold["half"])
        and len(parts) == len(gold_parts)
        and total > 0
        and all(part * gold_total == of * total for part, of in zip(parts, gold_parts, strict=True))
    )


def _is_same_time(answer: re.Match[str], gold: re.Match[str]) -> bool:
    """2:30 PM is 14:30, and may go without its PM."""
    (hour, _, rest), (gold_hour, _, gold_rest) = (m["ratio"].partition(":") for m in (answer, gold))
    of_day, gold_of_day = (
        int(h) if m["half"] is None else int(h) % 12 + 12 * (m["half"] in "pP")
        for h, m in ((hour, answer), (gold_hour, gold))
    )
    is_marked = answer["half"] is not None and gold["half"] is not None
    return rest == gold_rest and (of_day == gold_of_day or (int(hour) == int(gold_hour) and not is_marked))


@dataclass(frozen=True, slots=True)
class _Items:
    opening: str
    """Empty for a bare list."""
    closing: str
    items: list[str]

    @property
    def is_set(self) -> bool:
        return self.opening in ("", "{")


def _items(text: str) -> _Items | None:
    """The items of a list, a set, a tuple or an interval; ``None`` for anything else."""
    text = (
        text.strip().replace("\\{", "{").replace("\\}", "}").replace("\\lbrace", "{").replace("\\rbrace", "}")
    )
    inner, opening, closing = text, "", ""
    if text[:1] in ("(", "[", "{") and bracket_end(text) == len(text) - 1:
        inner, opening, closing = text[1:-1], text[0], text[-1]
    elif (wrapped := TEXT.fullmatch(text)) and AND.search(wrapped[1]):
        inner = wrapped[1]
    parts = _split(AND.sub(", ", inner))
    items = []
    for part in filter(None, (part.strip() for part in parts)):
        signs = ("+", "-") if len(re.findall(r"\\pm(?![A-Za-z])", part)) == 1 else ("",)
        items += [re.sub(r"\\pm(?![A-Za-z])\s*", sign, part).removeprefix("+").strip() for sign in signs]
    if len(items) > MAX_ITEMS or (len(items) < 2 and opening != "{"):
        return None
    return _Items(opening, closing, items)


def _split(text: str) -> list[str]:
    """At commas and semicolons that are in no bracket and in no number."""
    has_spaces = re.search(r",\s", text) is not None
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character in ",;":
            groups = (
                has_spaces
                and re.match(r"[0-9]{3}(?![0-9])", text[index + 1 :])
                and text[index - 1 : index].isdigit()
            )
            if not groups and not text[:index].endswith("\\"):
                parts.append(text[start:index])
                start = index + 1
    return [*parts, text[start:]]


def _compare_items(answer: _Items, gold: _Items) -> Decision | Undecided | None:
    """Item by item, in their order where both are ordered; ``None`` if the brackets need a parser."""
    if answer.opening and gold.opening and (answer.opening, answer.closing) != (gold.opening, gold.closing):
        return None
    if {answer.opening, gold.opening} == {"{", "["} or {answer.opening, gold.opening} == {"{", "("}:
        return None
    if len(answer.items) != len(gold.items):
        return None if answer.opening == "{" == gold.opening else Decision(False, "not equal")
    left, right = list(answer.items), list(gold.items)
    if answer.is_set and gold.is_set:
        for item in answer.items:
            if (twin := next((g for g in right if _is_equal(item, g)), None)) is not None:
                left.remove(item)
                right.remove(twin)
        if any(all(isinstance(compare(item, g), Decision) for g in right) for item in left):
            return Decision(False, "not equal")
    else:
        outcomes = [(a, g, compare(a, g)) for a, g in zip(left, right, strict=True)]
        if any(isinstance(outcome, Decision) and not outcome.is_correct for *_, outcome in outcomes):
            return Decision(False, "not equal")
        pending = [(a, g) for a, g, outcome in outcomes if isinstance(outcome, Undecided)]
        left, right = [a for a, _ in pending], [g for _, g in pending]
    if not left:
        return Decision(True, "equal")
    if len(left) == 1:
        return compare(left[0], right[0])
    is_set = answer.is_set and gold.is_set
    form = r"\{%s\}" if is_set else "(%s)"
    return Undecided(*(as_latex(form % ", ".join(items)) for items in (left, right)))


def _ordered(items: _Items, others: _Items) -> _Items:
    """By their names, where each has one of its own and the others are a tuple: of y = 7, x = 1, 1 and 7."""
    names = [_named(item)[0] or "" for item in items.items]
    is_tuple = others.opening == "(" and not any(_named(other)[0] for other in others.items)
    if not is_tuple or not all(re.fullmatch(r"[A-Za-z]", name) for name in names):
        return items
    if len(set(names)) < len(names):  # values of one, and no tuple
        return replace(items, opening="{", closing="}")
    return replace(
        items,
        opening="(",
        closing=")",
        items=[item for _, item in sorted(zip(names, items.items, strict=True))],
    )


def _is_equal(answer: str, gold: str) -> bool:
    decision = compare(answer, gold)
    return isinstance(decision, Decision) and decision.is_correct


def _unfinished(answer: str, gold: str) -> bool:
    """Whether something is yet to be worked out in ``answer`` that is worked out in ``gold``.

    3 x 10^5 is a number; fractions, roots and powers stand for themselves.
    """
    has_variables = _VARIABLE.search(_readable(answer)) is not None
    open_ = _operations(answer, formal_only=has_variables) - _operations(gold, formal_only=False)
    if open_ or has_variables is False:
        return bool(open_)
    name, value = _named(gold)
    is_solved = (name is None or _NAME.fullmatch(name)) and not _VARIABLE.search(_readable(value))
    if not is_solved and not (_BOUND.search(gold) and _is_solved(gold)):
        return False
    return _RELATION.search(answer) is not None and not _is_solved(answer)


def _is_solved(relations: str) -> bool:
    """Whether there is nothing but a name on the sides of equations and inequalities that have a variable."""
    sides = [side.strip() for side in _RELATION.split(relations)]
    return all(_NAME.fullmatch(side) for side in sides if _VARIABLE.search(side))


def _operations(text: str, *, formal_only: bool) -> frozenset[str]:
    readable = _readable(text)
    names = _FORMAL if formal_only else _OPERATIONS
    return frozenset(name for name in names if _OPERATIONS[name].search(readable))


def _readable(text: str) -> str:
    return TEXT.sub(r" \1 ", _POWER_OF_TEN.sub("", _SPACING.sub("", text)))
