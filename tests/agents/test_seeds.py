"""Which seeds a run plays in an env that counts its problems, and in one that does so wrongly."""

import sys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete

from agents.config import SelfImproveConfig
from agents.run.seeds import RunSeeds
from envs import EnvError, TextEnv
from experience.seeds import STRIDE, Split


class Counted(gym.Env[Any, Any]):
    """It has as many problems as it is told, and closes as it is told."""

    observation_space = action_space = Discrete(2)

    def __init__(self, sizes: Any, closes: Any = lambda: None) -> None:
        self.sizes, self.closes = sizes, closes

    @property
    def part_sizes(self) -> Any:
        return self.sizes() if callable(self.sizes) else self.sizes

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return 0, {}

    def close(self) -> None:
        self.closes()


def seeds(*args: Any) -> RunSeeds:
    return RunSeeds.of(TextEnv(Counted(*args)), SelfImproveConfig(validation_episodes=50, test_episodes=50))


def test_waves_make_up_a_round() -> None:
    """However many there are."""
    config = SelfImproveConfig(episodes=100, rounds=2, seed=3)
    played = [
        seed
        for round in (1, 2)
        for wave in range(24)
        for seed in RunSeeds(config=config).train(round, wave, 24)
    ]
    assert played == [3 * (3 * STRIDE + number) for number in range(200)]


@pytest.mark.parametrize(
    ("sizes", "held_out"),
    [
        (None, (50, 50)),
        ((9, 8, 7), (8, 7)),
        ([9, 8, 70], (8, 50)),
        (np.array([9, 8, 7]), (8, 7)),
        (tuple(np.array([9, 8, 7])), (8, 7)),
    ],
)
def test_no_more_is_held_out_than_there_is(sizes: Any, held_out: tuple[int, int]) -> None:
    found = seeds(sizes)
    assert (len(found.validation), len(found.test)) == held_out
    assert all(type(size) is int for size in found.problems.values())


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        *(
            (wrong, "must be 3 whole numbers, how many problems there are for train, validation, test, not")
            for wrong in [
                *((1, 2), (), 100, -1, 0, "100", (9, 8, "7"), (9, 8, 7.0), (9, 8, None), {1: 1, 2: 2, 3: 3}),
                *(np.array(3), np.array([1.0, 2.0, 3.0]), np.ones((3, 3), int)),
            ]
        ),
        ((9, 8, 0), r"has no problem for test: its part_sizes are \(9, 8, 0\)"),
        ((9, 0, 7), "has no problem for validation: "),
        ((0, -1, 7), "has no problem for train and validation: "),
        (lambda: sys.exit(0), "part_sizes cannot be read: SystemExit: 0"),
    ],
)
def test_what_is_no_count(sizes: Any, says: str) -> None:
    with pytest.raises(EnvError, match=says) as error:
        seeds(sizes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("closes", [lambda: sys.exit(0), lambda: 1 / 0])
def test_an_env_that_cannot_be_closed(closes: Any) -> None:
    assert seeds((9, 8, 7), closes).problems[Split.TEST] == 7
