"""Envs whose episodes come in parts that share nothing: one to train on, others to test on."""

from typing import TypeVar

import gymnasium as gym

PARTS = 3
"""Seed s belongs to part s % 3; training, validation and test have one each (experience/seeds.py)."""

Obs = TypeVar("Obs")
Act = TypeVar("Act")


class PartedEnv(gym.Env[Obs, Act]):
    """An env whose seeds pose the episodes of their part in order: of part 0 seeds 0, 3, 6, ... do."""

    part = 0
    """The part of the last seed."""
    part_sizes: tuple[int, ...] | None = None
    """How many problems each part has, where they can be counted; after its last one a part begins again."""

    def draw_number(self, seed: int | None) -> int:
        """Reset the draws; which episode of its part is posed: without a seed any of the last seed's part."""
        super().reset(seed=seed)
        if seed is None:
            return int(self.np_random.integers(2**31))
        self.part = seed % PARTS
        return seed // PARTS
