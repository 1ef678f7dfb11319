"""What a model has forgotten: before and after a training, and against another training.

    python -m evals.forgetting --before smollm2 --after RUN --baseline OTHER_RUN

Held-out text, the built-in tasks, and instructions whose observance a rule can check, all without any context
in the prompt. A row that gets worse is forgetting, unless it is what was trained.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_1samp

from agents.cli import run_command
from agents.config import ConfigError
from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from agents.rollout import Phase, rollout, vector_env
from distill.lm.load import load_model
from envs.text_env import make_text_env
from evals.instructions import INSTRUCTIONS
from evals.result import Comparison
from evals.stats import CONFIDENCE, wilson_interval
from experience.masking import masked
from experience.seeds import SeedRange, Split
from experience.terminal import Terminal

HELD_OUT = Path(__file__).with_name("held_out.txt")
TEXT = "text (nats)"

TASKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sums": (
        "Math-v0",
        {"task": "chain_sum", "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    ),
    "lake": ("FrozenLake-v1", {"is_slippery": False}),
}
"""Name -> env and its arguments."""
TaskName = Literal["sums", "lake"]

Scores = dict[str, list[float]]
"""Measure -> one number per item: nats per token of a passage; 1 or 0 for an episode or an instruction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingConfig:
    """Compare what two or three models can do besides what they were trained for."""

    after: str
    """The trained model: a run's folder or a model's."""
    before: str = "smollm2"
    """The model that it was trained from."""
    baseline: str | None = None
    """Another training of the same model, such as the off-policy one."""
    output: Path | None = None
    """Where to write the table as JSON."""
    tasks: tuple[TaskName, ...] = ("sums", "lake")
    """Built-in tasks. `sums` needs opcd-gym[math]."""
    episodes: int = 128
    """Per task, on test seeds."""
    max_new_tokens: int = 48
    """Longest reply to a sum or an instruction; the replies are greedy."""
    seed: int = 0
    """A run's: the tasks' episodes are those that such a run is tested on."""
    device: str = "auto"
    """A torch device; auto takes a GPU if there is one."""
    trust_remote_code: bool = False
    """Let code that comes with a model run."""

    def __post_init__(self) -> None:
        for name in ("episodes", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")


def forgetting(
    config: ForgettingConfig, console: Console, policies: Mapping[str, HFPolicy] | None = None
) -> dict[str, Any]:
    """Measure every model; returns the table, which is also written to ``output``.

    Args:
        config: What to compare.
        console: Where to report progress.
        policies: The models by role, where they are loaded already.

    Raises:
        EnvError: A task cannot be had.
        ModelError: A model cannot be had.
    """
    check_tasks(config.tasks)
    names = {"before": config.before, "after": config.after}
    if config.baseline is not None:
        names["baseline"] = config.baseline
    scores: dict[str, Scores] = {}
    for role, name in names.items():
        console.print(f"measuring {role}: {name}", markup=False)
        policy = _load_policy(name, config) if policies is None else policies[role]
        scores[role] = measure_model(policy, config)
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
    if config.output is not None:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        config.output.write_text(json.dumps(masked(table), indent=2) + "\n", encoding="utf-8")
    return table


def _load_policy(name: str, config: ForgettingConfig) -> HFPolicy:
    loaded = load_model(model_folder(name), device=config.device, trust_remote_code=config.trust_remote_code)
    return HFPolicy(loaded.model, loaded.tokenizer)


def model_folder(name: str) -> str:
    """What ``load_model`` takes: of a run's folder, its model."""
    model = Path(name) / "model"
    return str(model) if model.is_dir() else name


def check_tasks(tasks: Iterable[str] = TASKS) -> None:
    """See that the built-in tasks can be had, before anything is spent.

    Raises:
        EnvError: One cannot.
    """
    for task in tasks:
        make_text_env(*TASKS[task]).close()


def measure_model(policy: HFPolicy, config: ForgettingConfig) -> Scores:
    """Everything that is measured of one model."""
    scores: Scores = {TEXT: text_nats(policy, HELD_OUT.read_text(encoding="utf-8").split("\n\n"))}
    sampling = Sampling(temperature=0.0, max_tokens=config.max_new_tokens)
    for task in config.tasks:
        scores[task] = task_successes(policy, task, config, sampling)
    prompts = [Prompt(messages=(Message(role="user", content=i.prompt),)) for i in INSTRUCTIONS]
    replies = policy.generate(prompts, sampling, [0] * len(prompts))
    scores["instructions"] = [
        float(instruction.is_followed(reply.text))
        for instruction, reply in zip(INSTRUCTIONS, replies, strict=True)
    ]
    return scores


def text_nats(policy: HFPolicy, passages: Sequence[str]) -> list[float]:
    """Mean negative log-likelihood per token of each passage, in nats, its first token taken as given."""
    nats = []
    for passage in passages:
        ids = tuple(policy.tokenizer(passage, add_special_tokens=False)["input_ids"])[: policy.lm.window]
        policy.clear()  # nothing is shared between passages
        logprobs_TV = policy.lm.logits([ids[:end] for end in range(1, len(ids))]).log_softmax(-1)
        nats.append(-float(logprobs_TV[range(len(ids) - 1), list(ids[1:])].mean()))
    policy.clear()
    return nats


def task_successes(
    policy: HFPolicy, task: TaskName, config: ForgettingConfig, sampling: Sampling
) -> list[float]:
    """1 or 0 per test episode, in the order of the seeds."""
    env_id, kwargs = TASKS[task]
    make = partial(make_text_env, env_id, kwargs)
    words = make().words
    if words.actions:
        longest = policy.longest_action(words.reply_prefix, words.actions)
        sampling = Sampling(temperature=0.0, max_tokens=longest)
    seeds = SeedRange(split=Split.TEST, run_seed=config.seed, start=0, size=config.episodes)
    envs = vector_env(make, min(64, config.episodes))
    try:
        traces = list(
            rollout(
                envs,
                words,
                policy,
                [Phase(name="forgetting", seeds=seeds)],
                sampling=sampling,
                policy_id="",
                env_id=env_id,
            )
        )
    finally:
        envs.close()
    policy.clear()
    return [float(trace.success) for trace in sorted(traces, key=lambda trace: trace.seed)]


def _summary(measure: str, values: Sequence[float]) -> dict[str, float]:
    """The mean and its 95% interval: Wilson's of a rate, Student's of nats."""
    if measure == TEXT:
        low, high = _t_interval(values)
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
    low, high = _t_interval(differences)
    p_value = 1.0 if not differences.any() else float(ttest_1samp(differences, 0.0).pvalue)
    return {
        "difference": float(differences.mean()),
        "ci_low": low,
        "ci_high": high,
        "p_value": p_value,
        "n": len(differences),
    }


def _t_interval(values: "Sequence[float] | np.ndarray[Any, Any]") -> tuple[float, float]:
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    interval = ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high)


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
                _interval_text(row[role], "mean", show),
                "" if change is None else _interval_text(change, "difference", signed),
            )
        if (change := row.get("after_against_baseline")) is not None:
            rich.add_row("", "difference", _interval_text(change, "difference", signed), "")
        rich.add_section()
    (console or Terminal()).print(rich)


def _interval_text(values: Mapping[str, float], name: str, show: str) -> str:
    value, low, high = (show.format(values[key]) for key in (name, "ci_low", "ci_high"))
    return f"{value} [{low}, {high}]"


def main() -> int:
    """The command; returns its exit code."""

    def work(console: Console) -> None:
        config = tyro.cli(ForgettingConfig, prog="python -m evals.forgetting")
        print_table(forgetting(config, console))

    return run_command(work, how_to_go_on=lambda: "")


if __name__ == "__main__":
    sys.exit(main())
