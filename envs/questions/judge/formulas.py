"""The formula or number among the words of a clause."""

import re
from collections.abc import Sequence
from itertools import islice

from envs.questions.judge.clauses import GUARD, MATH_WORDS, NEGATION, has_prose, tidy
from envs.questions.judge.numbers import MAX_CHARS, NUMBER, SCALES, plain_number
from envs.questions.judge.restated import is_other, is_restated
from envs.questions.judge.units import UNITS, unit_of

MAX_FORMULAS = 32
"""Of a clause."""
FORMULA = re.compile(r"[0-9]|\\[A-Za-z]{2}")
"""What a formula has, or a number."""
_MATH = re.compile(
    r"(?<!\\)\$([^$]+)\$(?![0-9])|\\\(((?:[^\\]|\\(?![()]))+)\\\)|\\\[((?:[^\\]|\\(?![\[\]]))+)\\\]"
)
_PIECES = re.compile(r"((?<![\\A-Za-z])[^\W\d_]+(?:['-][^\W\d_]+)*)")
_WITHIN = re.compile(r"\s+(?!(?:long|wide|tall|high|deep|thick)\b)(?:\$?[0-9]|[A-Za-z]{1,})")
"""Behind an "in" that is no inch."""
_LOOSE_END = re.compile(r"\s\([^()]*$|[\s,]+(?:and|or)\s*$|^\s*(?:and|or)\s|^\s+[-:]\s+")
_REMARK = re.compile(
    r"\s\((?!mod)(?:[^()\\]*[A-Za-z]{3}|\s*(?:or|=|i\.e\.|\\approx)|\s*\$?[-.0-9])[^()\\]*\)"
)
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
_IN_TOTAL = re.compile(r"[0-9][^0-9]{0,40}\b(?:in total|in all|altogether)\b")
"""A sum, of which the parts may stand before."""
_BETWEEN = re.compile(r"[\s,;]*(?:(?:and|or)\b)?\s*|\s*\\approx\s*")
"""Between formulas that are one answer."""
_EQUALS = re.compile(r"(?<!or)\s(?:equals?|is equal to|is|makes|gives|=)\s")


def formula_in(said: str) -> str:
    """The formula or number that a clause gives, without the words around it; the clause if there is none.

    It is the first one, since explanations come after. Where the words make of it another number, as in "not
    42", "6 times 7" or "3 apples and 20 pears", it is the clause.
    """
    shorter = _REMARK.sub(_kept, said)
    said = shorter if re.search("[0-9]", shorter) else said
    if plain_number(said) or NEGATION.search(said) or _CASES.search(said):
        return said
    if total := _broken_down(said):
        return total
    _, *parts = re.split(r",\s+", said)
    if total := next((part for part in parts if _IN_TOTAL.search(part)), None):
        return formula_in(total)
    first, *others = re.split(r",?\s+or\s+", said)
    if others:
        number = tidy(formula_in(first))
        if _IN_TOTAL.search(first) or all(is_restated(number, other) for other in others):
            return number  # 42 minutes, or 0.7 hours
        is_number = plain_number(number) or re.match(r"\W*[0-9]", first)
        if is_number and all(re.match(r"\W*[0-9]", other) for other in others):
            return said
    if not has_prose(said):
        return said
    if GUARD.search(said):
        *before, result = _EQUALS.split(said)
        return formula_in(result) if before else said
    if typeset := [*islice(_MATH.finditer(said), MAX_FORMULAS)]:
        return _first_of(said, typeset)
    return _among_words(said)


def last_formula(text: str) -> str | None:
    """The last formula between dollars and the like, or number, whichever ends last."""
    text = _REMARK.sub(_kept, text)
    numbers = (number for number in NUMBER.finditer(text) if re.search("[0-9]", number[0]))
    last = max((*_MATH.finditer(text), *numbers), key=re.Match.end, default=None)
    if last is None:
        return None
    inner = [group for group in last.groups() if group] if last.re is _MATH else [last[0]]
    return inner[0]


def _among_words(said: str) -> str:
    """The first formula among words, with its unit."""
    formulas, between, at = [""], [""], 0
    for piece in _PIECES.split(said):
        is_unit = re.search(r"[0-9]\s$", formulas[-1]) and (
            piece in SCALES or unit_of(piece) in UNITS.values()
        )
        is_unit = is_unit and not (piece == "in" and _WITHIN.match(said, at + 2))
        is_letter = len(piece) == 1 and piece.isascii() and piece not in "aAI"
        at += len(piece)
        if _PIECES.fullmatch(piece) and not (piece.lower() in MATH_WORDS or is_unit or is_letter):
            between[-1] += f" {piece.lower()}"
        elif between[-1] and piece.strip():
            formulas.append(piece)
            between.append("")
        else:
            formulas[-1] += piece
    found = [n for n, formula in enumerate(formulas) if FORMULA.search(formula)]
    if not found:
        return said
    if len(found) > 1 and not formulas[found[1]].lstrip(" ,").startswith("("):
        behind = " ".join(between[found[0] : found[1]])
        if not _EXPLAINS & set(behind.split()) and not re.search(r"\bto [a-z]", behind):
            return said
    return tidy(_LOOSE_END.sub("", formulas[found[0]])) or said


def _first_of(said: str, formulas: Sequence[re.Match[str]]) -> str:
    """The first of the formulas between dollars, with those that belong to it; all if that cannot be told."""
    first = last = formulas[0]
    for formula in formulas[1:]:
        between = said[last.end() : formula.start()]
        if not _BETWEEN.fullmatch(between):
            words = between.lower().split()
            if words == ["of"] or not _EXPLAINS & set(words):
                return said
            break
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


def _kept(remark: re.Match[str]) -> str:
    """What is left of a remark in parentheses: all, if it says another number."""
    before = remark.string[: remark.start()].rpartition(")")[2][-MAX_CHARS:]
    return remark[0] if is_other(formula_in(before), remark[0]) else ""
