import subprocess
import sys

import pytest

from tests.benchmarks.cluster import ALLOWED, QUICK, Setup, measured, memory, parameters


def test_nobody_holds_a_whole_copy() -> None:
    """Peaks of four processes against the formula; the benchmark itself has twice as many weights."""
    expected = sum(memory(QUICK, Setup(processes=4)).values())
    assert expected < 7 * parameters(QUICK)  # two whole copies would be 8 alone
    assert max(measured(QUICK, 4)) <= ALLOWED * expected


@pytest.mark.parametrize(
    "flags",
    [
        ["--shape", "qwen3-1.7b", "--processes", "1"],
        ["--shape", "qwen3-8b", "--processes", "8"],
        ["--shape", "llama-70b", "--processes", "16", "--lora-rank", "64", "--bf16"],
    ],
    ids=lambda flags: flags[1],
)
def test_the_launch_lines_fit(flags: list[str]) -> None:
    """Those of docs/scaling.md, on GPUs of 80 GB; nothing is started for it."""
    command = [sys.executable, "-m", "tests.benchmarks.cluster", *flags, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for part in ("memory in all", "left for activations", "sent per step", "step: drawing"):
        assert part in done.stdout
    assert "DOES NOT FIT" not in done.stdout
