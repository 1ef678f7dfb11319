"""Which moments an optimiser step asks about: dealt by the step's number alone, whatever came before."""

import random
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TypeVar

from agents.moments import Moment, Moments
from agents.rollout import turn_seed

Item = TypeVar("Item")


def deal(moments: Moments, step: int, *, size: int, power: float, seed: int) -> list[tuple[Moment, int]]:
    """Moments, each with the seed of the answer there; equal ones side by side.

    As much for each action that is advised, by default: a student that is nearly always advised the same
    learns to do that everywhere, and a reverse KL hardly lets it go again (docs/tried.md).

    Args:
        moments: Of which to ask.
        step: The optimiser step's number.
        size: How many are asked.
        power: An action that is advised at n of them gets a share in proportion to n to this power.
        seed: The run's.
    """
    order = random.Random(turn_seed(seed, "order", step, 0))
    weights = [len(group) ** power for group in moments.values()]
    batch = [
        (action, index)
        for action, share in zip(moments, shares(weights, size, order), strict=True)
        for index in spread_evenly(range(len(moments[action])), share, order)
    ]
    seeds = [turn_seed(seed, "distil", step, i) for i in range(size)]
    return [
        (moments[action][index], answer) for (action, index), answer in sorted(zip(batch, seeds, strict=True))
    ]


def shares(weights: Sequence[float], size: int, generator: random.Random) -> list[int]:
    """``size`` in proportion to the weights, each share rounded down or up; on average they are exact."""
    start, total = generator.random(), sum(weights)
    ends = [int(start + size * part / total) for part in accumulate(weights)]
    ends[-1] = size  # whatever was rounded on the way
    return [end - before for before, end in pairwise([0, *ends])]


def spread_evenly(items: Sequence[Item], size: int, generator: random.Random) -> list[Item]:
    """``size`` items, each as often as any other or once more."""
    rounds, rest = divmod(size, len(items))
    return [*list(items) * rounds, *generator.sample(list(items), rest)]
