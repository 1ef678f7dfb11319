"""Sides that are compared: each measured in a process of its own, in turns, as one table of ratios."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.run.folder import peak_rss_bytes
from distill.parallel import is_main_process

Side = Callable[[], dict[str, Any]]
"""Measures once: ``seconds``, a list, and ``peak_bytes``; beside them whatever a benchmark adds."""


def side(module: str, worker: str, *, processes: int = 1, threads: int = 0, **settings: Any) -> Side:
    """One of ``module``'s workers with these settings, in fresh processes of ``threads`` (0: torch's)."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", module, "--worker", worker, json.dumps(settings)]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})

    def measure() -> dict[str, Any]:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{worker} {settings} failed: {done.stderr.strip()[-2000:]}")
        [line] = [line for line in done.stdout.splitlines() if line.startswith('{"worker"')]
        measured: dict[str, Any] = json.loads(line)
        return measured

    return measure


def answer_as_worker(workers: Mapping[str, Callable[..., dict[str, Any]]]) -> bool:
    """In a process that ``side`` has made: do the work and print what was measured; else false."""
    if sys.argv[1:2] != ["--worker"]:
        return False
    measured = workers[sys.argv[2]](**json.loads(sys.argv[3]))
    if is_main_process():
        print(json.dumps({"worker": sys.argv[2], "peak_bytes": peak_rss_bytes()} | measured))
    return True


def compare(title: str, repeats: int, sides: Mapping[str, Side]) -> None:
    """Print medians of time and the largest memory, and their ratios to the first side's, as one table."""
    together: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(repeats):  # they take turns
        for name, measure in sides.items():
            together[name].append(measure())
    table = Table(title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("seconds", "to the first", "memory", "to the first"):
        table.add_column(column, justify="right")
    figures = {}
    for name, turns in together.items():
        seconds = statistics.median(second for turn in turns for second in turn["seconds"])
        peak = max(turn["peak_bytes"] for turn in turns)
        figures[name] = {"seconds": seconds, "peak_bytes": peak, "turns": turns}
        first = next(iter(figures.values()))
        ratios = [f"{seconds / first['seconds']:.2f}", f"{peak / first['peak_bytes']:.2f}"]
        table.add_row(name, f"{seconds:.2f}", ratios[0], f"{peak / 2**30:.2f} GiB", ratios[1])
    Console(stderr=True).print(table)
    print(json.dumps(figures, indent=2))
