"""What else a reply may mean: what is read in several ways is right if it is right in one of them."""

import re
from collections.abc import Iterator

_LOUD = re.compile(r"(?<=[\w%°])!++(?=[^\w\n.$\\(){}\[\]]*+(?:\n|$)|\s+[A-Z])")
"""Where a sentence may end: 42! may be a factorial, or said loudly."""
_OUT_OF = re.compile(r"(?<![\w.])([0-9]{1,6}) (?:out of|in) ([0-9]{1,6})(?=\W*$)")
"""3 out of 4 may be the 3, or three quarters."""
_SCALED = re.compile(r"(?<=[0-9])([kmb])n?\b", re.IGNORECASE)
"""5M may be an amount, or have a unit or variable."""
_SCALES = {"k": "thousand", "m": "million", "b": "billion"}
_MODULO = re.compile(
    r"(?<=[0-9])[ $]*(?:\((?:mod|\\b?mod)\s*[0-9]{1,9}\)|\\p?mod\s*(?:\{\s*[0-9]{1,9}\s*\}|[0-9]{1,9}))"
)
"""Behind a remainder."""
_ORDINAL = re.compile(r"(?<=[0-9])(?:st|nd|rd|th)\b")

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {name: n for n, name in enumerate(_ONES)} | {name: 10 * n for n, name in enumerate(_TENS, 2)}
_LARGE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6}
_ANY_LARGE = "|".join(_LARGE)
_UP_TO_99 = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{'|'.join(_ONES[1:10])})\b)?|(?:{'|'.join(_ONES)})\b)"
_NAMED = re.compile(
    rf"\b(?!one\b(?!\W*$|[\s-](?:{_ANY_LARGE})\b)){_UP_TO_99}"
    rf"(?:[\s-](?:{_ANY_LARGE})\b(?:\s(?:and\s)?{_UP_TO_99})?){{0,6}}(?![\w-])",
    re.IGNORECASE,
)
"""A number in words; "one" may be no number where something follows, and a two-digit number is not 2."""
_NONE = re.compile(r"\bnone\b(?=\W*$| left| remain)", re.IGNORECASE)
_A = re.compile(rf"\ba(?= (?:dozen|{_ANY_LARGE})\b)", re.IGNORECASE)
MAX_SENTENCE = 400
"""Characters, from its end, in which numbers in words are looked for."""


def readings(reply: str) -> Iterator[str]:
    """The reply, and the reply as it may be meant as well."""
    yield reply
    others = (
        _MODULO.sub("", reply),
        _ORDINAL.sub("", reply),
        _OUT_OF.sub(r"\1/\2", reply),
        _SCALED.sub(lambda scaled: f" {_SCALES[scaled[1].lower()]}", reply),
        _LOUD.sub(".", reply),
        _LOUD.sub(".", _in_digits(reply)),
    )
    yield from (other for other in dict.fromkeys(others) if other != reply)


def _in_digits(reply: str) -> str:
    """With the numbers of its last sentence in digits, if all are in words."""
    *_, last = re.split(r"(?<=[.!?\n])(?=\s*\w)", reply[-MAX_SENTENCE:])
    if re.search("[0-9]", last):
        return reply
    digits = _NAMED.sub(lambda named: str(_number(named[0])), _A.sub("1", _NONE.sub("0", last)))
    return reply.removesuffix(last) + digits


def _number(named: str) -> int:
    """What a number in words is: of "two hundred and five", 205."""
    total = current = 0
    for word in re.findall("[a-z]+", named.lower()):
        current += _VALUES.get(word, 0)
        if word == "hundred":
            current *= 100
        elif word in _LARGE:
            total, current = total + current * _LARGE[word], 0
    return total + current
