"""What success is worth: the random policy, the best blind one, and the optimal one.

They act on the env itself, without words.
"""

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Text
from scipy.sparse import csr_array

from envs.deadline import deadline
from envs.text_env import make_text_env
from evals.result import EvalResult
from experience.seeds import SeedRange

MAX_PATTERNS = 512
"""Blind candidates at most; so many that Frozen Lake's patterns of up to four actions all fit."""
SCREENING_SEEDS = 32
FINALISTS = 16
MAX_STEPS = 200_000
"""Env steps after which no further candidate is looked at, in the screening and again among the finalists. An
episode that ran into its time limit counts as a tenth of them."""


class Baselines:
    """The baselines of one env. As in play, what it raises ends an episode, which is then no success."""

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], *, timeout: float = 0) -> None:
        """Make the env.

        Args:
            env_id: See ``make_env``.
            env_kwargs: See ``make_env``.
            timeout: Seconds for a step or a reset; 0 is no limit.
        """
        self._timeout = timeout
        text_env = make_text_env(env_id, env_kwargs)
        self._env: gym.Env[Any, Any] = text_env.env
        self._words = text_env.words
        self._steps = 0

    @property
    def is_text(self) -> bool:
        """Whether the env's actions are text."""
        return isinstance(self._env.action_space, Text)

    def random(self, seeds: SeedRange) -> EvalResult:
        """Random actions, as the action space samples them."""
        space = copy.deepcopy(self._env.action_space)

        def actions(seed: int) -> Iterator[Any]:
            # Not seed itself: that is the very stream from which the env draws its slips.
            space.seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
            while True:
                yield space.sample()

        return self._play(actions, seeds)

    def blind(
        self, candidates: Iterable[Sequence[str]], validation: SeedRange, test: SeedRange
    ) -> tuple[EvalResult, tuple[str, ...]]:
        """The best fixed action sequence, which is repeated until the episode ends.

        The ``candidates`` and all short patterns of actions compete on a few validation seeds, the best of
        them on all, as many as ``MAX_STEPS`` allow; the winner is measured on test.

        Args:
            candidates: Further sequences of action texts, such as those of successful episodes.
            validation: Where to choose.
            test: Where to measure.
        """
        choices = self._words.actions
        patterns = itertools.chain.from_iterable(
            itertools.product(choices, repeat=length) for length in range(1, 5)
        )
        pool = list(dict.fromkeys([*map(tuple, candidates), *itertools.islice(patterns, MAX_PATTERNS)]))

        def play(sequence: tuple[str, ...], seeds: Iterable[int]) -> EvalResult:
            values = [self._value(text) for text in sequence]
            return self._play(lambda _: itertools.cycle(values), seeds)

        def ranked(pool: Iterable[tuple[str, ...]], seeds: Sequence[int]) -> list[tuple[str, ...]]:
            rates: dict[tuple[str, ...], float] = {}
            started = self._steps
            for sequence in pool:
                if rates and self._steps - started > MAX_STEPS:
                    break
                rates[sequence] = play(sequence, seeds).success_rate
            return sorted(rates, key=lambda sequence: -rates[sequence])

        finalists = ranked(pool, list(validation)[:SCREENING_SEEDS])[:FINALISTS]
        best = ranked(finalists, list(validation))[0]
        return play(best, test), best

    def constant(self, validation: SeedRange, test: SeedRange) -> tuple[EvalResult, str] | None:
        """The blind one where actions are text: always the answer that is most often right on validation.

        Args:
            validation: Where to choose.
            test: Where to measure.

        Returns:
            ``None`` where the env does not say the right answer, as ``info["gold"]`` at reset. Where that has
            to be put into a form, ``info["gold_reply"]`` is the reply.
        """
        golds: Counter[str | None] = Counter()
        for seed in validation:
            with suppress(Exception), deadline(self._timeout):
                _, info = self._env.reset(seed=seed)
                golds[info.get("gold_reply", info.get("gold"))] += 1
        best = max(golds, key=lambda gold: golds[gold], default=None)
        return None if best is None else (self._play(lambda _: itertools.repeat(best), test), best)

    def optimal(self) -> EvalResult | None:
        """The policy of the largest expected return, by dynamic programming over the steps that are left.

        Returns:
            Its success and return; ``None`` where the env has no transition table ``P`` (as Gymnasium's
            toy-text envs have it) or no step limit, or where an episode's last step does not tell whether it
            succeeded.
        """
        table = getattr(self._env.unwrapped, "P", None)
        horizon = self._env.spec.max_episode_steps if self._env.spec else None
        start_S = getattr(self._env.unwrapped, "initial_state_distrib", None)
        if table is None or horizon is None or start_S is None:
            return None
        outcomes = [o for actions in table.values() for options in actions.values() for o in options]
        reached = self._words.success.reached
        by_ending_alone = reached(-math.inf, True) == reached(math.inf, True)
        if not by_ending_alone and any(reward and not done for _, _, reward, done in outcomes):
            return None
        S, A = len(table), len(table[0])
        rows, following, chances, rewards, goes_on, succeeds = [], [], [], [], [], []
        for state, actions in table.items():
            for action, options in actions.items():
                for probability, next_state, reward, done in options:
                    rows.append(state * A + action)
                    following.append(next_state)
                    chances.append(probability)
                    rewards.append(reward)
                    goes_on.append(not done)
                    succeeds.append(done and reached(reward, True))
        weights = np.asarray(chances)
        rewards_SA = np.bincount(rows, weights=weights * rewards, minlength=S * A).reshape(S, A)
        success_SA = np.bincount(rows, weights=weights * succeeds, minlength=S * A).reshape(S, A)
        transitions = csr_array((weights * goes_on, (rows, following)), shape=(S * A, S))
        returns_S, rates_S = np.zeros(S), np.zeros(S)
        for _ in range(horizon):
            returns_SA = rewards_SA + (transitions @ returns_S).reshape(S, A)
            rates_SA = success_SA + (transitions @ rates_S).reshape(S, A)
            best_S = returns_SA.argmax(axis=1)
            returns_S, rates_S = returns_SA[range(S), best_S], rates_SA[range(S), best_S]
        start = np.asarray(start_S)
        return EvalResult.exact(success_rate=float(start @ rates_S), mean_return=float(start @ returns_S))

    def _value(self, text: str) -> Any:
        """The env's action of this text."""
        action = self._words.parse(text)
        assert action is not None
        return action.value

    def _play(self, actions: Callable[[int], Iterator[Any]], seeds: Iterable[int]) -> EvalResult:
        """One episode per seed with actions that depend on nothing but the seed and the time."""
        returns = []
        successes = 0
        for seed in seeds:
            total, success = self._episode(actions(seed), seed)
            returns.append(total)
            successes += success
        return EvalResult.from_episodes(
            successes=successes, n=len(returns), mean_return=float(np.mean(returns))
        )

    def _episode(self, script: Iterator[Any], seed: int) -> tuple[float, bool]:
        """Return and success of one episode."""
        total, terminated, truncated = 0.0, False, False
        info: dict[str, Any] = {}
        try:
            with deadline(self._timeout) as once_more:
                self._env.reset(seed=seed)
                while not (terminated or truncated):
                    once_more()
                    _, reward, terminated, truncated, info = self._env.step(next(script))
                    if not math.isfinite(reward):
                        raise ValueError("the reward is no number")
                    total += float(reward)
                    self._steps += 1
        except Exception as error:
            self._steps += MAX_STEPS // 10 * isinstance(error, TimeoutError)
            return total, False
        return total, self._words.success.of(info, total, terminated)
