"""What has to be said to turn one environment into text."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from envs.any_text import clean

MAX_ACTION_CHARS = 64
"""A reply longer than this is no action: nothing longer is looked at."""
MAX_REPLY_CHARS = 4096
"""Where the reply itself is the action, the last so many characters of it are."""


class EnvError(ValueError):
    """An environment that cannot be made or put into words; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvWords:
    """The words of one environment, whose actions are words or whatever is replied."""

    rules: str
    """What the game is: the system message. Nothing that is to be learned by playing."""
    question: str
    """What is asked after each observation."""
    reply_prefix: str
    """What every reply begins with; the agent continues from here."""
    actions: tuple[str, ...]
    """The word of each action, in the order of the env's ``Discrete`` action space, lower case.

    Empty where the env takes text: the reply itself is the action."""
    describe: Callable[[object], str]
    """An observation of the env as a sentence."""
    advise: Callable[[str, str], str] | None
    """(observation sentence, action word) -> advice to do that there, worded like the observation.

    ``None`` where there is nothing to advise from outcomes, as with text for an action."""

    situation: Callable[[str], str] = str
    """What an observation sentence has in common with those that are to be treated alike, such as the bucket
    of a number; by default each is its own."""

    def parse(self, reply: str) -> str | None:
        """The action that ``reply`` is.

        Without action words, the end of the reply, which is where answers stand, free of control
        characters; it may be empty. Otherwise the one action word that the reply consists of, or ``None``.
        That is strict on purpose: the word alone, in any case, with or without the reply prefix, and no
        letters or digits beside it. Replies are a model's output and are only ever compared.
        """
        if not self.actions:
            return clean(reply.removeprefix(self.reply_prefix)[-MAX_REPLY_CHARS:]).strip()
        rest = reply.strip().removeprefix(self.reply_prefix)
        if len(rest) > MAX_ACTION_CHARS:
            return None
        word = re.fullmatch(r"[^\w]*(\w+)[^\w]*", rest)
        action = word[1].lower() if word else None
        return action if action in self.actions else None
