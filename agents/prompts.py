"""How an observation, and what was learned about it, become a prompt.

Place and shape were measured with SmolLM2-135M (docs/earlier.md): the observation and the question
first, the experience after them in one short line, the reply begun. An agent that thinks sees its env's
examples first, each with its own experience where there is any: so it heeds what it is advised.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from agents.policies.policy import Message, Prompt
from envs.words import EnvWords
from experience.trace import Turn

Place = Literal["after", "before", "system", "chat"]

_SPEAKER = re.compile(r"^### (user|assistant)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the experience stands, and in what words."""

    place: Place = "after"
    """Behind the observation, before it, or behind the rules in the system message. With ``chat`` it may go
    on after that with example turns; see ``conversation``."""

    @property
    def is_beside(self) -> bool:
        """Whether it stands beside the observation, from which it then has to be told."""
        return self.place in ("after", "before")

    def wrap(self, experience: Sequence[str]) -> str:
        """One text as it is, several as a list."""
        label = ["Experience:"] if self.is_beside else []
        if len(experience) == 1:
            return " ".join([*label, *experience])
        return "\n".join([*label, *(f"- {item}" for item in experience)])


def build_prompt(
    words: EnvWords,
    observation: str,
    experience: Sequence[str] = (),
    layout: Layout | None = None,
    past: Sequence[Message] = (),
) -> Prompt:
    """The prompt for one decision.

    The texts of ``experience`` stand in it where the layout says, the most relevant first; without any it is
    the bare prompt. ``past`` are the turns that the agent remembers; see ``exchange``.
    """
    layout = layout or Layout()
    *said, asked = _said(words, observation)
    system = [words.rules]
    if said and said[0].role == "system":
        system.append(said.pop(0).content)
    turns: tuple[Message, ...] = ()
    if experience and not layout.is_beside:
        first = layout.wrap(experience)
        if layout.place == "chat":
            first, turns = conversation(first)
        system.append(first)
    beside = experience if layout.is_beside else ()
    now = Message(role="user", content=_told(asked.content, beside, layout))
    messages = (*_examples(words, bool(beside), layout), *turns, *past, *said, now)
    if rules := "\n".join(filter(None, system)):  # without any, the chat template may have some of its own
        messages = (Message(role="system", content=rules), *messages)
    return Prompt(messages=messages, reply_prefix=words.reply_prefix)


def exchange(words: EnvWords, turn: Turn) -> tuple[Message, Message]:
    """A turn as it is remembered: what was asked, without any experience, and the very reply."""
    return (
        Message(role="user", content=_said(words, turn.observation)[-1].content),
        Message(role="assistant", content=turn.reply, token_ids=tuple(turn.token_ids)),
    )


def _examples(words: EnvWords, with_advice: bool, layout: Layout) -> Iterator[Message]:
    """The env's examples as turns, for an agent that thinks."""
    for example in words.examples if words.thinks else ():
        advice: Sequence[str] = ()
        if with_advice and words.advise is not None:
            advice = (words.advise(words.situation(example.observation), example.action),)
        asked = _said(words, example.observation)[-1].content
        yield Message(role="user", content=_told(asked, advice, layout))
        yield Message(role="assistant", content=example.reply)


def _told(asked: str, experience: Sequence[str], layout: Layout) -> str:
    """A user's turn: what is seen and asked, and the experience beside it, if there is any."""
    if not experience:
        return asked
    told = [asked, layout.wrap(experience)]
    return "\n".join(reversed(told) if layout.place == "before" else told)


def _said(words: EnvWords, observation: str) -> list[Message]:
    """What is seen and asked; where the observation is a conversation, all of it, and that at last."""
    if words.chat is None:
        return [Message(role="user", content=f"{observation} {words.question}".strip())]
    return [Message(role=role, content=text) for role, text in words.chat(observation)]


def conversation(text: str) -> tuple[str, tuple[Message, ...]]:
    """A system prompt as a conversation: the system message, and the example turns that follow it.

    A line ``### user`` or ``### assistant`` begins a turn; without any, the text is the system message.

    Raises:
        ValueError: A turn is empty, or the turns are not user, assistant, user, assistant, ...
    """
    first, *rest = _SPEAKER.split(text)
    turns = [
        Message(role="user" if role == "user" else "assistant", content=content.strip())
        for role, content in zip(rest[::2], rest[1::2], strict=True)
    ]
    wanted = ["user", "assistant"] * (len(turns) // 2)
    if [turn.role for turn in turns] != wanted or not all(turn.content for turn in turns):
        raise ValueError("its example turns must be ### user, ### assistant, and so on, none of them empty")
    return first.strip(), tuple(turns)
