"""An environment behind a server of OpenEnv's: ``--env openenv:http://127.0.0.1:8000``.

The client is an extra (``pip install 'opcd-gym[openenv]'``). Every episode is a session of its own. An action
that is one text is the agent's reply; one of a few values is a word for each; any other is a JSON object,
which the server judges. A server that dies, hangs or talks nonsense ends the episode with an error.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.spaces import Discrete

from envs.actions import word_grammar
from envs.adapters.json_action import JsonAction
from envs.adapters.json_seen import seen_text
from envs.adapters.limit import STEP_LIMIT, with_limit
from envs.adapters.openenv_session import PATIENCE, Session, ask_for_action
from envs.any_text import AnyText, clean, first_line
from envs.deadline import EnvFault, TimeLimit, guarded
from envs.registry import words_of
from envs.spaces import any_words
from envs.words import EnvError, EnvWords, Options


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
        self._url, self._settings, self._seen = url.rstrip("/"), settings, ""
        self._session: Session | None = None
        self.action = ask_for_action(self._url)
        """What the server takes."""
        self.action_space = Discrete(len(self.action.choices)) if self.action.choices else AnyText()
        try:
            guarded(lambda: self.reset(seed=0), TimeLimit(clock=2 * PATIENCE))
        except EnvFault as fault:
            raise EnvError(f"{url} begins no episode: {first_line(fault.__cause__ or fault)}") from fault
        finally:
            self.close()

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode in a new session; a server whose ``reset`` takes no seed draws as it likes."""
        super().reset(seed=seed)
        self.close()
        self._session = Session(self._url)
        begun = self._session.reset({**self._settings, "seed": int(self.np_random.integers(2**31))})
        self._seen = seen_text(begun.observation)
        return self._seen, {}

    def step(self, action: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Send an action. One that is not JSON, or that the server does not take, changes nothing."""
        assert self._session is not None
        value = self.action.choices[int(action)] if self.action.choices else action
        try:
            result = self._session.step(self.action.filled(value))
        except ValueError:
            return self._seen, 0.0, False, False, {"answer": None}
        self._seen, is_over = seen_text(result.observation), result.done is True
        if is_over:
            self.close()
        reward = 0.0 if result.reward is None else result.reward
        return self._seen, reward, is_over, False, {"answer": clean(str(value)).strip()[:200]}

    def close(self) -> None:
        """End the session."""
        session, self._session = self._session, None
        if session is not None:
            session.close()


def make(name: str, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """The server at the URL ``name``; ``env_kwargs`` go to its resets, but for ``max_episode_steps``.

    Raises:
        EnvError: See ``OpenEnvEnv``.
    """
    settings = dict(env_kwargs)
    limit = settings.pop("max_episode_steps", STEP_LIMIT)
    env = OpenEnvEnv(name, **settings)
    return with_limit(env, f"openenv/{name.partition('://')[2]}", {"url": name, **settings}, limit)


@words_of(OpenEnvEnv)
def words(env: gym.Env[Any, Any]) -> EnvWords:
    """What the spaces give, and the fields of an action that is an object."""
    action: JsonAction = env.unwrapped.action  # type: ignore[attr-defined]
    choices = [str(choice).lower() for choice in action.choices]
    plain = any_words(env, actions=choices or None, grammar=word_grammar(choices) if choices else None)
    said = f" Each answer is a JSON object of {action.explanation}." if action.explanation else ""
    return dataclasses.replace(plain, rules=plain.rules + said, describe=str)
