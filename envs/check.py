"""Whether an environment is fit for text agents, in the spirit of Gymnasium's own checker."""

import string
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from envs.any_text import MAX_CHARS
from envs.deadline import CLEANUP, EnvFault, TimeLimit, guarded
from envs.registry import misspelt
from envs.text_env import TextEnv, make_text_env
from envs.words import POSITIVE_RETURN, EnvWords, number, truth

LIMIT = TimeLimit(processor=120.0, clock=600.0)
"""For all that is played."""
EPISODES = 3
MAX_STEPS = 50
PROBLEMS = 8
"""Of each split that are compared."""


def check_text_env(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> list[str]:
    """Play a few random episodes and say what an agent would stumble over.

    Run Gymnasium's ``check_env`` for the env itself; this one looks at its words, and at what spoils a run.

    Args:
        env_id: As for ``--env``.
        env_kwargs: As for ``--env-kwargs``.

    Returns:
        A sentence per complaint; empty if there is none.

    Raises:
        EnvError: The env cannot be made or put into words.
    """
    env, again = (make_text_env(env_id, env_kwargs or {}) for _ in range(2))
    found: list[str] = []
    try:
        guarded(lambda: found.extend(_complaints(env, again)), LIMIT)
    except EnvFault as fault:
        found.append(
            f"it {fault}: a step or reset hangs or is slow" if fault.timed_out else f"it raises {fault}"
        )
    for each in (env, again):
        try:
            guarded(each.close, CLEANUP)
        except EnvFault as fault:
            found.append(f"it cannot be closed: {fault}")
    return list(dict.fromkeys(found))


def _complaints(env: TextEnv, again: TextEnv) -> Iterator[str]:
    if other := misspelt(env.env):
        yield f"it has no words of its own; register_text was called for {other}, which is not an env's id"
    yield from _of_words(env.words, env.env.action_space)
    old = list(_of_old_gym(env))
    yield from old
    if not old:
        yield from _of_episodes(env, again)
        yield from _of_splits(env)


def _of_words(words: EnvWords, actions: Any) -> Iterator[str]:
    """What is wrong with the action's texts."""
    for text in words.actions:
        read = words.parse(f"{words.reply_prefix} {text}")
        if read is None or read.text != text:
            yield f"the action {text!r} is not read back from its own text"
        elif not actions.contains(read.value):
            yield f"the action {text!r} becomes {read.value!r}, which is not in {actions}"
    if words.actions and words.parse("") is not None:
        yield "an empty reply is taken for an action"


def _of_old_gym(env: TextEnv) -> Iterator[str]:
    """Whether ``reset`` and ``step`` return what they did before Gymnasium."""
    bare: Any = env.unwrapped
    begun = bare.reset(seed=0)
    if not isinstance(begun, tuple) or len(begun) != 2 or not isinstance(begun[1], dict):
        yield "reset() has to return (observation, info), and to take seed= and options="
        return
    env.env.action_space.seed(0)
    stepped = bare.step(env.env.action_space.sample())
    if not isinstance(stepped, tuple) or len(stepped) != 5:
        yield "step() has to return (observation, reward, terminated, truncated, info)"


def _of_episodes(env: TextEnv, again: TextEnv) -> Iterator[str]:
    """What goes wrong when both envs play the same."""
    words, actions = env.words, env.env.action_space
    actions.seed(0)
    first_of_all = ""
    begun, _ = env.env.reset(seed=0)  # before describe() sees it, which may fail by that
    wrong = list(_of_observation(env, begun))
    yield from wrong
    returns: list[float] = []
    declares = False
    seen = set()
    for seed in range(EPISODES):
        first, _ = env.reset(seed=seed)
        first_of_all = first_of_all or first
        seen.add(first)
        is_same = again.reset(seed=seed)[0] == first
        if not is_same:
            yield f"two episodes of seed {seed} begin differently: draw from self.np_random only"
        returns.append(0.0)
        for _ in range(MAX_STEPS):
            action = actions.sample()
            observation, reward, terminated, truncated, info = env.env.step(action)
            sentence = words.describe(observation)
            if not wrong:
                wrong = list(_of_step(env, observation, reward, (terminated, truncated), info))
                yield from wrong
            if not isinstance(sentence, str) or not env.observation_space.contains(sentence):
                yield (
                    f"describe() gives {sentence!r:.80}: a text of at most {MAX_CHARS} characters, none of "
                    "them for control, is needed"
                )
                return
            if not (terminated or truncated):  # after which nobody reads it
                seen.add(sentence)
            if not wrong:
                returns[-1] += number(reward)
                declares = declares or (info or {}).get("is_success") is not None
            if is_same and words.describe(again.env.step(action)[0]) != sentence:
                is_same = False
                yield f"episodes of seed {seed} with the same actions part: draw from self.np_random only"
            yield from _of_advice(words, sentence)
            if terminated or truncated:
                break
    if env.reset(seed=0)[0] != first_of_all:
        yield "seed 0 begins differently after other episodes: reset() has to set all that they change"
    if words.success is POSITIVE_RETURN and not declares and min(returns) < 0 and max(returns) <= 0:
        yield "steps cost, and success is a positive return: if that is not meant, say success=Success(...)"
    if len(seen) == 1:
        yield "every observation reads the same: describe() leaves out what changes"


def _of_splits(env: TextEnv) -> Iterator[str]:
    """Whether an env of questions poses the same in training and in test."""
    if env.words.actions:
        return
    env.reset(seed=0)
    _, _, terminated, truncated, _ = env.env.step(env.env.action_space.sample())
    if not (terminated or truncated):
        return
    seeds = (range(part, 3 * PROBLEMS, 3) for part in range(3))
    train, *others = ({env.reset(seed=seed)[0] for seed in split} for split in seeds)
    if len(train.union(*others)) > 1 and train.intersection(set().union(*others)):
        yield (
            "the same questions are posed in training and in validation or test: deal them to seeds by the "
            "seed's remainder by 3"
        )


def _outside(space: gym.Space[Any], observation: Any) -> str:
    """What a ``Text`` lacks, if that is it: room, or characters, which by default are letters and digits."""
    if not isinstance(space, gym.spaces.Text) or not isinstance(observation, str):
        return ""
    if not space.min_length <= len(observation) <= space.max_length:
        return (
            f"; it has {len(observation)} characters, and may have {space.min_length} to {space.max_length}: "
            "give Text(max_length, min_length=...) what there may be"
        )
    strange = "".join(sorted(set(observation) - set(space.characters)))
    take = "give Text(..., charset=string.printable)"
    if not set(strange) <= set(string.printable):
        take = "take AnyText() of envs.any_text"
    return strange and f"; its charset lacks {strange!r:.80}: {take}"


def _of_observation(env: TextEnv, observation: Any) -> Iterator[str]:
    space = env.env.observation_space
    if not space.contains(observation):
        kind = f"{observation.dtype} " if isinstance(observation, np.ndarray) else ""
        named = "its Text space" if isinstance(space, gym.spaces.Text) else space
        yield f"an observation is not in {named}: {kind}{_short(observation)}{_outside(space, observation)}"


def _of_step(env: TextEnv, observation: Any, reward: Any, ends: tuple[Any, Any], info: Any) -> Iterator[str]:
    """What is wrong with what ``step`` returns."""
    yield from _of_observation(env, observation)
    try:
        number(reward)
    except ValueError:
        yield f"a reward is {_short(reward)}: a finite number is needed"
    if not all(isinstance(end, bool | np.bool_) for end in ends):
        yield f"terminated and truncated are {ends!r:.80}: True or False is needed"
    try:
        said = (info or {}).get("is_success")
        if said is not None:
            truth(said, 'info["is_success"]')
    except (ValueError, AttributeError) as error:
        yield f"info has to be a dictionary, and its is_success a truth value: {error}"


def _of_advice(words: EnvWords, sentence: str) -> Iterator[str]:
    """Whether advice can be told apart."""
    if words.advise is None:
        return
    situation = words.situation(sentence)
    if any(words.advised(situation, words.advise(situation, action)) != action for action in words.actions):
        yield "advise() words two actions alike: the action's word has to stand in it"


def _short(value: Any) -> str:
    return " ".join(f"{value!r:.200}".split())[:80]
