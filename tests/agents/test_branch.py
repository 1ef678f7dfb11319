"""Runs that begin where another was before its training: they come to what a run of their own comes to."""

import json
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from agents import asked
from agents.config import SelfImproveConfig
from agents.run.branch import branch
from agents.run.folder import RunFolderError
from agents.self_improve import self_improve
from evals.finished_run import FinishedRun
from experience.phase import Phase
from experience.store import open_run
from tests.agents.test_self_improve import KEPT, QUIET, contents, open_gate

OFF_POLICY: dict[str, Any] = {"data": "teacher", "direction": "forward", "steps": 2, "lr": 2e-3}


@pytest.fixture(autouse=True)
def at_a_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is changed on top."""
    monkeypatch.setattr("agents.run.folder._git_revision", lambda: "abc")


@pytest.fixture(scope="module")
def finished(walker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by OPCD."""
    path = tmp_path_factory.mktemp("branch") / "opcd"
    with pytest.MonkeyPatch.context() as revision, open_gate():
        revision.setattr("agents.run.folder._git_revision", lambda: "abc")
        self_improve(config_in(path, walker_folder), QUIET)
    return path


def config_in(path: Path, model: Path, **settings: Any) -> SelfImproveConfig:
    return SelfImproveConfig(model=str(model), output=path, **{**KEPT, "rounds": 1, **settings})


def test_it_ends_as_a_run_of_its_own(finished: Path, walker_folder: Path, tmp_path: Path) -> None:
    whole = config_in(tmp_path / "whole", walker_folder, **OFF_POLICY)
    with open_gate():
        self_improve(whole, QUIET)
    path = tmp_path / "branched"
    assert branch(replace(whole, output=path), path, [finished])
    taken = (path / "metrics.jsonl").read_text().splitlines()
    played = [json.loads(line)["key"] for line in taken]
    assert {"round1/play0", "gate/none", "validation0@0", "test/before@0"} <= set(played)
    assert not any(Phase.parse(key).is_trained for key in played)
    with open_gate():
        self_improve(SelfImproveConfig(resume=path), QUIET)
    assert contents(path) == contents(tmp_path / "whole")
    ids = {json.loads((run / "config.json").read_text())["run_id"] for run in (finished, path)}
    assert len(ids) == 2  # and each is found in its store by its own
    for run in (finished, path):
        with open_run(run) as store:
            assert len(store.traces())
    assert contents(path)["weights"] != contents(finished)["weights"]
    # What was taken has its time, and the rest of the other run has none.
    of_other, own = (FinishedRun.read(run).phase_seconds() for run in (finished, path))
    for key in played:
        assert own[key] == pytest.approx(of_other[key], abs=2e-3)
    assert FinishedRun.read(path).results["wall_seconds"] >= sum(of_other[key] for key in played) - 0.1


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1},
        {"episodes": 24},
        {"temperature": 0.9},
        {"teacher": "ema"},
        {"lora_rank": 2},
        {"rounds": 2},
        {"eval_temperature": (0.5,)},
        {"minutes": 10},
    ],
)
def test_what_is_played_otherwise_is_not_shared(
    finished: Path, walker_folder: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    assert not branch(config_in(tmp_path / "run", walker_folder, **settings), tmp_path / "run", [finished])
    assert not (tmp_path / "run").exists()


def test_what_a_kill_has_left_is_in_nobodys_way(finished: Path, walker_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    half = tmp_path / ".run.01234567.1.01234567.opcd.tmp"  # long ago, elsewhere
    half.mkdir()
    (half / "config.json").write_text("{")
    os.utime(half, (0, 0))
    assert branch(config_in(path, walker_folder), path, [finished])
    assert not half.exists()
    other = tmp_path / "other"
    other.mkdir()
    (other / ".lock").touch()
    assert not branch(config_in(other, walker_folder), other, [finished])
    full = patch("agents.run.branch.sqlite3.connect", side_effect=sqlite3.OperationalError("disk is full"))
    with full, pytest.raises(RunFolderError, match="the disk is full"):
        branch(config_in(tmp_path / "third", walker_folder), tmp_path / "third", [finished])
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("revision", ["abd", "abc+", None])
def test_only_one_code_shares(
    finished: Path, walker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    monkeypatch.setattr("agents.run.folder._git_revision", lambda: revision)
    changed = shutil.copytree(finished, tmp_path / "changed")
    if str(revision).endswith("+"):  # the same, with changes on top that nobody knows
        about = json.loads((changed / "config.json").read_text())
        (changed / "config.json").write_text(json.dumps(about | {"git_revision": revision}))
    assert not branch(config_in(tmp_path / "run", walker_folder), tmp_path / "run", [changed])


def test_a_benchmark_asks_for_it(
    finished: Path, walker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[SelfImproveConfig] = []
    monkeypatch.setattr(asked, "finish", lambda config, path, run: begun.append(config))
    path = tmp_path / "run"
    settings = {**KEPT, "rounds": 1, **OFF_POLICY, "model": str(walker_folder), "output": str(path)}
    question = {"settings": settings, "finished": [str(finished)]}
    asked.run(question)
    assert json.loads((path / "config.json").read_text())["config"]["data"] == "teacher"
    before = (path / "metrics.jsonl").read_text()
    asked.run(question)  # again, as after a kill
    assert (path / "metrics.jsonl").read_text() == before
    assert [config.output for config in begun] == [path, path]
