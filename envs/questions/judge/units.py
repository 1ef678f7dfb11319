"""Units and what they measure, each under one name."""

import re
from fractions import Fraction

_MEASURES = (
    {"mm millimeter millimetre": "0.1", "cm centimeter centimetre": "1", "m meter metre": "100",
     "km kilometer kilometre": "100000", "in inch inche": "2.54", "ft foot feet": "30.48", "yd yard": "91.44",
     "mi mile": "160934.4"},
    {"mg milligram": "0.001", "g gram": "1", "kg kilogram": "1000", "lb pound": "453.59237",
     "oz ounce": "28.349523125"},
    {"ms millisecond": "0.001", "s sec second": "1", "min minute": "60", "h hr hour": "3600", "day": "86400",
     "week": "604800"},
    {"month": "1", "year": "12"},
    {"ml milliliter millilitre": "1", "l liter litre": "1000"},
    {"degree ^\\circ deg": "1", "rad radian": "57.29578"},
    {"cent": "1", "$ dollar usd buck": "100"},
    {"km/h kph": "1", "mi/h mph": "1.609344"},
    {"€ euro eur": "1"}, {"¥ yen": "1"}, {"am a.m": "1"}, {"pm p.m": "1"},
)  # fmt: skip
"""What is measured: the names of its units, the one that stands for them first, and their sizes."""
UNITS = {name: names.split()[0] for measure in _MEASURES for names in measure for name in names.split()}
"""Name of a unit, without the s of many -> its one name."""
_SIZES = {
    names.split()[0]: (measure, Fraction(size))
    for measure, units in enumerate(_MEASURES)
    for names, size in units.items()
}
_KNOWN = frozenset(part for unit in UNITS.values() for part in unit.split("/"))
_POWERS = {"square ": "^2", "sq ": "^2", "cubic ": "^3", "cu ": "^3"}


def unit_of(text: str) -> str:
    """A unit's one name, such as $, cm^2 or km/h, if it is a known one; otherwise the words in lower case."""
    unit = re.sub(r"[\s{}]+", " ", text).strip(" .").replace("^ ", "^")
    if unit and unit not in UNITS and "\\" not in unit:
        parts = [_part_of_unit(part.strip()) for part in re.split(r"/|\bper\b", unit)]
        return "/".join(parts) if are_known(parts) else unit.lower()
    return _part_of_unit(unit)


def are_known(parts: list[str]) -> bool:
    """Whether all are units with names here, raised to a power or not."""
    return all(re.sub(r"\^[23]$", "", part) in _KNOWN for part in parts)


def converted(value: Fraction, unit: str, to: str) -> Fraction | None:
    """How much ``value`` is in another unit; ``None`` if that measures something else."""
    (measure, size), (other, to_size) = (_SIZES.get(name, (None, Fraction(1))) for name in (unit, to))
    return None if measure is None or measure != other else value * size / to_size


def _part_of_unit(unit: str) -> str:
    """What is raised to a power, or is not."""
    for word, power in _POWERS.items():
        if unit.lower().replace(". ", " ").startswith(word):
            return _part_of_unit(unit[len(word) :].strip(" .")) + power
    base, raised, power = (part.strip() for part in unit.partition("^"))
    if base and raised:
        return _part_of_unit(base) + raised + power
    for name in (unit, unit.lower(), unit.lower().removesuffix("s")):
        if name in UNITS:
            return UNITS[name]
    return unit.lower()
