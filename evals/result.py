"""``EvalResult``: one arm with its interval. ``Comparison``: two arms paired by seed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import pandas as pd

from evals.gate import exact_paired_test
from evals.stats import paired_difference_interval, wilson_interval


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One arm. Where ``n`` is ``None``, the figures are exact."""

    success_rate: float
    successes: int | None
    n: int | None
    """Episodes."""
    ci_low: float | None
    """95% Wilson interval of the success rate."""
    ci_high: float | None
    mean_return: float
    invalid_rate: float | None
    """Share of the turns whose reply was no action; ``None`` for an arm that does not reply."""
    prompt_tokens_per_turn: float | None

    @classmethod
    def from_traces(cls, traces: pd.DataFrame) -> Self:
        """Summarise ``ExperienceStore.traces()``; at least one."""
        turns = max(int(traces["num_turns"].sum()), 1)
        return cls.from_episodes(
            successes=int(traces["success"].sum()),
            n=len(traces),
            mean_return=float(traces["total_reward"].mean()),
            invalid_rate=float(traces["invalid_replies"].sum()) / turns,
            prompt_tokens_per_turn=float(traces["prompt_tokens"].sum()) / turns,
        )

    @classmethod
    def from_episodes(
        cls,
        *,
        successes: int,
        n: int,
        mean_return: float,
        invalid_rate: float | None = None,
        prompt_tokens_per_turn: float | None = None,
    ) -> Self:
        """Add the rate and its interval."""
        low, high = wilson_interval(successes, n)
        return cls(
            success_rate=successes / n,
            successes=successes,
            n=n,
            ci_low=low,
            ci_high=high,
            mean_return=mean_return,
            invalid_rate=invalid_rate,
            prompt_tokens_per_turn=prompt_tokens_per_turn,
        )

    @classmethod
    def exact(cls, success_rate: float, mean_return: float) -> Self:
        """A computed arm, which nobody played."""
        return cls(
            success_rate=success_rate,
            successes=None,
            n=None,
            ci_low=None,
            ci_high=None,
            mean_return=mean_return,
            invalid_rate=None,
            prompt_tokens_per_turn=None,
        )

    def as_dict(self) -> dict[str, Any]:
        """For ``results.json``."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The success rate of one arm minus another's, on the same seeds."""

    difference: float
    ci_low: float
    """95% interval, Newcombe's for paired rates."""
    ci_high: float
    p_value: float
    """McNemar's exact test, two-sided."""
    n: int
    """Pairs."""

    @classmethod
    def of(cls, first: pd.DataFrame, second: pd.DataFrame) -> Self:
        """Compare two frames of ``ExperienceStore.traces()``.

        Raises:
            ValueError: They were not played on the same seeds.
        """
        if sorted(first["seed"]) != sorted(second["seed"]):
            raise ValueError("arms can only be compared on the same seeds")
        one = first.set_index("seed")["success"].astype(bool).sort_index()
        two = second.set_index("seed")["success"].astype(bool).sort_index()
        both, only_first = int((one & two).sum()), int((one & ~two).sum())
        only_second, neither = int((~one & two).sum()), int((~one & ~two).sum())
        low, high = paired_difference_interval(both, only_first, only_second, neither)
        return cls(
            difference=(only_first - only_second) / len(one),
            ci_low=low,
            ci_high=high,
            p_value=exact_paired_test(only_first, only_second),
            n=len(one),
        )

    def as_dict(self) -> dict[str, float]:
        """For ``results.json``."""
        return asdict(self)


def rate_text(arm: Mapping[str, Any]) -> str:
    """The success rate of an ``EvalResult.as_dict()``, with its interval, for tables."""
    if arm["n"] is None:
        return f"{arm['success_rate']:.1%} exact"
    return f"{arm['success_rate']:.1%} [{arm['ci_low']:.1%}, {arm['ci_high']:.1%}]"


def temperature_text(temperature: float) -> str:
    """A sampling temperature, for tables."""
    return "greedy" if temperature == 0 else f"T = {temperature:g}"
