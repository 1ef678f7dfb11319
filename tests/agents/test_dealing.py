import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.dealing import deal, shares, spread, steps_for
from agents.moments import Moment

MOMENTS = {
    "up": [Moment(observation=f"hill {i}", advice=("up",)) for i in range(9)],
    "down": [Moment(observation="top", advice=("down",))],
}


def names(distances: dict[str, float], step: int = 1, **more: Any) -> Counter[str]:
    settings = {"size": 8, "seed": 0, **more}
    return Counter(dealt.name for dealt in deal(MOMENTS, distances, step, **settings))


def test_steps_are_by_what_there_is_to_learn() -> None:
    assert [steps_for(insights, None) for insights in (0, 11, 37, 62, 103, 200, 1e6)] == [
        30,
        30,
        30,
        50,
        82,
        120,
        120,
    ]
    assert steps_for(103, 7) == 7
    assert steps_for(103, 0) == 0


def test_each_advised_action_as_often_however_few_its_moments() -> None:
    dealt = names({})
    assert dealt["down/0"] == 4
    assert sum(dealt.values()) == 8
    assert max(count for name, count in dealt.items() if name != "down/0") == 1


def test_the_furthest_moments_come_first_and_the_others_are_not_forgotten() -> None:
    distances = {f"up/{i}": 5.0 if i < 3 else 0.01 for i in range(9)}
    total: Counter[str] = Counter()
    for step in range(300):
        total += names(distances, step)
    assert min(total[f"up/{i}"] for i in range(3)) > 290
    assert all(10 < total[f"up/{i}"] < 90 for i in range(3, 9))


def test_what_was_not_asked_about_yet_counts_as_far() -> None:
    total: Counter[str] = Counter()
    for step in range(100):
        total += names({f"up/{i}": 0.01 if i else 4.0 for i in range(8)}, step)
    assert total["up/8"] > 90
    assert total["up/0"] > 90


def test_a_step_is_dealt_the_same_by_its_number_and_what_is_known() -> None:
    distances = {"up/3": 2.0}
    assert deal(MOMENTS, distances, 5, size=8, seed=1) == deal(MOMENTS, distances, 5, size=8, seed=1)
    assert deal(MOMENTS, distances, 5, size=8, seed=1) != deal(MOMENTS, distances, 6, size=8, seed=1)


@given(st.lists(st.none() | st.floats(0, 1e6), min_size=1, max_size=20), st.integers(0, 100), st.integers())
def test_a_spread_has_its_size_and_repeats_nothing_before_all_are_in(
    distances: list[float | None], size: int, seed: int
) -> None:
    places = spread(distances, size, random.Random(seed))
    counts = Counter(places)
    assert len(places) == size
    assert max(counts.values(), default=0) - min(counts.get(i, 0) for i in range(len(distances))) <= 1


@given(st.lists(st.none() | st.floats(-1, 1), min_size=2, max_size=9), st.integers())
def test_a_kl_below_0_is_none(distances: list[float | None], seed: int) -> None:
    """The truncated one may be: what leaks is not what is furthest from the teacher."""
    cut = [d and max(d, 0.0) for d in distances]
    assert spread(distances, 1, random.Random(seed)) == spread(cut, 1, random.Random(seed))


@given(st.integers(1, 20), st.integers(1, 200), st.integers())
def test_shares_are_exact_but_for_rounding(count: int, size: int, seed: int) -> None:
    parts = shares(count, size, random.Random(seed))
    assert (len(parts), sum(parts)) == (count, size)
    assert all(abs(part - size / count) < 1 + 1e-9 for part in parts)


def test_shares_are_exact_on_average() -> None:
    generator = random.Random(0)
    totals = [sum(column) for column in zip(*(shares(3, 5, generator) for _ in range(6000)), strict=True)]
    assert totals == pytest.approx([10000] * 3, rel=0.05)
