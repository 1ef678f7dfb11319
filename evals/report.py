"""What a run found, for people: ``report.html`` and ten lines on the terminal.

Everything is read from the run's folder, so a report can be made again at any time:

    python -m evals.report RUN
"""

import json
import os
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from envs.frozen_lake import lake_map, lake_place
from envs.text_env import make_env
from evals.plots import ARM_LABELS, arms_plot, kl_plot, learning_plot
from evals.result import rate_text
from experience.insight import InsightState
from experience.store import ExperienceStore, open_run

SHOWN_TRACES = 5
"""Traces named as evidence of an insight; the database has them all."""


def write_report(path: Path, store: str | None = None) -> Path:
    """Make ``report.html`` in a finished run's folder.

    Args:
        path: The folder: ``config.json``, ``metrics.jsonl``, ``results.json`` and ``experience.db``.
        store: The database, where it is elsewhere and the folder keeps its password to itself.

    Returns:
        The report's path.
    """
    results = json.loads((path / "results.json").read_text(encoding="utf-8"))
    about = json.loads((path / "config.json").read_text(encoding="utf-8"))
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    temperatures = results["eval_temperature"]
    tables = [(_temperature_name(temperatures[0]), results["arms"])]
    if "sampled_arms" in results:
        tables.append((_temperature_name(temperatures[1]), results["sampled_arms"]))
    with open_run(path, location=store) as experience:
        insights = experience.insights()
        evidence = (
            experience.evidence()
            .query("supports")
            .groupby("insight_id")["trace_id"]
            .agg(lambda ids: list(ids[:SHOWN_TRACES]))
        )
        episodes = _replays(experience, results)
    active = insights[insights["state"] == InsightState.ACTIVE]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # replies and observations are untrusted text
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("report.html.j2").render(
        results=results,
        tables=tables,
        labels={name: label.replace("\n", " ") for name, label in ARM_LABELS.items()},
        arm_plots=[
            arms_plot(arms, f"Success on {results['arms']['after']['n']} test episodes, {name}")
            for name, arms in tables
        ],
        learning_plot=learning_plot(metrics),
        kl_plot=kl_plot(metrics) if any(entry.get("kind") == "train" for entry in metrics) else "",
        gates=[entry for entry in metrics if entry.get("kind") == "gate"],
        insights=active.to_dict("records"),
        evidence=evidence.to_dict(),
        retired=len(insights) - len(active),
        episodes=episodes,
        about=about,
    )
    target = path / "report.html"
    tmp = path / "report.html.tmp"
    try:
        tmp.write_text(html, encoding="utf-8")
        os.replace(tmp, target)
    finally:
        tmp.unlink(missing_ok=True)
    return target


def print_summary(results: dict[str, Any], path: Path, console: Console | None = None) -> None:
    """The same in ten lines."""
    console = console or Console()
    names = [_temperature_name(t) for t in results["eval_temperature"]]
    table = Table(title=f"{results['env']}: success on test episodes (95% interval)", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    tables = [results["arms"], results.get("sampled_arms", {})][: len(names)]
    for arm, label in ARM_LABELS.items():
        if arm in results["arms"]:
            style = "bold" if arm in ("before", "after") else ""
            table.add_row(label.replace("\n", " "), *(rate_text(arms[arm]) for arms in tables), style=style)
    console.print(table)
    change = results["comparison"]
    console.print(
        f"after - before: {change['difference']:+.1%} [{change['ci_low']:+.1%}, {change['ci_high']:+.1%}], "
        f"p = {change['p_value']:.2g}, n = {change['n']}; {results['wall_seconds']:.0f} s, "
        f"{results['peak_rss_bytes'] / 2**30:.1f} GiB",
        highlight=False,
        soft_wrap=True,
    )
    console.print(
        f"report: {path / 'report.html'}   model: {path / 'model'}", highlight=False, soft_wrap=True
    )


def _temperature_name(temperature: float) -> str:
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def _replays(store: ExperienceStore, results: dict[str, Any]) -> list[dict[str, Any]]:
    """One test episode before and after, on the same seed: where the change shows, if there is one."""
    board = lake_map(make_env(results["env"], results["env_kwargs"]))
    temperature = f"{results['eval_temperature'][0]:g}"
    before = store.traces(phase=f"test/before@{temperature}").set_index("seed")
    after = store.traces(phase=f"test/after@{temperature}").set_index("seed")
    changed = before.index[~before["success"].astype(bool) & after["success"].astype(bool)]
    # The shortest of them is the easiest to follow.
    seed = after.loc[changed, "num_turns"].idxmin() if len(changed) else before.index[0]
    won = "success" if board is None else "reached the goal"
    replays = []
    for title, frame in (("Before", before), ("After", after)):
        trace = frame.loc[seed]
        turns = store.turns(trace_id=str(trace["trace_id"]))
        replays.append(
            {
                "title": title,
                "seed": int(seed),
                "outcome": won if trace["success"] else f"no success ({trace['stop_reason']})",
                "board": board,
                "frames": _frames(turns, str(trace["final_observation"]), board is not None),
            }
        )
    return replays


def _frames(turns: pd.DataFrame, final: str, on_board: bool) -> list[dict[str, Any]]:
    """What is shown at each move: the observation, the reply, and the place on the board."""
    observations = [*turns["observation"], final]
    replies = [*turns["reply"], "the end"]
    return [
        {"observation": observation, "reply": reply, "place": lake_place(observation) if on_board else None}
        for observation, reply in zip(observations, replies, strict=True)
    ]


def main() -> None:
    """Make a run's report again."""

    def report(run: tyro.conf.Positional[Path], /, store: str | None = None) -> None:
        """Make report.html from a finished run's folder.

        Args:
            run: The folder.
            store: The database, where it is elsewhere and the folder keeps its password to itself.
        """
        if not (run / "results.json").exists():
            raise SystemExit(f"error: {run} is not the folder of a finished run: it has no results.json")
        print(write_report(run, store))

    tyro.cli(report, prog="python -m evals.report")


if __name__ == "__main__":
    main()
