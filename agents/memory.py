"""What an agent remembers of its episode: the turns before the present one.

In its prompt they are a conversation (``agents/prompts.py``). What is learned where the past matters is about
all that was seen: the situations that are remembered and what was done in each, in one line.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pandas as pd

from envs.words import EnvWords

ALL_TURNS = sys.maxsize
THEN = " → "
"""Stands in what was seen between a situation, what was done there, and the next situation."""
MAX_TOLD_CHARS = 400
"""What advice tells of the past; the middle is left out."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Memory:
    """How far back it reaches."""

    turns: int = 0
    """How many turns before the present one."""

    def of(self, turns: Sequence[Item], left_out: int = 0) -> Sequence[Item]:
        """Those that are remembered after all ``turns`` so far, the oldest first, but for those left out."""
        return turns[self.reach(len(turns)) + left_out :]

    def reach(self, count: int) -> int:
        """The first of ``count`` turns that is remembered, if all fit."""
        return max(0, count - self.turns)

    def words(self, words: EnvWords) -> EnvWords:
        """The env's words, with advice about what was ``seen`` that names it."""
        advise = words.advise
        if not self.turns or advise is None:
            return words

        def remembering(seen: str, action: str) -> str:
            *past, now = seen.split(THEN)
            advice = advise(now, action)
            if not past:
                return advice
            told = " and ".join(dict.fromkeys(f'"{before.removesuffix(".")}"' for before in past[::2]))
            if len(told) > MAX_TOLD_CHARS:
                told = f"{told[: MAX_TOLD_CHARS // 2]} ... {told[-MAX_TOLD_CHARS // 2 :]}"
            return f"After {told}, {advice[:1].lower()}{advice[1:]}"

        return replace(words, advise=remembering)

    def seen(self, words: EnvWords, past: Iterable[tuple[str, str | None]], observation: str) -> str:
        """What insights are about: the present situation behind those before it and what was done there.

        Args:
            words: The env's.
            past: The observation of each turn that is remembered, and its action; what was none did nothing.
            observation: The present one.
        """
        before = [part for text, act in past if act is not None for part in (words.situation(text), act)]
        return THEN.join(part.replace(THEN, " -> ") for part in [*before, words.situation(observation)])

    def situations(self, turns: pd.DataFrame, words: EnvWords) -> pd.DataFrame:
        """``ExperienceStore.turns()``, with what was ``seen`` in place of each observation."""
        if not self.turns:
            return turns.assign(
                **{name: turns[name].map(words.situation) for name in ("observation", "next_observation")}
            )
        observations: list[str] = []
        following: list[str] = []
        for _, rows in turns.groupby("trace_id", sort=False):
            episode: list[Any] = list(rows.itertuples())
            acts = [(turn.observation, None if pd.isna(turn.action) else turn.action) for turn in episode]
            seen = [
                self.seen(words, self.of(acts[:number], turn.left_out), turn.observation)
                for number, turn in enumerate(episode)
            ]
            last = episode[-1]
            end = self.seen(words, self.of(acts, last.left_out), last.next_observation)
            observations += seen
            following += [*seen[1:], end]
        return turns.assign(observation=observations, next_observation=following)
