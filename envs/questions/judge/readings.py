"""What else a reply may mean: what is read in several ways is right if it is right in one of them."""

import re
from collections.abc import Iterator

from envs.questions.judge.number_words import in_digits

_LOUD = re.compile(
    r"(?<![\w/^*+!.-])(-?[0-9][0-9.,:/]*(?: ?(?:[%°]|[A-Za-z]{1,2}))?|[A-Za-z])!++"
    r"(?=[^\w\n.$\\(){}\[\]%°]*+(?:\n|$)|\s+[A-Z])"
)
"""A number or letter where a sentence may end: 42! may be a factorial, or said loudly."""
_SCALED = re.compile(r"(?<=[0-9])(k|K|M|B|bn)\b")
_SCALES = {"k": "thousand", "m": "million", "b": "billion"}
"""5M may be an amount, or have a unit or variable."""
_OUT_OF = re.compile(r"(?<![\w./])([0-9]{1,6}) (out of|in) ([0-9]{1,6})(?=\W*$)")
"""3 out of 4 may be the 3, or three quarters."""
_CHANCE = re.compile(r"\b(?:probability|chances?|odds|likelihood)\b", re.IGNORECASE)
_MODULO = re.compile(
    r"(?<![\w.,*/^+-])([0-9]{1,9})[ $]*"
    r"(?:\(\\?b?mod +([0-9]{1,9})\)|\\p?mod *(?:\{ *([0-9]{1,9}) *\}|([0-9]{1,9})))"
)
"""A remainder, and of what division."""
_ORDINAL = re.compile(r"(?<=[0-9])(?:st|nd|rd|th)\b")
MAX_SENTENCE = 400
"""Characters before a share in which it may be called a chance."""


def readings(reply: str, gold: str) -> Iterator[str]:
    """The reply, and the reply as it may be meant as well; where a number is asked for, in digits."""
    if re.search("[0-9]", gold):
        reply = in_digits(reply)
    yield reply
    others = (
        _MODULO.sub(_remainder, reply),
        _ORDINAL.sub("", reply),
        _OUT_OF.sub(_share, reply),
        _SCALED.sub(lambda scaled: f" {_SCALES[scaled[1][0].lower()]}", reply),
        _LOUD.sub(r"\1.", reply),
    )
    yield from (other for other in dict.fromkeys(others) if other != reply)


def _remainder(found: re.Match[str]) -> str:
    modulus = next(filter(None, found.groups()[1:]))
    return found[1] if int(found[1]) < int(modulus) else found[0]


def _share(found: re.Match[str]) -> str:
    is_share = found[2] == "out of" or _CHANCE.search(found.string, max(0, found.start() - MAX_SENTENCE))
    return f"{found[1]}/{found[3]}" if is_share and int(found[1]) <= int(found[3]) else found[0]
