"""What has to be said to turn one environment into text."""

import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_ACTION_CHARS = 64
"""A reply longer than this is no action: nothing longer is looked at."""


class EnvError(ValueError):
    """An environment that cannot be made or put into words; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvWords:
    """The words of one environment with discrete actions."""

    rules: str
    """What the game is: the system message. Nothing that is to be learned by playing."""
    question: str
    """What is asked after each observation."""
    reply_prefix: str
    """What every reply begins with; the agent continues from here."""
    actions: tuple[str, ...]
    """The word of each action, in the order of the env's ``Discrete`` action space, lower case."""
    describe: Callable[[object], str]
    """An observation of the env as a sentence."""
    advise: Callable[[str, str], str]
    """(observation sentence, action word) -> advice to do that there, worded like the observation."""

    def parse(self, reply: str) -> str | None:
        """The one action word that ``reply`` consists of, or ``None``.

        Strict on purpose: the word alone, in any case, with or without the reply prefix, and no
        letters or digits beside it. Replies are a model's output and are only ever compared.
        """
        rest = reply.strip().removeprefix(self.reply_prefix)
        if len(rest) > MAX_ACTION_CHARS:
            return None
        word = re.fullmatch(r"[^\w]*(\w+)[^\w]*", rest)
        action = word[1].lower() if word else None
        return action if action in self.actions else None
