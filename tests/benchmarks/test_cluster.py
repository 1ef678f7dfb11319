import pytest

from tests.benchmarks.cluster import (
    ALLOWED,
    QUICK,
    Machine,
    Setup,
    checkpoint,
    main,
    measured,
    memory,
    parameters,
)
from tests.gpu_check import SHAPES


def test_nobody_holds_a_whole_copy() -> None:
    """Peaks of four processes against the formula; the benchmark itself has twice as many weights."""
    expected = sum(memory(QUICK, Setup(processes=4), gloo=True).values())
    assert expected < 7 * parameters(QUICK)  # two whole copies would be 8 alone
    assert max(measured(QUICK, 4)) <= ALLOWED * expected


@pytest.mark.parametrize(
    ("shape", "processes", "lora_rank"), [("qwen3-1.7b", 1, 0), ("qwen3-8b", 8, 0), ("llama-70b", 16, 64)]
)
def test_the_launch_lines_fit(
    shape: str, processes: int, lora_rank: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of docs/scaling.md, on GPUs of 80 GB; nothing is started for it."""
    assert main(shape, processes, lora_rank=lora_rank, bf16=lora_rank > 0, dry_run=True) == 0
    printed = capsys.readouterr().out
    for part in ("memory in all", "left for activations", "sent per step", "step: drawing", "checkpoint"):
        assert part in printed
    assert "DOES NOT FIT" not in printed


def test_small_moments_are_counted() -> None:
    held, small = (
        memory(SHAPES["qwen3-8b"], Setup(processes=8, optimizer=kind)) for kind in ("adamw", "adamw-8bit")
    )
    assert held["moments"] / small["moments"] == pytest.approx(8 / 2.03, rel=0.01)
    assert checkpoint(SHAPES["qwen3-8b"], Setup(processes=8), Machine()) == pytest.approx(
        (12.3e9, 49), rel=0.01
    )


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("llama-70b", 16, dry_run=True) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert main("gpt-9", 16, dry_run=True) == 2
    assert "take one of qwen3-0.6b" in capsys.readouterr().out
