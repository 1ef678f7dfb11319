"""``EvalResult``: one arm with its interval. ``Comparison``: two arms paired by seed."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Self

import pandas as pd

from evals.stats import exact_paired_test, mean_interval, paired_difference_interval, wilson_interval
from experience.trace import StopReason

ROUNDING = 1e-9
"""So near to each other figures are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResult:
    """One arm. Where ``n`` is ``None``, nobody played it: the figures are exact."""

    success_rate: float
    successes: int | None = None
    n: int | None = None
    """Episodes."""
    ci_low: float | None = None
    """95% Wilson interval of the success rate."""
    ci_high: float | None = None
    mean_return: float
    invalid_rate: float | None = None
    """Share of the turns whose reply was no action; ``None`` for an arm that does not reply."""
    prompt_tokens_per_turn: float | None = None
    turns_per_episode: float | None = None
    """Decisions; ``None`` for an arm that is given no prompts."""
    endings: Mapping[str, int] | None = None
    """How many of the episodes played ended for which ``StopReason``. Those that were not judged are not in
    ``n``; those that a fault of the env ended are, as no success."""

    @classmethod
    def from_traces(cls, traces: pd.DataFrame) -> Self:
        """Summarise ``ExperienceStore.traces()``.

        Raises:
            ValueError: None of them was judged.
        """
        endings = Counter(map(str, traces["stop_reason"])) if "stop_reason" in traces else None
        traces = judged(traces)
        if traces.empty:
            raise ValueError("there is no episode that was judged")
        turns = max(int(traces["num_turns"].sum()), 1)
        return cls.from_episodes(
            successes=int(traces["success"].sum()),
            n=len(traces),
            mean_return=float(traces["total_reward"].mean()),
            invalid_rate=float(traces["invalid_replies"].sum()) / turns,
            prompt_tokens_per_turn=float(traces["prompt_tokens"].sum()) / turns,
            turns_per_episode=float(traces["num_turns"].mean()),
            endings=endings,
        )

    @classmethod
    def from_episodes(
        cls, *, successes: int, n: int, endings: Mapping[str, int] | None = None, **means: float
    ) -> Self:
        """Add the rate and its interval to what is known, by the names of the fields."""
        low, high = wilson_interval(successes, n)
        return cls(
            success_rate=successes / n,
            successes=successes,
            n=n,
            ci_low=low,
            ci_high=high,
            **means,
            endings=None if endings is None else {str(stop): n for stop, n in sorted(endings.items())},
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
        """Compare two frames of ``ExperienceStore.traces()``, on the seeds that both were judged on.

        Raises:
            ValueError: They were not played on the same seeds.
        """
        if sorted(first["seed"]) != sorted(second["seed"]):
            raise ValueError("arms can only be compared on the same seeds")
        first, second = judged(first), judged(second)
        seeds = sorted({*first["seed"]} & {*second["seed"]})
        one, two = (frame.set_index("seed")["success"].astype(bool)[seeds] for frame in (first, second))
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


def over_seeds(name: str, by_seed: Mapping[str, float], least: float) -> dict[str, float | None]:
    """The mean of several seeds' figures, called ``name``, and Student's interval; nothing of one seed.

    What differs between seeds is one training, and questions that are counted are the same in all of them: so
    their episodes taken together are not as many independent ones. Where all seeds came to the same, there is
    no interval. It goes from ``least`` to 1 at the widest.
    """
    values = list(by_seed.values())
    if len(values) < 2:
        return {}
    low, high = mean_interval(values) if max(values) - min(values) > ROUNDING else (None, None)
    return {
        name: fmean(values),
        "ci_low": None if low is None else max(low, least),
        "ci_high": None if high is None else min(high, 1.0),
    }


def rate_over_seeds(by_seed: Mapping[str, float]) -> dict[str, float | None]:
    """``over_seeds`` of rates, by the names of ``EvalResult``."""
    return over_seeds("success_rate", by_seed, 0.0)


def difference_over_seeds(by_seed: Mapping[str, float]) -> dict[str, float | None]:
    """``over_seeds`` of differences of rates, by the names of ``Comparison``."""
    return over_seeds("difference", by_seed, -1.0)


def judged(traces: pd.DataFrame) -> pd.DataFrame:
    """Those of ``ExperienceStore.traces()`` of which it is known whether they are a success.

    Answers to an exam are no episodes and have no ``stop_reason``: all of them are judged.
    """
    return traces if "stop_reason" not in traces else traces[traces["stop_reason"] != StopReason.NOT_JUDGED]


def success_rate(traces: pd.DataFrame) -> float:
    """The share of successes among those that were judged; 0 if none was."""
    known = judged(traces)
    return float(known["success"].mean()) if len(known) else 0.0


ARM_LABELS = {
    "random": "random",
    "blind": "best blind",
    "before": "before",
    "empty_context": "empty-context teacher",
    "before_with_experience": "before, with experience",
    "after": "after",
    "after_with_experience": "after, with experience",
    "optimal": "optimal",
}
"""What a run's arms are called, in order."""

CUT_SHORT: Mapping[str, str] = {
    StopReason.ERROR: "by an error of the env",
    StopReason.TIMED_OUT: "since the env took too long (--env-timeout)",
    StopReason.NOT_JUDGED: "with an answer that could not be judged, which counts as neither right nor wrong",
    StopReason.OUT_OF_TOKENS: "since the prompt did not fit the model's window",
    StopReason.CUT_OFF: "with a reply whose thought did not end within --max-new-tokens",
}
"""How episodes end that say little of what the agent has learned."""


def cut_short(traces: pd.DataFrame) -> dict[str, Any]:
    """What of ``ExperienceStore.traces()``, all of a run's, was cut short, for ``results.json``.

    Returns:
        ``episodes``, ``endings`` (how many ended for which reason of ``CUT_SHORT``, where any did) and
        ``first_error`` (what the env did wrong first, or ``None``).
    """
    counts = traces["stop_reason"].value_counts()
    errors = traces["error"].dropna()
    return {
        "episodes": len(traces),
        "endings": {str(stop): int(counts[stop]) for stop in CUT_SHORT if stop in counts},
        "first_error": None if errors.empty else str(errors.iloc[0]),
    }


def cut_short_text(found: Mapping[str, Any] | None) -> str:
    """What ``cut_short`` found, as a sentence; empty if that is nothing, or a run of before did not look."""
    if not found or not found["endings"]:
        return ""
    parts = [f"{n} {CUT_SHORT.get(stop, stop)}" for stop, n in found["endings"].items()]
    text = f"Of {found['episodes']} episodes of this run some were cut short: {'; '.join(parts)}."
    return f"{text} The first error: {found['first_error']}" if found["first_error"] else text


def interval_text(values: Mapping[str, Any], name: str, show: str) -> str:
    """A figure with its interval, if it has one, each as ``show`` formats it, for tables."""
    if values["ci_low"] is None:
        return show.format(values[name])
    value, low, high = (show.format(values[key]) for key in (name, "ci_low", "ci_high"))
    return f"{value} [{low}, {high}]"


def rate_text(arm: Mapping[str, Any]) -> str:
    """The success rate of an ``EvalResult.as_dict()``, with its interval, for tables."""
    if arm["n"] is None:
        return f"{arm['success_rate']:.1%} exact"
    return interval_text(arm, "success_rate", "{:.1%}")


def change_text(comparison: Mapping[str, Any]) -> str:
    """The difference of a ``Comparison.as_dict()``, with its interval, for tables."""
    return interval_text(comparison, "difference", "{:+.1%}")


def saved_text(tokens: float) -> str:
    """How much shorter a prompt is without its context, for tables."""
    if round(tokens) > 0:
        return f"{tokens:.0f} prompt tokens saved per call"
    return (
        "no prompt tokens saved: the context takes no more than what the chat template writes in its place, "
        "such as a system message of its own"
    )


def temperature_text(temperature: float) -> str:
    """A sampling temperature, for tables."""
    return "greedy" if temperature == 0 else f"T = {temperature:g}"
