"""Which words an environment has: its author's, ours, or those that its spaces give."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import find_highest_version, parse_env_id
from gymnasium.spaces import Discrete

from envs.actions import Action, Grammar, action_text, word_grammar
from envs.deadline import EnvFault, guarded
from envs.spaces import any_words
from envs.words import EnvError, EnvWords, Example, Success

WordsOf = Callable[[gym.Env[Any, Any]], EnvWords]

_OURS: dict[type[gym.Env[Any, Any]], WordsOf] = {}
"""Env class -> its words."""

_REGISTERED: dict[str, WordsOf] = {}
"""Env id -> its author's words."""

_SETTINGS: dict[str, Mapping[str, Any]] = {}
"""Env id -> what its author recommends, where that is not what suits most."""


def words_of(env: type[gym.Env[Any, Any]]) -> Callable[[WordsOf], WordsOf]:
    """Make what it decorates the words of all envs of exactly this class."""

    def register(words: WordsOf) -> WordsOf:
        _OURS[env] = words
        return words

    return register


def recommend(env_id: str, settings: Mapping[str, Any]) -> None:
    """Make ``settings``, by the names of agents/config.py, the defaults of runs in an env."""
    _SETTINGS[env_id] = dict(settings)


def words_for(env: gym.Env[Any, Any]) -> EnvWords:
    """The env's words: registered by its id, else ours, else from its spaces.

    Raises:
        EnvError: Its actions cannot be written as text.
    """
    registered = _REGISTERED.get(env.spec.id) if env.spec else None
    bare = env.unwrapped
    # What is derived from it may show or take something else, and so may a wrapper.
    ours = _OURS.get(type(bare), any_words)
    is_bare = env.observation_space == bare.observation_space and env.action_space == bare.action_space
    return (registered or (ours if is_bare else any_words))(env)


def misspelt(env: gym.Env[Any, Any]) -> str | None:
    """The id that words were registered for and that must have been meant for this env, which has none."""
    if env.spec is None or env.spec.id in _REGISTERED or type(env.unwrapped) in _OURS:
        return None
    others = [env_id for env_id in _REGISTERED if env_id not in gym.registry]
    return next(iter(get_close_matches(env.spec.id, others, n=1, cutoff=0.8)), None)


def settings_for(env_id: str) -> Mapping[str, Any]:
    """The settings of a run that the env's author recommends, by name."""
    module, _, name = env_id.rpartition(":")
    if module:
        with suppress(EnvFault):  # making the env says it
            guarded(lambda: importlib.import_module(module))
    return _SETTINGS.get(_versioned(name), {})


def _versioned(env_id: str) -> str:
    """The id, with the version that Gymnasium takes where it has none: the newest."""
    with suppress(gym.error.Error):
        namespace, name, version = parse_env_id(env_id)
        newest = find_highest_version(namespace, name)
        if version is None and newest is not None:
            return f"{env_id}-v{newest}"
    return env_id


def register_text(
    env_id: str,
    *,
    rules: str | None = None,
    question: str | None = None,
    reply_prefix: str | None = None,
    actions: Sequence[str] | None = None,
    parse: Callable[[str], Any] | None = None,
    describe: Callable[[Any], str] | None = None,
    situation: Callable[[str], str] | None = None,
    advise: Callable[[str, str], str] | None = None,
    success: Success | None = None,
    examples: Sequence[Example] | None = None,
    max_invalid_replies: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Put an env into better words than its spaces give; what is left out, they still give.

    Call it in the module that registers the env with Gymnasium, and name both: ``--env my_module:MyEnv-v0``.

    Args:
        env_id: As registered, version included.
        rules: What the game is, in the system message.
        question: What is asked after each observation.
        reply_prefix: What every reply begins with.
        actions: One lower-case word per action of a ``Discrete`` space, in its order.
        parse: Reply -> what the env's ``step`` takes, or ``None`` if it is no action. By default the word
            of an action, or JSON. It is given what a model wrote: never evaluate it.
        describe: Observation -> sentence.
        situation: Sentence -> what like ones have in common, such as a rounded number; insights from outcomes
            are about situations. By default each of your own sentences is one.
        advise: (situation, action's word) -> the advice to do that there.
        success: What an episode has to reach; by default the spec's reward threshold or a positive return. An
            env's own ``info["is_success"]`` goes before it.
        examples: Replies of an agent that thinks before it acts, one for each action, at places that it never
            sees: with ``--replies think`` they are shown as earlier turns. Small models need them.
        max_invalid_replies: How many unreadable replies in a row end an episode; by default 3.
        settings: What a run in this env does best with, by the names of agents/config.py, such as
            ``{"episodes": 256, "lr": 1e-4}``. What the user asks for goes before it.

    Raises:
        EnvError: ``actions`` are not different lower-case words, what is to be called is no function, what is
            to be said no text, or ``success`` no ``Success``.
    """
    functions = {"parse": parse, "describe": describe, "situation": situation, "advise": advise}
    if wrong := [name for name, given in functions.items() if not (given is None or callable(given))]:
        raise EnvError(f"{env_id}: {', '.join(wrong)} must be a function, such as 'You see {{}}.'.format")
    texts = {"rules": rules, "question": question, "reply_prefix": reply_prefix}
    if wrong := [name for name, given in texts.items() if not isinstance(given, str | None)]:
        raise EnvError(f"{env_id}: {', '.join(wrong)} must be a text")
    if not isinstance(success, Success | None):
        raise EnvError(f"{env_id}: success must be Success(means=..., reached=...), not {success!r:.80}")
    if actions is not None:
        actions = (actions,) if isinstance(actions, str) else tuple(actions)  # its letters are no words
        if len(set(actions)) < len(actions) or not all(
            isinstance(word, str) and word.replace("_", "a").isalnum() and word == word.lower()
            for word in actions
        ):
            raise EnvError(
                f"{env_id}: actions must be different lower-case words of letters, digits and _, such as "
                f"turn_left, not {list(actions)}"
            )
    changes: dict[str, Any] = {
        "rules": rules,
        "question": question,
        "reply_prefix": reply_prefix,
        "describe": describe,
        "situation": situation or (None if describe is None else str),
        "advise": advise,
        "success": success,
        "examples": None if examples is None else tuple(examples),
        "max_invalid_replies": max_invalid_replies,
    }

    def words(env: gym.Env[Any, Any]) -> EnvWords:
        grammar = _grammar(env, env_id, actions, parse)
        given = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(
            any_words(env, actions=actions, grammar=grammar, describe=describe), **given
        )

    _REGISTERED[env_id] = words
    if settings is not None:
        recommend(env_id, settings)


def _grammar(
    env: gym.Env[Any, Any], env_id: str, actions: Sequence[str] | None, parse: Callable[[str], Any] | None
) -> Grammar | None:
    space = env.action_space
    first = 0
    if actions is not None:
        if not isinstance(space, Discrete) or space.n != len(actions):
            raise EnvError(f"{env_id}: {len(actions)} action words do not fit the action space {space}")
        first = int(space.start)
    if parse is None:
        return None if actions is None else word_grammar(actions, first)

    def grammar(reply: str) -> Action | None:
        value = parse(reply)
        if value is None:
            return None
        if not isinstance(space, Discrete):
            return Action(text=action_text(value), value=value)
        if not space.contains(value):
            raise ValueError(f"parse() gave {value!r:.80}, which is not in {space}")
        index = int(value)
        return Action(text=str(index) if actions is None else actions[index - first], value=value)

    return grammar
