"""Whose completions, and which KL: the four ways to distil a context, on the same seeds, as one table.

    python -m evals.two_by_two --env FrozenLake-v1 --output runs/two-by-two

Student and reverse is OPCD; teacher and forward is context distillation, the paper's off-policy baseline.
Each cell is a whole run in a folder of its own. The same command again goes on where it was stopped.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from typing import Any, get_args

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from agents.config import ConfigError, SelfImproveConfig
from agents.self_improve import run_experiment, run_or_read
from distill.examples import Data
from distill.loss import Direction
from evals.result import Comparison, rate_text
from experience.store import open_run

BASELINE = ("teacher", "forward")


def two_by_two(config: SelfImproveConfig, console: Console) -> dict[str, Any]:
    """Run the four cells; returns what ``two_by_two.json`` holds.

    Args:
        config: Of every cell, but for ``data`` and ``direction``; ``output`` is the folder for the cells.
        console: Where to report progress.

    Raises:
        ConfigError: No ``output``, or a cell in it that was begun with other settings.
    """
    if config.output is None:
        raise ConfigError("--output is needed: the folder for the four runs")
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    frames: dict[tuple[str, str], pd.DataFrame] = {}
    for data in get_args(Data):
        for direction in get_args(Direction):
            path = config.output / f"{data}-{direction}"
            console.print(f"{path}", style="bold", markup=False)
            cell = dataclasses.replace(config, data=data, direction=direction, output=path)
            cells[data, direction] = run_or_read(cell, path, console)
            with open_run(path, location=config.store) as store:
                frames[data, direction] = store.traces(phase=f"test/after@{config.eval_temperature[0]:g}")
    rows = [
        {
            "data": data,
            "direction": direction,
            "best_step": results["best_step"],
            "after": results["arms"]["after"],
            "sampled_after": results.get("sampled_arms", {}).get("after"),
            "against_context_distillation": Comparison.of(
                frames[data, direction], frames[BASELINE]
            ).as_dict(),
        }
        for (data, direction), results in cells.items()
    ]
    first = next(iter(cells.values()))
    table = {"env": config.env, "seed": config.seed, "before": first["arms"]["before"], "rows": rows}
    (config.output / "two_by_two.json").write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return table


def print_table(table: Mapping[str, Any], config: SelfImproveConfig) -> None:
    """One line per cell."""
    rich = Table(title=f"{table['env']}: success after training (95% interval)", title_justify="left")
    rich.add_column("completions of")
    rich.add_column("KL")
    for temperature in config.eval_temperature:
        rich.add_column("greedy" if temperature == 0 else f"T = {temperature:g}", justify="right")
    rich.add_column("against teacher, forward", justify="right")
    for row in table["rows"]:
        arms = [arm for arm in (row["after"], row["sampled_after"]) if arm is not None]
        rates = [rate_text(arm) for arm in arms]
        change = row["against_context_distillation"]
        versus = f"{change['difference']:+.1%} (p = {change['p_value']:.2g})"
        is_baseline = (row["data"], row["direction"]) == BASELINE
        rich.add_row(row["data"], row["direction"], *rates, "" if is_baseline else versus)
    Console().print(rich)


def main() -> int:
    """The command; returns its exit code."""

    def work(console: Console) -> None:
        config = tyro.cli(SelfImproveConfig, prog="python -m evals.two_by_two")
        print_table(two_by_two(config, console), config)

    return run_experiment(work)


if __name__ == "__main__":
    sys.exit(main())
