"""What a full store costs, against one with a hundredth of the traces: writing, opening, queries.

python -m tests.benchmarks.store
"""

import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from experience.insight import Insight
from experience.store import ExperienceStore
from experience.trace import Trace
from tests.store_worker import make_trace, make_turn

REPLY = "I move right, since the goal is there and the way is free of holes."
TURN = replace(make_turn("You are at row 2, column 3.", "right"), reply=REPLY, token_ids=(20_000,) * 20)
TRACE = make_trace(0, *[replace(TURN, logprobs=(-0.1,) * 20)] * 10)
"""As a small model on the lake leaves it."""
COMMIT_EVERY = 64
"""Traces per transaction, as in a run."""


def trace(number: int) -> Trace:
    """One of as many as one likes, 1,000 to a phase."""
    return replace(TRACE, phase=f"round1/play{number // 1000}", seed=3 * number)


def measure(path: Path, count: int) -> dict[str, float]:
    """Seconds per 100 traces written, to open the full store, and for each query, the median of a few."""
    writing, middle = 0.0, trace(count // 2)
    with ExperienceStore(path) as store:
        for start in range(0, count, COMMIT_EVERY):
            batch = [trace(number) for number in range(start, min(start + COMMIT_EVERY, count))]
            began = time.perf_counter()
            store.add_traces(batch)
            writing += time.perf_counter() - began
        evidence = tuple(trace(number).id for number in range(min(count, 100)))
        lesson = Insight(text="Lesson", observation=None, score=0, support=1, evidence=evidence)
        for number in range(100):
            store.set_insights([replace(lesson, text=f"Lesson {number}")], f"lesson{number}")
        store.finish_phase(middle.phase)
    figures = {"100 traces": 100 * writing / count, "open": _median(lambda: ExperienceStore(path).close())}
    with ExperienceStore(path) as store:
        store.traces(phase=middle.phase)  # the first frame loads pandas
        queries: dict[str, Callable[[], object]] = {
            "one phase's traces": lambda: store.traces(phase=middle.phase),
            "one phase's turns": lambda: store.turns(phases=[middle.phase]),
            "one trace's turns": lambda: store.turns(trace_id=middle.id, tokens=True),
            "is_finished": lambda: store.is_finished(middle.phase),
            "load_insights": store.load_insights,
        }
        return figures | {name: _median(query) for name, query in queries.items()}


def _median(query: Callable[[], object]) -> float:
    return statistics.median(timeit.repeat(query, number=1, repeat=7))


def main(traces: int = 100_000) -> None:
    """Fill two SQLite stores, and time what a run asks of them.

    Args:
        traces: How many the full one holds.
    """
    with tempfile.TemporaryDirectory() as folder:
        few = measure(Path(folder) / "few.db", max(traces // 100, 1))
        many = measure(Path(folder) / "many.db", traces)
    table = Table("ms", f"{traces // 100:,} traces", f"{traces:,} traces", "ratio")
    for name, seconds in many.items():
        table.add_row(name, f"{1000 * few[name]:.1f}", f"{1000 * seconds:.1f}", f"{seconds / few[name]:.2f}")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m tests.benchmarks.store")
