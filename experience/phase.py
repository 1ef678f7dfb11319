"""The parts of a run: what traces, scores and metrics belong to."""

import math
import re
from dataclasses import dataclass
from typing import Self

from experience import damaged_store

_TEXT = re.compile(
    r"(?:round(?P<round>\d{1,9})/)?(?P<kind>[a-z]+(?:-[a-z]+)*)"
    r"(?:(?P<number>\d{1,9})|/(?P<name>[^@\s]+))?(?:@(?P<temperature>[^@/\s]+))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One part of a run. It is known by its text, which only this class makes and takes apart.

    The text is part of every trace's id and of every seed that is drawn by, so it stays as it is.
    """

    kind: str
    """What is done in it, in lower case: ``play``, ``gate``, ``validation``, ``test``, ``step``, ..."""
    round: int | None = None
    """Of the loop, from 1; ``None`` where it belongs to no single round."""
    index: int | str | None = None
    """Which of its kind: a number (a wave, an optimiser step), or a name (an arm, a context)."""
    temperature: float | None = None
    """At which replies are drawn, where the same is played at several."""

    @classmethod
    def play(cls, round: int, wave: int) -> Self:
        """A part of a round's train episodes."""
        return cls(kind="play", round=round, index=wave)

    @classmethod
    def validation(cls, step: int, temperature: float | None = None) -> Self:
        """The bare agent on validation episodes, after an optimiser step."""
        return cls(kind="validation", index=step, temperature=temperature)

    @classmethod
    def test(cls, arm: str, temperature: float) -> Self:
        """An arm on the test episodes."""
        return cls(kind="test", index=arm, temperature=temperature)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The phase whose text this is.

        Raises:
            ValueError: It is none's.
        """
        found = _TEXT.fullmatch(text)
        if found is None or (found["kind"] in ("validation", "step") and found["number"] is None):
            raise ValueError(f"{text!r:.80} is not a phase of a run")
        try:
            temperature = None if found["temperature"] is None else float(found["temperature"])
        except ValueError:
            temperature = math.nan
        if temperature is not None and not 0 <= temperature < math.inf:
            raise ValueError(f"{text!r:.80} is not a phase of a run")
        index = found["name"] if found["number"] is None else int(found["number"])
        return cls(
            kind=found["kind"],
            round=None if found["round"] is None else int(found["round"]),
            index=index,
            temperature=temperature,
        )

    @classmethod
    def stored(cls, text: object) -> Self:
        """``parse``, of what a run's store holds.

        Raises:
            ExperienceError: It is none's.
        """
        try:
            return cls.parse(str(text))
        except ValueError as error:
            raise damaged_store(str(error)) from error

    @property
    def is_trained(self) -> bool:
        """Whether what it comes to depends on the training, in a run of one round."""
        if self.kind == "test":
            return str(self.index).startswith("after")
        return self.kind in ("step", "stop", "final") or (self.kind == "validation" and self.index != 0)

    def __str__(self) -> str:
        """Such as ``round1/play0``, ``gate/none``, ``validation30@0.7`` or ``test/after@0``."""
        round = "" if self.round is None else f"round{self.round}/"
        index = "" if self.index is None else f"/{self.index}" if isinstance(self.index, str) else self.index
        temperature = "" if self.temperature is None else f"@{self.temperature:g}"
        return f"{round}{self.kind}{index}{temperature}"
