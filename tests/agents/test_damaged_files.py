"""What is damaged is said to be so, and what is advised then leads to the same outcome."""

import json
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from agents.cli import USER_ERRORS, parse_args
from agents.play import main as play_main
from agents.run.folder import RunFolder, RunFolderError
from agents.self_improve import self_improve
from distill.lm.load import ModelError, load_model
from distill.lm.sealed import DamagedFileError, load_sealed, save_sealed
from evals.finished_run import UnfinishedRunError
from evals.report import write_report
from experience import ExperienceError
from tests.agents.test_self_improve import QUIET, contents, open_gate


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def unended(run: Path) -> Path:
    """The same, stopped just before its end."""
    (run / "results.json").unlink()
    return run


def go_on(path: Path) -> None:
    with open_gate():
        self_improve(parse_args(["--resume", str(path)]), QUIET)


def flip(path: Path, place: int) -> None:
    """One bit of the byte at ``place``; from the end if it is negative."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.ones(2, dtype=torch.bfloat16),
    "c": torch.tensor(3),
}


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_sealed(TENSORS, path, {"about": "it"})
    tensors, metadata = load_sealed(path)
    assert metadata == {"about": "it"}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())
    good = path.read_bytes()
    for _ in range(20):
        save_sealed(TENSORS, path, {"about": "it"})
        assert path.read_bytes() == good
    for place in range(len(good)):
        flip(path, place)
        with pytest.raises(DamagedFileError, match="damaged"):
            load_sealed(path)
        path.write_bytes(good)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"garbage" * 99),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
        lambda path: path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:]),
        lambda path: flip(path, 20),
        lambda path: flip(path, -20),
        lambda path: save_file({"x": torch.ones(1)}, path),
        lambda path: save_file({"x": torch.ones(1)}, path, metadata={"about": "no JSON"}),
    ],
)
def test_a_damaged_file_is_said_to_be_so(damage: Callable[[Path], object], run: Path) -> None:
    damage(run / "best.safetensors")
    with (
        RunFolder.open(run) as folder,
        pytest.raises(RunFolderError, match=r"best\.safetensors .*To train again"),
    ):
        folder.load_tensors("best.safetensors")


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "best.safetensors"])
def test_the_advice_for_a_damaged_file_gives_the_same_model(name: str, unended: Path, whole: Path) -> None:
    flip(unended / name, -20)
    with pytest.raises(RunFolderError, match=f"{name}.*remove checkpoint"):
        go_on(unended)
    for file in ("checkpoint.safetensors", "best.safetensors"):
        (unended / file).unlink()
    go_on(unended)
    assert contents(unended) == contents(whole)


def test_the_best_weights_alone_are_missed(unended: Path) -> None:
    (unended / "best.safetensors").unlink()
    with pytest.raises(
        RunFolderError, match=r"best\.safetensors is not the one of step .* remove checkpoint"
    ):
        go_on(unended)


def test_the_best_weights_of_another_run(unended: Path) -> None:
    with safe_open(unended / "best.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    with RunFolder.open(unended) as folder:
        folder.save_tensors("best.safetensors", {"x": torch.ones(1)}, about | {"step": about["step"] + 1})
    with pytest.raises(RunFolderError, match=r"best\.safetensors is not the one of step"):
        go_on(unended)
    (unended / "best.safetensors").write_bytes((unended / "checkpoint.safetensors").read_bytes())
    with pytest.raises(RunFolderError, match=r"best\.safetensors is not the one of step"):
        go_on(unended)


def test_a_model_with_a_flipped_bit(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(str(run / "model"))
    flip(run / "model" / "model.safetensors", -99)
    with pytest.raises(ModelError, match="is damaged: what is in it is not what was written"):
        load_model(str(run / "model"))
    assert play_main(["--run", str(run)]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        b"garbage",
        b'{"key": "x"',
        b"5",
        b"[]",
        b"{}",
        b"null",
        b'{"key": "x"}',
        b'{"key": 5, "seconds": 1}',
        b'{"key": "x", "seconds": "1"}',
        b'{"key": "x", "seconds": NaN}',
        b'{"key": "x", "seconds": 1' + b"0" * 400 + b"}",
        b'{"key": "??", "seconds": 1}',
        b"\xff\xfe",
        b"\x00" * 40,
        b"[" * 100_000,
        b"",
    ],
)
def test_garbage_in_the_metrics(line: bytes, run: Path) -> None:
    path = run / "metrics.jsonl"
    good = path.read_bytes()
    first, _, rest = good.partition(b"\n")
    path.write_bytes(first + b"\n" + line + b"\n" + rest)
    with pytest.raises(RunFolderError, match=r"line 2 of .*metrics\.jsonl is damaged .* remove that line"):
        RunFolder.open(run)
    with pytest.raises(UnfinishedRunError, match="line 2"):
        write_report(run)
    path.write_bytes(good + line)  # as a kill leaves it
    RunFolder.open(run).close()
    assert path.read_bytes() == good


def test_metrics_that_cannot_be_read(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl cannot be read: Is a directory"):
        RunFolder.open(run)
    with pytest.raises(UnfinishedRunError):
        write_report(run)


def test_a_store_that_lost_its_tail(run: Path) -> None:
    with sqlite3.connect(run / "experience.db") as store:
        last = "SELECT trace_id FROM traces ORDER BY rowid DESC LIMIT 3"
        for table in ("turns", "evidence", "traces"):
            store.execute(f"DELETE FROM {table} WHERE trace_id IN ({last})")
    with pytest.raises(ExperienceError, match=r"the store has \d+ of the 6 traces of .* lost some"):
        go_on(run)
    with pytest.raises(ExperienceError, match="lost some"):
        write_report(run)


@pytest.mark.parametrize("name", ["config.json", "results.json"])
@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "{}", '{"config": 3}', "\x00", "[" * 100_000])
def test_other_files(name: str, text: str, run: Path) -> None:
    (run / name).write_text(text)
    with pytest.raises(UnfinishedRunError):
        write_report(run)
    if name == "config.json" or text[:1] not in ("n", "{") or text == "{":  # others are of a run without arms
        with pytest.raises(USER_ERRORS):
            go_on(run)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("results.json", {"arms": {}}, "arms.before: Field required"),
        ("results.json", {"arms": {"before": {}}}, "arms.before.success_rate: Field required"),
        ("results.json", {"wall_seconds": None}, "wall_seconds: "),
        ("results.json", {"wall_seconds": float("inf")}, "wall_seconds: "),
        ("results.json", {"eval_temperature": []}, "eval_temperature: "),
        ("results.json", {"sampled_arms": None}, "as many eval_temperature as tables"),
        ("results.json", {"comparison": {"difference": "0"}}, "comparison.difference: "),
        ("config.json", {"config": {"x": 1}}, "config.env: Field required"),
        ("config.json", {"expected_seconds": {"play": 1.0}}, "expected_seconds.gate: Field required"),
        (
            "forgetting.json",
            {"rows": [{"measure": "sums", "before": {"mean": 0.5}}]},
            "rows.0.before.ci_low: ",
        ),
    ],
)
def test_what_is_missing_in_a_file_is_named(name: str, damage: dict[str, Any], says: str, run: Path) -> None:
    file = run / name
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | damage))
    with pytest.raises(UnfinishedRunError, match=f"{name}: .*{re.escape(says)}"):
        write_report(run)
    with pytest.raises(USER_ERRORS):
        go_on(run)


@pytest.mark.parametrize("kind", ["play", "validation", "train", "gate", "round"])
def test_a_line_of_the_metrics_without_its_figures(kind: str, run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"key": "step99", "seconds": 1e6, "kind": kind}) + "\n")
    with pytest.raises(UnfinishedRunError, match=r"metrics\.jsonl, step99: .*: Field required"):
        write_report(run)


def test_links_lead_nowhere(run: Path, tmp_path: Path) -> None:
    """A folder from an archive can hold links to what is the user's."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    for name in ("results.json", "metrics.jsonl", "report.html"):
        (run / f".{name}.01234567.1.01234567.opcd.tmp").symlink_to(mine)
    go_on(run)
    assert mine.read_text() == "precious"


@pytest.mark.parametrize(
    "name", [".lock", "metrics.jsonl", "experience.db", "experience.db-wal", "tensorboard"]
)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_is_not_followed(name: str, is_there: bool, unended: Path, tmp_path: Path) -> None:
    """What is written in place, or appended, would land elsewhere."""
    mine = tmp_path / "mine"
    if is_there:
        mine.write_text("precious")
    (unended / name).unlink(missing_ok=True)
    (unended / name).symlink_to(mine)
    with pytest.raises(RunFolderError, match=rf"{re.escape(name)} is a link"):
        go_on(unended)
    assert (mine.read_text() if mine.exists() else None) == ("precious" if is_there else None)
