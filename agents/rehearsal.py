"""A rehearsal: a small part of a run, played and computed before it begins, to see what it will take.

Nothing of it stays. It plays in places of its own, writes nothing down, computes gradients that nobody
applies, and puts the global random states back; so the run that follows is the same with it and without it.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import numpy as np
import pandas as pd
import torch
from gymnasium.spaces import Discrete

from agents import rollout
from agents.costs import Call, Costs, Episodes, fit
from agents.policies.policy import Completion, FinishReason, Policy, Prompt, Sampling
from agents.policy_writer import INSIGHT_TOKENS
from agents.reflection import Reflection
from agents.rehearsed_step import rehearse_step
from agents.run.run import Run
from envs.deadline import close_quietly
from envs.place import vector_env
from evals.baselines import Baselines
from experience.context import NO_CONTEXT, Context
from experience.outcomes import outcome_insights
from experience.seeds import SeedRange, Split
from experience.trace import StopReason, Trace

SECONDS = 10.0
"""What playing may take in a rehearsal, about; a call that has begun comes to its end."""
SHARE = 0.05
"""The same, of the minutes that a run may take."""
WIDTH, FEW = 16, 4
"""Episodes side by side, and at first: what a call costs by itself is seen in calls of several sizes."""
EPISODES, PART = 64, 1 / 8
"""Played of each kind at most, and at most as a part of a round's."""
TURN_COLUMNS = (
    *("trace_id", "turn", "split", "success", "stop_reason", "observation", "insight_ids", "action"),
    *("reward", "left_out", "next_observation", "terminated"),
)
RANDOM_SECONDS = 0.5
"""What the random policy may take."""


NOTHING = Completion(text="", token_ids=(), logprobs=(), prompt_tokens=0, finish_reason=FinishReason.OVERFLOW)
"""Said to a prompt for which there is no time: its episode ends as if it did not fit the context window."""


class Clocked:
    """A ``Policy`` that notes what each call takes, and says nothing more when its time is over."""

    def __init__(self, policy: Policy) -> None:
        """Wrap a policy."""
        self.policy = policy
        self.calls: list[Call] = []
        self.refused = 0
        """Prompts that were left over when the time of the present piece of play was over."""
        self.again: Callable[[], object] = lambda: None
        """Makes the last call once more, when its prompts are known."""
        self._has_begun = False
        self._known: set[Prompt] = set()
        self._deadline = self._last = 0.0

    def begin(self, seconds: float) -> None:
        """A new piece of play, which may take so long."""
        self.refused, self._has_begun = 0, False
        self._last = time.monotonic()
        self._deadline = self._last + seconds

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """See ``Policy``."""
        started = time.monotonic()
        if self._has_begun and started > self._deadline:
            self.refused = self.refused or len(prompts)
            return [NOTHING] * len(prompts)
        completions = self.policy.generate(prompts, sampling, seeds)
        distinct = set(prompts)
        ended = time.monotonic()
        self.calls.append(
            Call(
                decisions=len(prompts),
                new=len(distinct - self._known),
                seconds=ended - started,
                between=started - self._last,
            )
        )
        self._known |= distinct
        self._last, self._has_begun = ended, True
        self.again = partial(self.generate, prompts, sampling, seeds)
        return completions


@dataclass(frozen=True, slots=True, kw_only=True)
class _Play:
    """A piece of play that was rehearsed."""

    ended: tuple[Trace, ...]
    unfinished: tuple[Trace, ...]
    """Of the episodes for which there was no time."""

    @property
    def traces(self) -> tuple[Trace, ...]:
        """All of them."""
        return self.ended + self.unfinished

    def __add__(self, other: Self) -> Self:
        return replace(self, ended=self.ended + other.ended, unfinished=self.unfinished + other.unfinished)


class Rehearsal:
    """One rehearsal of one run."""

    def __init__(self, run: Run, reflection: Reflection) -> None:
        """Take hold of what will play, before the run's folder is made."""
        self._run, self._reflection = run, reflection
        self._clocked = Clocked(run.agent.student)
        env = run.make_env()
        seen = env.env.observation_space
        self._states = float(seen.n) if isinstance(seen, Discrete) else math.inf
        self._limit = None if env.spec is None else env.spec.max_episode_steps
        close_quietly(env)
        word = len(run.agent.base.tokenizer(" experience")["input_ids"])
        self._lesson = " experience" * max(1, INSIGHT_TOKENS // word)
        """Stands for what a model is still to write."""
        minutes = run.config.minutes
        self._seconds = SECONDS if minutes is None else min(SECONDS, SHARE * 60 * minutes)

    def costs(self) -> Costs:
        """Play, compute a step, and say what it took.

        Raises:
            EnvError: There is nothing to measure: every episode was ended by a fault of the env.
        """
        run, config = self._run, self._run.config
        started = time.monotonic()
        policy = run.agent.student
        with _as_before():
            policy.clear()
            most = min(EPISODES, max(FEW, int(PART * config.episodes)))
            width = min(WIDTH, most, config.num_envs)
            self._envs = vector_env(
                run.make_env, width, vectorization=config.vectorization, timeout=config.env_timeout
            )
            try:
                few = self._play("few", min(FEW, width), NO_CONTEXT, config.temperature, 0.15)
                bare = self._play("bare", most, NO_CONTEXT, config.temperature, 0.25)
                rollout.check_played(few.traces + bare.traces)
                greedy = self._play("greedy", most, NO_CONTEXT, 0.0, 0.1)
                context, waves = self._experience(bare)
                informed = self._play("informed", most, context, config.teacher_temperature, 0.2)
                if run.agent.max_tokens == 1:  # then a known prompt is not computed again
                    self._clocked.begin(math.inf)
                    self._clocked.again()
            finally:
                self._envs.close()
                policy.clear()
            calls = self._clocked.calls[1:] or self._clocked.calls  # the first is slow by what it sets up
            per_call, per_prompt, per_decision = fit(calls)
            played = sum((*waves, informed), start=bare)
            # Who has learned gets to all that was seen by anybody, with one piece of advice for each.
            found = len({turn.observation for trace in played.traces for turn in trace.turns})
            env_step, random_turns = self._random()
            measured = Costs(
                bare=self._episodes(bare),
                greedy=self._episodes(greedy),
                exploring=self._episodes([informed, *waves][-1]),
                informed=self._episodes(informed, found),
                train=self._episodes(played, with_context=False),
                per_call=per_call,
                per_prompt=per_prompt,
                per_decision=per_decision,
                step=0.0,
                remember=0.0,
                env_step=env_step,
                random_turns=random_turns,
                seconds=0.0,
            )
            is_sharded = run.ranks.size > 1 and config.engine == "fsdp"  # then no process has room for all
            if config.steps != 0 and not is_sharded:
                step, remember = rehearse_step(
                    run, played.traces, context, measured, lesson=self._lesson, seconds=self._seconds / 4
                )
                measured = replace(measured, step=step, remember=remember)
        return replace(measured, seconds=time.monotonic() - started)

    # --- playing -----------------------------------------------------------------------------------------

    def _play(self, name: str, episodes: int, context: Context, temperature: float, share: float) -> _Play:
        """Play until all have ended, or ``share`` of the time is over."""
        run = self._run
        seeds = SeedRange(split=Split.TRAIN, run_seed=run.config.seed, start=0, size=episodes)
        traces = rollout.rollout(
            self._envs,
            run.words,
            self._clocked,
            {f"rehearsal/{name}": context},
            seeds,
            sampling=Sampling(temperature=temperature, max_tokens=run.agent.max_tokens),
            policy_id="rehearsal",
            env_id=run.config.env,
            layout=run.config.layout,
            memory=run.memory,
        )
        self._clocked.begin(share * self._seconds)
        ended, unfinished = list[Trace](), list[Trace]()
        for trace in traces:
            (unfinished if self._clocked.refused else ended).append(trace)
            if 0 < self._clocked.refused == len(unfinished):
                break
        return _Play(ended=tuple(ended), unfinished=tuple(unfinished))

    def _episodes(self, play: _Play, found: int = 0, *, with_context: bool = True) -> Episodes:
        """How they go; there are at least as many prompts as were ``found`` otherwise."""
        limit, ended, decisions = self._limit, len(play.ended), sum(len(t.turns) for t in play.traces)
        turns = decisions / ended if ended else limit or 2.0 * decisions
        times = Counter(prompt for trace in play.traces for prompt in set(self._prompts(trace, with_context)))
        episodes = Counter(times.values())
        return Episodes(
            turns=max(1.0, turns if limit is None else min(turns, limit)),
            episodes=max(1, len(play.traces)),
            decisions=max(1, decisions),
            prompts=max(1, len(times), min(found, decisions)),
            once=episodes[1],
            twice=episodes[2],
            is_open=self._run.memory.turns != 0,
            has_ended=ended > 0,
            states=math.inf if self._run.memory.turns else self._states,
        )

    def _prompts(self, trace: Trace, with_context: bool) -> Iterator[Hashable]:
        """What stands for the prompt of each turn, or for the bare one."""
        for number, turn in enumerate(trace.turns):
            past = self._run.memory.of(trace.turns[:number], turn.left_out)
            shown = turn.insight_ids if with_context else ()
            yield tuple((t.observation, t.token_ids) for t in past), turn.observation, shown

    # --- experience --------------------------------------------------------------------------------------

    def _experience(self, bare: _Play) -> tuple[Context, list[_Play]]:
        """What the agent will be told, or something like it; and the play that was led so far."""
        config, kind = self._run.config, self._reflection.kind
        if kind == "fixed":
            return Context.fixed(config.context_text), []
        if kind == "raw" and bare.traces:
            longest = max(bare.traces, key=lambda trace: len(trace.turns))
            return Context.fixed("\n".join(f"{t.observation}\n{t.reply}" for t in longest.turns)), []
        if kind != "outcomes" or not any(trace.turns for trace in bare.traces):
            return Context.fixed(self._lesson), []
        # A small round, since how long episodes are with good advice is not known without any.
        until, waves = time.monotonic() + 0.3 * self._seconds, list[_Play]()
        while len(waves) < self._reflection.waves - 1 and time.monotonic() < until:
            context, size = self._advice([bare, *waves], explore=True), len(self._envs.places)
            waves.append(self._play(f"wave{len(waves)}", size, context, config.temperature, 0.1))
        return self._advice([bare, *waves], explore=False), waves

    def _advice(self, plays: Sequence[_Play], *, explore: bool) -> Context:
        run, words = self._run, self._run.words
        assert words.advise is not None
        turns = run.memory.situations(_turns([t for play in plays for t in play.traces]), words)
        return Context(
            insights=tuple(outcome_insights(turns, words.actions, words.advise, explore=explore)),
            k=run.config.insights_per_prompt,
            situation=words.situation,
            is_exploring=explore,
        )

    # --- the env alone -----------------------------------------------------------------------------------

    def _random(self) -> tuple[float, float]:
        """Seconds of a step, and steps of an episode, of the random policy."""
        config = self._run.config
        baselines = Baselines(
            config.env, config.env_kwargs, vectorization=config.vectorization, timeout=config.env_timeout
        )
        seeds = SeedRange(split=Split.TRAIN, run_seed=config.seed, start=0, size=1)
        with closing(baselines):
            if baselines.is_text:
                return 0.0, 1.0
            baselines.random(seeds)  # the first is slow by what is set up in it
            first, episodes, started = baselines.steps, 0, time.monotonic()
            while episodes < EPISODES and time.monotonic() < started + RANDOM_SECONDS:
                size = 1 + episodes  # a call takes a while by itself
                baselines.random(replace(seeds, start=episodes, size=size))
                episodes += size
            seconds, steps = time.monotonic() - started, max(1, baselines.steps - first)
        return seconds / steps, steps / episodes


def _turns(traces: Sequence[Trace]) -> pd.DataFrame:
    """What ``ExperienceStore.turns`` would say of them, as far as insights are drawn from it."""
    rows = []
    for trace in traces:
        following = [*(turn.observation for turn in trace.turns[1:]), trace.final_observation]
        rows += [
            {
                "trace_id": trace.id,
                "turn": number,
                "split": trace.split,
                "success": trace.success,
                "stop_reason": trace.stop_reason,
                "observation": turn.observation,
                "insight_ids": list(turn.insight_ids),
                "action": turn.action,
                "reward": turn.reward,
                "left_out": turn.left_out,
                "next_observation": following[number],
                "terminated": number + 1 == len(trace.turns) and trace.stop_reason == StopReason.TERMINATED,
            }
            for number, turn in enumerate(trace.turns)
        ]
    return pd.DataFrame(rows, columns=TURN_COLUMNS)


@contextmanager
def _as_before() -> Iterator[None]:
    """Put the global random states back: an env may draw from them."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
