"""Models that no prefix tree computes go through the whole command, training and resuming included."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from agents.config import SelfImproveConfig
from agents.run.folder import CHECKPOINT
from agents.self_improve import self_improve
from distill.opcd import OPCD
from tests.agents.test_self_improve import KEPT, fail_at, open_gate
from tests.conftest import save_walker
from tests.distill.test_padded_lm import hybrid

SMALL = {"rounds": 1, "episodes": 6, "waves": 1, "validation_episodes": 3, "test_episodes": 3}


@pytest.fixture(scope="module")
def hybrid_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A walker with recurrent layers."""
    return save_walker(tmp_path_factory.mktemp("hybrid"), hybrid())


def test_a_hybrid_is_trained_and_goes_on_where_it_was(hybrid_folder: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = KEPT | SMALL | {"model": str(hybrid_folder)}
    said = io.StringIO()
    with open_gate():
        self_improve(SelfImproveConfig(output=tmp_path / "whole", **settings), Console(file=said, width=200))
        with fail_at(OPCD, "step", 3)(), pytest.raises(KeyboardInterrupt):
            self_improve(SelfImproveConfig(output=tmp_path / "cut", **settings), Console(file=io.StringIO()))
        config = SelfImproveConfig(resume=tmp_path / "cut", **settings)
        self_improve(config, Console(file=io.StringIO()))
    assert "computed in padded batches with sdpa attention" in said.getvalue()
    whole, cut_off = (load_file(tmp_path / name / CHECKPOINT) for name in ("whole", "cut"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, cut_off[name]), name
    before = load_file(hybrid_folder / "model.safetensors")
    assert not any(torch.equal(tensor, whole[f"weight/{name}"]) for name, tensor in before.items())


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    folder = save_walker(tmp_path / "walker")
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace('"max_position_embeddings": 512', '"max_position_embeddings": 9')
    )
    said = io.StringIO()
    settings = KEPT | SMALL | {"steps": 0, "model": str(folder), "output": tmp_path / "run"}
    self_improve(SelfImproveConfig(**settings), Console(file=said, width=1000))
    assert "6 of 6 episodes ended early, since a prompt and" in said.getvalue()
    assert "do not fit the window of 9" in said.getvalue()
