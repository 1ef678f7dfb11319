"""Whether an environment is fit for text agents, in the spirit of Gymnasium's own checker."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from envs.deadline import CLEANUP, EnvFault, guarded
from envs.text_env import TextEnv, make_text_env
from envs.words import truth

EPISODES = 3
MAX_STEPS = 50


def check_text_env(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> list[str]:
    """Play a few random episodes and say what an agent would stumble over.

    Run Gymnasium's ``check_env`` for the env itself; this one looks at its words.

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
        guarded(lambda: found.extend(_complaints(env, again)))
    except EnvFault as fault:
        found.append(f"it raises {fault}")
    for each in (env, again):
        try:
            guarded(each.close, CLEANUP)
        except EnvFault as fault:
            found.append(f"it cannot be closed: {fault}")
    return list(dict.fromkeys(found))


def _complaints(env: TextEnv, again: TextEnv) -> Iterator[str]:
    words, actions = env.words, env.env.action_space
    for text in words.actions:
        read = words.parse(f"{words.reply_prefix} {text}")
        if read is None or read.text != text:
            yield f"the action {text!r} is not read back from its own text"
        elif not actions.contains(read.value):
            yield f"the action {text!r} becomes {read.value!r}, which is not in {actions}"
    if words.actions and words.parse("") is not None:
        yield "an empty reply is taken for an action"
    actions.seed(0)
    seen = set()
    for seed in range(EPISODES):
        first, _ = env.reset(seed=seed)
        if again.reset(seed=seed)[0] != first:
            yield f"two episodes of seed {seed} begin differently: draw from self.np_random only"
        for _ in range(MAX_STEPS):
            observation, reward, terminated, truncated, info = env.env.step(actions.sample())
            if not math.isfinite(reward):
                yield f"a reward is {reward}"
            if (info or {}).get("is_success") is not None:
                truth(info["is_success"], 'info["is_success"]')
            sentence = words.describe(observation)
            if not env.observation_space.contains(sentence):
                yield f"describe() gives {sentence!r:.80}: a text without control characters is needed"
                return
            seen.add(sentence)
            if words.advise is not None and words.actions:
                words.advise(words.situation(sentence), words.actions[0])
            if terminated or truncated:
                break
    if len(seen) == 1:
        yield "every observation reads the same: describe() leaves out what changes"
