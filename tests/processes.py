"""Real processes that begin with everything imported: each is a fork of a server that imported it once."""

import atexit
import json
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experience.store import ExperienceStore
from tests.conftest import few_blind_policies

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["agents.self_improve", "accelerate", "tests.parallel_worker", "hypothesis"])
SECONDS = 300


def begin(
    call: Callable[..., Any], *args: Any, said: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Begin ``call(*args)`` in a new process.

    Args:
        call: Picklable; the process ends with what it returns.
        args: Picklable.
        said: What it writes to standard output and error is appended to this file.
        environment: Variables beside this process's.
    """
    threads = torch.get_num_threads()  # as many as here, so that sums are added up in the same order
    work = (call, args, said, dict(environment or {}), threads)
    process = _CONTEXT.Process(target=_work, args=work, daemon=True)  # it ends with this one
    process.start()
    return process


def command(main: Callable[[], int], *arguments: str) -> int:
    """A command with its arguments, for ``begin``."""
    sys.argv = ["command", *arguments]
    return main()


def flags(**settings: Any) -> list[str]:
    """Settings as a command line."""
    parts: list[str] = []
    for name, value in settings.items():
        values = value if isinstance(value, tuple) else () if value is True else (value,)
        texts = (json.dumps(value) if isinstance(value, dict) else str(value) for value in values)
        parts += [f"--{name.replace('_', '-')}", *texts]
    return parts


def launch(
    size: int, call: Callable[..., Any], *args: Any, said: Path, codes: Sequence[int] | None = None
) -> str:
    """``call(*args)`` in processes that are one run, as torchrun starts them; returns what they said.

    Args:
        size: How many.
        call: Picklable.
        args: Picklable.
        said: What they write is appended to this file.
        codes: What each has to end with; by default all with 0.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    together |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    processes = [begin(call, *args, said=said, environment=together | rank) for rank in ranks]
    for process in processes:
        process.join(SECONDS)
        process.kill()
    text = said.read_text(encoding="utf-8")
    assert [process.exitcode for process in processes] == [*(codes or [0] * size)], text[-3000:]
    return text


def _work(
    call: Callable[..., Any], args: tuple[Any, ...], said: Path, environment: dict[str, str], threads: int
) -> None:
    os.environ.update(environment)
    torch.set_num_threads(threads)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        with few_blind_policies():
            sys.exit(call(*args))
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def traces_and_losses(output: Path, columns: list[str]) -> tuple[pd.DataFrame, list[float]]:
    """What a run played, in an order that does not depend on its processes, and the KL of each step."""
    with ExperienceStore(output / "experience.db") as store:
        traces = store.traces()[columns].sort_values(columns).reset_index(drop=True)
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return traces, [entry["kl"] for entry in lines if entry["kind"] == "train"]
