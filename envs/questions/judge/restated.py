"""Numbers that are said once more: worked out, rounded, in percent, or in another unit."""

import re
from fractions import Fraction

from envs.questions.judge.clauses import HEDGES, has_prose, tidy
from envs.questions.judge.notation import TEXT
from envs.questions.judge.numbers import PlainNumber, compare_numbers, is_converted, plain_number

MAX_ARITHMETIC = 64
"""Characters of sums and products that are worked out: numbers may have exponents."""
_ABOUT = re.compile(r"^\s*(?:or\s+)?(?:about|approximately|approx\.?|roughly|around|nearly|\\approx|~)\s*")
_AGAIN = re.compile(r"\s+or\s+|\s*\(|\)")
_HEDGE = re.compile(rf"\s\((?:(?:{HEDGES}|if not|but|could be|might be)\b[\s,]*)+", re.IGNORECASE)
_TERMS = re.compile(r"([-+]?)\s*([^-+]+)")


def is_restated(first: str, other: str) -> bool:
    """Whether the other is the number of the first, said in another way."""
    number = plain_number(first)
    *_, result = other.split("=")
    rounded = _ABOUT.sub("", result)
    again = plain_number(tidy(rounded)) or _worked_out(result)
    if number is None or again is None:
        return False
    is_rate = "" != number.unit != again.unit and re.search(r"\bper\b", other)
    if compare_numbers(again, number) is None or is_rate or is_converted(again, number):
        return True
    value = again.value / 100 if again.is_percent and not number.is_percent else again.value
    return rounded != result and abs(value - number.value) <= abs(number.value) / 100


def said_once(answer: str) -> str:
    """The number of 1/4 (0.25), of 1/3 or 33.3%, and of about 8; any other answer as it is."""
    said, *others = _AGAIN.split(_ABOUT.sub("", TEXT.sub(r" \1 ", answer)))
    first = tidy(said)
    is_number = plain_number(first) and all(is_restated(first, other) for other in others if other.strip())
    return first if is_number else answer


def is_other(first: str, remark: str) -> bool:
    """Whether a remark in parentheses says another number than the first, as in 5 (or 6), 5 (6 + 7)."""
    inner = remark.strip(" ()")
    if not has_prose(inner) and re.match(r"\$?[-.0-9]", inner):
        return not is_restated(first, inner)
    if (hedge := _HEDGE.match(remark)) is None:
        return False
    hedged = remark[hedge.end() :].strip(" ,)")
    other, number = plain_number(hedged) or _worked_out(hedged), plain_number(first)
    return bool(other and number and other.unit == number.unit and compare_numbers(other, number))


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
