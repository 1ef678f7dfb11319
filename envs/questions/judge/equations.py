"""The sides of equations and inequalities, and what of them is a name."""

import re

from envs.questions.judge.notation import GAP, is_bracketed
from envs.questions.judge.numbers import PlainNumber, compare_numbers, plain_number
from envs.questions.judge.sets import SIGN
from envs.questions.judge.typed import AND

NAME = re.compile(
    r"\(?\s*\\?[A-Za-z][A-Za-z ]*(?:_\{?\w+\}?)?'?(?:\([\w, ]*\))?"
    r"(?:\s*,\s*[A-Za-z](?:_\{?\w+\}?)?)*\s*\)?\s*"
)
_POINT = re.compile(rf"\s*([A-Z]'?)(?:{GAP}|:)*(?=\([^()]*,)")
"""Before its coordinates."""
_EQUALS = re.compile(r"(?<![<>!\\:])=(?!=)|\\in(?![A-Za-z])|:=")
_TWO_EQUATIONS = re.compile(rf"=[^=]*[0-9}}]{GAP}+\\?[A-Za-z]\w*\s*=")
_SEPARATOR = re.compile(rf"{AND.pattern}|(?<!\\)[,;<>]")
RELATION = re.compile(rf"=|{SIGN}|\\(?:ne|neq|in|approx|equiv)(?![A-Za-z])")
_BOUNDS = re.compile(r"_\s*\{[^{}]*\}")
_HIDDEN = "\x00"


def sides(text: str) -> list[str]:
    """What is said to be equal."""
    return [side.replace(_HIDDEN, "=") for side in _EQUALS.split(_without_bounds(text))]


def are_two(text: str) -> bool:
    """Whether it has equations beside each other."""
    return _TWO_EQUATIONS.search(_without_bounds(text)) is not None


def disagree(side: PlainNumber, other: PlainNumber) -> bool:
    """Whether the sides of an equation are two numbers; not if one is rounded, or is in another unit."""
    if compare_numbers(side, other) is None or "" != side.unit != other.unit != "":
        return False
    is_whole = side.value.denominator == other.value.denominator == 1
    return is_whole or abs(side.value - other.value) > abs(other.value) / 100


def values(answer: str, gold: str) -> tuple[str, str]:
    """Both without what they set equal to it, where that is no part of the answer."""
    name, value = named(answer)
    gold_name, gold_value = named(gold)
    names = {"".join(text.split()).casefold() for text in (name, gold_name) if text is not None}
    is_part = len(names) > 1 or (gold_name is not None and not NAME.fullmatch(gold_name))
    return (answer, gold) if is_part else (value, gold_value)


def named(text: str) -> tuple[str | None, str]:
    """What stands left of the last equals sign, and what right of it; the sign may be a membership, too."""
    if (point := _POINT.match(text)) and is_bracketed(text[point.end() :].rstrip()):
        return point[1], text[point.end() :]
    *_, equals = (None, *_EQUALS.finditer(text))
    if equals is None:
        return None, text
    name, value = text[: equals.start()].strip(), text[equals.end() :].strip()
    # In "x = 1, y = 2" and 3 < x = y there is no name.
    is_several = RELATION.search(value) or is_list(name) or _TWO_EQUATIONS.search(text)
    if not value or (is_several and not NAME.fullmatch(name)):
        return None, text
    if NAME.fullmatch(value) and plain_number(name):  # 2 = x
        return value, name
    return name, value


def is_list(text: str) -> bool:
    """Whether it may be several answers."""
    return plain_number(text) is None and _SEPARATOR.search(text) is not None


def _without_bounds(text: str) -> str:
    """The text with the equals signs of a sum's bounds hidden."""
    return _BOUNDS.sub(lambda bounds: bounds[0].replace("=", _HIDDEN), text)
