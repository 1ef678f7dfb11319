"""Agents that think aloud before they act: what they are told, and where in a reply their action stands."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from envs.actions import Action, Grammar
from envs.words import MAX_REPLY_CHARS, EnvError, EnvWords

Replies = Literal["act", "think"]
"""A reply is an action; or it thinks first, and ends with a line that names one."""

RULES = "Think in a few sentences. Then end with a line of this form:\nAction: ..."

_MARK = re.compile(r"\baction[\s*_`]{0,4}[:\uff1a]", re.IGNORECASE)
_BOX = re.compile(r"\\boxed\s{0,3}\{(?:\s{0,3}\\[a-z]{1,8}\s{0,3}\{)?([^{}]{0,200})\}")
_DENIED = re.compile(r"(?:\b(?:not|never|cannot|avoid)|n['\u2019]t)\b[^.,;:!?]*\Z", re.IGNORECASE)
_AROUND = " \t\r\n*_`$"
"""What may stand around an action: blanks, and what makes it bold, code or a formula."""
_TAG = re.compile("</?(?:answer|action|response)>", re.IGNORECASE)
"""In which many models put what they say after a thought."""
_FIRST_WORD = re.compile(r"(\w{1,40})[\s,:]{1,9}")
_LEADING = frozenset(
    ["i", "we", "will", "should", "would", "choose", "take", "move", "go", "step", "turn", "to", "towards",
     "toward", "the", "is", "action", "json"]
)  # fmt: skip
"""Words that may stand before an action, and say nothing against it."""
MAX_LEADING = 8


def thinking(words: EnvWords) -> EnvWords:
    """The words for an agent that thinks before it acts: its replies are not begun.

    Raises:
        EnvError: The action of one of their examples is not read in its reply.
    """
    thoughtful = replace(
        words,
        rules="\n".join(filter(None, [words.rules, RULES])),
        reply_prefix="",
        grammar=action_line(words.grammar, words.reply_prefix),
        thinks=True,
    )
    for example in words.examples:
        read = thoughtful.parse(example.reply)
        if read is None or read.text != example.action or example.action not in words.actions:
            raise EnvError(f"the example {example.reply!r:.200} is not read as the action {example.action!r}")
    return thoughtful


def action_line(grammar: Grammar, lead: str) -> Grammar:
    r"""Reads the action where ``parted`` finds it; without an ``Action:`` in the whole reply before that.

    ``grammar`` has to read it there as it stands, in a ``\boxed{}``, or behind words that only lead up to it:
    those of ``lead``, with which replies begin that only act, and some others.
    """
    leading = _LEADING.union(lead.lower().split())

    def read(reply: str) -> Action | None:
        reply = reply[-MAX_REPLY_CHARS:]
        _, named = parted(reply)
        texts = [reply, named]
        if mark := _MARK.match(named):
            named = named[mark.end() :].strip(_AROUND)
            texts = [named, named.partition("\n")[0]]
        readings = (reading for text in texts for reading in _readings(text, leading))
        return next((action for reading in readings if (action := grammar(reading)) is not None), None)

    return read


def parted(reply: str) -> tuple[str, str]:
    """What leads up to the action, and what names it, in what is said outside of thoughts.

    That is the last ``Action:`` that says something, or else the last line of more than a tag.
    """
    starts = [mark.start() for mark in _MARK.finditer(reply)]
    for start, end in reversed(list(pairwise([*starts, len(reply)]))):
        if re.search(r"\w", _MARK.sub("", reply[start:end])):
            return reply[:start], reply[start:end]
    reply = reply.rstrip()
    start = _TAG.sub(lambda tag: " " * len(tag[0]), reply).rstrip().rfind("\n") + 1
    return reply[:start], reply[start:]


def _readings(text: str, leading: frozenset[str]) -> Iterator[str]:
    """The text, without tags, what is boxed in it, and what is left of that behind its leading words."""
    yield text.strip(_AROUND)
    text = _TAG.sub(" ", text).strip(_AROUND)
    yield text
    if boxes := list(_BOX.finditer(text)):
        line = text.rfind("\n", 0, boxes[-1].start()) + 1
        named = {box[1].strip(_AROUND) for box in boxes if box.start() >= line}
        if len(named) > 1 or _DENIED.search(text, line, boxes[-1].start()):
            return
        text = named.pop()
        yield text
    for _ in range(MAX_LEADING):
        first = _FIRST_WORD.match(text)
        if first is None or first[1].lower() not in leading:
            return
        text = text[first.end() :]
        yield text
