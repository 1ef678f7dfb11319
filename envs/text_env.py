"""``TextEnv``: any supported Gymnasium environment with text in and text out."""

import difflib
import importlib
import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, SupportsFloat

import gymnasium as gym

from envs.adapters import ADAPTERS
from envs.any_text import AnyText
from envs.registry import words_for
from envs.words import EnvError

STEP_LIMIT = 200
"""Steps of an episode, where neither the env nor the user has set a limit."""
ALL_TURNS = sys.maxsize
MAX_HISTORY_CHARS = 4000
"""Of the turns before the present one; the oldest are left out."""
NOW = "Now: "


class TextEnv(gym.Wrapper[Any, Any, Any, Any]):
    """A Gymnasium environment that is read and answered in text; the 5-tuple stays as it is.

    ``step`` takes the agent's whole reply. A reply that is no action does not step the env: the turn
    is spent with reward 0 and no ``info["text/action"]``, and ``max_invalid_replies`` of them in a row
    truncate the episode with ``info["text/too_many_invalid"] = True``; an ``info["is_success"]`` of the env
    stays what it was. A readable reply leaves its action's text in ``info["text/action"]`` beside the
    env's own info.

    Where the env's actions are text every reply is one. ``info["text/action"]`` is then the env's
    ``info["answer"]``, what it read in the reply (``None`` for nothing), or without one the text.
    """

    def __init__(self, env: gym.Env[Any, Any], *, max_invalid_replies: int = 3, history: int = 0) -> None:
        """Wrap ``env``.

        Args:
            env: Any env whose actions can be written as text.
            max_invalid_replies: Unreadable replies in a row that end an episode; at least 1.
            history: So many turns before the present one are told with each observation, within
                ``MAX_HISTORY_CHARS``.

        Raises:
            EnvError: The env cannot be put into words, or a number is out of range.
        """
        super().__init__(env)
        if max_invalid_replies < 1:
            raise EnvError(f"max_invalid_replies must be at least 1, not {max_invalid_replies}")
        if history < 0:
            raise EnvError(f"history must be at least 0, not {history}")
        words = words_for(env)
        if history:
            situation = words.situation  # what was before does not make the situation another one
            words = replace(words, situation=lambda text: situation(text.rpartition(NOW)[2]))
        self.words = words
        self.max_invalid_replies = max_invalid_replies
        self._now = ""
        self._past: deque[str] = deque(maxlen=history)
        self._invalid_in_a_row = 0
        self._success: dict[str, Any] = {}
        self.observation_space = AnyText()
        self.action_space = AnyText()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode; returns the first observation as a sentence."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._invalid_in_a_row = 0
        self._past.clear()
        self._success = {}
        self._now = self.words.describe(observation)
        return self._now, info

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take the agent's reply; see the class for what an unreadable one does."""
        read = self.words.parse(action)
        if read is None:
            self._invalid_in_a_row += 1
            too_many = self._invalid_in_a_row >= self.max_invalid_replies
            info = {"text/too_many_invalid": too_many, **self._success}
            return self._observation(), 0.0, False, too_many, info
        self._invalid_in_a_row = 0
        observation, reward, terminated, truncated, info = self.env.step(read.value)
        self._success = {"is_success": info["is_success"]} if "is_success" in info else {}
        self._past.append(f"{self._now} {self.words.reply_prefix} {read.text}.")
        self._now = self.words.describe(observation)
        text = read.text if self.words.actions else info.get("answer", read.text)
        return self._observation(), reward, terminated, truncated, {**info, "text/action": text}

    def _observation(self) -> str:
        """What is seen now, behind what was seen and done before."""
        if not self._past:
            return self._now
        kept: deque[str] = deque()
        length = 0
        for turn in reversed(self._past):
            length += len(turn) + 1
            if length > MAX_HISTORY_CHARS:
                break
            kept.appendleft(turn)
        return "\n".join([*kept, f"{NOW}{self._now}"])


def make_env(env_id: str, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """``gymnasium.make`` with errors that say what to do, and a step limit where there is none.

    Args:
        env_id: A registered id, ``module:EnvId`` to import ``module`` first, or
            ``textarena:Game`` or ``openenv:URL`` (``envs.adapters``).
        env_kwargs: Passed to the env's constructor.

    Raises:
        EnvError: No such id (with the nearest ones), the env refuses the arguments, or its episodes
            would have no step limit: ``max_episode_steps`` in ``env_kwargs`` is -1.
    """
    scheme, _, name = env_id.partition(":")
    try:
        if scheme in ADAPTERS:
            made: gym.Env[Any, Any] = importlib.import_module(ADAPTERS[scheme]).make(name, env_kwargs)
            return made
        env = gym.make(env_id, disable_env_checker=True, **env_kwargs)
        if (
            env.spec is not None
            and env.spec.max_episode_steps is None
            and "max_episode_steps" not in env_kwargs
        ):
            env = gym.make(env_id, disable_env_checker=True, max_episode_steps=STEP_LIMIT, **env_kwargs)
    except (gym.error.NameNotFound, gym.error.NamespaceNotFound, gym.error.VersionNotFound) as error:
        near = difflib.get_close_matches(env_id, gym.registry, n=3, cutoff=0.4)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise EnvError(f"no environment is called {env_id!r}{hint}") from error
    except ModuleNotFoundError as error:
        raise EnvError(f"{env_id!r}: {error}") from error
    except EnvError:
        raise
    except Exception as error:  # the env's own constructor: anything can come out of it
        given = f" with {dict(env_kwargs)}" if env_kwargs else ""
        raise EnvError(f"{env_id} cannot be made{given}: {type(error).__name__}: {error}") from error
    if env.spec is None or env.spec.max_episode_steps is None:
        raise EnvError(
            f"{env_id} has no step limit, so an episode might never end: add "
            "max_episode_steps to the env kwargs"
        )
    return env


def make_text_env(
    env_id: str, env_kwargs: Mapping[str, Any], *, max_invalid_replies: int = 3, history: int = 0
) -> TextEnv:
    """The env as text; see ``make_env`` and ``TextEnv`` for the arguments and errors."""
    return TextEnv(make_env(env_id, env_kwargs), max_invalid_replies=max_invalid_replies, history=history)
