"""``TextEnv``: any supported Gymnasium environment with text in and text out."""

import dataclasses
import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Text
from gymnasium.wrappers import TimeLimit

from envs.adapters import ADAPTERS
from envs.adapters.limit import STEP_LIMIT
from envs.any_text import AnyText, clean
from envs.deadline import EnvFault, guarded
from envs.observations import value_text
from envs.registry import words_for
from envs.thinking import Replies, thinking
from envs.thoughts import outside_thoughts
from envs.words import EnvError, Options


class TextEnv(gym.Wrapper[Any, Any, Any, Any]):
    """A Gymnasium environment that is read and answered in text; the 5-tuple stays as it is.

    ``step`` takes the agent's whole reply. A reply that is no action does not step the env: the turn
    is spent with reward 0 and no ``info["text/action"]``, and the words' ``max_invalid_replies`` in a row
    truncate the episode with ``info["text/too_many_invalid"] = True``; an ``info["is_success"]`` of the env
    stays what it was. A readable reply leaves its action's text in ``info["text/action"]`` beside the
    env's own info.

    What is thought in a reply is not said: it is no action. ``info["text/cut_off"] = True`` tells of a reply
    whose thought never ended; it is no action either.

    Where the env's actions are text every reply is one, a cut off one the empty text. ``info["text/action"]``
    is then the env's ``info["answer"]``, what it read in the reply (``None`` for nothing), or without one the
    text.
    """

    def __init__(
        self, env: gym.Env[Any, Any], *, max_invalid_replies: int | None = None, replies: Replies = "act"
    ) -> None:
        """Wrap ``env``.

        Args:
            env: Any env whose actions can be written as text.
            max_invalid_replies: Unreadable replies in a row that end an episode; by default the words say.
            replies: With ``think`` the rules ask for a thought first; see ``envs.thinking``.

        Raises:
            EnvError: The env cannot be put into words, a number is out of range, or replies that are text
                are to ``think``.
        """
        super().__init__(env)
        words = words_for(env)
        if max_invalid_replies is not None:
            words = dataclasses.replace(words, max_invalid_replies=max_invalid_replies)
        if words.max_invalid_replies < 1:
            raise EnvError(f"max_invalid_replies must be at least 1, not {words.max_invalid_replies}")
        self._is_text = isinstance(env.action_space, Text) and not words.actions
        if replies == "think":
            if self._is_text:
                name = env.spec.id if env.spec else type(env.unwrapped).__name__
                raise EnvError(
                    f"replies think is for envs with actions to read; in {name} a reply is text: take act"
                )
            words = thinking(words)
        self.words = words
        self._now = ""
        self._invalid_in_a_row = 0
        self._success: dict[str, Any] = {}
        self.observation_space = AnyText()
        self.action_space = AnyText()

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; returns the first observation as a sentence."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._invalid_in_a_row = 0
        self._success = {}
        self._now = self._described(observation)
        return self._now, {} if info is None else info

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take the agent's reply; see the class for what an unreadable one does."""
        cut_off = {"text/cut_off": True} if outside_thoughts(action) is None else {}
        read = self.words.parse("" if cut_off and self._is_text else action)
        if read is None:
            self._invalid_in_a_row += 1
            too_many = self._invalid_in_a_row >= self.words.max_invalid_replies
            info = {"text/too_many_invalid": too_many, **cut_off, **self._success}
            return self._now, 0.0, False, too_many, info
        self._invalid_in_a_row = 0
        observation, reward, terminated, truncated, info = self.env.step(read.value)
        info = {} if info is None else info
        self._success = {"is_success": info["is_success"]} if "is_success" in info else {}
        self._now = self._described(observation)
        text: str | None = read.text
        if self._is_text and "answer" in info:
            text = None if info["answer"] is None else value_text(info["answer"])
        return self._now, reward, terminated, truncated, {**info, **cut_off, "text/action": text}

    def _described(self, observation: Any) -> str:
        """The observation as a sentence.

        Raises:
            TypeError: The words of it are no text.
        """
        text = self.words.describe(observation)
        if not isinstance(text, str):
            raise TypeError(f"describe() has to give a text, not {text!r:.80}")
        return clean(text)


def make_env(env_id: str, env_kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """``gymnasium.make`` with errors that say what to do, and a step limit where there is none.

    Args:
        env_id: A registered id, ``module:EnvId`` to import ``module`` first, or ``textarena:Game`` or
            ``openenv:URL`` (``envs.adapters``).
        env_kwargs: Passed to the env's constructor.

    Raises:
        EnvError: No such id (with the nearest ones), the env refuses the arguments, or its episodes
            would have no step limit: ``max_episode_steps`` in ``env_kwargs`` is -1.
    """
    scheme, _, name = env_id.partition(":")

    def make() -> gym.Env[Any, Any]:
        if scheme in ADAPTERS:
            made: gym.Env[Any, Any] = importlib.import_module(ADAPTERS[scheme]).make(name, env_kwargs)
            return made
        env = gym.make(env_id, disable_env_checker=True, **env_kwargs)
        if env.spec is None or env.spec.max_episode_steps is not None or "max_episode_steps" in env_kwargs:
            return env
        return TimeLimit(env, STEP_LIMIT)

    try:
        env = guarded(make)
    except EnvFault as fault:
        error = fault.__cause__
        if isinstance(error, EnvError):
            raise error from None
        if isinstance(error, gym.error.UnregisteredEnv):
            module, colon, bare = env_id.rpartition(":")
            own_ids = [known for known, spec in gym.registry.items() if module and _is_from(module, spec)]
            near = _near(bare, gym.registry, cutoff=1.0) or _near(bare, own_ids or gym.registry)
            hint = (
                f"; did you mean {' or '.join(f'{module}{colon}{known}' for known in near)}?" if near else ""
            )
            if own_ids and not near:
                hint = f"; {module} has {', '.join(own_ids[:8])}"
            own = "" if module else f"; one of your own is module:{bare}, whose module registers it"
            raise EnvError(f"no environment is called {env_id!r}{hint}{own}") from error
        if isinstance(error, ModuleNotFoundError):
            hint = ": give the module as it is imported, without .py" if ".py:" in env_id else ""
            raise EnvError(f"{env_id!r}: {error}{hint}") from error
        if isinstance(error, SystemExit):
            raise EnvError(
                f"{env_id} cannot be made: its code exits ({fault}); what reads arguments or exits belongs "
                "under if __name__ == '__main__'"
            ) from error
        given = f" with {dict(env_kwargs)}" if env_kwargs else ""
        raise EnvError(f"{env_id} cannot be made{given}: {fault}") from error
    if env.spec is None or env.spec.max_episode_steps is None:
        raise EnvError(
            f"{env_id} has no step limit, so an episode might never end: add "
            "max_episode_steps to the env kwargs"
        )
    return env


def _is_from(module: str, spec: EnvSpec) -> bool:
    """Whether an env's class comes from the module, or from one of its own."""
    entry = spec.entry_point
    where = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    return f"{where.partition(':')[0]}.".startswith(f"{module}.")


def _near(env_id: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """The ids that are called alike, whatever their versions."""
    names = {other: other.rpartition("-v")[0] or other for other in known}
    close = difflib.get_close_matches(
        env_id.rpartition("-v")[0] or env_id, set(names.values()), n=3, cutoff=cutoff
    )
    return [other for other, name in names.items() if name in close]


def make_text_env(
    env_id: str,
    env_kwargs: Mapping[str, Any],
    *,
    max_invalid_replies: int | None = None,
    replies: Replies = "act",
) -> TextEnv:
    """The env as text; see ``make_env`` and ``TextEnv`` for the arguments and errors."""
    env = make_env(env_id, env_kwargs)
    try:
        return guarded(lambda: TextEnv(env, max_invalid_replies=max_invalid_replies, replies=replies))
    except EnvFault as fault:
        if isinstance(fault.__cause__, EnvError):
            raise fault.__cause__ from None
        raise EnvError(f"{env_id} cannot be put into words: {fault}") from fault
