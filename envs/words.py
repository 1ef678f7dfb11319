"""What has to be said to turn one environment into text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from envs.actions import Action, Grammar
from envs.any_text import MAX_CHARS
from envs.thoughts import outside_thoughts

Role = Literal["system", "user", "assistant"]
Options = dict[str, Any] | None
"""What Gymnasium lets a ``reset`` be given beside a seed; no env here makes use of any."""

MAX_REPLY_CHARS = 4096
"""How many of a reply's last characters an answer or an action is looked for in: that is where they stand."""


class EnvError(ValueError):
    """An environment that cannot be made or put into words; the message says what to do."""


def truth(value: Any, name: str) -> bool:
    """What an env says is so: a truth value or a number, alone or as an array of one.

    Raises:
        ValueError: It is neither true nor false, such as a text, an array of two, or NaN.
    """
    if type(value) is bool:
        return value
    array = np.asarray(value)
    item = array.item() if array.size == 1 else None
    if not isinstance(item, bool | int | float) or item != item:
        raise ValueError(f"{name} is {value!r:.80}, which is neither true nor false")
    return bool(item)


def number(reward: Any) -> float:
    """A reward: a number, alone or as an array of one.

    Raises:
        ValueError: It is no finite number.
    """
    try:
        value = reward if isinstance(reward, float | int) else np.asarray(reward).item()
        found = math.nan if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"the reward is {reward!r:.80}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Success:
    """What an episode has to reach, where the env does not say so itself in ``info["is_success"]``."""

    means: str
    """Completes "an episode succeeds when ...": the report states it."""
    reached: Callable[[float, bool], bool]
    """(the episode's return, whether it terminated) -> whether that is a success."""

    def of(self, info: dict[str, Any], total_reward: float, terminated: bool) -> bool:
        """Whether an episode with this last ``info``, return and end succeeded.

        Raises:
            ValueError: The info says what is neither true nor false.
        """
        declared = info.get("is_success")
        if declared is None:
            return bool(self.reached(total_reward, terminated))
        return truth(declared, 'info["is_success"]')


POSITIVE_RETURN = Success(means="its return is positive", reached=lambda total, _: total > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A whole reply of an agent that thinks before it acts, at a place that is not one of the env's."""

    observation: str
    """As ``EnvWords.describe`` would word it."""
    thought: str
    """What is said before the action; best in the words of the advice to take it."""
    action: str
    """One of the action words."""

    @property
    def reply(self) -> str:
        """The thought, then the action's line."""
        return f"{self.thought}\nAction: {self.action}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvWords:
    """The words of one environment."""

    rules: str
    """What the game is: the system message. Nothing that is to be learned by playing."""
    question: str = ""
    """What is asked after each observation."""
    reply_prefix: str = ""
    """What every reply begins with; the agent continues from here."""
    actions: tuple[str, ...] = ()
    """Every action's text, where they can be counted: in the order of a ``Discrete`` action space. Empty for
    others."""
    grammar: Grammar
    """What a reply, without its prefix, means."""
    describe: Callable[[Any], str] = str
    """An observation of the env as a sentence."""
    advise: Callable[[str, str], str] | None = None
    """(situation, action text) -> advice to do that there, worded like the observation.

    ``None`` where there is nothing to advise from outcomes, as with text for an action."""
    success: Success = POSITIVE_RETURN
    max_invalid_replies: int = 3
    """How many unreadable replies in a row end an episode; at least 1."""

    situation: Callable[[str], str] = str
    """What an observation sentence has in common with those that are to be treated alike, such as the bucket
    of a number; by default each is its own."""

    chat: Callable[[str], Sequence[tuple[Role, str]]] | None = None
    """Where an observation is a conversation: who says what in it, the user at last. Of an empty observation,
    a user who says nothing."""
    thinks: bool = False
    """Whether replies think before they name an action: one without any may have been cut off on its way."""
    examples: tuple[Example, ...] = ()
    """Shown as earlier turns to an agent that thinks. A small model keeps to the form of a reply only so, and
    heeds advice that it has seen heeded."""

    def advised(self, situation: str, advice: str) -> str | None:
        """The action that ``advice`` is about, if ``advise`` has worded it."""
        if self.advise is None:
            return None
        return next((action for action in self.actions if self.advise(situation, action) == advice), None)

    def parse(self, reply: str) -> Action | None:
        """The action that ``reply`` is, with or without the reply prefix; ``None`` if it is none.

        What is thought in it is no action. Replies are a model's output: they are compared and parsed, and
        never evaluated.
        """
        said = outside_thoughts(reply.strip().removeprefix(self.reply_prefix))
        if said is None:
            return None
        return self.grammar(said.strip().removeprefix(self.reply_prefix)[-MAX_CHARS:])
