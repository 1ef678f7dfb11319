"""Which seeds a run plays: some to learn from, some to decide by, and some to be judged by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Self

import numpy as np

from agents.config import SelfImproveConfig
from envs.deadline import CLEANUP, EnvFault, TimeLimit, close_quietly, guarded
from envs.text_env import TextEnv
from envs.words import EnvError
from experience.seeds import STRIDE, SeedRange, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeeds:
    """The seeds of a run, by what they are for."""

    config: SelfImproveConfig
    problems: Mapping[Split, int] = field(default_factory=dict)
    """How many each split has, where they can be counted: none is played twice, as intervals are for
    episodes that differ."""

    @classmethod
    def of(cls, env: TextEnv, config: SelfImproveConfig) -> Self:
        """Those of an env, which is tried and closed: each split must have something to play.

        Raises:
            EnvError: One has nothing, or the env's ``part_sizes`` are no sizes. Any other error of a reset is
                that episode's.
        """
        for split in Split:
            [seed] = SeedRange(split=split, run_seed=config.seed, start=0, size=1)
            try:
                guarded(partial(env.reset, seed=seed), TimeLimit.of(config.env_timeout))
            except EnvFault as fault:
                if isinstance(fault.__cause__, EnvError):
                    raise fault.__cause__ from None
        problems = _problems(env)
        close_quietly(env)
        return cls(config=config, problems=problems)

    def train(self, round: int, wave: int, waves: int) -> SeedRange:
        """Of one of the ``waves`` of a round, which differ by one episode at most; no two share any."""
        size = self.config.episodes
        of_round = SeedRange(
            split=Split.TRAIN, run_seed=self.config.seed, start=(round - 1) * size, size=size
        )
        return of_round.part(wave, waves)

    @property
    def validation(self) -> SeedRange:
        """The same in every validation."""
        return self._held_out(Split.VALIDATION, self.config.validation_episodes)

    @property
    def gate(self) -> SeedRange:
        """Twice as many as of a validation: those that choose one of many do not decide about it."""
        return self._held_out(Split.VALIDATION, min(2 * self.config.validation_episodes, STRIDE))

    @property
    def test(self) -> SeedRange:
        """Used once, at the end."""
        return self._held_out(Split.TEST, self.config.test_episodes)

    def _held_out(self, split: Split, asked: int) -> SeedRange:
        size = min(asked, self.problems.get(split, asked))
        return SeedRange(split=split, run_seed=self.config.seed, start=0, size=size)

    def told(self) -> Iterator[str]:
        """What there is to say of splits in which each problem is played."""
        for split, asked in (
            (Split.VALIDATION, self.config.validation_episodes),
            (Split.TEST, self.config.test_episodes),
        ):
            if asked >= (size := self.problems.get(split, asked + 1)):
                yield f"{split}: each of {size} problems once"


def _problems(env: TextEnv) -> dict[Split, int]:
    """How many each split has, by the env's ``part_sizes``; nothing where it does not count them.

    Raises:
        EnvError: They are no sizes, or one split has nothing.
    """
    try:
        given = guarded(lambda: getattr(env.unwrapped, "part_sizes", None), CLEANUP)
    except EnvFault as fault:
        raise EnvError(f"the env's part_sizes cannot be read: {fault}") from fault
    if given is None:
        return {}
    sizes = given.tolist() if isinstance(given, np.ndarray) else given
    if (
        not isinstance(sizes, tuple | list)
        or len(sizes) != len(Split)
        or not all(isinstance(size, int | np.integer) for size in sizes)
    ):
        raise EnvError(
            f"the env's part_sizes must be {len(Split)} whole numbers, how many problems there are for "
            f"{', '.join(Split)}, not {sizes!r:.80}"
        )
    if empty := [split for split, size in zip(Split, sizes, strict=True) if size < 1]:
        raise EnvError(f"the env has no problem for {' and '.join(empty)}: its part_sizes are {sizes!r:.80}")
    return dict(zip(Split, map(int, sizes), strict=True))
