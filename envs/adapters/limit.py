"""The step limit of an env that Gymnasium has not registered."""

import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import OrderEnforcing, TimeLimit

from envs.words import EnvError

STEP_LIMIT = 200
"""Steps of an episode, where neither the env nor the user has set a limit."""


def with_limit(
    env: gym.Env[Any, Any], name: str, env_kwargs: Mapping[str, Any], limit: Any
) -> gym.Env[Any, Any]:
    """The env as ``gymnasium.make`` would give it: called ``name``, and its episodes truncated.

    What Gymnasium does not allow in a name becomes a hyphen.

    Raises:
        EnvError: There is no such limit.
    """
    if not isinstance(limit, int) or limit < 1:
        raise EnvError(f"max_episode_steps must be a whole number of at least 1, not {limit!r}")
    namespace, _, rest = name.partition("/")
    env.spec = EnvSpec(
        id=f"{namespace}/{re.sub('[^a-zA-Z0-9_.:-]+', '-', rest).strip('-')}",
        entry_point=f"{type(env).__module__}:{type(env).__name__}",
        kwargs=dict(env_kwargs),
        max_episode_steps=limit,
        disable_env_checker=True,
    )
    return TimeLimit(OrderEnforcing(env), max_episode_steps=limit)
