"""A suite of envs x models x methods x seeds, as one table.

    python -m evals.benchmark --output runs/benchmark                     the default suite
    python -m evals.benchmark two-by-two --output runs/two-by-two         whose completions x which KL
    python -m evals.benchmark my_suite.yaml --output runs/mine

A run that is finished is never run again: the same command goes on where it was stopped, also with a suite
that has got more cells since. What comes before the training is played once for all methods that differ in
the training alone, if it is by the same commit; it counts in the seconds of each.

``cells.csv`` has a line per cell; ``benchmark.json`` has the cells, the methods over all seeds, and their
paired differences: where there are several seeds, each of them counts as one value. Each run is a folder of
its own with its report. Success is that of the first temperature of ``eval_temperature``; ``sampled`` is that
of the second. ``what_else`` is what ``evals.forgetting --after RUN`` has found of a run, if it was asked:
before and after.
"""

import csv
import io
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import tyro
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table

from evals import agent_process
from evals.agent_process import AgentError, Settings
from evals.command import EvalError, run_command
from evals.finished_run import FinishedRun, UnfinishedRunError
from evals.page import write_whole
from evals.report import write_report
from evals.result import (
    Comparison,
    EvalResult,
    change_text,
    difference_over_seeds,
    judged,
    rate_over_seeds,
    rate_text,
)
from evals.suite import CELLS, LOCK, TABLE, Cell, Check, read_suite
from experience import ExperienceError
from experience.masking import masked
from experience.store import open_run
from experience.terminal import Terminal, tell
from experience.text import printable

Row = dict[str, Any]

BASELINES = ("random", "blind", "optimal")
"""Arms that no model plays."""


def run_suite(
    cells: Sequence[Cell],
    output: Path,
    console: Console,
    *,
    run: Callable[[Settings, Sequence[str]], object] = agent_process.run,
    check: Check = agent_process.check,
) -> dict[str, Any]:
    """Run what is not finished; returns what ``benchmark.json`` holds.

    A run that fails is reported, and the others go on. ``run`` and ``check`` are those of the agents.

    Raises:
        EvalError: One was begun as something else, another process is at work in ``output``, or that cannot
            be made.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvalError(f"{output} cannot be made: {error.strerror}: choose another --output") from error
    try:  # of two tables, each would say of the other's runs that they failed
        with FileLock(output / LOCK, timeout=0):
            return _run_suite(cells, output, console, run, check)
    except Timeout as error:
        raise EvalError(f"another benchmark is running in {output}") from error


def _run_suite(
    cells: Sequence[Cell],
    output: Path,
    console: Console,
    run: Callable[[Settings, Sequence[str]], object],
    check: Check,
) -> dict[str, Any]:
    rows: list[Row] = []
    traces: list[pd.DataFrame] = []
    table: dict[str, Any] = {}
    by_run: dict[Path, list[Cell]] = {}
    for cell in cells:
        by_run.setdefault(cell.run, []).append(cell)
    settings = {name: {**some[0].settings, "output": str(output / name)} for name, some in by_run.items()}
    _check_begun(output, settings, check)
    finished_runs: dict[tuple[str, str, int], list[str]] = {}
    for number, (name, sharing) in enumerate(by_run.items(), 1):
        console.print(f"run {number} of {len(by_run)}: {name}", style="bold", markup=False, soft_wrap=True)
        frames: list[pd.DataFrame] = []
        of_run: list[Row] = []
        one = sharing[0]
        siblings = finished_runs.setdefault((one.env, one.model, one.seed), [])
        try:
            if not (output / name / "results.json").exists():
                run(settings[name], siblings)
            finished = FinishedRun.read(output / name)
            if not (output / name / "report.html").exists():  # a kill between the two
                write_report(output / name, one.settings.get("store"))
            for cell in sharing:
                try:
                    frames += _traces(cell, finished)
                    of_run.append(_row(cell, finished))
                except ExperienceError as lost:  # what the other arms were played on may be whole
                    of_run.append(_failed(cell, _in_a_line(lost)))
            siblings.append(str(output / name))
        except Exception as exception:  # of one run; the others have nothing to do with it
            frames, of_run = [], [_failed(cell, _in_a_line(exception)) for cell in sharing]
            if not isinstance(exception, AgentError | UnfinishedRunError | ExperienceError | OSError):
                console.print("".join(traceback.format_exception(exception)), markup=False, highlight=False)
        traces += frames
        rows += of_run
        for row in of_run:
            tell(console, _line(row))
        table = {"cells": rows, **_over_seeds(traces)}
        _write(output, table)
    return table


def _check_begun(output: Path, settings: Mapping[Path, Settings], check: Check) -> None:
    """See that what was begun can go on, before a good table is written over with failures.

    Raises:
        EvalError: It cannot.
    """
    begun = [name for name in settings if (output / name / "config.json").exists()]
    for found in check([settings[name] for name in begun]):
        if found is not None:
            raise EvalError(found["problem"])


def _in_a_line(exception: Exception) -> str:
    kind = exception.kind if isinstance(exception, AgentError) else type(exception).__name__
    return printable(f"{kind}: {exception}".splitlines()[0])


def _failed(cell: Cell, error: str | None) -> Row:
    """A line of the table, where nothing is known but why."""
    row: Row = {"env": cell.env, "model": cell.model, "method": cell.method, "seed": cell.seed}
    return row | {"run": str(cell.run), "error": error}


def _row(cell: Cell, run: FinishedRun) -> Row:
    """A line of the table."""
    row = _failed(cell, None)
    is_own = cell.arm == "after"  # the others came with a run that did more
    cost = ("best_step", "wall_seconds", "peak_rss_bytes")
    arms = run.results["arms"]
    row |= arms[cell.arm] | {name: arms[name]["success_rate"] for name in BASELINES if name in arms}
    row |= {key: run.results[key] if is_own else None for key in cost}
    row["what_else"] = run.what_else() if is_own else None
    return row | {key: run.about.get(key) for key in ("git_revision", "machine")}


def _traces(cell: Cell, run: FinishedRun) -> list[pd.DataFrame]:
    """The episodes behind a cell, at each temperature.

    Raises:
        ExperienceError: They are not those that the run's files tell of.
    """
    about: Row = {"env": cell.env, "model": cell.model, "method": cell.method, "run_seed": cell.seed}
    with open_run(run.path, location=cell.settings.get("store")) as store:
        frames = [run.tested(store, cell.arm, number) for number in range(len(run.tables))]
    return [frame.assign(is_sampled=index > 0, **about) for index, frame in enumerate(frames)]


def _over_seeds(frames: Sequence[pd.DataFrame]) -> dict[str, list[Row]]:
    """Each method over all its seeds, and each pair of methods over the episodes that both have."""
    methods: list[Row] = []
    pairs: list[Row] = []
    if not frames:
        return {"methods": methods, "pairs": pairs}
    for (env, model), both in pd.concat(frames).groupby(["env", "model"], sort=False):
        task, sampled = both[~both["is_sampled"]], both[both["is_sampled"]]
        by_method = task.groupby("method", sort=False)
        of_method = {method: traces for method, traces in by_method if len(judged(traces))}
        for method, traces in of_method.items():
            row = {"env": env, "model": model, "method": method, **_rates(traces)}
            others = sampled[sampled["method"] == method]
            methods.append(row | {"sampled": _rates(others) if len(judged(others)) else None})
        for second, first in combinations(of_method, 2):
            if found := _paired(of_method[first], of_method[second]):
                pairs.append({"env": env, "model": model, "first": first, "second": second, **found})
    return {"methods": methods, "pairs": pairs}


def _paired(first: pd.DataFrame, second: pd.DataFrame) -> Row:
    """Two methods on the episodes that both have, over all seeds and by seed; empty where there are none."""
    by_seed: dict[str, Comparison] = {}
    for seed, one in judged(first).groupby("run_seed"):
        two = judged(second[second["run_seed"] == seed])
        one, two = one[one["seed"].isin(two["seed"])], two[two["seed"].isin(one["seed"])]
        if len(one):
            by_seed[str(seed)] = Comparison.of(one, two)
    if not by_seed:
        return {}
    differences = {seed: found.difference for seed, found in by_seed.items()}
    several = {"p_value": None, "n": sum(found.n for found in by_seed.values())}
    [one_of, *others] = by_seed.values()
    return {
        **(several | difference_over_seeds(differences) if others else one_of.as_dict()),
        "by_seed": differences,
        "seeds": list(map(int, by_seed)),
    }


def _rates(traces: pd.DataFrame) -> Row:
    """Of one method, over all seeds and by seed; counted, as tokens are, over all episodes."""
    by_seed = judged(traces).groupby("run_seed")["success"].mean()
    rates = {str(seed): float(rate) for seed, rate in by_seed.items()}
    return {**EvalResult.from_traces(traces).as_dict(), **rate_over_seeds(rates), "by_seed": rates}


def _line(row: Row) -> str:
    """A finished cell."""
    name = f"{row['env']}, {row['model']}, {row['method']}, seed {row['seed']}"
    if row["error"] is not None:
        return f"{name}: FAILED: {row['error']}"
    seconds = "" if row["wall_seconds"] is None else f" in {row['wall_seconds']:.0f} s"
    return f"{name}: {rate_text(row)}{seconds}"


def _write(output: Path, table: dict[str, Any]) -> None:
    table = masked(table)
    write_whole(output / TABLE, json.dumps(table, indent=2) + "\n")
    lines = io.StringIO()
    writer = csv.DictWriter(lines, dict.fromkeys(name for row in table["cells"] for name in row))
    writer.writeheader()
    writer.writerows(table["cells"])
    write_whole(output / CELLS, lines.getvalue())


def by_task(table: Mapping[str, Any]) -> dict[str, Any]:
    """What ``benchmark.json`` holds, its envs named with the model where there are several models."""
    rows = {name: table.get(name, []) for name in ("cells", "methods", "pairs")}
    if len({row["model"] for row in rows["methods"]}) < 2:
        return rows
    return {
        name: [{**row, "env": f"{row['env']}, {row['model']}"} for row in of_name]
        for name, of_name in rows.items()
    }


def print_table(table: dict[str, Any], console: Console) -> None:
    """The methods over all seeds, and each pair of them."""
    table = by_task(table)
    rates = Table(
        "",
        "method",
        title="success on test (95% interval over seeds; of one seed, over episodes)",
        title_justify="left",
    )
    for name in ("success", "by seed", "tokens*"):
        rates.add_column(name, justify="right", no_wrap=True)
    for row in table["methods"]:
        by_seed = " ".join(f"{rate:.0%}" for rate in row["by_seed"].values())
        rates.add_row(
            row["env"], row["method"], rate_text(row), by_seed, f"{row['prompt_tokens_per_turn']:.0f}"
        )
    console.print(rates)
    console.print("* of the prompt, per decision\n")
    pairs = Table(
        "", "methods", title="paired by episode (95% interval over seeds; of one seed, over episodes, and p)"
    )
    pairs.title_justify = "left"
    for name in ("difference", "p"):
        pairs.add_column(name, justify="right", no_wrap=True)
    for row in table["pairs"]:
        methods = f"{row['first']} - {row['second']}"
        pairs.add_row(row["env"], methods, change_text(row), _p(row))
    console.print(pairs)
    for row in table["cells"]:
        if row["error"] is not None:  # said when it happened, maybe hours ago
            tell(console, _line(row), "bold red")


def _p(row: Row) -> str:
    """Of one seed, by McNemar's exact test."""
    return "" if row["p_value"] is None else f"{row['p_value']:.2g}"


def main(args: list[str] | None = None) -> int:
    """The command; returns its exit code."""

    def work(console: Console) -> bool:
        def benchmark(suite: tyro.conf.Positional[str] = "default", /, *, output: Path) -> bool:
            """Run a suite of envs, models, methods and seeds.

            Args:
                suite: A YAML file, or the name of a suite that comes with the toolkit.
                output: The folder for the runs and the tables; given again, the benchmark goes on there.
            """
            table = run_suite(read_suite(suite), output, console)
            print_table(table, Terminal())
            console.print(f"{output / TABLE}   {output / CELLS}", highlight=False)
            return all(row["error"] is None for row in table["cells"])

        return tyro.cli(benchmark, prog="python -m evals.benchmark", args=args)

    return run_command(work, "Nothing finished is lost: the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
