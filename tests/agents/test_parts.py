"""Tensors in shards, each process's rows in a file of its own."""

from pathlib import Path

import pytest
import torch

from agents.run.folder import RunFolder, RunFolderError
from agents.run.parts import Parts
from distill.lm.sealed import save_sealed
from tests.agents.test_damaged_files import flip

ROWS = torch.arange(14.0).reshape(7, 2)
STEP = torch.tensor(3.0)


def saved(path: Path, token: str) -> Parts:
    """A file of three processes, the last with no rows."""
    parts = Parts(path / "best.safetensors", token, 3)
    with RunFolder.open(path) as folder:
        for rank, rows in ((1, ROWS[4:]), (2, ROWS[:0])):
            save_sealed({"x": rows, "step": STEP}, parts.file(rank), {})
        folder.save_tensors("best.safetensors", {"x": ROWS[:4], "step": STEP}, {"parts": parts.as_dict()})
    return parts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    RunFolder.create(tmp_path / "run", {}).close()
    return tmp_path / "run"


def test_parts_make_up_the_whole(path: Path) -> None:
    first = saved(path, "0000000a")
    second = saved(path, "0000000b")
    with RunFolder.open(path) as folder:
        loaded = folder.load_tensors("best.safetensors")
        assert loaded is not None
        assert torch.equal(loaded[0]["x"], ROWS)
        assert torch.equal(loaded[0]["step"], STEP)
        assert (list(loaded[0]), loaded[1]) == (["step", "x"], {})
        second.remove_others()
        assert not any(file.exists() for file in first.others)
        assert all(file.exists() for file in second.others)
        folder.remove("best.safetensors")
    assert not list(path.glob("*.safetensors"))


def test_a_part_that_is_damaged_or_gone_is_missed(path: Path) -> None:
    parts = saved(path, "0000000a")
    with RunFolder.open(path) as folder:
        flip(parts.file(1), -1)
        with pytest.raises(RunFolderError, match=r"best-0000000a-1\.safetensors is damaged.* To train again"):
            folder.load_tensors("best.safetensors")
        parts.file(1).unlink()
        with pytest.raises(RunFolderError, match=r"best-0000000a-1\.safetensors.* To train again"):
            folder.load_tensors("best.safetensors")


@pytest.mark.parametrize(
    "parts",
    [
        {"token": "../../../x", "size": 2}, {"token": "0000000a", "size": 10**12}, {"token": 1, "size": 2},
        {"token": "0000000a", "size": "two"}, {"size": 2}, [], 7, "0000000a",
    ],
)  # fmt: skip
def test_a_file_cannot_name_any_others(parts: object, path: Path) -> None:
    with RunFolder.open(path) as folder:
        folder.save_tensors("best.safetensors", {"x": ROWS}, {"parts": parts})
        with pytest.raises(RunFolderError, match="was not written by a run"):
            folder.load_tensors("best.safetensors")
