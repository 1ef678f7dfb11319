"""Safetensors files that say themselves what is in them: a flipped bit is not taken for other weights."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import ne
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

SEAL = "sha256"
"""Where in a file's metadata its digest stands."""


class DamagedFileError(ValueError):
    """A file that is not what was written; the message says which and why."""


def save_sealed(tensors: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a file with a digest of everything in it, and ``metadata`` in its header."""
    contiguous = {name: tensors[name].detach().contiguous() for name in sorted(tensors)}
    seal = _digest(contiguous.items(), metadata)
    save_file(contiguous, path, metadata={**metadata, SEAL: seal})
    with path.open("r+b") as file:  # the same tensors are to be the same bytes: metadata comes in any order
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) == size:
            file.seek(8)
            file.write(text)


def load_sealed(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a file, and its metadata.

    Raises:
        DamagedFileError: It is no safetensors file, or not as it was written.
    """
    with _reading(path) as (file, metadata):
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        _check(path, tensors.items(), metadata)
        return tensors, metadata


def seal_folder(folder: Path) -> None:
    """Write the safetensors files of a model's folder again, with digests."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
        path.unlink()  # the tensors are mapped from it
        save_sealed(tensors, path, metadata)


def check_folder(folder: Path) -> None:
    """See that the safetensors files of a model's folder are as they were sealed, if they were.

    Raises:
        DamagedFileError: One is not.
    """
    for path in folder.glob("*.safetensors"):
        with _reading(path) as (file, metadata):
            _check(path, ((name, file.get_tensor(name)) for name in sorted(file.keys())), metadata)


@contextmanager
def _reading(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """An open file and its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file, file.metadata() or {}
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error


def _check(path: Path, tensors: Iterable[tuple[str, torch.Tensor]], metadata: dict[str, str]) -> None:
    seal = metadata.pop(SEAL, None)
    is_lost = any(_is_damaged_seal(name, value) for name, value in metadata.items())
    if is_lost or (seal is not None and seal != _digest(tensors, metadata)):
        raise DamagedFileError(f"{path} is damaged: what is in it is not what was written")


def _is_damaged_seal(name: str, value: str) -> bool:
    """Whether it is a digest under the seal's name but for one letter; others keep digests there as well."""
    is_near = len(name) == len(SEAL) and sum(map(ne, name, SEAL)) <= 1
    return is_near and re.fullmatch("[0-9a-f]{64}", value) is not None


def _digest(tensors: Iterable[tuple[str, torch.Tensor]], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
