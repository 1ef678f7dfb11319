"""How an observation, and what was learned about it, become a prompt.

Place and shape were measured with SmolLM2-135M (docs/LOG.md): the observation and the question
first, the experience after them in one short line, the reply begun.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agents.policy import Message, Prompt
from envs.words import EnvWords

Place = Literal["after", "before", "system"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the experience stands, and in what words."""

    place: Place = "after"
    """Behind the observation, before it, or behind the rules in the system message."""
    wrapper: str = "Experience: {}"
    """What stands around it; ``{}`` is the experience."""

    def __post_init__(self) -> None:
        if self.wrapper.count("{}") != 1:
            raise ValueError(f"the wrapper must hold {{}} once, for the experience, not {self.wrapper!r}")

    def wrap(self, experience: Sequence[str]) -> str:
        """One text as it is, several as a list."""
        before, after = self.wrapper.split("{}")
        if len(experience) == 1:
            return before + experience[0] + after
        return "\n".join([before.rstrip(), *(f"- {item}" for item in experience)]).lstrip("\n") + after


def build_prompt(
    words: EnvWords, observation: str, experience: Sequence[str] = (), layout: Layout | None = None
) -> Prompt:
    """The prompt for one decision.

    Args:
        words: The env's.
        observation: What the agent sees now.
        experience: Texts of the insights to show, the most relevant first; none for the bare prompt.
        layout: Where they stand.
    """
    layout = layout or Layout()
    system, user = [words.rules], [f"{observation} {words.question}".strip()]
    if experience:
        wrapped = layout.wrap(experience)
        if layout.place == "before":
            user.insert(0, wrapped)
        else:
            (user if layout.place == "after" else system).append(wrapped)
    return Prompt(
        messages=(
            Message(role="system", content="\n".join(system)),
            Message(role="user", content="\n".join(user)),
        ),
        reply_prefix=words.reply_prefix,
    )
