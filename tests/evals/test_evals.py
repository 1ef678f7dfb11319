from typing import Any

import pandas as pd
import pytest

from evals.baselines import Baselines
from evals.result import Comparison, EvalResult
from evals.stats import exact_paired_test, paired_difference_interval, wilson_interval
from experience.seeds import SeedRange, Split

TEST = SeedRange(split=Split.TEST, run_seed=0, start=0, size=200)
FEW = SeedRange(split=Split.VALIDATION, run_seed=0, start=0, size=4)
"""Where the lake is not slippery one tells as much as the next."""


def test_wilson() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998


def test_exact_paired_test() -> None:
    assert exact_paired_test(0, 0) == 1.0
    assert exact_paired_test(5, 0) == pytest.approx(2 * 0.5**5)
    assert exact_paired_test(3, 7) == exact_paired_test(7, 3) == pytest.approx(0.34375)


def test_paired_interval() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 2635), table III, method 10.
    assert paired_difference_interval(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=1e-4)
    assert paired_difference_interval(20, 12, 2, 16) == pytest.approx((0.0562, 0.3292), abs=1e-4)
    assert paired_difference_interval(0, 50, 0, 0)[0] > 0.85
    low, high = paired_difference_interval(0, 0, 0, 20)
    assert low < 0 < high


def frame(outcomes: dict[int, bool]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "seed": s,
                "success": won,
                "total_reward": float(won),
                "num_turns": 4,
                "invalid_replies": 1,
                "prompt_tokens": 80,
            }
            for s, won in outcomes.items()
        ]
    )


def test_results_and_comparison() -> None:
    before, after = frame({1: False, 4: False, 7: True}), frame({7: True, 1: True, 4: True})
    result = EvalResult.from_traces(after)
    assert (result.success_rate, result.successes, result.n) == (1.0, 3, 3)
    assert (result.invalid_rate, result.prompt_tokens_per_turn) == (0.25, 20.0)
    change = Comparison.of(after, before)
    assert change.difference == pytest.approx(2 / 3)
    assert change.p_value == 0.5
    assert change.ci_low < change.difference < change.ci_high
    with pytest.raises(ValueError, match="same seeds"):
        Comparison.of(after, frame({1: True}))


@pytest.mark.parametrize(("kwargs", "rate"), [({"is_slippery": False}, 1.0), ({}, 0.7442)])
def test_optimal(kwargs: dict[str, Any], rate: float) -> None:
    optimal = Baselines("FrozenLake-v1", kwargs).optimal()
    assert optimal is not None
    assert optimal.success_rate == pytest.approx(rate, abs=1e-4)
    assert optimal.n is None


def test_optimal_bounds_what_is_played() -> None:
    """The stationary optimal policy reaches nearly, and not more than, the computed optimum."""
    baselines = Baselines("FrozenLake-v1", {})
    moves = [0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0]
    env = baselines._env
    wins = 0
    for seed in SeedRange(split=Split.TEST, run_seed=1, start=0, size=1000):
        state, _ = env.reset(seed=seed)
        reward, over = 0.0, False
        while not over:
            state, step_reward, terminated, truncated, _ = env.step(moves[state])
            reward, over = float(step_reward), terminated or truncated
        wins += reward > 0
    low, high = wilson_interval(wins, 1000)
    assert low < 0.7442 < high + 0.01


def test_optimal_counts_success_before_return() -> None:
    """Where holes cost more than the goal brings, the largest return is had by never getting there."""
    kwargs = {"reward_schedule": (0.1, -1, 0), "max_episode_steps": 15}
    optimal, same = (
        Baselines("FrozenLake-v1", each).optimal() for each in (kwargs, {"max_episode_steps": 15})
    )
    assert optimal is not None
    assert same is not None
    assert optimal.success_rate == pytest.approx(same.success_rate) == pytest.approx(0.116, abs=1e-3)
    assert optimal.mean_return < 0


def test_no_optimal_arm_without_a_table_or_with_other_rewards() -> None:
    assert Baselines("CartPole-v1", {}).optimal() is None
    assert Baselines("FrozenLake-v1", {"reward_schedule": (1, 0, -0.001)}).optimal() is None


def test_blind_finds_the_path_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.baselines.MAX_PATTERNS", 512)  # as outside of tests
    result, sequence = Baselines("FrozenLake-v1", {"is_slippery": False}).blind([], FEW, TEST)
    assert result.success_rate == 1.0
    assert result.n == 200
    assert sequence


def test_blind_takes_candidates_into_account() -> None:
    # A path that no pattern of four actions repeats: around the left wall.
    desc = ["SHHHH", "FHHHH", "FHHHH", "FFFFH", "HHHFG"]
    path = ("down", "down", "down", "right", "right", "right", "down", "right")
    baselines = Baselines("FrozenLake-v1", {"desc": desc, "is_slippery": False})
    assert baselines.blind([], FEW, TEST)[0].success_rate == 0.0
    assert baselines.blind([path], FEW, TEST) == (
        EvalResult.from_episodes(successes=200, n=200, mean_return=1.0, endings={"terminated": 200}),
        path,
    )


def test_random_is_reproducible_and_poor() -> None:
    baselines = Baselines("FrozenLake-v1", {})
    first, second = (baselines.random(TEST) for _ in range(2))
    assert first == second
    assert first.success_rate < 0.1
    assert first.n == 200
