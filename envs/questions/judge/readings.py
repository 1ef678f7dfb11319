"""What else a reply may mean: what is read in several ways is right if it is right in one of them."""

import re
from collections.abc import Iterator

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

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {name: n for n, name in enumerate(_ONES)} | {name: 10 * n for n, name in enumerate(_TENS, 2)}
_VALUES |= {"none": 0, "a": 1}
_LARGE = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6}
_ANY_LARGE = rf"(?:{'|'.join(_LARGE)})\b"
_UP_TO_99 = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{'|'.join(_ONES[1:10])})\b)?|(?:{'|'.join(_ONES)})\b)"
_NAME = (
    rf"\b(?:{_UP_TO_99}|a(?=\s{_ANY_LARGE}))(?:[\s-]{_ANY_LARGE}(?:\s(?:and\s)?{_UP_TO_99})?){{0,6}}(?![\w-])"
)
_PARTS = ("half", "third", "quarter", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_DENOMINATORS = dict(zip(_PARTS, (2, 3, 4, 4, 5, 6, 7, 8, 9, 10), strict=True)) | {"halve": 2}
_FRACTION = rf"(?P<top>{_UP_TO_99}|\ba)[\s-](?P<part>{'|'.join(_DENOMINATORS)})s?\b"
_VERB = (
    r"(?:\b(?:is|are|was|were|be|has|have|had|equals?|makes?|earns?|gives?|leaves?|gets?|costs?|takes?|answer:)"
    r"|'s)"
)
_SEVERAL = rf"{_NAME}(?:(?:,\s{_NAME})*,?\sand\s{_NAME})?"
_NO_UNIT = (
    rf"{_NAME}|\w+(?:th|ths|rds)\b|"
    r"(?:of|or|and|to|in|by|more|less|fewer|out|point|idea|clue|doubt|half|digit)\b"
)
_SAID = re.compile(
    rf"(?P<head>(?:[^.!?\n]*{_VERB}\s+(?:(?:exactly|only|just|minus|negative)\s+)?)?[*_\s]*)"
    rf"(?:{_FRACTION}|(?P<named>{_SEVERAL}|\bnone\b)(?P<half> and a half\b)?)(?P<tail>(?:\s(?!{_NO_UNIT})"
    r"[a-z][\w']*(?:\s(?:in|on|at|per|a|an|each|every|left|altogether|remaining)\b[^.,;:=?\n]*)?)?[^\w?]*)",
    re.IGNORECASE,
)
"""A sentence that says a number in words, behind a verb or alone, and at most of what."""
_DIGITS_OR_NAMES = re.compile(rf"[0-9]|{_NAME}", re.IGNORECASE)
MAX_SENTENCE = 400
"""Characters, from the end of a reply, in which numbers in words are looked for."""


def readings(reply: str, gold: str) -> Iterator[str]:
    """The reply, and the reply as it may be meant as well; where a number is asked for, in digits."""
    if re.search("[0-9]", gold):
        reply = _in_digits(reply)
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


def _in_digits(reply: str) -> str:
    """With the number that its last sentence says in words in digits, if it says no other."""
    *_, last = re.split(r"(?<=[.!?\n])(?=\s*\w)", reply[-MAX_SENTENCE:])
    said = _SAID.fullmatch(last)
    if said is None or _DIGITS_OR_NAMES.search(said["head"]):
        return reply
    if said["named"]:
        number = re.sub(_NAME, lambda named: str(_number(named[0])), said["named"], flags=re.IGNORECASE)
        number = number.lower().replace("none", "0") + (".5" if said["half"] else "")
    else:
        number = f"{_number(said['top'])}/{_DENOMINATORS[said['part'].lower()]}"
    return reply.removesuffix(last) + said["head"] + number + said["tail"]


def _number(named: str) -> int:
    """What a number in words is: of "two hundred and five", 205."""
    total = current = 0
    for word in re.findall("[a-z]+", named.lower()):
        current += _VALUES.get(word, 0)
        if word in ("dozen", "hundred"):
            current *= _LARGE[word]
        elif word in _LARGE:
            total, current = total + current * _LARGE[word], 0
    return total + current
