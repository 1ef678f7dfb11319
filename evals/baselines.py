"""What success is worth: the random policy, the best blind one, and the optimal one.

They act on the env itself, without words.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from scipy.sparse import csr_array

from envs.text_env import is_success, make_env
from evals.result import EvalResult
from experience.split import SeedRange

MAX_PATTERNS = 512
"""Blind candidates at most; so many that Frozen Lake's patterns of up to four actions all fit."""
SCREENING_SEEDS = 32
FINALISTS = 16


class Baselines:
    """The baselines of one env."""

    def __init__(self, env_id: str, env_kwargs: dict[str, Any]) -> None:
        self._env = make_env(env_id, env_kwargs)
        self._actions = cast("gym.spaces.Discrete", self._env.action_space)

    def random(self, seeds: SeedRange) -> EvalResult:
        """Uniformly random actions."""

        def actions(seed: int) -> Iterator[int]:
            # Not default_rng(seed): that is the very stream from which the env draws its slips.
            generator = np.random.default_rng([seed, 1])
            while True:
                yield int(generator.integers(self._actions.n))

        return self._play(actions, seeds)

    def blind(
        self, candidates: Iterable[Sequence[int]], validation: SeedRange, test: SeedRange
    ) -> tuple[EvalResult, tuple[int, ...]]:
        """The best fixed action sequence, which is repeated until the episode ends.

        All short patterns of actions compete with the ``candidates`` on a few validation seeds, the
        best of them on all; the winner is measured on test.

        Args:
            candidates: Further sequences of action numbers from 0, such as those of successful episodes.
            validation: Where to choose.
            test: Where to measure.
        """
        choices = range(int(self._actions.n))
        patterns = itertools.chain.from_iterable(
            itertools.product(choices, repeat=length) for length in range(1, 5)
        )
        pool = list(dict.fromkeys([*map(tuple, candidates), *itertools.islice(patterns, MAX_PATTERNS)]))

        def rate(sequence: tuple[int, ...], seeds: Iterable[int]) -> float:
            return self._play(lambda _: itertools.cycle(sequence), seeds).success_rate

        screening = list(validation)[:SCREENING_SEEDS]
        finalists = sorted(pool, key=lambda sequence: -rate(sequence, screening))[:FINALISTS]
        best = max(finalists, key=lambda sequence: rate(sequence, validation))
        return self._play(lambda _: itertools.cycle(best), test), best

    def constant(self, validation: SeedRange, test: SeedRange) -> tuple[EvalResult, str] | None:
        """The blind one where actions are text: always the answer that is most often right on validation.

        Args:
            validation: Where to choose.
            test: Where to measure.

        Returns:
            ``None`` where the env does not say the right answer, as ``info["gold"]`` at reset. Where that has
            to be put into a form, ``info["gold_reply"]`` is the reply.
        """
        infos = (self._env.reset(seed=seed)[1] for seed in validation)
        golds = Counter(info.get("gold_reply", info.get("gold")) for info in infos)
        [(best, _)] = golds.most_common(1)
        return None if best is None else (self._play(lambda _: itertools.repeat(best), test), best)

    def optimal(self) -> EvalResult | None:
        """The best that any policy can do, by dynamic programming over the steps that are left.

        Returns:
            ``None`` where the env has no transition table ``P`` (as Gymnasium's toy-text envs have it) or
            no step limit, or where success is more than a single final reward of 1.
        """
        table = getattr(self._env.unwrapped, "P", None)
        horizon = self._env.spec.max_episode_steps if self._env.spec else None
        start_S = getattr(self._env.unwrapped, "initial_state_distrib", None)
        if table is None or horizon is None or start_S is None:
            return None
        outcomes = [o for actions in table.values() for options in actions.values() for o in options]
        if any(reward != (1.0 if done and reward else 0.0) for _, _, reward, done in outcomes):
            return None
        S, A = len(table), int(self._actions.n)
        rows, following, chances, rewards, goes_on = [], [], [], [], []
        for state, actions in table.items():
            for action, options in actions.items():
                for probability, next_state, reward, done in options:
                    rows.append(state * A + action)
                    following.append(next_state)
                    chances.append(probability)
                    rewards.append(reward)
                    goes_on.append(not done)
        weights = np.asarray(chances)
        rewards_SA = np.bincount(rows, weights=weights * rewards, minlength=S * A).reshape(S, A)
        transitions = csr_array((weights * goes_on, (rows, following)), shape=(S * A, S))
        values_S = np.zeros(S)
        for _ in range(horizon):
            values_S = (rewards_SA + (transitions @ values_S).reshape(S, A)).max(axis=1)
        rate = float(np.asarray(start_S) @ values_S)
        return EvalResult.exact(success_rate=rate, mean_return=rate)

    def _play(self, actions: Callable[[int], Iterator[int | str]], seeds: Iterable[int]) -> EvalResult:
        """One episode per seed with actions that depend on nothing but the seed and the time.

        Actions are texts, or numbers from 0.
        """
        returns = []
        successes = 0
        for seed in seeds:
            self._env.reset(seed=seed)
            info: dict[str, Any] = {}
            total, over = 0.0, False
            script = actions(seed)
            while not over:
                action = next(script)
                if not isinstance(action, str):
                    action += int(self._actions.start)
                _, reward, terminated, truncated, info = self._env.step(action)
                total += float(reward)
                over = terminated or truncated
            returns.append(total)
            successes += is_success(info.get("is_success"), total)
        return EvalResult.from_episodes(
            successes=successes, n=len(returns), mean_return=float(np.mean(returns))
        )
