"""What a model thinks aloud is not what it says: no answer, label, action or insight stands in it."""

import re

_MARKS = re.compile(
    r"""
    (?P<opens>
        <(?:[a-z]{1,20}[:_])?(?:think(?:ing)?|thoughts?|reasoning)(?:\s[^<>]{0,200})?(?<!/)>
      | \[think\] | ◁think▷ | <\|(?:begin_of_thought|start_thinking|thinking|inner_prefix)\|>
      | to=self<\|message\|>
      | <\|?channel\|?>\s{0,9}(?:analysis|thought)\b
    )
  | (?P<closes>
        </(?:[a-z]{1,20}[:_])?(?:think(?:ing)?|thoughts?|reasoning)\s{0,9}>
      | \[/think\] | ◁/think▷ | <\|(?:end_of_thought|end_thinking|/thinking|inner_suffix)\|> | <channel\|>
      | (?:<\|eom\|><\|start\|>assistant\s|assistant\s|)to=user<\|message\|>
      | <\|channel\|>\s{0,9}final\b(?:\s{0,9}<\|message\|>)?
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)

_ENDS = {"begin_of": "end_of", "start_": "end_", "START_": "END_", "prefix": "suffix", "<|": "<|/"}
"""Of special tokens: what the beginning of a thought has in its name, and its end in place of it."""
_CHANNEL = re.compile(r"<\|?(?:channel|message)\|?>")


def is_mark(token: str) -> bool:
    """Whether a token is a tag by which thoughts are known, or a part of one."""
    return bool(_MARKS.fullmatch(token) or _CHANNEL.fullmatch(token))


def begins_with_thought(text: str) -> bool:
    """Whether a thought is the first thing in ``text``."""
    first = _MARKS.match(text.lstrip())
    return first is not None and first["closes"] is None


def begins_thought(text: str) -> bool:
    """Whether a thought begins in ``text``, be it an empty one."""
    return any(mark["opens"] for mark in _MARKS.finditer(text))


def ends_thought(text: str) -> bool:
    """Whether a thought ends in ``text``, be it one that has begun before."""
    return any(mark["closes"] for mark in _MARKS.finditer(text))


def opened(text: str) -> re.Match[str] | None:
    """The mark of the thought that has not ended in ``text``."""
    mark = None
    for found in _MARKS.finditer(text):
        mark = None if found["closes"] else mark or found
    return mark


def end_of(mark: str) -> str:
    """What ends a thought that begins with ``mark``."""
    name, *_ = mark.split()
    if name.startswith("<|channel>"):
        return "<channel|>"
    for begins, ends in _ENDS.items():
        if begins in name:
            return name.replace(begins, ends)
    return f"{name[0]}/{name[1:].removesuffix('>')}>" if name[0] == "<" else f"{name[0]}/{name[1:]}"


def outside_thoughts(text: str) -> str | None:
    """What ``text`` says outside of thoughts; ``None`` if a thought never ends: then it has said nothing yet.

    See ``thought_and_said``.
    """
    return thought_and_said(text)[1]


def thought_and_said(text: str) -> tuple[str, str | None]:
    """What ``text`` thinks, and what it says; ``None`` if a thought never ends: then it has said nothing yet.

    A thought begins with a tag such as ``<think>`` and ends with the next one such as ``</think>``, even
    where it mentions a beginning on its way. Where an end has no beginning (a chat template may have written
    that) everything before it is a thought; so is what stands between the ends of nested ones. So the text
    has to be a whole reply.
    """
    thought: list[str] = []
    spoken: list[str] = []
    start, is_thinking = 0, False
    for mark in _MARKS.finditer(text):
        closes = bool(mark["closes"])
        if is_thinking and not closes:
            continue  # it mentions a beginning
        if closes and not is_thinking:
            thought += spoken
            spoken.clear()
        (thought if closes else spoken).append(text[start : mark.start()])
        start, is_thinking = mark.end(), not closes
    (thought if is_thinking else spoken).append(text[start:])
    return " ".join(filter(None, thought)), None if is_thinking else " ".join(filter(None, spoken))
