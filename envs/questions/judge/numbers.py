"""Answers that are plain numbers, with their units, compared exactly."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

from envs.questions.judge.notation import TEXT
from envs.questions.judge.units import UNITS, are_known, converted, unit_of

MAX_CHARS = 512
MAX_DIGITS = 400
"""Of one number."""

_DIGITS = r"(?:[0-9]{1,3}(?:(?:,|\{,\}|,?\\[!,]|~|\s)[0-9]{3})+(?![0-9])|[0-9]+)"
TEN = (
    r"[eE](?P<e>[-+]?[0-9]{1,3})|"
    r"\s*(?:\*|\\times|\\cdot|x)\s*10\s*(?:\^|\*\*)\s*[{(]?(?P<ten>[-+]?[0-9]{1,3})[})]?"
)
"""A power of ten behind a number."""
NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?:(?:\\?(?P<currency>[$€£¥₹₩₽])|(?:USD|EUR|GBP|INR)(?=\s*[0-9]))\s*)?(?P<minus>-?)(?:"
    rf"(?P<decimal>{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:(?<=[.0-9])\\(?:overline|bar|dot)\s*\{\s*(?P<repeating>[0-9]{1,40})\s*\})?"
    rf"(?:{TEN})?"
    r"(?:\s*/\s*(?P<over>[0-9]+)|\s+(?P<top>[0-9]+)\s*/\s*(?P<bottom>[0-9]+))?"
    r"|)"
    r"(?:\s*\\[dtc]?frac\s*(?:\{\s*(?P<num>-?[0-9]+)\s*\}\s*\{\s*(?P<den>[0-9]+)\s*\}|(?P<n>[0-9])(?P<d>[0-9])))?"
    r"(?:\s*(?P<percent>\\?%|per ?cent(?:age)?\b|pct\b))?"
)
_UNIT = re.compile(
    r"(?P<space>(?:\s|\\[ ,;!]|~)*)"
    r"(?P<unit>(?:\\(?=\$|(?:degree|Omega)\b))?[A-Za-z€£$][A-Za-z ./-]*(?:\^\s*\{?[23]\}?)?|"
    r"\^\s*\{?\\circ\}?(?:\s*[CF])?)?"
)
PRODUCT = re.compile(r"[b-df-hj-np-tv-z]{2,3}|ab")
"""Letters that are no word: xy."""
_LENGTHS = ("m", "km", "cm", "mm", "mi", "ft")
"""Of what a speed is: 5m/s may stand without a space, but s^2 may be a variable's square."""
_REMARK = re.compile(r"(?<=[0-9A-Za-z%}])\s+\(([A-Za-z][A-Za-z .]*)\)$")
"""Behind a number: (apples)."""
_SCALE = re.compile(r"(\^\s*\{?\\circ\}?)\s*[CF]$")
"""Of degrees."""
SCALES = {
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
_PARTS = re.compile(r"(?<=[A-Za-z.])\s*+,?\s*+(?:\band\b\s*+)?(?=[0-9])")
"""Between the parts of a measure: 5 hours and 30 minutes."""
MAX_PARTS = 4
FRACTIONS = (
    "half", "halves", "third", "thirds", "fourths", "quarter", "quarters", "fifths", "sixths", "sevenths",
    "eighths", "ninths", "tenths", "hundredths", "thousandths",
)  # fmt: skip
OPERATIONS = (
    "plus", "minus", "times", "modulo", "divided", "multiplied", "added", "subtracted", "squared", "cubed",
    "factorial", "choose",
)  # fmt: skip
"""Beside a number, which they make another one."""
NO_UNITS = frozenset({*FRACTIONS, *OPERATIONS}) | frozenset(
    re.findall(
        r"\w+",
        "pi or and to over by mod out of sqrt sin cos tan log ln exp inf e i x not but if then is are was "
        "incorrect wrong no more less fewer",
    )
)
NUMBER_WORDS = frozenset(SCALES) | frozenset(
    re.findall(
        r"\w+",
        "one two three four five six seven eight nine ten fifth percent least most",
    )
)


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """A number as it stands in an answer."""

    value: Fraction
    """As written: 50 for 50%."""
    is_percent: bool = False
    is_decimal: bool = False
    """Whether at least 6 decimals are given, so that it may stand for one with endless decimals."""
    unit: str = ""
    parts: tuple[str, ...] = ()
    """The units, from the largest on, where it was given in several."""


@lru_cache(maxsize=4096)
def plain_number(text: str) -> PlainNumber | None:
    """The number that ``text`` is, with or without a unit or in several; ``None`` for anything else."""
    return None if len(text) > MAX_CHARS else _plain(text) or _in_parts(text)


def _plain(text: str) -> PlainNumber | None:
    text = _SCALE.sub(r"\1", _REMARK.sub(r" \1", TEXT.sub(r" \1 ", text).strip()).strip())
    found = NUMBER.match(text)
    if found is None or re.search(f"[0-9]{{{MAX_DIGITS + 1}}}", text):
        return None
    part = found.groupdict()
    top, bottom = part["num"] or part["n"], part["den"] or part["d"]
    if part["decimal"] is None and top is None:
        return None
    try:
        value = Fraction(0)
        if part["decimal"] is not None:
            whole, point, decimals = re.sub(r"[^0-9.]", "", part["decimal"]).partition(".")
            value = Fraction(f"{whole or 0}.{decimals or 0}")
            if repeating := part["repeating"]:
                if not point:
                    return None
                value += Fraction(int(repeating), (10 ** len(repeating) - 1) * 10 ** len(decimals))
            value *= Fraction(10) ** int(part["e"] or part["ten"] or 0)
            value /= int(part["over"] or 1)
            value += Fraction(int(part["top"] or 0), int(part["bottom"] or 1))
        if top is not None:
            value += Fraction(int(top), int(bottom))
    except ZeroDivisionError:
        return None
    rest = _UNIT.fullmatch(text, found.end())
    if rest is None or (rest["unit"] and (part["decimal"] or "").endswith(".")):  # 3. Add them
        return None
    unit, spaced = unit_of(rest["unit"] or ""), bool(rest["space"])
    currency = UNITS.get(part["currency"] or "", "")
    if rest["unit"]:
        words = unit.split()
        is_known = unit in UNITS.values() or (unit.split("/")[0] in _LENGTHS and are_known(unit.split("/")))
        if not is_known and (not spaced or len(words) > 4 or NO_UNITS & set(words)):
            return None
        if words[0] in SCALES:
            value, unit = value * SCALES[words[0]], unit_of(" ".join(words[1:]))
        elif unit not in UNITS.values() and (len(unit) == 1 or PRODUCT.fullmatch(unit)):
            return None
    decimals = (part["decimal"] or "").partition(".")[2]
    return PlainNumber(
        value=-value if (part["sign"] == "-") != (part["minus"] == "-") else value,
        is_percent=part["percent"] is not None,
        is_decimal=len(decimals) >= 6 and not part["over"],
        unit=unit or currency,
    )


def _in_parts(text: str) -> PlainNumber | None:
    """The number that whole numbers of ever smaller units make, as in 5 feet 11 inches."""
    parts = [_plain(part) for part in _PARTS.split(text, maxsplit=MAX_PARTS)]
    if len(parts) < 2 or (first := parts[0]) is None:
        return None
    total = first.value
    for above, part in pairwise(parts):
        if above is None or part is None or min(above.value, part.value) < 0 or above.value.denominator > 1:
            return None
        share = converted(part.value, part.unit, above.unit)
        value = converted(part.value, part.unit, first.unit)
        if share is None or value is None or share >= 1:
            return None
        total += value
    return PlainNumber(total, unit=first.unit, parts=tuple(part.unit for part in parts if part))


def compare_numbers(answer: PlainNumber, gold: PlainNumber) -> str | None:
    """Why the two differ; ``None`` if they are equal.

    What has several units may be given as a number of any of them. A percentage may be given as a fraction of
    1, and its sign may be left out. A decimal with at least 6
    places may stand for a fraction with endless ones. A unit may be left out, or what it is per, but not be
    another one.
    """
    if answer.parts or gold.parts:
        units = [gold.unit] if answer.unit and gold.unit else answer.parts or gold.parts
        pairs = ((converted(n.value, n.unit or to, to) for n in (answer, gold)) for to in units)
        return None if any(a is not None and a == g for a, g in pairs) else "not equal"
    parts, gold_parts = answer.unit.split("/"), gold.unit.split("/")
    if are_known(parts + gold_parts) and any(a != g for a, g in zip(parts, gold_parts, strict=False)):
        return f"the unit is {answer.unit}, not {gold.unit}"
    readings = [(answer.value, gold.value)]
    if answer.is_percent and not gold.is_percent:
        readings.append((answer.value / 100, gold.value))
    if gold.is_percent and not answer.is_percent:
        readings.append((answer.value, gold.value / 100))
    rounded = (answer.is_decimal and _is_endless(gold.value)) or (
        gold.is_decimal and _is_endless(answer.value)
    )
    for a, g in readings:
        if a == g or (rounded and abs(a - g) < min(Fraction(1, 10**6), abs(g) / 10**4)):
            return None
    return "not equal"


def is_converted(number: PlainNumber, other: PlainNumber) -> bool:
    """Whether two numbers in different units come to the same, to a hundredth."""
    value = None if number.unit == other.unit else converted(number.value, number.unit, other.unit)
    return value is not None and abs(value - other.value) <= abs(other.value) / 100


def _is_endless(value: Fraction) -> bool:
    """Whether the number has infinitely many decimals."""
    return pow(10, value.denominator.bit_length(), value.denominator) != 0
