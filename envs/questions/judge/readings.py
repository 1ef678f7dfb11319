"""What else a reply may mean: what is read in several ways is right if it is right in one of them."""

import re
from collections.abc import Iterator

_LOUD = re.compile(r"(?<=[\w%°])!++(?=[^\w\n.$\\(){}\[\]]*+(?:\n|$)|\s+[A-Z])")
"""Where a sentence may end: 42! may be a factorial, or said loudly."""
_SCALES = {"k": "thousand", "m": "million", "b": "billion"}
_SCALED = re.compile(r"(?<=[0-9])([kKMB])(?:n|M)?\b")
_OUT_OF = re.compile(r"(?<![\w.])([0-9]{1,6}) (?:out of|in) ([0-9]{1,6})(?=\W*$)")
"""3 out of 4 may be the 3, or three quarters."""
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_MODULO = re.compile(
    r"(?<=[0-9])[ $]*(?:\((?:mod|\\b?mod)\s*[0-9]{1,9}\)|\\p?mod\s*(?:\{\s*[0-9]{1,9}\s*\}|[0-9]{1,9}))"
)
"""Behind a remainder."""
_ORDINAL = re.compile(r"(?<=[0-9])(?:st|nd|rd|th)\b")
_SMALL = {
    **{name: number for number, name in enumerate(_ONES)},
    "none": 0,
    **{name: 10 * number for number, name in enumerate(_TENS, 2)},
}
_LARGE = {"hundred": 10**2, "thousand": 10**3, "million": 10**6}
_NAME = "|".join(sorted(_SMALL, key=len, reverse=True))
_NAMED = re.compile(
    rf"\b(?!none\b(?!\W*$| left| remain))(?!one\b(?!\W*$|[\s-]+(?:{'|'.join(_LARGE)})))(?:{_NAME})"
    rf"(?:(?:[\s-]|\sand\s)(?:{_NAME}|{'|'.join(_LARGE)})\b){{0,12}}+\b(?!-)",
    re.IGNORECASE,
)
"""A number in words; "one" and "none" may be no numbers where something follows."""
_A = re.compile(rf"\ban?(?= (?:dozen|{'|'.join(_LARGE)})\b)", re.IGNORECASE)
MAX_SENTENCE = 400


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
    digits = _NAMED.sub(lambda named: str(_number(named[0])), _A.sub("1", last))
    return reply.removesuffix(last) + digits


def _number(named: str) -> int:
    """What a number in words is: of "two hundred and five", 205."""
    total = current = 0
    for word in re.findall("[a-z]+", named.lower()):
        if word in _SMALL:
            current += _SMALL[word]
        elif word == "hundred":
            current *= 100
        elif word in _LARGE:
            total, current = total + current * _LARGE[word], 0
    return total + current
