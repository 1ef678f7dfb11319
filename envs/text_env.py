"""``TextEnv``: any supported Gymnasium environment with text in and text out."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat, cast

import gymnasium as gym
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from gymnasium.spaces import Discrete

from envs.any_text import AnyText
from envs.choice_env import ChoiceEnv, choice_words
from envs.frozen_lake import frozen_lake_words
from envs.math_env import MathEnv, math_words
from envs.words import EnvError, EnvWords

WORDS: dict[type[gym.Env[Any, Any]], Callable[[gym.Env[Any, Any]], EnvWords]] = {
    FrozenLakeEnv: frozen_lake_words,
    MathEnv: math_words,
    ChoiceEnv: choice_words,
}
"""Env class -> its words. An env outside this table has no text form yet."""


class TextEnv(gym.Wrapper[Any, Any, Any, Any]):
    """A Gymnasium environment that is read and answered in text; the 5-tuple stays as it is.

    ``step`` takes the agent's whole reply. A reply that is no action does not step the env: the turn
    is spent with reward 0 and no ``info["text/action"]``, and ``max_invalid_replies`` of them in a row
    truncate the episode with ``info["text/too_many_invalid"] = True``. A readable reply leaves its
    action's word in ``info["text/action"]``; the env's own info stays as it is.

    Where the env's actions are text every reply is one. ``info["text/action"]`` is then the env's
    ``info["answer"]``, what it read in the reply (``None`` for nothing), or without one the text.
    """

    def __init__(self, env: gym.Env[Any, Any], *, max_invalid_replies: int = 3) -> None:
        """Wrap ``env``.

        Args:
            env: An env whose class is in ``WORDS``.
            max_invalid_replies: Unreadable replies in a row that end an episode; at least 1.

        Raises:
            EnvError: The env has no text form yet, or ``max_invalid_replies`` < 1.
        """
        super().__init__(env)
        if max_invalid_replies < 1:
            raise EnvError(f"max_invalid_replies must be at least 1, not {max_invalid_replies}")
        describe_env = next((make for cls, make in WORDS.items() if isinstance(env.unwrapped, cls)), None)
        if describe_env is None:
            raise EnvError(
                f"{type(env.unwrapped).__name__} has no text form yet (observations {env.observation_space}, "
                f"actions {env.action_space}); envs with one: {', '.join(cls.__name__ for cls in WORDS)}"
            )
        self.words = describe_env(env)
        self.max_invalid_replies = max_invalid_replies
        self._observation = ""
        self._invalid_in_a_row = 0
        self.observation_space = AnyText()
        self.action_space = AnyText()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode; returns the first observation as a sentence."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._invalid_in_a_row = 0
        self._observation = self.words.describe(observation)
        return self._observation, info

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take the agent's reply; see the class for what an unreadable one does."""
        word = self.words.parse(action)
        if word is None:
            self._invalid_in_a_row += 1
            too_many = self._invalid_in_a_row >= self.max_invalid_replies
            return (
                self._observation,
                0.0,
                False,
                too_many,
                {"text/too_many_invalid": too_many},
            )
        self._invalid_in_a_row = 0
        observation, reward, terminated, truncated, info = self.env.step(self._env_action(word))
        self._observation = self.words.describe(observation)
        if not self.words.actions:
            word = info.get("answer", word)
        return self._observation, reward, terminated, truncated, {**info, "text/action": word}

    def _env_action(self, word: str) -> int | str:
        """What the env's ``step`` takes for an action."""
        if not self.words.actions:
            return word
        space = cast("Discrete", self.env.action_space)
        return int(space.start) + self.words.actions.index(word)


def is_success(declared: object, total_reward: float) -> bool:
    """Whether an episode succeeded: as declared in ``info["is_success"]``, else by a positive return."""
    return total_reward > 0 if declared is None else bool(declared)


def make_env(env_id: str, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """``gymnasium.make`` with errors that say what to do.

    Args:
        env_id: A registered id, or ``module:EnvId`` to import ``module`` first.
        env_kwargs: Passed to the env's constructor.

    Raises:
        EnvError: No such id (with the nearest ones), the env refuses the arguments, or its episodes
            have no step limit.
    """
    try:
        env = gym.make(env_id, disable_env_checker=True, **env_kwargs)
    except (gym.error.NameNotFound, gym.error.NamespaceNotFound, gym.error.VersionNotFound) as error:
        near = difflib.get_close_matches(env_id, gym.registry, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise EnvError(f"no environment is called {env_id!r}{hint}") from error
    except ModuleNotFoundError as error:
        raise EnvError(f"{env_id!r}: {error}") from error
    except Exception as error:  # the env's own constructor: anything can come out of it
        given = f" with {dict(env_kwargs)}" if env_kwargs else ""
        raise EnvError(f"{env_id} cannot be made{given}: {type(error).__name__}: {error}") from error
    if env.spec is None or env.spec.max_episode_steps is None:
        raise EnvError(
            f"{env_id} has no step limit, so an episode might never end: add "
            "max_episode_steps to the env kwargs"
        )
    return env


def make_text_env(env_id: str, env_kwargs: Mapping[str, Any], *, max_invalid_replies: int = 3) -> TextEnv:
    """The env as text; see ``make_env`` and ``TextEnv`` for the arguments and errors."""
    return TextEnv(make_env(env_id, env_kwargs), max_invalid_replies=max_invalid_replies)
