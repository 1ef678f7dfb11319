"""The items of lists, sets, tuples and intervals."""

import re
from dataclasses import dataclass, replace

from envs.questions.judge.equations import named
from envs.questions.judge.notation import TEXT, depths, is_bracketed
from envs.questions.judge.typed import AND

MAX_ITEMS = 32
"""Of a list that is compared item by item."""
_BRACE = re.compile(r"\\(?:([{}])|(l|r)brace(?![A-Za-z]))")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])\s*")
_GROUP = re.compile(r"(?<=[0-9]),[0-9]{3}(?![0-9])")
"""Digits in a number, where commas between items have a space behind them."""


@dataclass(frozen=True, slots=True)
class Items:
    """The items between brackets."""

    brackets: str
    """The opening and the closing one; empty for a bare list."""
    items: list[str]

    @property
    def is_set(self) -> bool:
        """Whether their order says nothing."""
        return self.brackets in ("", "{}")


def items_of(text: str) -> Items | None:
    """The items of a list, a set, a tuple or an interval; ``None`` for anything else."""
    inner = text = _BRACE.sub(lambda brace: brace[1] or {"l": "{", "r": "}"}[brace[2]], text.strip())
    brackets = ""
    if is_bracketed(text):
        inner, brackets = text[1:-1], text[0] + text[-1]
    elif (wrapped := TEXT.fullmatch(text)) and AND.search(wrapped[1]):
        inner = wrapped[1]
    items = []
    for part in filter(None, map(str.strip, _split(AND.sub(", ", inner)))):
        signs = ("+", "-") if len(_PLUS_MINUS.findall(part)) == 1 else ("",)
        items += [_PLUS_MINUS.sub(sign, part).removeprefix("+").strip() for sign in signs]
    if len(items) > MAX_ITEMS or (len(items) < 2 and brackets != "{}"):
        return None
    return Items(brackets, items)


def ordered(items: Items, others: Items) -> Items:
    """By their names, where each has one of its own and the others are a tuple: of y = 7, x = 1, 1 and 7."""
    names = [named(item)[0] or "" for item in items.items]
    is_tuple = others.brackets.startswith("(") and not any(named(other)[0] for other in others.items)
    if not is_tuple or not all(re.fullmatch(r"[A-Za-z]", name) for name in names):
        return items
    if len(set(names)) < len(names):  # values of one, and no tuple
        return replace(items, brackets="{}")
    return Items("()", [item for _, item in sorted(zip(names, items.items, strict=True))])


def _split(text: str) -> list[str]:
    """At commas and semicolons that are in no bracket and in no number."""
    has_spaces = re.search(r",\s", text) is not None
    ends = [
        n
        for n, depth in enumerate(depths(text))
        if depth == 0
        and text[n] in ",;"
        and not (has_spaces and _GROUP.match(text, n))
        and text[n - 1 : n] != "\\"
    ]
    return [text[start:end] for start, end in zip((0, *(n + 1 for n in ends)), (*ends, None), strict=True)]
