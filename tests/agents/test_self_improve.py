"""The main command on a tiny walker: what it leaves behind, and that nothing stops it for good."""

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import pandas as pd
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from sqlalchemy.exc import OperationalError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from agents.agent import Agent
from agents.cli import parse_args
from agents.config import ConfigError, SelfImproveConfig
from agents.dealing import deal, steps_for
from agents.gate import Gate
from agents.run.folder import RunFolder, RunFolderError
from agents.run.resume import begun, finish, saved_config
from agents.run.run import Run
from agents.self_improve import main, self_improve
from agents.training import Training
from distill.opcd import OPCD, DistillError, StepStats
from experience import ExperienceError
from experience.context import Context
from experience.insight import InsightState
from experience.store import ExperienceStore, open_run
from experience.text import printable
from tests import processes
from tests.conftest import run_main, tiny_llama

QUIET = Console(quiet=True)

TINY: dict[str, Any] = {
    "env_kwargs": {"is_slippery": False, "max_episode_steps": 25},
    "rounds": 2,
    "episodes": 12,
    "waves": 2,
    "steps": 3,
    "eval_every": 2,
    "batch_size": 8,
    "lr": 1e-3,
    "validation_episodes": 6,
    "test_episodes": 6,
    "num_envs": 4,
    "eval_temperature": (0.0,),
}
KEPT = TINY | {"keep_checkpoints": True}
"""Its checkpoints can be compared with another's."""
WHOLE = KEPT | {"eval_temperature": (0.0, 0.7)}
"""What the fixture ``whole`` has, and what is compared with it."""


@pytest.fixture(autouse=True)
def every_checkpoint_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little time there is to training on the tiny model: so that which are written is known."""
    monkeypatch.setattr("agents.run.checkpoints.WRITING_SHARE", 1e9)


@contextmanager
def open_gate() -> Iterator[None]:
    """Everything is admitted: a random walker is helped by nothing, and training is to be seen."""
    closed = Gate.admit

    def admit(self: Gate, round_number: int, candidates: Sequence[Context]) -> Context | None:
        return closed(self, round_number, candidates) or next(iter(candidates), None)

    with patch.object(Gate, "admit", admit):
        yield


def flags(path: Path, model: Path) -> list[str]:
    """``WHOLE`` as a command line."""
    return processes.flags(model=model, output=path, **WHOLE)


def with_open_gate(*arguments: str) -> int:
    """The command, for a process of its own."""
    with open_gate():
        return processes.command(main, *arguments)


def contents(path: Path) -> dict[str, Any]:
    """Everything of a run that has to be the same however often it was interrupted."""
    results = json.loads((path / "results.json").read_text())
    for varying in ("wall_seconds", "peak_rss_bytes"):
        results.pop(varying)
    metrics = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    with ExperienceStore(path / "experience.db") as store:
        tables = [frame.to_csv() for frame in (store.traces(), store.turns(), store.insights())]
    return {
        "results": results,
        "metrics": {entry.pop("key"): entry for entry in metrics if entry.pop("seconds") >= 0},
        "tables": tables,
        "weights": {
            file: {key: tensor.tolist() for key, tensor in load_file(path / file).items()}
            for file in ("checkpoint.safetensors", "best.safetensors", "model/model.safetensors")
        },
    }


def test_insights_in_use_are_of_the_round_whose_weights_are_the_best(
    walker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted: dict[int, Context] = {}

    def admit(_: Gate, number: int, candidates: Sequence[Context]) -> Context:
        return admitted.setdefault(number, candidates[0])

    monkeypatch.setattr(Gate, "admit", admit)
    monkeypatch.setattr(Training, "_success", lambda _, step: float(step == TINY["eval_every"]))
    results = self_improve(
        SelfImproveConfig(model=str(walker_folder), output=tmp_path / "run", **TINY), QUIET
    )
    assert results["best_step"] == TINY["eval_every"]
    with open_run(tmp_path / "run") as store:
        in_use = {i.id for i in store.load_insights() if i.state == InsightState.ACTIVE}
    of_round = {number: {i.id for i in context.insights} for number, context in admitted.items()}
    assert of_round.keys() == {1, 2}
    assert in_use == of_round[1] != of_round[2]


def test_what_a_run_leaves(whole: Path, walker_folder: Path) -> None:
    results = json.loads((whole / "results.json").read_text())
    assert results["schema_version"] == 1
    assert results["eval_temperature"] == [0.0, 0.7]
    for arms in (results["arms"], results["sampled_arms"]):
        assert arms.keys() == {
            "random", "blind", "before", "empty_context", "before_with_experience", "after",
            "after_with_experience", "optimal",
        }  # fmt: skip
        for arm in arms.values():
            assert arm.keys() == {
                "success_rate", "successes", "n", "ci_low", "ci_high", "mean_return", "invalid_rate",
                "prompt_tokens_per_turn", "turns_per_episode", "endings",
            }  # fmt: skip
    assert results["arms"]["optimal"]["n"] is None
    assert results["arms"]["before"]["n"] == 6
    assert results["comparison"].keys() == {"difference", "ci_low", "ci_high", "p_value", "n"}
    assert results["wall_seconds"] > 0
    assert results["peak_rss_bytes"] > 1e8

    about = json.loads((whole / "config.json").read_text())
    assert about["config"]["env_kwargs"] == TINY["env_kwargs"]
    assert not about["config"].keys() & {"output", "resume"}  # a folder may be moved
    assert about["packages"]["gymnasium"]
    assert "git_revision" in about

    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    tokenizer = AutoTokenizer.from_pretrained(whole / "model")
    assert tokenizer.chat_template
    before = AutoModelForCausalLM.from_pretrained(walker_folder)
    changed = [not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert any(changed) == (results["best_step"] > 0)
    trained = load_file(whole / "checkpoint.safetensors")
    assert not torch.equal(trained["weight/lm_head.weight"], before.lm_head.weight)
    html = (whole / "report.html").read_text()
    assert html.count("<svg") == 5
    assert "http" not in html.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert {p.name for p in whole.iterdir()} - {".lock"} == {
        *("config.json", "experience.db", "metrics.jsonl", "model", "results.json", "report.html"),
        *("best.safetensors", "checkpoint.safetensors"),
    }


def test_a_run_that_ended_well_keeps_what_is_of_use(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    about = json.loads((path / "config.json").read_text())
    about["config"]["keep_checkpoints"] = False
    (path / "config.json").write_text(json.dumps(about))
    before = {file.name for file in path.iterdir()}
    for _ in range(2):  # and a run that has ended is not trained again for want of its checkpoint
        with patch.object(OPCD, "step", side_effect=AssertionError("a finished run is not trained again")):
            results = self_improve(SelfImproveConfig(resume=path), QUIET)
        assert results == json.loads((whole / "results.json").read_text())
        left = {file.name for file in path.iterdir()}
        assert left == before - {"best.safetensors", "checkpoint.safetensors"}


@pytest.mark.usefixtures("plain_reports")
def test_checkpoints_take_little_of_the_time_of_training(
    whole: Path, walker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.run.checkpoints.WRITING_SHARE", 0.05)
    written: list[str] = []
    write = RunFolder.save_tensors

    def slow(self: RunFolder, name: str, *rest: Any) -> None:
        written.append(name)
        time.sleep(0.5)
        write(self, name, *rest)

    path = tmp_path / "run"
    with open_gate(), patch.object(RunFolder, "save_tensors", slow):
        self_improve(SelfImproveConfig(model=str(walker_folder), output=path, **WHOLE), QUIET)
    assert written.count("checkpoint.safetensors") == 1  # at the end of the training
    assert contents(path) == contents(whole)


def test_splits_are_used_for_what_they_are_for(whole: Path) -> None:
    with ExperienceStore(whole / "experience.db") as store:
        traces = store.traces()
    kinds = traces.groupby("split")["phase"].unique()
    assert all("/play" in phase for phase in kinds["train"])
    assert all(phase.startswith("test/") for phase in kinds["test"])
    assert all("gate" in phase or phase.startswith("validation") for phase in kinds["validation"])
    assert {seed % 3 for seed in traces.query("split == 'test'")["seed"]} == {2}
    # Before and after play the same test seeds.
    by_phase = traces.query("split == 'test'").groupby("phase")["seed"].agg(tuple)
    assert by_phase.nunique() == 1


@pytest.mark.usefixtures("plain_reports")
def test_the_same_command_gives_the_same_run(whole: Path, walker_folder: Path, tmp_path: Path) -> None:
    with open_gate():
        self_improve(SelfImproveConfig(model=str(walker_folder), output=tmp_path / "run", **WHOLE), QUIET)
    assert contents(tmp_path / "run") == contents(whole)


def fail_at(owner: type, name: str, call: int) -> Callable[[], Any]:
    """Interrupt the ``call``-th call of ``owner.name``."""
    original, count = getattr(owner, name), 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    return lambda: patch.object(owner, name, interrupted)


@pytest.mark.usefixtures("plain_reports")
@pytest.mark.parametrize(
    "interrupts",
    [
        [
            fail_at(ExperienceStore, "add_traces", 2),
            fail_at(ExperienceStore, "set_insights", 2),
            fail_at(ExperienceStore, "finish_phase", 6),
            fail_at(OPCD, "step", 2),
            fail_at(RunFolder, "save_tensors", 2),
            fail_at(Training, "validate", 3),
            fail_at(RunFolder, "write_json", 2),
        ],
        [
            fail_at(ExperienceStore, "finish_phase", 1),
            fail_at(RunFolder, "save_tensors", 4),
            fail_at(OPCD, "step", 5),
            fail_at(Agent, "save", 1),
        ],
    ],
    ids=["some", "others"],
)
def test_an_interrupted_run_ends_the_same(
    interrupts: list[Callable[[], Any]], whole: Path, walker_folder: Path, tmp_path: Path
) -> None:
    """It is interrupted at each of these moments, one after the other, and goes on."""
    path, came = tmp_path / "run", 0
    config = SelfImproveConfig(model=str(walker_folder), output=path, **WHOLE)
    with open_gate(), ExitStack() as stack:
        for interrupt in interrupts:  # they go on counting where the run goes on
            stack.enter_context(interrupt())
        while not (path / "report.html").exists():
            try:
                self_improve(config, QUIET)
            except KeyboardInterrupt:
                came += 1
            config = parse_args(["--resume", str(path)])
    assert came == len(interrupts)
    assert contents(path) == contents(whole)


def slowly(*arguments: str) -> int:
    """The command, whose optimiser steps take their time."""
    step = OPCD.step

    def slow(*args: Any) -> StepStats:
        time.sleep(0.2)
        return step(*args)

    with open_gate(), patch.object(OPCD, "step", slow):
        return processes.command(main, *arguments)


def test_kill_dash_nine(whole: Path, walker_folder: Path, tmp_path: Path) -> None:
    """Real kills of a real process, at moments that nobody chose."""
    path = tmp_path / "run"
    first = flags(path, walker_folder)
    kills = 0
    while not (path / "report.html").exists():
        arguments = ["--resume", str(path)] if (path / "config.json").exists() else first
        process = processes.begin(slowly, *arguments, said=tmp_path / "said")
        try:
            # Wait for work to begin, so that some gets done each time.
            progress = progress_of(path)
            deadline = time.monotonic() + 120
            while process.is_alive() and progress_of(path) == progress and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.45)
            if kills < 4 and process.is_alive():
                process.kill()
                kills += 1
        finally:
            process.join(processes.SECONDS)
        assert process.exitcode in (0, -signal.SIGKILL), (tmp_path / "said").read_text()
    assert kills >= 2
    assert contents(path) == contents(whole)


def progress_of(path: Path) -> int:
    try:
        return sum(file.stat().st_mtime_ns for file in path.glob("*"))
    except FileNotFoundError:  # one of the process's, gone since it was listed
        return -1


def test_the_gate_refuses_what_does_not_help(walker_folder: Path, tmp_path: Path) -> None:
    config = SelfImproveConfig(model=str(walker_folder), output=tmp_path / "run", **{**TINY, "rounds": 1})
    results = self_improve(config, QUIET)
    assert results["best_step"] == 0
    assert results["comparison"]["difference"] == 0
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    [verdict] = [entry for entry in metrics if entry.get("kind") == "gate"]
    assert not verdict["admitted"]
    assert 0.0 < verdict["advice_followed"] < 1.0  # by a random walker
    assert "Nothing was trained" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.usefixtures("plain_reports")
def test_a_model_that_never_acts_is_measured_all_the_same(tmp_path: Path) -> None:
    from tests.conftest import byte_tokenizer

    model = tiny_llama()
    model.save_pretrained(tmp_path / "mute")
    byte_tokenizer().save_pretrained(tmp_path / "mute")
    config = SelfImproveConfig(
        model=str(tmp_path / "mute"), output=tmp_path / "run", max_new_tokens=2, **{**TINY, "rounds": 1}
    )
    results = self_improve(config, QUIET)
    assert results["arms"]["before"]["invalid_rate"] == 1.0


@pytest.mark.parametrize(
    ("env", "settings"),
    [
        ("Blackjack-v1", {}),
        ("CartPole-v1", {"env_kwargs": {"max_episode_steps": 4}, "memory": "last-2"}),
        ("OPCD/Cue-v0", {"memory": "full"}),
        ("Pendulum-v1", {"env_kwargs": {"max_episode_steps": 5}, "max_new_tokens": 4}),
        (
            "CliffWalking-v1",
            {"env_kwargs": {"max_episode_steps": 10}, "vectorization": "async", "num_envs": 2},
        ),
    ],
)
def test_any_env_runs_to_its_report(
    env: str, settings: dict[str, Any], walker_folder: Path, tmp_path: Path
) -> None:
    config = {**TINY, "env_kwargs": {}, "rounds": 1, **settings}
    results = self_improve(
        SelfImproveConfig(env=env, model=str(walker_folder), output=tmp_path / "run", **config), QUIET
    )
    assert {"random", "before", "after"} <= results["arms"].keys()
    assert results["success_means"] in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("plain_reports")
def test_curves_go_to_the_users_tracker(walker_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_gate():
        self_improve(
            SelfImproveConfig(
                model=str(walker_folder),
                output=tmp_path / "run",
                tracker="tensorboard",
                **{**TINY, "rounds": 1},
            ),
            QUIET,
        )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/kl")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("validation/success_rate")] == [0, 2, 3]


@pytest.mark.usefixtures("plain_reports")
def test_what_a_step_asks_is_dealt_by_what_the_last_steps_saw(walker_folder: Path, tmp_path: Path) -> None:
    asked: list[list[str]] = []
    seen: list[dict[str, float]] = []

    def spy(moments: Any, distances: Any, step: int, **settings: Any) -> Any:
        dealt = deal(moments, distances, step, **settings)
        seen.append(dict(distances))
        asked.append([d.name for d in dealt])
        return dealt

    config = SelfImproveConfig(model=str(walker_folder), output=tmp_path / "run", **{**TINY, "rounds": 1})
    with open_gate(), patch("agents.training.deal", spy):
        self_improve(config, QUIET)
    assert len(asked) == TINY["steps"]
    assert seen[0] == {}
    for names, before, after in zip(asked, seen, seen[1:], strict=False):
        assert after.keys() == before.keys() | set(names)
        assert all(kl >= 0 for kl in after.values())
    for names in asked:
        actions = Counter(name.split("/")[0] for name in names)
        assert len(names) == TINY["batch_size"]
        assert len(actions) > 1
        assert max(actions.values()) - min(actions.values()) <= 1


def test_an_optimizer_that_is_not_installed_is_said_before_anything_is_loaded(
    walker_folder: Path, tmp_path: Path
) -> None:
    config = SelfImproveConfig(
        model=str(walker_folder), output=tmp_path / "run", **TINY, optimizer="adamw-8bit"
    )
    with (
        patch.dict(sys.modules, {"bitsandbytes": None}),
        patch("agents.agent.load_model", side_effect=AssertionError),
        pytest.raises(DistillError, match=r"pip install 'opcd-gym\[8bit\]'"),
    ):
        self_improve(config, QUIET)
    assert not (tmp_path / "run").exists()


def test_steps_follow_what_there_is_to_learn(
    walker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.dealing.LEAST_STEPS", 2)
    settings = KEPT | {"steps": None, "output": tmp_path / "run"}
    with open_gate():
        self_improve(SelfImproveConfig(model=str(walker_folder), **settings), QUIET)
    lines = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    done = Counter(line["round"] for line in lines if line["kind"] == "train")
    insights = {line["round"]: line["size"] for line in lines if line["kind"] == "gate"}
    assert done == {number: steps_for(size, None) for number, size in insights.items()}
    assert min(done.values()) > 2


def test_replies_of_one_token_are_not_drawn(walker_folder: Path, tmp_path: Path) -> None:
    config = SelfImproveConfig(model=str(walker_folder), output=tmp_path / "run", **{**TINY, "rounds": 1})
    with open_gate(), patch("agents.examples.sample_examples", side_effect=AssertionError):
        self_improve(config, QUIET)


# --- bad input -----------------------------------------------------------------------------------


command = partial(run_main, main)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--env", "FrozenLak-v1"], "did you mean FrozenLake-v1"),
        (["--env", "tests.envs.test_spaces:tests/Graphs-v0"], "say how with envs.register_text"),
        (["--memory", "some"], "memory must be none, full, or last-N"),
        (["--store", "sqlite:////no/such/folder/x.db"], "its folder must exist"),
        (["--tracker", "wandb"], "tracker wandb needs its package: pip install wandb"),
        (["--env-kwargs", '{"slip": 1}'], "cannot be made with {'slip': 1}"),
        (["--env-kwargs", "{slip}"], "JSON"),
        (["--env-kwargs", "[1]"], "JSON object"),
        (["--model", "nowhere"], "neither 'smollm2', nor a folder, nor a .gguf file, nor a hub id"),
        (["--model", "SmolLM-2"], "nor a hub id (owner/name); did you mean smollm2?"),
        (["--model", "/no/such/model.gguf"], "no GGUF file /no/such/model.gguf"),
        (["--device", "quantum"], "quantum"),
        (["--insights", "/no/such.toml"], "/no/such.toml"),
        (
            ["--insights", "llm", "--insight-model", "x", "--insight-url", "nowhere"],
            "nowhere is not an endpoint",
        ),
        (
            ["--insights", "llm", "--insight-model", "x", "--insight-url", "http://127.0.0.1:9/v1"],
            "nobody answers at http://127.0.0.1:9/v1",
        ),
        (
            ["--insight-url", "http://127.0.0.1:9/v1", "--insight-model", "x"],
            "need insights llm: those of this run are outcomes",
        ),
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--test-episodes", "1000001"], "test_episodes must be at most"),
        (["--seed", "1000000000000"], "seed must be"),
        (["--eval-temperature", "-1"], "eval_temperature"),
        (["--resume", "/no/such/run"], "is not the folder of a run"),
    ],
)
def test_bad_input_is_one_clear_error(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, walker_folder: Path
) -> None:
    model = [] if "--model" in args else ["--model", str(walker_folder)]
    code, output = command(capsys, "--output", str(tmp_path / "run"), *model, *args)
    assert code != 0
    assert says in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_missing_hub_model_says_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, output = command(capsys, "--model", "owner/none", "--output", str(tmp_path / "run"))
    assert code == 2
    assert "model 'owner/none' cannot be loaded" in output
    assert "--model smollm2" in output


def test_pickled_weights_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], walker_folder: Path
) -> None:
    import shutil

    folder = tmp_path / "pickled"
    shutil.copytree(walker_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    code, output = command(capsys, "--model", str(folder), "--output", str(tmp_path / "run"))
    assert code == 2
    assert "safetensors" in output


def test_a_folder_in_use_is_left_alone(whole: Path, walker_folder: Path, tmp_path: Path) -> None:
    before = contents(whole)
    with pytest.raises(RunFolderError, match="already holds a run"):
        self_improve(SelfImproveConfig(model=str(walker_folder), output=whole, **TINY), QUIET)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty"):
        self_improve(SelfImproveConfig(model=str(walker_folder), output=tmp_path, **TINY), QUIET)
    with RunFolder.open(whole), pytest.raises(RunFolderError, match="another process"):
        RunFolder.open(whole)
    assert contents(whole) == before


def test_resume_from_python_uses_the_saved_configuration(whole: Path) -> None:
    before = contents(whole)
    with open_gate():
        self_improve(SelfImproveConfig(resume=whole), QUIET)
    assert contents(whole) == before
    with pytest.raises(ConfigError, match="--steps 4 differs"):
        self_improve(SelfImproveConfig(resume=whole, steps=4), QUIET)


def test_resume_with_another_configuration(whole: Path) -> None:
    assert parse_args(["--resume", str(whole), "--max-nodes", "64"]).max_nodes == 64
    with pytest.raises(ConfigError, match=r"--seed 5 differs .* which has 0"):
        parse_args(["--resume", str(whole), "--seed", "5"])
    assert parse_args(["--resume", str(whole), "--seed", "0"]).steps == 3
    with pytest.raises(ConfigError, match=r"--teacher http://x:1 differs .* which has base"):
        parse_args(["--resume", str(whole), "--teacher", "http://x:1"])


def test_a_flag_that_is_given_counts_if_it_is_the_default_too(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(whole, tmp_path / "run")
    about = json.loads((path / "config.json").read_text())
    about["config"] |= {"device": "cpu", "env_timeout": 7.0}
    (path / "config.json").write_text(json.dumps(about))
    used: list[SelfImproveConfig] = []
    opened = Run.__enter__

    def noted(self: Run) -> Run:
        used.append(self.config)
        return opened(self)

    with patch.object(Run, "__enter__", noted), patch("agents.run.run.write_report"):
        assert command(capsys, "--resume", str(path), "--device", "auto")[0] == 0
        self_improve(SelfImproveConfig(resume=path), QUIET)  # where nothing tells what was given
    assert [(config.device, config.env_timeout) for config in used] == [("auto", 7), ("cpu", 7)]
    assert begun(dataclasses.replace(saved_config(path), device="auto"), path).device == "auto"


def test_an_experiment_goes_on_with_the_machine_of_now(whole: Path) -> None:
    saved = saved_config(whole)
    asked = dataclasses.replace(saved, resume=None, output=whole, max_nodes=64)
    assert begun(asked, whole) == dataclasses.replace(saved, max_nodes=64)
    with pytest.raises(ConfigError, match="begun with lr"):
        begun(dataclasses.replace(asked, lr=1.0), whole)
    with pytest.raises(ConfigError, match="begun with teacher base"):
        begun(dataclasses.replace(asked, teacher="http://x:1"), whole)


def test_another_store_is_not_taken_for_the_runs(walker_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    with open_gate(), fail_at(OPCD, "step", 2)(), pytest.raises(KeyboardInterrupt):
        self_improve(SelfImproveConfig(model=str(walker_folder), output=path, **TINY), QUIET)
    other = SelfImproveConfig(resume=path, store=f"sqlite:///{tmp_path}/other.db", **TINY)
    with pytest.raises(ExperienceError, match="there is no store at"):
        self_improve(other, QUIET)
    assert not (tmp_path / "other.db").exists()
    ExperienceStore(tmp_path / "other.db", "another").close()
    with pytest.raises(ExperienceError, match=r"has no run run-.*; it has: another"):
        self_improve(other, QUIET)


@pytest.mark.parametrize("location", ["x.db", "sqlite:///x.db", "sqlite+pysqlite:///x.db?timeout=5"])
def test_a_store_is_found_from_another_folder(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SelfImproveConfig(store=location).store
    assert store is not None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    ExperienceStore(SelfImproveConfig(store=store).store or "").close()
    assert (tmp_path / "x.db").exists()


@pytest.mark.parametrize(
    "location", ["", ":memory:", "sqlite://", "postgresql://me@host/x", "sqlite:////x.db"]
)
def test_what_is_no_relative_path_stays(location: str) -> None:
    assert SelfImproveConfig(store=location).store == location


def test_a_lost_report_is_made_again(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole, path)
    (path / "report.html").unlink()
    finish(saved_config(path), path, lambda _: pytest.fail("a finished run is not run again"))
    assert (path / "report.html").exists()


def test_ctrl_c_says_how_to_go_on(
    walker_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    with fail_at(ExperienceStore, "add_traces", 2)():
        code, output = command(capsys, "--model", str(walker_folder), "--output", str(path))
    assert code == 130
    assert f"python -m agents.self_improve --resume {path}" in output


@pytest.mark.usefixtures("plain_reports")
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_the_optimiser_step(walker_folder: Path, tmp_path: Path, whole: Path) -> None:
    """A signal inside a step lets it end, is saved at once, and costs no step."""
    original = OPCD.step

    def interrupted(self: OPCD, *args: Any) -> Any:
        if self.step_count == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args)

    path = tmp_path / "run"
    with open_gate():
        with patch.object(OPCD, "step", interrupted), pytest.raises(KeyboardInterrupt):
            self_improve(SelfImproveConfig(model=str(walker_folder), output=path, **WHOLE), QUIET)
        assert load_file(path / "checkpoint.safetensors")["step_count"].item() == 1
        self_improve(parse_args(["--resume", str(path)]), QUIET)
    assert contents(path) == contents(whole)


FULL = OSError(28, "No space left on device")


FILLED: dict[str, Callable[[], Any]] = {
    "database": lambda: patch.object(
        ExperienceStore,
        "add_traces",
        side_effect=OperationalError("INSERT", {}, Exception("database or disk is full")),
    ),
    "checkpoint": lambda: patch("agents.run.folder.save_sealed", side_effect=FULL),
    "model": lambda: patch.object(PreTrainedModel, "save_pretrained", side_effect=FULL),
    "report": lambda: patch("agents.run.run.write_report", side_effect=FULL),
}
"""As a run comes to write them."""


def test_a_full_disk_is_said_and_loses_nothing(
    whole: Path, walker_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    arguments, resume = flags(path, walker_folder), ["--resume", str(path)]
    with open_gate():
        for what, fill in FILLED.items():
            with fill():
                code, output = command(capsys, *arguments)
            assert code == 2, what
            assert "disk is full" in output, what
            assert f"--resume {path}" in output, what
            assert not list(path.glob("*.tmp")), what
            arguments = resume
        assert command(capsys, *resume)[0] == 0
    assert contents(path) == contents(whole)


def test_a_loss_that_is_not_finite_is_said(walker_folder: Path, tmp_path: Path) -> None:
    config = SelfImproveConfig(model=str(walker_folder), output=tmp_path / "run", **TINY)
    with (
        open_gate(),
        patch.object(OPCD, "_learning_rate", lambda _: 1e30),
        pytest.raises(DistillError, match="at step"),
    ):
        self_improve(config, QUIET)


def test_metrics_survive_a_torn_line(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", {}) as folder:
        folder.log("a", x=1)
        folder.log("a", x=2)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"key": "b", "sec')
    with RunFolder.open(tmp_path / "run") as folder:
        folder.log("b", x=3)
    lines = pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True)
    assert lines[["key", "x"]].to_numpy().tolist() == [["a", 1], ["b", 3]]


# --- every way to distil --------------------------------------------------------------------------


@pytest.mark.usefixtures("plain_reports")
@pytest.mark.parametrize(
    "change",
    [
        {"teacher": "round", "lora_rank": 2},
        {"teacher": "ema", "data": "teacher"},
        # Of these a second round would show nothing more.
        {"rounds": 1, "lora_rank": 2, "lr": 1e-2},
        {"rounds": 1, "teacher": "self", "precision": "mixed", "gradient_checkpointing": True},
        {"rounds": 1, "direction": "reverse", "max_new_tokens": 2},
        {"rounds": 1, "data": "teacher", "direction": "forward"},
    ],
    ids=lambda change: ",".join(map(str, change.values())),
)
def test_every_way_to_distil_runs_resumes_and_ends_the_same(
    change: dict[str, Any], walker_folder: Path, tmp_path: Path
) -> None:
    ended, steps_in_all = [], 3 * change.get("rounds", 2)
    for interrupt in (None, fail_at(OPCD, "step", steps_in_all - 1)):
        path = tmp_path / ("interrupted" if interrupt else "whole")
        config = SelfImproveConfig(model=str(walker_folder), output=path, **(KEPT | change))
        with open_gate():
            if interrupt is not None:
                with interrupt(), pytest.raises(KeyboardInterrupt):
                    self_improve(config, QUIET)
                config = parse_args(["--resume", str(path)])
            self_improve(config, QUIET)
        ended.append(contents(path))
        model = AutoModelForCausalLM.from_pretrained(path / "model")
        assert not any("lora" in name for name, _ in model.named_parameters())
    assert ended[0] == ended[1]
    steps = [entry for entry in ended[0]["metrics"].values() if entry["kind"] == "train"]
    assert len(steps) == steps_in_all
    assert all(entry["kl"] > -1e-6 for entry in steps)
    if change.get("teacher") == "round":
        # The second round's teacher is the student of the first: what it imitates has changed.
        teacher = {k: v for k, v in ended[0]["weights"]["checkpoint.safetensors"].items() if "teacher/" in k}
        assert teacher


@pytest.mark.usefixtures("plain_reports")
def test_another_model_teaches(walker_folder: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    model = AutoModelForCausalLM.from_pretrained(walker_folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    model.save_pretrained(teacher)
    AutoTokenizer.from_pretrained(walker_folder).save_pretrained(teacher)
    path = tmp_path / "run"
    with open_gate():
        self_improve(
            SelfImproveConfig(
                model=str(walker_folder), teacher=str(teacher), output=path, **(TINY | {"rounds": 1})
            ),
            QUIET,
        )
    with ExperienceStore(path / "experience.db") as store:
        assert set(store.traces().query("phase.str.contains('gate')")["policy_id"]) == {"teacher"}

    tokenizer = AutoTokenizer.from_pretrained(walker_folder)
    tokenizer.add_tokens([" upwards"])
    tokenizer.save_pretrained(teacher)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(teacher)
    with pytest.raises(DistillError, match="another tokenizer"):
        self_improve(
            SelfImproveConfig(
                model=str(walker_folder), teacher=str(teacher), output=tmp_path / "other", **TINY
            ),
            QUIET,
        )
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("plain_reports")
def test_training_that_goes_wrong_ends_early_with_the_best_weights(
    walker_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    config = SelfImproveConfig(model=str(walker_folder), output=path, **(KEPT | {"steps": 6}))

    def rail(stats: StepStats, first: StepStats) -> str | None:
        return "gone" if stats.nodes and stats is not first else None

    with open_gate(), patch("agents.training.collapse", rail):
        results = self_improve(config, QUIET)
    metrics = contents(path)["metrics"]
    stops = [entry for entry in metrics.values() if entry["kind"] == "stop"]
    assert {stop["reason"] for stop in stops} == {"gone"}
    # Both rounds train until something goes wrong: the second is not judged by the first one's fall.
    assert [stop["step"] for stop in stops] == [2, 3]
    assert len([entry for entry in metrics.values() if entry["kind"] == "train"]) == stops[-1]["step"]
    assert results["best_step"] == 0
    before = AutoModelForCausalLM.from_pretrained(walker_folder)
    after = AutoModelForCausalLM.from_pretrained(path / "model")
    for one, two in zip(before.parameters(), after.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.usefixtures("plain_reports")
def test_a_collapse_is_judged_by_data_of_the_same_kind(walker_folder: Path, tmp_path: Path) -> None:
    judged: list[tuple[StepStats, StepStats]] = []

    def rail(stats: StepStats, first: StepStats) -> None:
        judged.append((stats, first))

    settings = TINY | {"rounds": 2, "steps": 4, "off_policy_steps": 2}
    config = SelfImproveConfig(model=str(walker_folder), output=tmp_path / "run", **settings)
    with open_gate(), patch("agents.training.collapse", rail):
        self_improve(config, QUIET)
    steps = [stats for stats, _ in judged]
    # Two on the teacher's data, two on the student's, and so again in the second round.
    assert [steps.index(first) for _, first in judged] == [0, 0, 2, 2, 4, 4, 6, 6]


# --- what it says ---------------------------------------------------------------------------------


class Loud(gym.Wrapper[Any, Any, Any, Any]):
    """A lake that prints, also as code in C and a process of its own do."""

    def reset(self, **options: Any) -> Any:
        print("printed")
        os.write(1, b"written\n")
        return self.env.reset(**options)


def make_loud() -> Loud:
    return Loud(gym.make("FrozenLake-v1").unwrapped)


gym.register("tests/Loud-v0", entry_point=f"{__name__}:make_loud", max_episode_steps=9)
LOUD = ["--env", "tests/Loud-v0", "--env-kwargs", "{}"]


@pytest.mark.parametrize("is_finished", [False, True])
def test_json_is_all_there_is_on_standard_output(
    is_finished: bool, walker_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    arguments = [*flags(path, walker_folder), *LOUD]
    if is_finished:
        self_improve(parse_args(arguments), QUIET)
        capfd.readouterr()
        arguments = ["--resume", str(path)]
    with patch.object(sys, "argv", ["self_improve", *arguments, "--json"]):
        assert main() == 0
    printed = capfd.readouterr()
    results = json.loads(printed.out)
    assert results.pop("run") == str(path)
    assert results == json.loads((path / "results.json").read_text())
    assert is_finished or {"printed", "written"} <= {*printed.err.splitlines()}


def test_progress_is_for_terminals_only(walker_folder: Path, tmp_path: Path) -> None:
    said = []
    for is_terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=is_terminal, width=120)
        path = tmp_path / str(is_terminal)
        with open_gate():
            config = SelfImproveConfig(model=str(walker_folder), output=path, **(TINY | {"rounds": 1}))
            self_improve(config, console)
        said.append(file.getvalue())
    terminal, log = printable(said[0]), said[1]
    for phase in ("round1/play0", "round1/gate", "round1/distil", "validation2@0", "test/before@0"):
        assert phase in terminal
    assert re.search(r"6/6 success \d+\.\d%, [\d,]+ steps/s 0:00:00", terminal)
    assert re.search(r"KL \d\.\d{4}, [\d.]+ (steps/s|s/step)", terminal)
    assert "steps/s" not in log
    assert "\x1b" not in log
    assert "round1/gate: with" in log


class Failing(gym.Wrapper[Any, Any, Any, Any]):
    """A lake that ends the process on every n-th seed: that is its episode's error alone."""

    def __init__(self, env: Any, every: int) -> None:
        super().__init__(env)
        self.every = every

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None and seed % self.every == 0:
            sys.exit(0)
        return self.env.reset(seed=seed, options=options)


def make_failing(**kwargs: Any) -> Failing:
    return Failing(gym.make("FrozenLake-v1").unwrapped, **kwargs)


gym.register("tests/Failing-v0", entry_point=f"{__name__}:make_failing", max_episode_steps=9)


def failing(every: int) -> list[str]:
    return ["--env", "tests/Failing-v0", "--env-kwargs", json.dumps({"every": every})]


def test_errors_of_the_env_are_counted_and_shown(
    walker_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*flags(tmp_path / "run", walker_folder), *failing(4)]
    code, output = run_main(main, capsys, *args)
    assert code == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["cut_short"]["first_error"].startswith("SystemExit: 0 (test_self_improve.py:")
    failed = results["cut_short"]["endings"]["error"]
    assert 0 < failed < results["cut_short"]["episodes"]
    for arm in results["arms"].values():
        if arm["endings"] is not None:
            assert 0 < arm["endings"]["error"] < arm["n"] == sum(arm["endings"].values())
    said = f"some were cut short: {failed} by an error of the env. The first error: SystemExit: 0"
    assert said in output
    assert said in (tmp_path / "run" / "report.html").read_text()


def test_a_run_whose_episodes_all_fail_stops_and_goes_on_when_the_env_is_mended(
    walker_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*flags(tmp_path / "run", walker_folder), *failing(1)]
    code, output = run_main(main, capsys, *args)
    assert code == 2
    assert "tests/Failing-v0 failed in each of 8 episodes of rehearsal/few, the first" in output
    assert not (tmp_path / "run").exists()
    with patch("agents.self_improve.plan"):  # it fails later only
        code, output = run_main(main, capsys, *args)
    assert code == 2
    assert "tests/Failing-v0 failed in each of 6 episodes of round1/play0, the first" in output
    assert "SystemExit: 0" in output
    with patch.object(Failing, "reset", lambda self, **kwargs: self.env.reset(**kwargs)):
        assert run_main(main, capsys, "--resume", str(tmp_path / "run"))[0] == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["cut_short"]["endings"] == {}


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "1e9"])
def test_time_limits_that_are_none_are_refused(seconds: str) -> None:
    with pytest.raises(ConfigError, match=r"env_timeout must be (at|a finite)"):
        SelfImproveConfig(env_timeout=float(seconds))
