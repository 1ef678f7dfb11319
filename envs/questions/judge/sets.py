"""Sets of numbers by their name, a condition, two bounds, or brackets that are turned outward."""

import re

from envs.questions.judge.notation import GAP, SIZES, UPRIGHT, unstyled

_BUILDER = re.compile(
    rf"\\?\{{{GAP}*(?P<x>[a-z])\s*(?:\\in\s*\\mathbb\s*\{{?R\}}?\s*)?(?:\\,)?(?:\\(?:mid|vert)(?![A-Za-z])|\||:)"
    rf"(?=[^{{}}]*(?P=x))(?P<condition>[^{{}}]*[^{{}}\\\s]){GAP}*\\?\}}"
)
"""A set by what holds of each x in it."""
_ALL = re.compile(rf"^(?:{UPRIGHT}\s*(?:for )?all\s*\}}|(?:for )?all\b)\s*(?=[A-Za-z]\s*(?:\\[lgn]|[<>]))")
"""Before a bound."""
_SETS = {
    r"\mathbb{R}": re.compile(
        r"(?:the )?(?:set of )?(?:all )?real(?:s| numbers)|\\mathbb\s*\{?r\}?|"
        r"\(-\\infty\s*,\s*\+?\\infty\s*\)"
    ),
    r"\emptyset": re.compile(
        r"(?:there (?:is|are) )?no (?:real )?solutions?|(?:the )?empty set|"
        r"\\emptyset|\\varnothing|\\\{\s*\\\}"
    ),
}
"""Sets that have names."""
SIGN = r"(?:<=?|>=?|\\[lg](?:eq?|t)(?![A-Za-z]))"
"""Of an inequality."""
BOUND = re.compile(SIGN)
_BOTH = re.compile(
    rf"(?P<x>[a-z])\s*(?P<first>{SIGN})\s*(?P<a>[^<>=,]+?)\s*(?:{UPRIGHT}\s*and\s*\}}|\band\b|\\land(?![A-Za-z]))"
    rf"\s*(?P=x)\s*(?P<second>{SIGN})\s*(?P<b>[^<>=,]+)"
)
"""Two bounds of one."""
_BOUNDS = (("first", "a"), ("second", "b"))
_OUTWARD = re.compile(r"([\[\]])([^\[\](){}]*,[^\[\](){}]*)([\[\]])")
"""An interval by brackets that are turned away from what does not belong to it."""


def as_set(text: str) -> str:
    """A set of numbers as an interval, a condition or its name; anything else as it is."""
    text = _ALL.sub("", SIZES.sub("", text).strip())
    for name, others in _SETS.items():
        if others.fullmatch(unstyled(text).lower()):
            return name
    if built := _BUILDER.fullmatch(text):
        text = built["condition"].strip()
    if (interval := _OUTWARD.fullmatch(text)) and (text[0] == "]" or text[-1] == "["):
        opening, closing = "(" if interval[1] == "]" else "[", ")" if interval[3] == "[" else "]"
        return f"{opening}{interval[2]}{closing}"
    if both := _BOTH.fullmatch(text):
        bounds = {
            both[sign][0] == ">" or both[sign][1:2] == "g": (both[sign], both[b]) for sign, b in _BOUNDS
        }
        if len(bounds) == 2:
            (above, low), (below, high) = bounds[True], bounds[False]
            above = "<" if above in (">", r"\gt") else r"\le"
            return f"{low} {above} {both['x']} {below} {high}"
    return text


def is_range(text: str) -> bool:
    """Whether it is all that lies between two bounds."""
    return len(BOUND.findall(text)) == 2 or re.search(r"\\in\s*[(\[]", text) is not None
