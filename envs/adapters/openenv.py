"""An environment behind a server of OpenEnv's: ``--env openenv:http://127.0.0.1:8000``.

The client is an extra (``pip install 'opcd-gym[openenv]'``). Every episode is a session of its own. An action
that is one text is the agent's reply; one of a few values is a word for each; any other is a JSON object,
which the server judges. A server that dies, hangs or talks nonsense ends the episode with an error.
"""

import contextlib
import dataclasses
import importlib.util
import json
import re
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Discrete

from envs.actions import word_grammar
from envs.adapters.json_action import JsonAction
from envs.adapters.json_seen import seen_text
from envs.adapters.limit import with_limit
from envs.any_text import AnyText, clean, first_line
from envs.deadline import deadline
from envs.spaces import any_words
from envs.words import EnvError, EnvWords

STEP_LIMIT = 200
PATIENCE = 10.0
"""Seconds for a server to say what it is, and to take a session."""
LONGEST_ANSWER = 600.0
"""Seconds for any other answer, where no ``--env-timeout`` comes before."""
_MAX_BYTES = 4_000_000


class OpenEnvEnv(gym.Env[str, Any]):
    """What one server plays; see the module."""

    observation_space = AnyText()

    def __init__(self, url: str, **settings: Any) -> None:
        """Ask the server for its actions, and begin one episode to see whether it can be played.

        Args:
            url: Of the server, such as ``http://127.0.0.1:8000``.
            settings: Given to every reset, beside the seed.

        Raises:
            EnvError: The client is not installed, or no server of this protocol answers.
        """
        if importlib.util.find_spec("openenv") is None:
            raise EnvError("OpenEnv's client is not installed: pip install 'opcd-gym[openenv]'")
        if not re.match(r"https?://[^/]", url):
            raise EnvError(f"openenv: needs a server's URL, as in openenv:http://127.0.0.1:8000, not {url!r}")
        self._url, self._settings, self._client, self._seen = url.rstrip("/"), settings, None, ""
        self.action = self._ask_for_action()
        self.action_space = Discrete(len(self.action.choices)) if self.action.choices else AnyText()
        try:
            with deadline(2 * PATIENCE):
                self.reset(seed=0)
        except Exception as error:  # whatever a server makes of it
            raise EnvError(f"{url} begins no episode: {first_line(error)}") from error
        finally:
            self.close()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin an episode in a new session; a server whose ``reset`` takes no seed draws as it likes."""
        super().reset(seed=seed)
        from openenv.core import GenericEnvClient

        self.close()
        settings = {**self._settings, "seed": int(self.np_random.integers(2**31))}
        client = self._client = GenericEnvClient(
            self._url,
            connect_timeout_s=PATIENCE,
            message_timeout_s=LONGEST_ANSWER,
            max_message_size_mb=_MAX_BYTES / 2**20,
            mode="simulation",
        ).sync()
        self._seen = seen_text(self._asked(lambda: client.reset(**settings)).observation)
        return self._seen, {}

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send an action. One that is no JSON, or that the server does not take, changes nothing."""
        value = self.action.choices[int(action)] if self.action.choices else action
        client: Any = self._client
        try:
            sent = self.action.filled(value)
            result = self._asked(lambda: client.step(sent))
        except ValueError:
            return self._seen, 0.0, False, False, {"answer": None}
        self._seen, is_over = seen_text(result.observation), result.done is True
        if is_over:
            self.close()
        reward = 0.0 if result.reward is None else result.reward
        return self._seen, reward, is_over, False, {"answer": clean(str(value)).strip()[:200]}

    def close(self) -> None:
        """End the session, without waiting long for the server to agree."""
        client, self._client = self._client, None
        with contextlib.suppress(Exception), deadline(1.0):
            if client is not None:
                client.close()

    def _asked(self, ask: Callable[[], Any]) -> Any:
        """What the server answers; ValueError where it takes the action for none of its own."""
        try:
            return ask()
        except BaseException as error:  # the deadline's too: a late answer would be taken for the next one
            if isinstance(error, RuntimeError) and str(error).endswith("(code: VALIDATION_ERROR)"):
                raise ValueError(first_line(error)) from error
            self.close()
            if isinstance(error, ValueError):
                raise ConnectionError(f"the server does not speak OpenEnv: {first_line(error)}") from error
            raise

    def _ask_for_action(self) -> JsonAction:
        try:
            with deadline(PATIENCE), urllib.request.urlopen(f"{self._url}/schema", timeout=PATIENCE) as page:
                read = page.read(_MAX_BYTES)
        except Exception as error:
            raise EnvError(f"no OpenEnv server answers at {self._url}/schema: {first_line(error)}") from error
        try:
            return JsonAction(json.loads(read)["action"])
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise EnvError(f"{self._url} is no server of OpenEnv's: no actions are at /schema") from error


def make(name: str, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """The server at the URL ``name``; ``env_kwargs`` go to its resets, but for ``max_episode_steps``.

    Raises:
        EnvError: See ``OpenEnvEnv``.
    """
    settings = dict(env_kwargs)
    limit = settings.pop("max_episode_steps", STEP_LIMIT)
    env = OpenEnvEnv(name, **settings)
    return with_limit(env, f"openenv/{name.partition('://')[2]}", {"url": name, **settings}, limit)


def words(env: gym.Env[Any, Any]) -> EnvWords:
    """What the spaces give, and the fields of an action that is an object."""
    action: JsonAction = env.unwrapped.action  # type: ignore[attr-defined]
    choices = [str(choice).lower() for choice in action.choices]
    plain = any_words(env, actions=choices or None, grammar=word_grammar(choices) if choices else None)
    said = f" Each answer is a JSON object of {action.explanation}." if action.explanation else ""
    return dataclasses.replace(plain, rules=plain.rules + said, describe=str)
