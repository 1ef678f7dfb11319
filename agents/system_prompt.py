"""The behaviour of a system prompt, trained into the weights.

    python -m agents.system_prompt --prompt-file safety.txt --inputs questions.jsonl --output runs/safety

Two trainings from the same base: OPCD, and the off-policy baseline (context distillation: the teacher's
completions, forward KL). The model without the prompt imitates the one with it; the right answers are used
to choose the checkpoint on validation questions and to test once, never to train. Each training is a whole
run of ``agents.self_improve`` in a folder of its own. The same command again goes on where it was stopped.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table

from agents.cli import run_command
from agents.config import ConfigError, JsonObject, SelfImproveConfig, flag
from agents.run.folder import make_folder
from agents.run.resume import finish
from agents.self_improve import self_improve
from distill.parallel import is_main_process
from envs.questions.choice_env import ChoiceEnv, Match
from envs.questions.problems import MIN_QUESTIONS
from envs.text_env import make_env
from evals.finished_run import FinishedRun
from evals.page import write_whole
from evals.result import Comparison, EvalResult, change_text, rate_text, saved_text
from evals.stats import wilson_interval
from experience.phase import Phase
from experience.store import open_run
from experience.terminal import Terminal, tell
from experience.whole import appearing

ENV = "Choice-v0"
ARMS = {
    "base": ("opcd", "before"),
    "with_prompt": ("opcd", "before_with_experience"),
    "off_policy": ("off-policy", "after"),
    "opcd": ("opcd", "after"),
}
"""Arm -> the run and the phase of its test in which it was played."""
LABELS = {"base": "base", "with_prompt": "with prompt", "off_policy": "off-policy", "opcd": "OPCD"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemPromptConfig:
    """Train the behaviour of a system prompt into a model's weights, and test it without the prompt."""

    prompt_file: Path
    """The system prompt. Lines `### user` and `### assistant` begin example turns that follow it."""
    inputs: Path | None = None
    """Questions with their answers: a JSONL, CSV or Parquet file."""
    dataset: str | None = None
    """In place of inputs: a Hugging Face data set's name."""
    dataset_config: str | None = None
    """Its configuration."""
    dataset_split: str = "train"
    """Which part of it."""
    question: str = "question"
    """Column of the questions."""
    answer: str = "answer"
    """Column of the answers."""
    options: tuple[str, ...] = ()
    """Columns of the options, put under the question as A., B., ..."""
    labels: JsonObject = dataclasses.field(default_factory=dict)
    """What the answers are called in replies, where they differ, as JSON: '{"0": "no", "1": "yes"}'."""
    match: Match = "tag"
    """The form of a reply: `tag` is <answer>yes</answer>, `exact` the label alone, `letter` its first."""
    run: Annotated[SelfImproveConfig, tyro.conf.OmitArgPrefixes] = dataclasses.field(
        default_factory=lambda: SelfImproveConfig(env=ENV)
    )
    """Of both runs, whose folder --output is needed. The command itself sets --env, --env-kwargs,
    --context-file, --context-place and --resume: the same command goes on. --minutes would plan each of the
    two by itself, so it is not for this command."""

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Of ``Choice-v0``."""
        given = {
            "file": None if self.inputs is None else str(self.inputs),
            "dataset": self.dataset,
            "dataset_config": self.dataset_config,
            "options": list(self.options),
            "labels": self.labels,
        }
        return {
            **{name: value for name, value in given.items() if value},
            **({"dataset_split": self.dataset_split} if self.dataset else {}),
            "question": self.question,
            "answer": self.answer,
            "match": self.match,
        }


def system_prompt(config: SystemPromptConfig, console: Console) -> dict[str, Any]:
    """Run both trainings, in one folder; returns what ``system_prompt.json`` holds.

    Raises:
        ConfigError: The prompt, or a setting, makes no sense, there are too few questions, or the folder's
            runs were begun with others.
        EnvError: The questions cannot be had.
    """
    output, runs = config.run.output, _runs(config)
    assert output is not None
    results = {}
    for name, run in runs.items():
        console.print(f"{run.output}", style="bold", markup=False)
        _check_unchanged(output, config)
        finish(run, output / name, partial(self_improve, console=console, is_settled=True))
        results[name] = FinishedRun.read(output / name).results
    frames, arms = {}, {}
    for arm, (name, played) in ARMS.items():
        with open_run(output / name, location=config.run.store) as store:
            frames[arm] = store.traces(phase=str(Phase.test(played, config.run.eval_temperature[0])))
        arms[arm] = {**EvalResult.from_traces(frames[arm]).as_dict(), **format_rate(frames[arm])}
    table = {
        "prompt_file": str(config.prompt_file),
        "inputs": str(config.inputs or config.dataset),
        "model": config.run.model,
        "seed": config.run.seed,
        "arms": arms,
        "best_constant": results["opcd"]["arms"]["blind"],
        "best_step": {name: result["best_step"] for name, result in results.items()},
        "prompt_tokens_saved": _tokens(arms, "with_prompt") - _tokens(arms, "base"),
        "opcd_against_base": Comparison.of(frames["opcd"], frames["base"]).as_dict(),
        "opcd_against_with_prompt": Comparison.of(frames["opcd"], frames["with_prompt"]).as_dict(),
        "opcd_against_off_policy": Comparison.of(frames["opcd"], frames["off_policy"]).as_dict(),
    }
    if is_main_process():
        write_whole(output / "system_prompt.json", json.dumps(table, indent=2) + "\n")
    return table


def format_rate(traces: pd.DataFrame) -> dict[str, Any]:
    """How many of the replies had the form that is asked for, right or wrong, with its 95% interval."""
    good = int(((traces["num_turns"] > 0) & (traces["invalid_replies"] == 0)).sum())
    low, high = wilson_interval(good, len(traces))
    return {"format_rate": good / len(traces), "format_ci_low": low, "format_ci_high": high}


def _runs(config: SystemPromptConfig) -> dict[str, SelfImproveConfig]:
    """The two runs, in order."""
    run = config.run
    if run.output is None:
        raise ConfigError("--output is needed: the folder for the two runs")
    refuse_settings(run, ENV, "env", "env_kwargs", "context_file", "context_place", "minutes", "resume")
    if not config.prompt_file.is_file():
        raise ConfigError(f"there is no prompt file {config.prompt_file}")
    if (config.inputs is None) == (config.dataset is None):
        raise ConfigError("the questions come from exactly one of --inputs and --dataset")
    sizes = cast("ChoiceEnv", make_env(ENV, config.env_kwargs).unwrapped).part_sizes
    assert sizes is not None
    check_sizes(f"{config.inputs or config.dataset} has {sum(sizes)} different questions", sizes)
    opcd = dataclasses.replace(
        run,
        env_kwargs=config.env_kwargs,
        context_file=config.prompt_file,
        context_place="chat",
        episodes=min(run.episodes, sizes[0]),
        output=run.output / "opcd",
    )
    off_policy = dataclasses.replace(
        opcd, data="teacher", direction="forward", off_policy_steps=0, output=run.output / "off-policy"
    )
    return {"opcd": opcd, "off-policy": off_policy}


def refuse_settings(run: SelfImproveConfig, env: str, *names: str) -> None:
    """Make sure that nobody has asked for what a command sets itself.

    Raises:
        ConfigError: Somebody has.
    """
    defaults = SelfImproveConfig.for_env(env)
    for name in names:
        if getattr(run, name) != getattr(defaults, name):
            raise ConfigError(f"{flag(name)} is not for this command")


def check_sizes(what: str, sizes: Sequence[int]) -> None:
    """Make sure that there is enough to train on, to choose by, and to test with.

    Raises:
        ConfigError: There is not.
    """
    if min(sizes) < MIN_QUESTIONS:
        raise ConfigError(
            f"{what}, dealt into {sizes[0]} for training, {sizes[1]} for validation and {sizes[2]} for the "
            f"test: each part needs {MIN_QUESTIONS}"
        )


def _check_unchanged(output: Path, config: SystemPromptConfig) -> None:
    """Note what the runs are begun with; later, and before the second run, make sure that it is the same.

    Raises:
        ConfigError: The runs were begun with another text or other questions.
    """
    is_begun = (output / "opcd" / "config.json").exists()
    text = config.prompt_file.read_text(encoding="utf-8")
    digest = "" if config.inputs is None else hashlib.sha256(config.inputs.read_bytes()).hexdigest()
    for file, content, kept in (
        (config.prompt_file, text, output / "prompt.txt"),
        (config.inputs, digest, output / "inputs.sha256"),
    ):
        if is_begun:
            if not kept.exists() or kept.read_text(encoding="utf-8") != content:
                raise ConfigError(
                    f"{file} is not what {output} was begun with (see {kept.name} there): put it back, "
                    "or take another --output"
                )
        elif is_main_process():
            make_folder(output)
            with appearing(kept) as tmp:
                tmp.write_text(content, encoding="utf-8")


def _tokens(arms: Mapping[str, Mapping[str, Any]], arm: str) -> float:
    return float(arms[arm]["prompt_tokens_per_turn"])


def print_table(table: Mapping[str, Any], console: Console | None = None) -> None:
    """One line per arm."""
    arms = table["arms"]
    rich = Table(
        title=f"{table['prompt_file']}: {arms['base']['n']} test questions (95% interval)",
        title_justify="left",
    )
    rich.add_column("", no_wrap=True)
    for column in ("right", "in the right form", "tokens"):
        rich.add_column(column, justify="right", no_wrap=True)
    rich.add_row("constant", rate_text(table["best_constant"]), "", "")
    for name, arm in arms.items():
        form = f"{arm['format_rate']:.1%} [{arm['format_ci_low']:.1%}, {arm['format_ci_high']:.1%}]"
        rich.add_row(LABELS[name], rate_text(arm), form, f"{_tokens(arms, name):.0f}")
    console = console or Terminal()
    console.print(rich)
    outcome = (
        saved_text(table["prompt_tokens_saved"])
        if table["best_step"]["opcd"]
        else "nothing was trained: the prompt or the training does not help"
    )
    tell(console, f"{outcome}; constant: always the same answer")
    for against in ("with_prompt", "off_policy"):
        change = table[f"opcd_against_{against}"]
        tell(console, f"OPCD - {LABELS[against]}: {change_text(change)}, p = {change['p_value']:.2g}")


def main() -> int:
    """The command; returns its exit code."""

    def work(console: Console) -> None:
        default = SystemPromptConfig(prompt_file=tyro.MISSING, run=SelfImproveConfig.for_env(ENV))
        config = tyro.cli(SystemPromptConfig, default=default, prog="python -m agents.system_prompt")
        table = system_prompt(config, console)
        if is_main_process():
            print_table(table)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
