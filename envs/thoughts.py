"""What a model thinks aloud is not what it says: no answer, label, action or insight stands in it."""

import re

_MARKS = re.compile(
    r"""
    (?P<opens>
        <(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning)(?:\s[^<>]{0,200})?(?<!/)>
      | \[think\] | ◁think▷ | <\|(?:begin_of_thought|start_thinking|inner_prefix)\|>
      | <\|?channel\|?>\s{0,9}(?:analysis|thought)\b
    )
  | (?P<closes>
        </(?:seed:)?(?:think(?:ing)?|thoughts?|reasoning)\s{0,9}>
      | \[/think\] | ◁/think▷ | <\|(?:end_of_thought|end_thinking|inner_suffix)\|> | <channel\|>
      | <\|channel\|>\s{0,9}final\b(?:\s{0,9}<\|message\|>)?
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)

_CHANNEL = re.compile(r"<\|?(?:channel|message)\|?>")


def is_mark(token: str) -> bool:
    """Whether a token is a tag by which thoughts are known, or a part of one."""
    return bool(_MARKS.fullmatch(token) or _CHANNEL.fullmatch(token))


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
