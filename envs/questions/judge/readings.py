"""What else a reply may mean: what is read in several ways is right if it is right in one of them."""

import re
from collections.abc import Iterator

from envs.questions.judge.notation import UPRIGHT
from envs.questions.judge.number_words import in_digits

_LOUD = re.compile(
    r"(?:(?<![\w/^*+!.-])(?<![0-9][,:])(?P<loud>-?[0-9][0-9.,:/]*(?: ?(?:[%°]|[A-Za-z]{1,2}))?|[A-Za-z])"
    r"|(?<=\$)|(?<=\*\*)|(?<=\\[)\]]))!++(?=[^\w\n.$\\(){}\[\]%°=/*+-]*+(?:\n|$)|\s+[A-Z])"
)
"""A number or letter where a sentence may end: 42! may be a factorial, or said loudly."""
_SCALED = re.compile(r"([$€£] ?[0-9][0-9,]*(?:\.[0-9]+)?|(?<![0-9.])[0-9]{1,9}\.[0-9]{1,9})(k|K|M|B|bn)\b")
_SCALES = {"k": "thousand", "m": "million", "b": "billion"}
"""$5M or 2.5k may be an amount, or have a unit or variable."""
_A_HALF = re.compile(
    r"(?<![\w.,/])([0-9]{1,6}) and a half\b(?! (?:of|is|was|were|to|as|price|the|more|remain))"
)
_PER = re.compile(
    rf"(?<=[0-9]) ?/ ?({UPRIGHT}\s*)?"
    r"(?=(?:second|sec|minute|min|hour|hr|day|night|week|month|year|person|student|child|kid|unit|item|piece|pack|"
    r"box|bag|bottle|ticket|book|page|game|lb|pound|oz|ounce|kg|kilogram|gram|gallon|gal|liter|litre|mile|km|"
    r"kilometer|meter|foot|yard)\b"
    r"(?! *\()(?![^\n]{0,200}"
    r"(?:[=*+\u00d7\u2192>]| [-x] |\\(?:times|cdot|to)|[0-9] ?/ ?(?:\\text\s*\{)?[a-z])))"
)
"""A rate: what follows says of what it is one, and not by what it is divided."""
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
        _SCALED.sub(lambda scaled: f"{scaled[1]} {_SCALES[scaled[2][0].lower()]}", reply),
        _A_HALF.sub(r"\1.5", reply),
        _PER.sub(lambda per: f" {per[1] or ''}per ", reply),
        _LOUD.sub(lambda said: f"{said['loud'] or ''}.", reply),
    )
    yield from (other for other in dict.fromkeys(others) if other != reply)


def _remainder(found: re.Match[str]) -> str:
    modulus = next(filter(None, found.groups()[1:]))
    return found[1] if int(found[1]) < int(modulus) else found[0]


def _share(found: re.Match[str]) -> str:
    *_, before = re.split(r"[.!?\n]", found.string[max(0, found.start() - MAX_SENTENCE) : found.start()])
    is_share = found[2] == "out of" or _CHANCE.search(before)
    return f"{found[1]}/{found[3]}" if is_share and int(found[1]) <= int(found[3]) else found[0]
