"""Episodes: a policy plays many at once over a Gymnasium vector env."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from agents.policies.policy import FinishReason, Policy, Prompt, Sampling
from agents.prompts import Layout, build_prompt
from envs.deadline import deadline
from envs.text_env import TextEnv
from envs.words import EnvWords
from experience.context import NO_CONTEXT, Context
from experience.insight import Insight
from experience.seeds import SeedRange
from experience.trace import StopReason, Trace, Turn

Vectorization = Literal["sync", "async"]
VectorEnv = SyncVectorEnv | AsyncVectorEnv

ERROR = "rollout/error"
"""Key of the info that says what the env raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A named part of a run: one episode per seed, all with one context."""

    name: str
    """Part of every trace's id and of every reply's seed."""
    seeds: SeedRange
    context: Context = NO_CONTEXT


class _Slot(gym.Wrapper[str, str, str, str]):
    """A place for one episode after the other in a vector env.

    An env that raises, hangs or gives bad data ends its own episode, with ``info[ERROR]``, and not its
    siblings'. A reset without a seed parks the slot: it stays still until a reset with one.
    """

    _parked = True

    def __init__(self, env: TextEnv, timeout: float) -> None:
        super().__init__(env)
        self._timeout = timeout

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        self._parked = seed is None
        if self._parked:
            return "", {}
        try:
            with deadline(self._timeout):
                return self.env.reset(seed=seed, options=options)
        except Exception as error:
            self._parked = True
            return "", {ERROR: f"{type(error).__name__}: {error}"}

    def step(self, action: str) -> tuple[str, SupportsFloat, bool, bool, dict[str, Any]]:
        if self._parked:
            return "", 0.0, False, False, {}
        try:
            with deadline(self._timeout):
                observation, reward, terminated, truncated, info = self.env.step(action)
            if not math.isfinite(reward):
                raise ValueError(f"the reward is {reward}")
            return observation, float(reward), bool(terminated), bool(truncated), info
        except Exception as error:
            return "", 0.0, False, True, {ERROR: f"{type(error).__name__}: {error} (reply {action[:80]!r})"}


@dataclass(slots=True)
class _Episode:
    """An episode on its way."""

    phase: Phase
    show: Callable[[str, int], tuple[Insight, ...]]
    """See ``Context.show``."""
    seed: int
    observation: str = ""
    turns: list[Turn] = field(default_factory=list)
    acted: Counter[str] = field(default_factory=Counter)
    """How often at each observation; unreadable replies are no acts."""

    @property
    def times(self) -> int:
        """How often it has acted here, where that makes a difference: what is shown is looked up by it."""
        return self.acted[self.observation] if self.phase.context.is_exploring else 0


def vector_env(
    make: Callable[[], TextEnv],
    num_envs: int,
    *,
    vectorization: Vectorization = "sync",
    timeout: float = 0.0,
) -> VectorEnv:
    """``num_envs`` places for episodes, for ``rollout``.

    Args:
        make: Makes an env; has to be picklable for ``async``.
        num_envs: How many episodes at once.
        vectorization: ``sync`` steps one env after the other; ``async`` gives each a process, which pays
            where a step takes longer than a message to another process.
        timeout: Seconds for a step or reset; 0 waits for ever.
    """
    slots = [partial(_make_slot, make, timeout)] * num_envs
    if vectorization == "sync":
        return SyncVectorEnv(slots, autoreset_mode=AutoresetMode.DISABLED)
    # Text cannot be shared memory. Forked processes would inherit torch's threads, half alive.
    return AsyncVectorEnv(slots, shared_memory=False, context="spawn", autoreset_mode=AutoresetMode.DISABLED)


def _make_slot(make: Callable[[], TextEnv], timeout: float) -> _Slot:
    return _Slot(make(), timeout)


def rollout(
    envs: VectorEnv,
    words: EnvWords,
    policy: Policy,
    phases: Sequence[Phase],
    *,
    sampling: Sampling,
    policy_id: str,
    env_id: str,
    layout: Layout | None = None,
) -> Iterator[Trace]:
    """Play the episodes, as many at once as ``envs`` has places, and yield each when it ends.

    What happens in an episode depends on its seed, its phase's name and context, and the policy, not on
    ``num_envs`` and not on the other episodes.

    Args:
        envs: From ``vector_env``.
        words: The env's.
        policy: Who plays.
        phases: What to play.
        sampling: How replies are drawn.
        policy_id: Which weights play, for the record.
        env_id: The env, for the record.
        layout: Where the context stands in the prompt.
    """
    queue = _episodes(phases)
    slots: list[_Episode | None] = [None] * envs.num_envs
    free = np.ones(envs.num_envs, dtype=np.bool_)

    def trace(
        episode: _Episode, stop: StopReason, final: str, success: bool, error: str | None = None
    ) -> Trace:
        return Trace(
            phase=episode.phase.name,
            split=episode.phase.seeds.split,
            seed=episode.seed,
            env_id=env_id,
            policy_id=policy_id,
            context_id=episode.phase.context.id,
            turns=tuple(episode.turns),
            final_observation=final,
            stop_reason=stop,
            success=success,
            error=error,
        )

    @lru_cache(maxsize=4096)
    def prompt(observation: str, experience: tuple[str, ...]) -> Prompt:
        return build_prompt(words, observation, experience, layout)

    while True:
        if free.any():
            starting = [next(queue, None) if is_free else None for is_free in free]
            seeds = [None if episode is None else episode.seed for episode in starting]
            observations, infos = envs.reset(seed=seeds, options={"reset_mask": free.copy()})
            for i in np.flatnonzero(free).tolist():
                slots[i] = starting[i]
                if (episode := starting[i]) is not None:
                    episode.observation = observations[i]
            free[:] = False
            for i, episode in enumerate(slots):
                if episode is not None and (error := _info(infos, ERROR, i)):
                    yield trace(episode, StopReason.ERROR, "", False, error)
                    slots[i] = None
                    free[i] = True
            if free.any():
                continue
        playing = [(i, episode) for i, episode in enumerate(slots) if episode is not None]
        if not playing:
            return

        most = len(words.actions)  # nobody has more advice than that
        shown = [episode.show(episode.observation, min(episode.times, most)) for _, episode in playing]
        completions = policy.generate(
            [
                prompt(episode.observation, tuple(insight.text for insight in insights))
                for (_, episode), insights in zip(playing, shown, strict=True)
            ],
            sampling,
            [
                turn_seed(episode.phase.seeds.run_seed, episode.phase.name, episode.seed, len(episode.turns))
                for _, episode in playing
            ],
        )
        replies = [""] * envs.num_envs
        for (i, _), completion in zip(playing, completions, strict=True):
            replies[i] = words.reply_prefix + completion.text
        observations, rewards, terminated, truncated, infos = envs.step(tuple(replies))

        for (i, episode), insights, completion in zip(playing, shown, completions, strict=True):
            error = _info(infos, ERROR, i)
            if error or completion.finish_reason == FinishReason.OVERFLOW:
                stop = StopReason.ERROR if error else StopReason.OUT_OF_TOKENS
                yield trace(episode, stop, episode.observation, False, error)
                free[i] = True
                continue
            episode.turns.append(
                Turn(
                    observation=episode.observation,
                    insight_ids=tuple(insight.id for insight in insights),
                    prompt_tokens=completion.prompt_tokens,
                    reply=replies[i],
                    token_ids=completion.token_ids,
                    logprobs=completion.logprobs,
                    action=_info(infos, "text/action", i),
                    reward=float(rewards[i]),
                )
            )
            episode.acted[episode.observation] += episode.turns[-1].action is not None
            episode.observation = observations[i]
            if terminated[i] or truncated[i]:
                if _info(infos, "text/too_many_invalid", i):
                    stop = StopReason.INVALID_REPLIES
                else:
                    stop = StopReason.TERMINATED if terminated[i] else StopReason.TRUNCATED
                total_reward = sum(turn.reward for turn in episode.turns)
                declared = {"is_success": _info(infos, "is_success", i)}
                success = words.success.of(declared, total_reward, bool(terminated[i]))
                yield trace(episode, stop, observations[i], success)
                free[i] = True


def _episodes(phases: Sequence[Phase]) -> Iterator[_Episode]:
    for phase in phases:
        show = lru_cache(maxsize=4096)(phase.context.show)
        yield from map(partial(_Episode, phase, show), phase.seeds)


def turn_seed(run_seed: int, phase: str, seed: int, turn: int) -> int:
    """The sampling seed of one reply, a 64-bit hash of where it stands."""
    place = f"{run_seed}/{phase}/{seed}/{turn}".encode()
    return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest())


def _info(infos: dict[str, Any], key: str, index: int) -> Any:
    """One env's entry of a vector env's infos; ``None`` if that env gave none."""
    return infos[key][index] if key in infos and infos[f"_{key}"][index] else None
