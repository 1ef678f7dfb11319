"""Learning from logs: the command on a tiny model, judged and not, resumed, and its bad input."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from rich.console import Console

from agents import self_improve
from agents.config import ConfigError, SelfImproveConfig
from agents.distil_logs import LogsConfig, distil_logs, main, print_table
from agents.run.run import Run
from distill.opcd import OPCD
from envs import EnvError
from evals.finished_run import FinishedRun, NotJudgedError, run_settings
from experience.insight import Insight
from experience.store import ExperienceStore, open_run
from tests.agents.test_self_improve import fail_at, open_gate
from tests.conftest import run_main
from tests.test_docs import blocks

QUIET = Console(quiet=True)
command = partial(run_main, main)


def chats(path: Path, n: int = 60, **more: Any) -> Path:
    """Conversations of two turns, in which the lake's words are right."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Where to, {i}?"},
                {"role": "assistant", "content": "<think>Hm.</think>left"},
                {"role": "user", "content": "And then?"},
                {"role": "assistant", "content": "down"},
            ],
            **more,
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(tmp_path: Path, walker_folder: Path) -> LogsConfig:
    (tmp_path / "rules.txt").write_text("Say left.\n### user\nx\n### assistant\nleft")
    return LogsConfig(
        conversations=chats(tmp_path / "chats.jsonl"),
        run=SelfImproveConfig.for_env(
            "Logs-v0",
            model=str(walker_folder),
            context_file=tmp_path / "rules.txt",
            output=tmp_path / "run",
            steps=12,
            eval_every=6,
            batch_size=8,
            lr=1e-3,
            max_new_tokens=2,
            validation_episodes=8,
            test_episodes=12,
            precision="float32",
        ),
    )


def test_without_answers_the_agent_comes_closer_to_its_teacher(
    config: LogsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config.run.output
    assert path is not None
    with patch.object(Run, "play", side_effect=AssertionError("nothing is played without answers")):
        for stop in (1, 4):
            with fail_at(OPCD, "step", stop)(), pytest.raises(KeyboardInterrupt):
                distil_logs(config, QUIET)
        results = distil_logs(config, QUIET)
    kl = results["kl"]
    assert kl["before"]["n"] == kl["after"]["n"] == 12
    assert kl["after"]["mean"] < kl["before"]["mean"]
    assert kl["change"]["mean"] == pytest.approx(kl["after"]["mean"] - kl["before"]["mean"])
    assert kl["change"]["ci_low"] < kl["change"]["mean"] < kl["change"]["ci_high"]
    assert results["prompt_tokens"]["with_context"] > results["prompt_tokens"]["bare"] + 20
    assert results["log"]["taken"] == 60
    assert "arms" not in results
    assert json.loads((path / "results.json").read_text()) == results
    assert (path / "model" / "config.json").exists()
    assert not (path / "checkpoint.safetensors").exists()
    assert run_settings(path)["lr"] == 1e-3
    with pytest.raises(NotJudgedError, match="were not judged: there is no report"):
        FinishedRun.read(path)
    print_table(results, path)
    assert "prompt tokens saved per call" in capsys.readouterr().out
    with open_run(path) as store:  # what was logged is kept as what it is: episodes that others have played
        traces, turns = store.traces(), store.turns()
    assert set(traces["policy_id"]) == {"log"}
    assert set(traces["stop_reason"]) == {"not_judged"}
    assert set(turns["reply"]) == {"<think>Hm.</think>left", "down"} or set(turns["reply"]) == {
        "left",
        "down",
    }
    with patch.object(OPCD, "step", side_effect=AssertionError("a finished run is not run again")):
        assert distil_logs(config, QUIET) == results
    with pytest.raises(ConfigError, match="begun with lr"):
        distil_logs(dataclasses.replace(config, run=dataclasses.replace(config.run, lr=1e-4)), QUIET)
    chats(config.conversations, 61)
    with pytest.raises(ConfigError, match=r"chats\.jsonl is not what .* was begun with"):
        distil_logs(config, QUIET)


def test_a_stopped_run_ends_like_one_that_was_not(config: LogsConfig, tmp_path: Path) -> None:
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, gradient_checkpointing=True))
    with fail_at(OPCD, "step", 4)(), pytest.raises(KeyboardInterrupt):
        distil_logs(other, QUIET)
    with patch.object(OPCD, "__init__", autospec=True, side_effect=OPCD.__init__) as begun:
        stopped = distil_logs(config, QUIET)
    assert not begun.call_args.kwargs["gradient_checkpointing"]  # the machine's settings are those of now
    run = dataclasses.replace(config.run, output=tmp_path / "whole")
    whole = distil_logs(dataclasses.replace(config, run=run), QUIET)
    assert stopped["kl"] == whole["kl"]


def test_with_answers_the_context_has_to_help(
    config: LogsConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(config, conversations=chats(tmp_path / "answered.jsonl", answer="left"))
    refused = distil_logs(config, QUIET)
    assert refused["admitted"] is False
    assert refused["best_step"] == 0
    assert refused["kl"]["before"] == refused["kl"]["after"]
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, output=tmp_path / "open"))
    with open_gate():
        results = distil_logs(config, QUIET)
    assert results["admitted"] is True
    assert (tmp_path / "open" / "metrics.jsonl").read_text().count('"kind": "train"') == 12
    assert {"before", "before_with_experience", "after"} <= results["arms"].keys()
    assert results["arms"]["after"]["n"] == 12
    assert (tmp_path / "open" / "report.html").exists()
    print_table(refused, tmp_path / "run")
    output = " ".join(capsys.readouterr().out.split())
    assert "before, with context" in output
    assert "the context does not help, so nothing was trained" in output
    print_table(refused | {"admitted": True}, tmp_path / "run")
    assert "the model is as it was" in " ".join(capsys.readouterr().out.split())


def test_the_insights_of_another_run(config: LogsConfig, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with ExperienceStore(other / "experience.db") as store:
        store.set_insights(
            [
                Insight(text="Old.", observation=None, score=1.0, support=1),
            ],
            "round1",
        )
        store.set_insights(
            [
                Insight(text=text, observation=None, score=1.0, support=1)
                for text in ("Say left.", "Be calm.")
            ],
            "round2",
        )
    run = dataclasses.replace(config.run, context_file=None, steps=1)
    with pytest.raises(ConfigError, match="exactly one of --context-file and --experience"):
        distil_logs(dataclasses.replace(config, run=run), QUIET)
    results = distil_logs(dataclasses.replace(config, run=run, experience=other), QUIET)
    assert results["kl"]["before"]["mean"] > 0
    assert run.output is not None
    with open_run(run.output) as store:
        insights = store.load_insights()
    assert {insight.text for insight in insights} == {"Say left.", "Be calm."}
    (run.output / "results.json").unlink()
    with pytest.raises(ConfigError, match=r"begun with --experience .*other, not .*run: take another"):
        distil_logs(dataclasses.replace(config, run=run, experience=run.output), QUIET)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--conversations", "nowhere.jsonl"], "nowhere.jsonl cannot be read: No such file"),
        (["--conversations", "{folder}/empty.jsonl"], "empty.jsonl has no conversation to learn from"),
        (["--conversations", "{folder}/broken.jsonl"], "broken.jsonl, line 61: it is not JSON"),
        (["--conversations", "{folder}/few.jsonl"], "has 7 prompts of 6 conversations, dealt into"),
        (["--context-file", "nowhere.txt"], "there is no context_file nowhere.txt"),
        (["--context-file", "{folder}/long.txt"], "do not fit the model's window of 512: shorten it"),
        (
            ["--context-file", "{folder}/close.txt"],
            "held-out prompts fit the window of",
        ),
        (["--experience", "{folder}/none"], "exactly one of"),
        (["--checker", "mine"], "a checker is one of contains, exact, math"),
        (["--checker", "my_module:mine"], "--checker my_module:mine: ModuleNotFoundError"),
        (["--env", "FrozenLake-v1"], "--env is not for this command"),
        (["--memory", "full"], "--memory is not for this command"),
        (["--system", "x"], "invalid choice"),
        (["--test-episodes", "1"], "validation_episodes and test_episodes must be at least 8 each"),
    ],
)
def test_bad_input_is_one_clear_error(
    args: list[str], says: str, config: LogsConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text(config.conversations.read_text() + '{"messages"')
    chats(tmp_path / "few.jsonl", 6)
    (tmp_path / "long.txt").write_text("long " * 200)
    (tmp_path / "close.txt").write_text("x" * 470)
    given = {
        "--conversations": str(config.conversations),
        "--context-file": str(config.run.context_file),
        "--model": config.run.model,
        "--output": str(tmp_path / "run"),
        "--max-new-tokens": "2",
    }
    given |= dict(zip(args[::2], (arg.replace("{folder}", str(tmp_path)) for arg in args[1::2]), strict=True))
    code, output = command(capsys, *(part for pair in given.items() for part in pair))
    assert code == 2
    assert says in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_context_that_stands_in_the_log_is_taken_out_of_it(config: LogsConfig, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in config.conversations.read_text().splitlines()]
    rules = {"role": "system", "content": "Mind: say left. Thanks."}
    rows = [{"messages": [rules, *row["messages"]]} for row in rows]
    config.conversations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rules.txt").write_text("say left.")
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, steps=0))
    with pytest.raises(ConfigError, match="begin with the context already: take --system "):
        distil_logs(config, QUIET)
    run = dataclasses.replace(config.run, output=tmp_path / "dropped")
    results = distil_logs(dataclasses.replace(config, run=run, system="drop"), QUIET)
    assert results["kl"]["before"]["mean"] > 0


def test_prompts_that_do_not_fit_the_window_are_left_out(
    config: LogsConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = config.conversations.read_text()
    long = [{"messages": [{"role": "user", "content": f"{i} " + "x" * 500}]} for i in range(40)]
    config.conversations.write_text(rows + "".join(json.dumps(row) + "\n" for row in long))
    results = distil_logs(config, Console(stderr=True))
    assert results["log"]["too_long"] > 0
    told = " ".join(capsys.readouterr().err.split())
    assert f"{results['log']['too_long']} prompts left out, too long for the model's window" in told
    assert "whether the context helps is for you to know" in told


def test_a_checker_of_ones_own(config: LogsConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [script] = blocks("docs/logs.md", "python")
    (tmp_path / "my_checks.py").write_text(script)
    monkeypatch.syspath_prepend(tmp_path)
    with open_gate():
        results = distil_logs(dataclasses.replace(config, checker="my_checks:brief"), QUIET)
    assert results["arms"]["before"]["success_rate"] == 1.0
    (tmp_path / "bad_checks.py").write_text(script.replace("brief", "bad").replace("<= 20", "<= 1 / 0"))
    run = dataclasses.replace(config.run, output=tmp_path / "bad")
    with pytest.raises(EnvError, match="division by zero"):  # as of any env whose every episode fails
        distil_logs(dataclasses.replace(config, run=run, checker="bad_checks:bad"), QUIET)
    with open_run(tmp_path / "bad") as store:
        traces = store.traces(phase="round1/play0")
    assert set(traces["stop_reason"]) == {"error"}


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = command(capsys, "--help")
    assert code == 0
    assert "--conversations" in output


def test_it_is_shared_with_its_distance_and_its_prompts(
    config: LogsConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, target = config.run, tmp_path / "shared"
    given = {
        "--conversations": config.conversations,
        "--context-file": run.context_file,
        "--model": run.model,
        "--output": run.output,
        "--max-new-tokens": 2,
        "--steps": 1,
        "--test-episodes": 8,
        "--push-to-hub": target,
    }
    code, output = command(capsys, *(str(part) for pair in given.items() for part in pair))
    assert code == 0
    assert f"shared: {target}" in output
    card = (target / "model" / "README.md").read_text()
    assert "held-out prompts | KL to the teacher" in card
    assert "Say left." in card
    assert "python -m agents.distil_logs --conversations chats.jsonl" in card
    assert str(tmp_path) not in card
    assert (target / "experience" / "turns-00000.jsonl").read_text().count("Where to, ") > 20
    resumed = ("--resume", str(run.output), "--push-to-hub", str(tmp_path / "again"))
    code, output = run_main(self_improve.main, capsys, *resumed)
    assert code == 0
    assert (tmp_path / "again" / "model" / "README.md").read_text() == card.replace("# shared", "# again")
    code, output = command(capsys, "--push-to-hub", str(target), "--conversations", "x.jsonl")
    assert code == 2
    assert "is there already: name a new folder" in output
