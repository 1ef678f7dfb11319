"""Numbers in words, where a sentence says one and no other."""

import re

_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUES = {name: n for n, name in enumerate(_ONES)} | {name: 10 * n for n, name in enumerate(_TENS, 2)}
_VALUES["a"] = 1
_LARGE = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6}
_ANY_LARGE = rf"(?:{'|'.join(_LARGE)})\b"
_UP_TO_99 = rf"(?:(?:{'|'.join(_TENS)})(?:[\s-](?:{'|'.join(_ONES[1:10])})\b)?|(?:{'|'.join(_ONES)})\b)"
_NAME = (
    rf"\b(?:{_UP_TO_99}|a(?=\s{_ANY_LARGE}))(?:[\s-]{_ANY_LARGE}(?:\s(?:and\s)?{_UP_TO_99})?){{0,6}}(?![\w-])"
)
_DENOMINATORS = {
    "half": 2, "halve": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
    "eighth": 8, "ninth": 9, "tenth": 10,
}  # fmt: skip
_FRACTION = (
    rf"(?P<top>{_UP_TO_99}|\ba(?=\s(?:half|third|quarter)\W*$))[\s-](?P<part>{'|'.join(_DENOMINATORS)})s?\b"
)
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
_ANSWER = re.compile(
    r"\s*(?:(?:so|thus|therefore|hence|actually|no|wait),?\s)?(?:the (?:\w+ )?answer|it)(?:'s| is)\s[*_\s]*",
    re.IGNORECASE,
)
"""Before an answer that counts more than numbers which were said before."""
MAX_SENTENCE = 400
"""Characters, from the end of a reply, in which numbers in words are looked for."""


def in_digits(reply: str) -> str:
    """With the number that its last sentence says in words in digits, if the reply says no other."""
    *_, last = re.split(r"(?<=[.!?\n])(?=\s*\w)", reply[-MAX_SENTENCE:])
    said = _SAID.fullmatch(last)
    if said is None or _DIGITS_OR_NAMES.search(said["head"]):
        return reply
    if re.search("[0-9]", reply.removesuffix(last)) and not _ANSWER.fullmatch(said["head"]):
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
