"""Frozen Lake in words. The agent reads where it stands, never the map: holes must be learned."""

import math
from functools import partial
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

from envs.actions import word_grammar
from envs.registry import words_of
from envs.words import EnvError, EnvWords, Example, Success

ACTIONS = ("left", "down", "right", "up")
"""Gymnasium's actions 0 to 3."""


def describe_place(columns: int, state: Any) -> str:
    """Where one is on a grid of this many columns, whose squares are numbered row by row."""
    row, column = divmod(int(state), columns)
    return f"You are at row {row + 1}, column {column + 1}."


def advise_move(place: str, action: str) -> str:
    """Advice for a place, worded like ``describe_place``."""
    return f"At {place.removeprefix('You are at ').removesuffix('.')}, move {action}."


def examples_at(first: int) -> tuple[Example, ...]:
    """One for each action, in rows and columns of so high a number that they are on no lake."""
    examples = []
    for number, action in enumerate(ACTIONS):
        place = f"You are at row {first + number}, column {first + 2 * number % len(ACTIONS)}."
        examples.append(Example(observation=place, thought=advise_move(place, action), action=action))
    return tuple(examples)


@words_of(FrozenLakeEnv)
def frozen_lake_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for any Frozen Lake: 4x4, 8x8, or a map of the user's own.

    Raises:
        EnvError: The map is drawn at random when the env is made: every copy would have another one; or the
            rewards don't say whether the goal is reached.
    """
    given = env.spec.kwargs if env.spec else {}
    if given.get("desc") is None and given.get("map_name", "4x4") is None:
        raise EnvError("a random map differs in every copy of the env: draw one, and pass it as desc")
    lake = cast("FrozenLakeEnv", env.unwrapped)
    rows, columns = lake.nrow, lake.ncol
    goal, hole, ice = given.get("reward_schedule", (1, 0, 0))
    walked = ice * ((env.spec.max_episode_steps if env.spec else None) or math.inf) if ice else 0
    most_lost = hole + max(0, walked)
    if goal + min(0, walked) <= most_lost:
        raise EnvError(
            "with this reward_schedule, in so many steps, a return does not say whether the goal is reached: "
            "give the ice less reward or cost"
        )

    return EnvWords(
        rules=(
            f"You are crossing a frozen lake with {rows} rows and {columns} columns. Each turn you move "
            "left, down, right or up. Somewhere is the goal. Falling into a hole ends the game."
        ),
        question="Left, down, right or up?",
        reply_prefix="I move",
        actions=ACTIONS,
        grammar=word_grammar(ACTIONS),
        describe=partial(describe_place, columns),
        advise=advise_move,
        success=Success(means="the goal is reached", reached=lambda total, end: end and total > most_lost),
        examples=examples_at(max(rows, columns) + 1),
    )


def lake_map(env: gym.Env[Any, Any]) -> tuple[str, ...] | None:
    """The map's rows, as in ``desc`` (S start, F frozen, H hole, G goal); ``None`` for another env.

    For reports only: the agent never sees it.
    """
    if not isinstance(env.unwrapped, FrozenLakeEnv):
        return None
    return tuple("".join(cell.decode() for cell in row) for row in np.asarray(env.unwrapped.desc))
