"""How many optimiser steps, and about which moments: where the student is furthest from its teacher."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

from agents.rollout import turn_seed

T = TypeVar("T")
"""A moment, or its prompts."""

Distances = Mapping[str, float]
"""The last KL that was seen at a moment, in nats, by its name."""

STEPS_PER_INSIGHT, LEAST_STEPS, MOST_STEPS = 0.8, 30, 120
"""Of a round: it takes the longer the more there is to learn (docs/tried.md, One recipe)."""
KNOWN_SHARE = 0.1
"""Of the mean distance of an action's moments, what each weighs more: what is learned is seen again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt(Generic[T]):
    """A moment, and the seed of the answer there."""

    name: str
    """Of the moment, in its round."""
    moment: T
    seed: int


def steps_for(insights: float, asked: int | None) -> int:
    """Optimiser steps of a round: as many as were asked for, or by how many insights there are."""
    if asked is not None:
        return asked
    return min(MOST_STEPS, max(LEAST_STEPS, round(STEPS_PER_INSIGHT * insights)))


def deal(
    moments: Mapping[str, Sequence[T]], distances: Distances, step: int, *, size: int, seed: int
) -> list[Dealt[T]]:
    """What a step asks, drawn by its number and what is known of the distances; equal ones side by side.

    As many for each action that is advised: a student that is nearly always advised the same learns to do
    that everywhere. And among an action's moments, those where it is still far from its teacher; one that
    was not asked about yet counts as the furthest known. Without the former the steps swing from one action
    to the next, without the latter most of Taxi's are spent on what is learned already (docs/tried.md).
    """
    order = random.Random(turn_seed(seed, "order", step, 0))
    batch: list[tuple[str, int]] = []
    for action, share in zip(moments, shares(len(moments), size, order), strict=True):
        known = [distances.get(_name(action, index)) for index in range(len(moments[action]))]
        batch += [(action, index) for index in spread(known, share, order)]
    seeds = [turn_seed(seed, "distil", step, i) for i in range(size)]
    return [
        Dealt(name=_name(action, index), moment=moments[action][index], seed=answer)
        for (action, index), answer in sorted(zip(batch, seeds, strict=True))
    ]


def _name(action: str, index: int) -> str:
    return f"{action}/{index}"


def shares(count: int, size: int, generator: random.Random) -> list[int]:
    """``size`` in so many equal shares, each rounded down or up; on average they are exact."""
    start = generator.random()
    ends = [int(start + size * part / count) for part in range(1, count + 1)]
    ends[-1] = size  # whatever was rounded on the way
    return [end - before for before, end in pairwise([0, *ends])]


def spread(distances: Sequence[float | None], size: int, generator: random.Random) -> list[int]:
    """``size`` places: each as often as any other, and the rest without replacement by their distances.

    A place is drawn in proportion to its distance (Efraimidis and Spirakis 2006), which is ``None`` where it
    is unknown; one below 0, as the truncated KL may be, is none.
    """
    rounds, rest = divmod(size, len(distances))
    furthest = max((d for d in distances if d is not None), default=1.0)
    filled = [max(0.0, furthest if d is None else d) for d in distances]
    least = KNOWN_SHARE * sum(filled) / len(filled) or 1.0
    waits = [generator.expovariate(1.0) / (least + distance) for distance in filled]
    return [*list(range(len(filled))) * rounds, *sorted(range(len(filled)), key=waits.__getitem__)[:rest]]
