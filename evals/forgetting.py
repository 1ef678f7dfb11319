"""What a model has forgotten: before and after a training, and against another training.

    python -m evals.forgetting --after RUN --baseline OTHER_RUN

Held-out text, the built-in tasks, and instructions whose observance a rule can check, all without any context
in the prompt. A row that gets worse is forgetting, unless it is what was trained.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_1samp

from envs.text_env import make_text_env
from evals.agent_process import ask
from evals.command import EvalError, run_command
from evals.finished_run import NotJudgedError, run_settings
from evals.instructions import INSTRUCTIONS
from evals.page import write_whole
from evals.report import write_report
from evals.result import Comparison, interval_text
from evals.stats import mean_interval, wilson_interval
from experience.masking import masked
from experience.seeds import STRIDE
from experience.terminal import Terminal, tell
from experience.text import printable

HELD_OUT = Path(__file__).with_name("held_out.txt")
TEXT = "text (nats)"

TaskName = Literal["sums", "lake"]
Scores = dict[str, list[float]]
"""Measure -> one number per item: nats per token of a passage; 1 or 0 for an episode or an instruction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An env to play."""

    env: str
    env_kwargs: dict[str, Any]


TASKS: Mapping[TaskName, Task] = {
    "sums": Task(
        env="Math-v0",
        env_kwargs={"task": "chain_sum", "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    ),
    "lake": Task(env="FrozenLake-v1", env_kwargs={"is_slippery": True}),
}
"""In each something is random: where nothing is, greedy episodes are copies of one."""

UNKNOWN: Mapping[str, Any] = {"model": "smollm2", "seed": 0}
"""What is taken to be a training's, where no run's folder says it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """What a model is asked, greedily and without any context."""

    passages: tuple[str, ...]
    """Texts to predict."""
    tasks: dict[str, Task]
    episodes: int
    """Of each task, on test seeds."""
    seed: int
    """Of the run that would be tested on these episodes."""
    instructions: tuple[str, ...]
    """Prompts."""
    max_new_tokens: int
    """Longest reply, where it is no action."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a model did."""

    nats: list[float]
    """Of each passage, the mean per token."""
    successes: dict[str, list[bool]]
    """Task -> of each episode, in the order of the seeds."""
    replies: list[str]
    """To the instructions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingConfig:
    """Compare what two or three models can do besides what they were trained for."""

    after: str
    """The trained model: a run's folder or a model's."""
    before: str | None = None
    """The model that it was trained from; by default the one that its run began with, or else `smollm2`."""
    baseline: str | None = None
    """Another training of the same model, such as the off-policy one."""
    output: Path | None = None
    """Where to write the table as JSON; by default into the run's folder, whose report then shows it."""
    tasks: tuple[TaskName, ...] = ("sums", "lake")
    """Built-in tasks. `sums` needs opcd-gym[math]."""
    episodes: int = 128
    """Per task, on test seeds."""
    max_new_tokens: int = 48
    """Longest reply to a sum or an instruction; the replies are greedy."""
    seed: int | None = None
    """A run's: the tasks' episodes are those that it is tested on; by default that run's own, or else 0."""
    store: str | None = None
    """Where the run's experience is, if on another machine; its report shows what is in there."""
    device: str = "auto"
    """A torch device; auto takes a GPU if there is one."""
    trust_remote_code: bool = False
    """Let code that comes with a model run."""

    @property
    def run(self) -> Path | None:
        """The folder of the finished run whose model it is, if it is one's."""
        folder = Path(self.after)
        return folder if (folder / "results.json").is_file() else None

    def __post_init__(self) -> None:
        for name, least in (("episodes", 1), ("max_new_tokens", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise EvalError(f"{name} must be at least {least}, not {value}")
        if self.episodes > STRIDE:
            raise EvalError(f"episodes must be at most {STRIDE}, not {self.episodes}")


def forgetting(config: ForgettingConfig, console: Console) -> dict[str, Any]:
    """Measure every model, each in a process of its own; returns the table.

    Raises:
        EnvError: A task cannot be had.
        AgentError: A model cannot be had.
        UnfinishedRunError: A file of the run is damaged.
    """
    for task in config.tasks:  # before anything is spent
        make_text_env(TASKS[task].env, TASKS[task].env_kwargs).close()
    known: Mapping[str, Any] = run_settings(config.run) if config.run else UNKNOWN
    if config.seed is None:
        config = replace(config, seed=known["seed"])
    names = {"before": config.before or known["model"], "after": config.after}
    if config.baseline is not None:
        names["baseline"] = config.baseline
    found: dict[str, Scores] = {}
    for role in reversed(names):  # a wrong name is more likely in what was asked for
        console.print(f"measuring {role}: {printable(names[role])}", markup=False)
        found[role] = _scores(names[role], config, known.get("chat_template_kwargs", {}))
    scores = {role: found[role] for role in names}
    table: dict[str, Any] = {"models": names, "rows": []}
    for measure in scores["before"]:
        row: dict[str, Any] = {"measure": measure}
        for role, measured in scores.items():
            row[role] = _summary(measure, measured[measure])
            if role != "before":
                row[f"{role}_against_before"] = _change(measure, measured[measure], scores["before"][measure])
        if "baseline" in scores:
            row["after_against_baseline"] = _change(
                measure, scores["after"][measure], scores["baseline"][measure]
            )
        table["rows"].append(row)
    return table


def save(config: ForgettingConfig, table: Mapping[str, Any]) -> None:
    """Write the table where it is asked for, or belongs.

    Raises:
        OSError: It cannot be written.
    """
    if target := config.output or (config.run and config.run / "forgetting.json"):
        write_whole(target, json.dumps(masked(table), indent=2) + "\n")


def model_folder(name: str) -> str:
    """What a model is called by: of a run's folder, its model."""
    model = Path(name) / "model"
    return str(model) if model.is_dir() else name


def _scores(name: str, config: ForgettingConfig, chat_template_kwargs: Mapping[str, Any]) -> Scores:
    """Everything that is measured of one model, told what the run's agent is told of thinking."""
    exam = Exam(
        passages=tuple(HELD_OUT.read_text(encoding="utf-8").split("\n\n")),
        tasks={name: TASKS[name] for name in config.tasks},
        episodes=config.episodes,
        seed=config.seed or 0,
        instructions=tuple(instruction.prompt for instruction in INSTRUCTIONS),
        max_new_tokens=config.max_new_tokens,
    )
    question: dict[str, Any] = {"model": model_folder(name), "exam": asdict(exam)}
    question |= {"device": config.device, "trust_remote_code": config.trust_remote_code}
    question["chat_template_kwargs"] = dict(chat_template_kwargs)
    answers = TypeAdapter(Answers).validate_python(ask("exam", question))
    followed = [
        float(instruction.is_followed(reply))
        for instruction, reply in zip(INSTRUCTIONS, answers.replies, strict=True)
    ]
    played = {name: [float(won) for won in outcomes] for name, outcomes in answers.successes.items()}
    return {TEXT: answers.nats, **played, "instructions": followed}


def _summary(measure: str, values: Sequence[float]) -> dict[str, float]:
    """The mean and its 95% interval: Wilson's of a rate, Student's of nats."""
    if measure == TEXT:
        low, high = mean_interval(values)
    else:
        low, high = wilson_interval(int(sum(values)), len(values))
    return {"mean": float(np.mean(values)), "ci_low": low, "ci_high": high, "n": len(values)}


def _change(measure: str, values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """The first's mean minus the second's, paired by item, with its 95% interval and p-value."""
    if measure != TEXT:
        first, second = (
            pd.DataFrame({"seed": range(len(outcomes)), "success": np.asarray(outcomes, dtype=bool)})
            for outcomes in (values, others)
        )
        return Comparison.of(first, second).as_dict()
    differences = np.asarray(values) - np.asarray(others)
    low, high = mean_interval(differences.tolist())
    p_value = 1.0 if not differences.any() else float(ttest_1samp(differences, 0.0).pvalue)
    return {
        "difference": float(differences.mean()),
        "ci_low": low,
        "ci_high": high,
        "p_value": p_value,
        "n": len(differences),
    }


def print_table(table: Mapping[str, Any], console: Console | None = None) -> None:
    """For each measure, one line per model, and what the first training has over the second."""
    title = "what else it can do (95% intervals)"
    if "baseline" in table["models"]:
        title += "; difference: after - baseline"
    rich = Table(title=title, title_justify="left")
    for column in ("", "model"):
        rich.add_column(column, no_wrap=True)
    for column in ("", "minus before"):
        rich.add_column(column, justify="right", no_wrap=True)
    for row in table["rows"]:
        show = "{:.3f}" if row["measure"] == TEXT else "{:.1%}"
        signed = show.replace(":", ":+")
        for role in table["models"]:
            change = row.get(f"{role}_against_before")
            rich.add_row(
                row["measure"] if role == "before" else "",
                role,
                interval_text(row[role], "mean", show),
                "" if change is None else interval_text(change, "difference", signed),
            )
        if (change := row.get("after_against_baseline")) is not None:
            rich.add_row("", "difference", interval_text(change, "difference", signed), "")
        rich.add_section()
    (console or Terminal()).print(rich)


def main() -> int:
    """The command; returns its exit code."""

    def work(console: Console) -> None:
        config = tyro.cli(ForgettingConfig, prog="python -m evals.forgetting")
        table = forgetting(config, console)
        print_table(table)  # first: what was measured is seen even if it cannot be written
        save(config, table)
        if config.run is not None and config.output is None:
            with suppress(NotJudgedError):
                tell(console, f"report: {write_report(config.run, config.store)}")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
