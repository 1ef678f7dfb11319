"""How an observation, and what was learned about it, become a prompt.

Place and shape were measured with SmolLM2-135M (docs/LOG.md): the observation and the question
first, the experience after them in one short line, the reply begun.
"""

from collections.abc import Sequence

from agents.policy import Message, Prompt
from envs.words import EnvWords


def build_prompt(words: EnvWords, observation: str, experience: Sequence[str] = ()) -> Prompt:
    """The prompt for one decision.

    Args:
        words: The env's.
        observation: What the agent sees now.
        experience: Texts of the insights to show, the most relevant first; none for the bare prompt.
    """
    lines = [f"{observation} {words.question}"]
    if len(experience) == 1:
        lines.append(f"Experience: {experience[0]}")
    elif experience:
        lines += ["Experience:", *(f"- {item}" for item in experience)]
    return Prompt(
        messages=(
            Message(role="system", content=words.rules),
            Message(role="user", content="\n".join(lines)),
        ),
        reply_prefix=words.reply_prefix,
    )
