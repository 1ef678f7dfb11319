"""What success is worth: the random policy, the best blind one, and the optimal one.

They act on the env itself, without words.
"""

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Text
from scipy.sparse import csr_array

from envs.actions import all_values
from envs.deadline import EnvFault, TimeLimit, close_quietly, guarded
from envs.place import Outcome, Vectorization, vector_env
from envs.text_env import make_text_env
from envs.words import EnvError, Options
from evals.result import EvalResult
from experience.seeds import SeedRange
from experience.trace import StopReason

MAX_PATTERNS = 512
"""Blind candidates at most; enough that Frozen Lake's patterns of up to four actions all fit."""
SCREENING_SEEDS = 32
FINALISTS = 16
MAX_STEPS = 200_000
"""Env steps after which no further candidate is looked at, in the screening and again among the finalists. An
episode that ran into its time limit counts as a tenth of them."""
ROUNDING = 1e-12
"""Success rates that differ by less are equal."""


def expected_steps(actions: int, turns: float, validation: int, test: int) -> float:
    """About how many steps the random and the best blind policy take together.

    An episode has ``turns`` turns on average. Without words to act by there is no blind policy.
    """
    if not actions:
        return test * turns
    patterns = min(MAX_PATTERNS, sum(int(actions**length) for length in range(1, 5)))
    screening = patterns * min(SCREENING_SEEDS, validation) * turns
    finals = min(FINALISTS, patterns) * validation * turns
    return min(MAX_STEPS, screening) + min(MAX_STEPS, finals) + 2.0 * test * turns


class _Wordless(gym.Wrapper[str, Any, Any, Any]):
    """An env whose observations nobody reads, and whose actions are its own."""

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[str, dict[str, Any]]:
        _, info = self.env.reset(seed=seed, options=options)
        return "", info

    def step(self, action: Any) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        _, reward, terminated, truncated, info = self.env.step(action)
        return "", reward, terminated, truncated, info


def _make_wordless(env_id: str, env_kwargs: dict[str, Any]) -> _Wordless:
    return _Wordless(make_text_env(env_id, env_kwargs).env)


class Baselines:
    """The baselines of one env. As in play, a fault of the env ends an episode, which is then no success."""

    def __init__(
        self,
        env_id: str,
        env_kwargs: dict[str, Any],
        *,
        vectorization: Vectorization = "sync",
        timeout: float | TimeLimit = 0.0,
    ) -> None:
        """Make the env; see ``make_env`` and ``vector_env``."""
        text_env = make_text_env(env_id, env_kwargs)
        self._env: gym.Env[Any, Any] = text_env.env
        self._words = text_env.words
        self._values = dict(zip(self._words.actions, all_values(self._env.action_space), strict=False))
        """By their place, not by what the words' grammar makes of them: that may take no bare word."""
        make = partial(_make_wordless, env_id, env_kwargs)
        [self._place] = vector_env(make, 1, vectorization=vectorization, timeout=timeout).places
        self.steps = 0
        """Env steps taken so far."""

    def close(self) -> None:
        """Close the env."""
        self._place.close()
        close_quietly(self._env)

    @property
    def is_text(self) -> bool:
        """Whether the env's actions are text."""
        return isinstance(self._env.action_space, Text)

    def random(self, seeds: SeedRange) -> EvalResult:
        """Random actions, as the action space samples them."""
        space = copy.deepcopy(self._env.action_space)

        def actions(seed: int) -> Iterator[Any]:
            # Not seed itself: that is the very stream from which the env draws its slips.
            guarded(partial(space.seed, int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])))
            while True:
                yield guarded(space.sample)

        return self._play(actions, seeds)

    def blind(
        self, candidates: Iterable[Sequence[str]], validation: SeedRange, test: SeedRange
    ) -> tuple[EvalResult, tuple[str, ...]]:
        """The best fixed action sequence, which is repeated until the episode ends.

        The ``candidates``, such as those of successful episodes, and all short patterns of actions compete
        on a few validation seeds, the best of them on all, as many as ``MAX_STEPS`` allow; the winner is
        measured on test.
        """
        choices = self._words.actions
        patterns = itertools.chain.from_iterable(
            itertools.product(choices, repeat=length) for length in range(1, 5)
        )
        known = (tuple(sequence) for sequence in candidates if self._values.keys() >= set(sequence))
        pool = list(dict.fromkeys([*known, *itertools.islice(patterns, MAX_PATTERNS)]))

        def play(sequence: tuple[str, ...], seeds: Iterable[int]) -> EvalResult:
            values = [self._values[text] for text in sequence]
            return self._play(lambda _: itertools.cycle(values), seeds)

        def ranked(pool: Iterable[tuple[str, ...]], seeds: Sequence[int]) -> list[tuple[str, ...]]:
            rates: dict[tuple[str, ...], float] = {}
            started = self.steps
            for sequence in pool:
                if rates and self.steps - started > MAX_STEPS:
                    break
                rates[sequence] = play(sequence, seeds).success_rate
            return sorted(rates, key=lambda sequence: -rates[sequence])

        finalists = ranked(pool, list(validation)[:SCREENING_SEEDS])[:FINALISTS]
        best = ranked(finalists, list(validation))[0]
        return play(best, test), best

    def constant(self, validation: SeedRange, test: SeedRange) -> tuple[EvalResult, str] | None:
        """The blind one where actions are text: always the answer that is most often right on validation.

        Returns:
            ``None`` where the env does not say the right answer, as ``info["gold"]`` at reset. Where that has
            to be put into a form, ``info["gold_reply"]`` is the reply.
        """
        golds: Counter[str] = Counter()
        for seed in validation:
            self._place.begin(seed)
            if (gold := self._place.outcome().gold) is not None:
                golds[gold] += 1
        best = max(golds, key=lambda gold: golds[gold], default=None)
        return None if best is None else (self._play(lambda _: itertools.repeat(best), test), best)

    def optimal(self) -> EvalResult | None:
        """The policy of the highest success rate, by dynamic programming over the steps that are left.

        No other succeeds more often; of several such policies it is the one of the largest expected return.

        Returns:
            Its success, and its return, which is not always the largest; ``None`` where the env has no
            transition table ``P`` (as Gymnasium's toy-text envs have it) or no step limit, or where an
            episode's last step does not tell whether it succeeded.
        """
        try:
            return guarded(self._optimal)
        except EnvFault:  # what it calls ``P`` is something else
            return None

    def _optimal(self) -> EvalResult | None:
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
            is_best_SA = rates_SA >= rates_SA.max(axis=1, keepdims=True) - ROUNDING
            best_S = np.where(is_best_SA, returns_SA, -np.inf).argmax(axis=1)
            returns_S, rates_S = returns_SA[range(S), best_S], rates_SA[range(S), best_S]
        start = np.asarray(start_S)
        rate, mean_return = float(start @ rates_S), float(start @ returns_S)
        if not (-1e-9 <= rate <= 1 + 1e-9 and math.isfinite(mean_return)):
            return None
        return EvalResult(success_rate=rate, mean_return=mean_return)

    def _play(self, actions: Callable[[int], Iterator[Any]], seeds: Iterable[int]) -> EvalResult:
        """One episode per seed with actions that depend on nothing but the seed and the time.

        Raises:
            EnvError: None of them could be judged.
        """
        returns = []
        successes = 0
        endings: Counter[str] = Counter()
        for seed in seeds:
            total, success, stop = self._episode(actions(seed), seed)
            endings[stop] += 1
            if stop != StopReason.NOT_JUDGED:
                returns.append(total)
                successes += success
        if not returns:
            raise EnvError(f"of {endings.total()} baseline episodes none could be judged: resume")
        return EvalResult.from_episodes(
            successes=successes, n=len(returns), mean_return=float(np.mean(returns)), endings=endings
        )

    def _episode(self, script: Iterator[Any], seed: int) -> tuple[float, bool, StopReason]:
        """Return, success and end of one episode."""
        total, place = 0.0, self._place
        place.begin(seed)
        outcome = place.outcome()
        while outcome.fault is None and not (outcome.terminated or outcome.truncated):
            try:
                place.act(next(script))
            except EnvFault:  # a space that cannot be sampled
                return total, False, StopReason.ERROR
            outcome = place.outcome()
            total += outcome.reward
            self.steps += 1
        if outcome.fault is not None:
            self.steps += MAX_STEPS // 10 * outcome.timed_out
            return total, False, StopReason.TIMED_OUT if outcome.timed_out else StopReason.ERROR
        if outcome.not_judged:
            return total, False, StopReason.NOT_JUDGED
        try:
            success = guarded(partial(self._is_success, outcome, total))
        except EnvFault:
            return total, False, StopReason.ERROR
        return total, success, StopReason.TERMINATED if outcome.terminated else StopReason.TRUNCATED

    def _is_success(self, outcome: Outcome, total: float) -> bool:
        return self._words.success.of({"is_success": outcome.is_success}, total, outcome.terminated)
