"""How fast the store takes what agents live through, and answers what a run asks when it holds a lot.

    python -m tests.benchmarks.store

A table goes to standard error, JSON to standard output; the exit code is 1 if a target is missed.
"""

import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from experience.context import ContextScore
from experience.insight import Insight
from experience.seeds import Split
from experience.store import ExperienceStore
from experience.trace import StopReason, Trace, Turn

TURNS = 10
"""Per trace."""
TOKENS = 20
"""Per reply."""
PER_PHASE = 1000
COMMIT_EVERY = 64
"""Traces per transaction, as in a run."""
INSIGHTS = 100
EVIDENCE = 100
"""Traces that each insight cites."""
REPEATS = 7

INGEST_TARGET = 2000.0
"""Turns per second, at least."""
OPEN_TARGET = 1.0
QUERY_TARGET = 0.1
"""Seconds, at most."""


def main(args: list[str] | None = None) -> int:
    """The command; returns its exit code."""

    def benchmark(traces: int = 100_000) -> int:
        """Fill a SQLite store, and time what a run asks of it.

        Args:
            traces: How many it holds.
        """
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(Path(folder) / "experience.db", traces)
        print(json.dumps({"traces": traces, "turns": traces * TURNS, "figures": figures}, indent=2))
        return _print_table(figures)

    return int(tyro.cli(benchmark, prog="python -m tests.benchmarks.store", args=args))


def measure(path: Path, count: int) -> dict[str, float]:
    """Turns per second; seconds to open the full store, and for each query, the median of a few."""
    figures = {}
    with ExperienceStore(path) as store:
        # Made first: what a trace costs to make is not the store's.
        life, writing = make_traces(count), 0.0
        while batch := list(islice(life, COMMIT_EVERY)):
            begin = time.perf_counter()
            store.add_traces(batch)
            writing += time.perf_counter() - begin
        figures["turns per second"] = count * TURNS / writing
        names = [trace.id for trace in make_traces(min(count, EVIDENCE))]
        for number in range(INSIGHTS):
            lesson = Insight(
                text=f"Lesson {number}", observation=None, score=0, support=1, evidence=tuple(names)
            )
            store.set_insights([lesson], f"lesson{number}")
            store.add_scores([_score(number)])
            store.finish_phase(_phase(number * PER_PHASE))
    figures["open"] = _median(lambda: ExperienceStore(path).close())
    phase = _phase(count // 2)
    trace = f"{phase}/{3 * (count // 2)}"
    with ExperienceStore(path) as store:
        store.scores()  # the first frame loads pandas
        queries: dict[str, Callable[[], object]] = {
            "one phase's traces": lambda: store.traces(phase=phase),
            "one phase's turns": lambda: store.turns(phases=[phase]),
            "one trace's turns": lambda: store.turns(trace_id=trace, tokens=True),
            "is_finished": lambda: store.is_finished(phase),
            "result": lambda: store.result(_phase(0)),
            "insights": store.insights,
            "load_insights": store.load_insights,
            "scores": store.scores,
        }
        for name, query in queries.items():
            figures[name] = _median(query)
    return figures


def make_traces(count: int) -> Iterator[Trace]:
    """Traces as a small model on the lake leaves them."""
    chance = random.Random(0)
    for number in range(count):
        turns = tuple(
            Turn(
                observation=f"You are at row {turn % 4 + 1}, column {number % 4 + 1}.",
                insight_ids=("1f3ef3df02df",),
                prompt_tokens=97,
                reply="I move right, since the goal is there and the way is free of holes.",
                token_ids=tuple(chance.choices(range(49152), k=TOKENS)),
                logprobs=tuple(-chance.random() for _ in range(TOKENS)),
                action="right",
                reward=0.0,
            )
            for turn in range(TURNS)
        )
        yield Trace(
            phase=_phase(number),
            split=Split.TRAIN,
            seed=3 * number,
            env_id="FrozenLake-v1",
            policy_id="step24",
            context_id="round1/insights",
            turns=turns,
            final_observation="You are at row 4, column 4.",
            stop_reason=StopReason.TERMINATED,
            success=number % 3 == 0,
        )


def _phase(number: int) -> str:
    return f"round1/play{number // PER_PHASE}"


def _score(number: int) -> ContextScore:
    return ContextScore(
        phase=f"round{number}/gate",
        context_id=f"round{number}/insights",
        insight_ids=("1f3ef3df02df",) * 8,
        policy_id="base",
        seeds=tuple(range(1, 600, 3)),
        successes=100,
        successes_without=50,
        p_value=0.001,
        admitted=True,
        verdict="the best",
    )


def _median(query: Callable[[], object]) -> float:
    """Seconds."""
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        query()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def _print_table(figures: dict[str, float]) -> int:
    """Returns 1 if a target is missed."""
    table = Table("", "measured", "target", "", title="The store on SQLite", title_justify="left")
    missed = 0
    for name, value in figures.items():
        if name == "turns per second":
            is_met, row = value >= INGEST_TARGET, (f"{value:,.0f}", f"at least {INGEST_TARGET:,.0f}")
        else:
            target = OPEN_TARGET if name == "open" else QUERY_TARGET
            is_met, row = value < target, (f"{1000 * value:.1f} ms", f"under {1000 * target:.0f} ms")
        missed += not is_met
        table.add_row(name, *row, "" if is_met else "missed")
    Console(stderr=True).print(table)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
