import pytest

from tests.benchmarks.cluster import (
    ALLOWED,
    QUICK,
    Machine,
    Setup,
    Step,
    checkpoint,
    end_parameters,
    engine_processes,
    main,
    measured,
    memory,
    parameters,
    traffic,
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
    together = 8 if lora_rank else 1
    assert f"--policy vllm:{together}" in printed
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


def test_traffic_in_bfloat16() -> None:
    """What of the layers is gathered is half; what of the ends, and the gradients, is as much."""
    shape = SHAPES["qwen3-8b"]
    wide, narrow = (
        traffic(shape, Setup(processes=8, gathered_bytes=size), Step(), Machine()) for size in (4, 2)
    )
    ends = end_parameters(shape) / parameters(shape)
    for name, sent in wide.items():
        half = "gathered" in name
        assert narrow[name] == pytest.approx(sent * ((1 + ends) / 2 if half else 1))


def test_engines_are_shared_where_one_gpu_is_too_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert engine_processes(SHAPES["llama-70b"], Setup(processes=16), Machine(memory=141e9)) == 4
    assert main("llama-70b", 2, lora_rank=8, bf16=True, gpu_memory=100, dry_run=True) == 0
    assert "vLLM, with 40% of the memory, DOES NOT FIT" in capsys.readouterr().out


def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("llama-70b", 16, dry_run=True) == 0
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert main("gpt-9", 16, dry_run=True) == 2
    assert "take one of qwen3-0.6b" in capsys.readouterr().out
