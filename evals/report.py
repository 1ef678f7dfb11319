"""What runs found, for people: ``report.html``, a page that compares runs, and ten lines on the terminal.

Everything is read from the runs' folders, so a page can be made again at any time:

    python -m evals.report RUN                  writes RUN/report.html
    python -m evals.report RUN RUN [RUN ...]    writes comparison.html, the runs side by side
"""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import tyro
from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from evals.finished_run import FinishedRun, UnfinishedRunError, check_traces, rows_by_part
from evals.page import write_page
from evals.plots import (
    arms_plot,
    curves_plot,
    gate_plot,
    kl_plot,
    mass_plot,
    runs_plot,
    validation_plot,
)
from evals.replay import replay_pairs
from evals.result import (
    ARM_LABELS,
    CUT_SHORT,
    Comparison,
    EvalResult,
    change_text,
    cut_short_text,
    rate_text,
    temperature_text,
)
from experience import ExperienceError
from experience.insight import InsightState
from experience.phase import Phase
from experience.store import ExperienceStore, open_run
from experience.terminal import Terminal, refuse, tell

SHOWN_TRACES = 5
"""Traces named as evidence of an insight; the database has them all."""
MAX_INSIGHTS = 200
PART_LABELS = {
    "play": "playing to learn",
    "gate": "drawing and judging insights",
    "training": "training",
    "validation": "validation",
    "test": "measuring on test",
}
MANY_UNREAD = 0.05
"""Replies without an action or an answer, of all of an arm, from which on they are told of."""
SUCCESS = "the environment says so, or else its return is positive"
"""In runs that do not say what success means."""


def write_report(path: Path, store: str | None = None) -> Path:
    """Make ``report.html`` in a finished run's folder; returns its path.

    Args:
        path: The folder: ``config.json``, ``metrics.jsonl``, ``results.json`` and ``experience.db``.
        store: The database, where it is elsewhere and the folder keeps its password to itself.

    Raises:
        ExperienceError: The run's experience cannot be read.
        UnfinishedRunError: It is no finished run's folder.
    """
    run = FinishedRun.read(path)
    train, gates, results = run.of_kind("train"), run.of_kind("gate"), run.results
    with open_run(path, location=store) as experience:
        insights = _insights(experience)
        candidates = _candidates(experience, insights)
        traces = experience.traces()
        check_traces(run.metrics, traces)
        parts = rows_by_part(run, traces.itertuples())
        replays = replay_pairs(run, experience)
    curves = []
    if train:
        curves = [validation_plot(run), kl_plot(train), mass_plot(train, run.config["top_k"])]
    return write_page(
        path / "report.html",
        "report.html.j2",
        path=path,
        results={"context_put_back": None, "processes": 1, **results},
        ways=ways(run),
        expected=run.about.get("expected_seconds"),
        training_seconds=run.seconds()["training"] + run.seconds()["validation"],
        about=run.about,
        tables=run.tables,
        labels=ARM_LABELS,
        stops={name: _stops(arms) for name, arms in run.tables},
        success_means=results.get("success_means", SUCCESS),
        cut_short=cut_short_text(results.get("cut_short")),
        is_trained=results["best_step"] > 0,
        insights=insights,
        MAX_INSIGHTS=MAX_INSIGHTS,
        arm_plots=[arms_plot(arms, f"Success on test, {name}") for name, arms in run.tables],
        forgetting=run.forgetting,
        replays=replays,
        is_one_turn=all(replay.turns <= 1 for _, pair in replays for replay in pair),
        parts=parts,
        part_labels=PART_LABELS,
        train=train,
        completion_tokens=sum(step["completion_tokens"] for step in train) / max(len(train), 1),
        curves=curves,
        gates=gates,
        candidates=candidates,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What an episode costs where experience is in the prompt, or in the weights."""

    name: str
    arm: dict[str, Any]
    """Its ``EvalResult.as_dict()``."""
    tokens: float
    """Prompt tokens of an episode."""
    seconds: float
    """Of an episode, as the run played many of them on its machine."""

    @property
    def tokens_per_success(self) -> float | None:
        """Prompt tokens that a success takes; ``None`` without any."""
        return self.tokens / self.arm["success_rate"] if self.arm["success_rate"] else None


def ways(run: FinishedRun) -> list[tuple[str, Way, Way]]:
    """(temperature, with experience in the prompt, with it in the weights); none of runs from before.

    Seconds depend on the machine, so they stand in ``metrics.jsonl`` and not in ``results.json``.
    """
    spent = run.phase_seconds()

    def is_known(arms: dict[str, Any], arm: str, temperature: float) -> bool:
        result = arms[arm]
        tokens = result["prompt_tokens_per_turn"] * (result.get("turns_per_episode") or 0)
        return tokens > 0 and bool(result.get("endings")) and str(Phase.test(arm, temperature)) in spent

    def way(name: str, arms: dict[str, Any], arm: str, temperature: float) -> Way:
        result = arms[arm]
        return Way(
            name=name,
            arm=result,
            tokens=result["prompt_tokens_per_turn"] * result["turns_per_episode"],
            seconds=spent[str(Phase.test(arm, temperature))] / sum(result["endings"].values()),
        )

    return [
        (
            name,
            way("in the prompt", arms, "before_with_experience", temperature),
            way("in the weights", arms, "after", temperature),
        )
        for (name, arms), temperature in zip(run.tables, run.results["eval_temperature"], strict=True)
        if all(is_known(arms, arm, temperature) for arm in ("before_with_experience", "after"))
    ]


def _stops(arms: dict[str, Any]) -> list[str]:
    """What cut episodes short in any of the arms; runs of before do not say."""
    found = {stop for arm in arms.values() for stop in arm.get("endings") or ()}
    return [stop for stop in CUT_SHORT if stop in found]


def _insights(store: ExperienceStore) -> list[dict[str, Any]]:
    """Every insight, the active and most valuable first, with a few of the traces that speak for it."""
    evidence = store.evidence().query("supports").groupby("insight_id")["trace_id"].agg(list)
    rows = store.insights().sort_values("score", ascending=False).to_dict("records")
    return [
        {
            **{str(name): value for name, value in row.items()},
            "is_active": row["state"] == InsightState.ACTIVE,
            "evidence": evidence.get(row["insight_id"], [])[:SHOWN_TRACES],
        }
        for row in rows
    ]


def _candidates(
    store: ExperienceStore, insights: list[dict[str, Any]]
) -> list[tuple[int, Markup, list[dict[str, Any]]]]:
    """(round, plot, candidates with the best first) for each gate that had a choice."""
    texts = {insight["insight_id"]: insight["text"] for insight in insights}
    shown = []
    for phase, scores in store.scores().groupby("phase", sort=False):
        scores = scores[scores["seeds"].map(len) > 0]
        if len(scores) < 2:
            continue
        number = Phase.stored(phase).round or 0
        rows = []
        for score in scores.to_dict("records"):
            n, ids = len(score["seeds"]), score["insight_ids"]
            result = EvalResult.from_episodes(successes=score["successes"], n=n, mean_return=0.0)
            text = texts.get(ids[0], ids[0]) if len(ids) == 1 else f"{len(ids)} insights together"
            without = score["successes_without"] / n
            about = {"text": text, "without": without, "verdict": score["verdict"]}
            rows.append({**result.as_dict(), **about, "is_admitted": score["admitted"]})
        # Those that lasted longer were better when it was decided.
        rows.sort(key=lambda row: (row["n"], row["success_rate"]), reverse=True)
        for place, row in enumerate(rows, 1):
            row["label"] = f"{place} ({row['n']})"
        title = f"Round {number}: the best candidates (and their episodes)"
        shown.append((number, gate_plot(rows, rows[0]["without"], title), rows))
    return shown


def write_comparison(paths: list[Path], target: Path, store: str | None = None) -> Path:
    """Make a page with finished runs side by side; returns its path.

    The database of all of them may have to be named, where their folders keep its password to themselves.

    Raises:
        ExperienceError: A run's experience cannot be read.
        UnfinishedRunError: One is no finished run's folder.
    """
    runs = dict(zip(_short_names(paths), map(FinishedRun.read, paths), strict=True))
    settings = {name: run.config for name, run in runs.items()}
    differing = [
        key
        for key in dict.fromkeys(key for values in settings.values() for key in values)
        if key != "store" and len({repr(values.get(key)) for values in settings.values()}) > 1
    ]
    temperature = {run.results["eval_temperature"][0] for run in runs.values()}
    names = ", ".join(map(temperature_text, sorted(temperature)))
    return write_page(
        target,
        "comparison.html.j2",
        runs=runs,
        settings=settings,
        differing=differing,
        spread=_spread(list(runs.values())) if differing == ["seed"] else {},
        temperatures=names,
        against_first=_against_first(list(runs.values()), store),
        plots=[
            runs_plot(runs, f"Success on test, {names}"),
            curves_plot(runs, "Success on validation while training"),
        ],
    )


def _spread(runs: list[FinishedRun]) -> dict[str, tuple[float, float, float]]:
    """Arm -> the lowest, the median and the highest success rate of runs that differ in their seed alone."""
    rates = {
        arm: [run.results["arms"][arm]["success_rate"] for run in runs]
        for arm in ("before", "before_with_experience", "after")
    }
    return {arm: (min(of_arm), median(of_arm), max(of_arm)) for arm, of_arm in rates.items()}


def _against_first(runs: list[FinishedRun], store: str | None) -> list[Comparison | None]:
    """Each run's agent against the first run's, where both were tested on the same seeds of the same env."""

    def task(run: FinishedRun) -> tuple[Any, ...]:
        return tuple(str(run.results[name]) for name in ("env", "env_kwargs"))

    frames: list[pd.DataFrame] = []
    for run in runs:
        with open_run(run.path, location=store) as experience:
            frames.append(run.tested(experience, "after"))
    return [
        Comparison.of(frame, frames[0])
        if i and len(frame) and task(run) == task(runs[0]) and list(frame["seed"]) == list(frames[0]["seed"])
        else None
        for i, (run, frame) in enumerate(zip(runs, frames, strict=True))
    ]


def _short_names(paths: list[Path]) -> list[str]:
    """The ends of the paths that tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    raise UnfinishedRunError("the same run is named twice")


def print_summary(results: dict[str, Any], path: Path, console: Console | None = None) -> None:
    """A run's results in ten lines."""
    console = console or Terminal()
    names = [temperature_text(t) for t in results["eval_temperature"]]
    table = Table(title=f"{results['env']}: success on test episodes (95% interval)", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    tables = [results["arms"], results.get("sampled_arms", {})][: len(names)]
    for arm, label in ARM_LABELS.items():
        if arm in results["arms"]:
            style = "bold" if arm in ("before", "after") else ""
            table.add_row(label, *(rate_text(arms[arm]) for arms in tables), style=style)
    console.print(table)
    arms = {label: tables[0][arm] for arm, label in ARM_LABELS.items() if arm in tables[0]}
    if any(abs(arm["mean_return"] - arm["success_rate"]) > 1e-9 for arm in arms.values()):
        text = "; ".join(f"{label} {arm['mean_return']:.1f}" for label, arm in arms.items())
        tell(console, f"mean return, {names[0]}: {text}")
    unread = {label: arm["invalid_rate"] for label, arm in arms.items() if arm["invalid_rate"]}
    if any(rate >= MANY_UNREAD for rate in unread.values()):
        text = "; ".join(f"{label} {rate:.0%}" for label, rate in unread.items())
        tell(console, f"replies without an action or an answer, {names[0]}: {text}")
    if text := cut_short_text(results.get("cut_short")):
        tell(console, text, "bold yellow")
    if results["best_step"] == 0:
        text = "nothing went into the weights, and the model is as it was: the report says why"
        tell(console, text, "bold yellow")
    change = results["comparison"]
    tell(
        console,
        f"after - before: {change_text(change)}, p = {change['p_value']:.2g}, n = {change['n']}; "
        f"{results['wall_seconds']:.0f} s, {results['peak_rss_bytes'] / 2**30:.1f} GiB",
    )
    tell(console, f"report: {path / 'report.html'}   model: {path / 'model'}")


def main(args: list[str] | None = None) -> None:
    """The command."""

    def report(
        runs: tyro.conf.Positional[tuple[Path, ...]],
        /,
        store: str | None = None,
        output: Path = Path("comparison.html"),
    ) -> None:
        """Make the report of a finished run again, or compare several.

        Args:
            runs: Their folders.
            store: The database, where it is elsewhere and the folder keeps its password to itself.
            output: Of several runs: the page.
        """
        if not runs:
            raise UnfinishedRunError("name the folder of a run, or of several")
        print(write_report(runs[0], store) if len(runs) == 1 else write_comparison([*runs], output, store))

    try:
        tyro.cli(report, prog="python -m evals.report", args=args)
    except (ExperienceError, UnfinishedRunError, OSError) as error:
        refuse(error)


if __name__ == "__main__":
    main()
