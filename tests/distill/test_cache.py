"""The embedded model's converted copy: made again when it is damaged, nothing left behind by a kill."""

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.lm import load, save
from distill.lm.load import EMBEDDED, load_model


@pytest.fixture
def cache(walker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is kept; the tiny walker is what is converted."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.0")
    monkeypatch.setattr(load, "_resolve", lambda _: (str(walker_folder), {}))
    return tmp_path / "opcd-gym" / f"{EMBEDDED}-1.0"


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": lambda cache: flip(cache / "model.safetensors"),
    "cut off": lambda cache: os.truncate(cache / "model.safetensors", 500),
    "empty": lambda cache: (cache / "model.safetensors").write_bytes(b""),
    "no weights": lambda cache: (cache / "model.safetensors").unlink(),
    "no config": lambda cache: (cache / "config.json").unlink(),
    "half a config": lambda cache: (cache / "config.json").write_text('{"model_type": "lla'),
    "an empty config": lambda cache: (cache / "config.json").write_text("{}"),
    "no tokenizer": lambda cache: (cache / "tokenizer.json").unlink(),
    "half a tokenizer": lambda cache: os.truncate(cache / "tokenizer.json", 300),
    "no template": lambda cache: (cache / "chat_template.jinja").unlink(),
    "nothing": lambda cache: list(map(Path.unlink, cache.iterdir())),
    "a file": lambda cache: cache.rename(cache.with_name("x")).joinpath("config.json").rename(cache),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_made_again(kind: str, cache: Path) -> None:
    right = weights(load_model(EMBEDDED, device="cpu").model)
    good = (cache / "model.safetensors").read_bytes()
    DAMAGE[kind](cache)
    found = weights(load_model(EMBEDDED, device="cpu").model)
    assert all(torch.equal(found[name], tensor) for name, tensor in right.items())
    assert (cache / "model.safetensors").read_bytes() == good
    assert {path.name for path in cache.parent.iterdir()} <= {cache.name, "x"}


def test_what_a_kill_left_is_removed(cache: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE)
    others = cache.with_name(f"{cache.name}.{os.getppid()}.tmp")
    for left in (cache.with_name(f"{cache.name}.{int(dead.stdout)}.tmp"), others):
        left.mkdir(parents=True)
        (left / "model.safetensors").write_bytes(b"half")
    load_model(EMBEDDED, device="cpu")
    assert {path.name for path in cache.parent.iterdir()} == {cache.name, others.name}  # that one still works


def test_an_interrupted_conversion_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "seal_folder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_model(EMBEDDED, device="cpu")
    assert not any(cache.parent.iterdir())
