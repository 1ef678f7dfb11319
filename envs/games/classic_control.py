"""Words for Gymnasium's classic control with discrete actions."""

from collections.abc import Sequence
from typing import Any, cast

import gymnasium as gym
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.spaces import Box

from envs.actions import word_grammar
from envs.observations import Components
from envs.registry import words_of
from envs.spaces import threshold
from envs.words import EnvWords, Success


@words_of(CartPoleEnv)
def cart_pole_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for CartPole."""
    return _words(
        env,
        rules="You balance a pole on a cart. Each turn you push the cart left or right. Keep the pole up.",
        names=("cart position", "cart velocity", "pole angle", "pole velocity"),
        actions=("left", "right"),
        success=threshold(env),
    )


@words_of(MountainCarEnv)
def mountain_car_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for MountainCar."""
    return _words(
        env,
        rules="A car stands in a valley. Each turn you push it left, right, or not. The goal is up the hill.",
        names=("position", "velocity"),
        actions=("left", "nothing", "right"),
        success=Success(means="the car gets up the hill", reached=lambda _, end: end),
    )


@words_of(AcrobotEnv)
def acrobot_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for Acrobot."""
    return _words(
        env,
        rules=(
            "Two links hang from a pivot; only the joint between them is driven. Each turn you push it left, "
            "right, or not. The free end has to swing above the line."
        ),
        names=("cosine 1", "sine 1", "cosine 2", "sine 2", "velocity 1", "velocity 2"),
        actions=("left", "nothing", "right"),
        success=Success(means="the free end swings above the line", reached=lambda _, end: end),
    )


def _words(
    env: gym.Env[Any, Any], *, rules: str, names: Sequence[str], actions: tuple[str, ...], success: Success
) -> EnvWords:
    components = Components(cast("Box", env.observation_space), names)
    *others, last = actions
    question = f"{', '.join(others)} or {last}?"
    return EnvWords(
        rules=rules,
        question=f"Push {question}",
        reply_prefix="I push",
        actions=actions,
        grammar=word_grammar(actions),
        describe=components.describe,
        advise=lambda situation, action: f"{situation.removesuffix('.')}: push {action}.",
        success=success,
        situation=components.situation,
    )
