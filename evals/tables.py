"""The tables of README and docs, made from what was measured: no figure in them is typed.

    python -m evals.tables README.md docs/results.md

A page says where a table goes, what it shows, and of which file: what stands between
``<!-- table: methods figures/main.json -->`` and ``<!-- end -->`` is made from that ``benchmark.json``, whose
path is seen from the page.
"""

import io
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pandas as pd
import tyro
from rich.console import Console

from evals.benchmark import BASELINES, by_task
from evals.command import EvalError, run_command
from evals.forgetting import TEXT
from evals.page import nats, p_text, percent, points, write_whole
from evals.report import print_summary
from evals.result import ARM_LABELS, difference_over_seeds, rate_over_seeds, rate_text
from evals.stats import mean_interval
from experience.terminal import Terminal

MARKED = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
LABELS = {"none": "before", "in-context": "in context", "off-policy": "off-policy", "opcd": "OPCD"}
"""Of the methods; the others are called what they are."""
INTERVALS = """

In brackets: 95%, over the seeds (Student's t) unless all came to the same; of one seed, over its
episodes."""
WIDTH = 80
"""Columns of a terminal."""
PAGE_WIDTH = 100
"""Characters of a line of a page."""


def fill(page: Path) -> str:
    """A page with its tables made anew.

    Raises:
        EvalError: A marker names no view, or a file that cannot be read as what it should be.
    """

    def table(found: re.Match[str]) -> str:
        begin, view, name, end = found.groups()
        if view not in VIEWS:
            raise EvalError(f"{page}: there is no table {view}: it is one of {', '.join(VIEWS)}")
        try:
            values = json.loads((page.parent / name).read_text(encoding="utf-8"))
            return f"{begin}\n{VIEWS[view](values if view == 'terminal' else by_task(values))}\n\n{end}"
        except Exception as error:  # of a file that may hold anything
            raise EvalError(f"{page}: no table can be made from {name}: {error!r}") from error

    try:
        text = page.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise EvalError(f"{page} is not UTF-8 text: {error}") from error
    return MARKED.sub(table, text)


def methods(benchmark: Mapping[str, Any]) -> str:
    """Every method of every env, over its seeds and by seed; sampled is the second temperature, if any."""
    head = ("env", "method", "success, all seeds", "median", "worst", "by seed", "sampled, median", "worst")
    return _table(head, map(_method, benchmark["methods"])) + _source(benchmark) + INTERVALS


def _method(row: Mapping[str, Any]) -> list[str]:
    sampled = row["sampled"]
    return [
        *(row["env"], LABELS.get(row["method"], row["method"])),
        rate_text({**row, **rate_over_seeds(row["by_seed"])}),
        *_spread(row),
        ", ".join(f"{100 * rate:.1f}" for rate in row["by_seed"].values()),
        *(_spread(sampled) if sampled else ("", "")),
    ]


def _spread(row: Mapping[str, Any]) -> tuple[str, str]:
    """The median and the worst of the seeds."""
    rates = row["by_seed"].values()
    return percent(median(rates)), percent(min(rates))


def summary(benchmark: Mapping[str, Any]) -> str:
    """A line for each env: the median over the seeds of what was measured in all of them, on all seeds."""
    rows = benchmark["methods"]
    envs = list(dict.fromkeys(row["env"] for row in rows))
    seeds = {env: max(len(row["by_seed"]) for row in rows if row["env"] == env) for env in envs}
    run = {(row["method"], row["env"]) for row in rows if len(row["by_seed"]) == seeds[row["env"]]}
    names = [
        name
        for name in dict.fromkeys(row["method"] for row in rows)
        if all((name, env) in run for env in envs)
    ]
    known = [name for name in BASELINES if any(name in cell for cell in benchmark["cells"])]
    lines = []
    for env in envs:
        of_env = {row["method"]: row for row in rows if row["env"] == env}
        cells = [cell for cell in benchmark["cells"] if cell["env"] == env and cell["error"] is None]
        fixed = [[cell[name] for cell in cells if name in cell] for name in known]
        rates = [_spread(of_env[name]) for name in names]
        lines.append(
            [
                env,
                str(seeds[env]),
                *(percent(median(values)) if values else "" for values in fixed),
                *(
                    middle if name != "opcd" else f"**{middle}**{f' (worst {worst})' * (worst != middle)}"
                    for name, (middle, worst) in zip(names, rates, strict=True)
                ),
            ]
        )
    head = [
        "env",
        "seeds",
        *(ARM_LABELS[name] for name in known),
        *(LABELS.get(name, name) for name in names),
    ]
    return _table(head, lines) + _source(benchmark)


def pairs(benchmark: Mapping[str, Any]) -> str:
    """OPCD against the other methods that have an experience, paired by episode, over the seeds."""
    rows = [
        _pair(row, _differences(benchmark, row))
        for row in benchmark["pairs"]
        if "opcd" in (row["first"], row["second"]) and "none" not in (row["first"], row["second"])
    ]
    return (
        _table(("env", "methods", "difference, in points", "by seed"), rows) + _source(benchmark) + INTERVALS
    )


def _pair(row: Mapping[str, Any], by_seed: Mapping[str, float]) -> list[str]:
    row = {**row, **difference_over_seeds(by_seed)}
    sign = 1 if row["first"] == "opcd" else -1
    other = row["second"] if sign == 1 else row["first"]
    difference = points(sign * row["difference"])
    if row["ci_low"] is not None:
        low, high = sorted((sign * row["ci_low"], sign * row["ci_high"]))
        difference += f" [{points(low)}, {points(high)}]"
    return [
        row["env"],
        f"OPCD - {LABELS.get(other, other)}",
        difference if len(by_seed) > 1 else f"{difference}, {p_text(row['p_value'])}",
        ", ".join(points(sign * value) for value in by_seed.values()),
    ]


def _differences(benchmark: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, float]:
    """Seed -> the paired difference; where a file has only rates, theirs, the same on as many episodes.

    Raises:
        ValueError: They are not on as many.
    """
    if "by_seed" in row:
        return dict(row["by_seed"])
    cells = {
        (cell["method"], cell["seed"]): cell
        for cell in benchmark["cells"]
        if (cell["env"], cell["model"], cell["error"]) == (row["env"], row["model"], None)
    }
    found = {seed: (cells[row["first"], seed], cells[row["second"], seed]) for seed in row["seeds"]}
    if any(one["n"] != two["n"] for one, two in found.values()):
        raise ValueError("its methods have not as many episodes: give the benchmark's command once more")
    return {str(seed): one["success_rate"] - two["success_rate"] for seed, (one, two) in found.items()}


def forgetting(benchmark: Mapping[str, Any]) -> str:
    """What trainings changed besides what was trained: over their seeds, and OPCD against the others."""
    cells = [cell for cell in benchmark["cells"] if cell.get("what_else")]
    measured = pd.DataFrame(
        [
            {**{name: cell[name] for name in ("env", "method", "seed")}, "measure": measure}
            | {"before": before, "after": after}
            for cell in cells
            for measure, (before, after) in cell["what_else"].items()
        ]
    ).set_index("seed")
    lines: list[list[str]] = []
    for (env, measure), of_task in measured.groupby(["env", "measure"], sort=False):
        show = nats if measure == TEXT else points
        own = of_task["after"][of_task["method"] == "opcd"]
        for method, runs in of_task.groupby("method", sort=False):
            changes, before = runs["after"] - runs["before"], runs["before"].mean()
            against = (own - runs["after"]).dropna() if method != "opcd" else changes[:0]
            lines.append(
                [
                    *map(str, (env, measure, LABELS.get(str(method), method))),
                    f"{before:.3f}" if measure == TEXT else percent(before),
                    *(_over(changes, show), ", ".join(map(show, changes)), _over(against, show)),
                ]
            )
    head = ("trained on", "measure", "method", "before", "after - before", "by seed", "OPCD - method")
    return _table(head, lines) + _source({"cells": cells})


def _over(values: Iterable[float], show: Callable[[float], str]) -> str:
    """The mean over the seeds, and its interval."""
    seeds = list(values)
    limits = f" [{', '.join(map(show, mean_interval(seeds)))}]" if len(seeds) > 1 else ""
    return f"{show(fmean(seeds))}{limits}" if seeds else ""


def terminal(results: Mapping[str, Any]) -> str:
    """What a run prints at its end, from its ``results.json``."""
    lines = io.StringIO()
    print_summary(dict(results), Path(f"runs/{results['env']}-..."), Terminal(file=lines, width=WIDTH))
    return f"```\n{lines.getvalue()}```"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    # A name is a user's: it may hold a newline, or what divides cells.
    lines = [
        [" ".join(cell.split()).replace("|", r"\|") for cell in line]
        for line in (head, ["---"] * len(head), *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _source(benchmark: Mapping[str, Any]) -> str:
    """Where the figures come from."""
    cells = benchmark["cells"]
    seeds = _listed(sorted({cell["seed"] for cell in cells}))
    commits = ", ".join(sorted({str(cell.get("git_revision"))[:7] for cell in cells}))
    machines = "; ".join(sorted({str(cell.get("machine")) for cell in cells}))
    episodes = sorted({cell["n"] for cell in cells if cell["error"] is None})
    failed = sum(cell["error"] is not None for cell in cells)
    text = f"Seeds {seeds}; {', '.join(map(str, episodes))} test episodes each; commit {commits}; {machines}."
    return "\n\n" + textwrap.fill(f"{text}{f' {failed} runs failed.' if failed else ''}", PAGE_WIDTH)


def _listed(numbers: Sequence[int]) -> str:
    """Numbers in order; of three and more without a gap the ends."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


VIEWS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "methods": methods,
    "summary": summary,
    "pairs": pairs,
    "forgetting": forgetting,
    "terminal": terminal,
}


def main(args: list[str] | None = None) -> int:
    """The command; returns its exit code."""

    def work(console: Console) -> None:
        def tables(pages: tyro.conf.Positional[tuple[Path, ...]], /) -> None:
            """Make the tables of pages anew.

            Args:
                pages: Markdown files.
            """
            if not pages:
                raise EvalError("name the pages whose tables to make, such as README.md")
            for page in pages:
                write_whole(page, fill(page))
                console.print(f"{page}", highlight=False, markup=False)

        tyro.cli(tables, prog="python -m evals.tables", args=args)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
