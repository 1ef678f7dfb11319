"""Two gloo processes on the CPU against one, on DDP and on FSDP2, with all weights and with adapters."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from agents.config import SelfImproveConfig
from agents.self_improve import self_improve
from distill.lm.shards import whole
from distill.parallel import Ranks, like
from experience.seeds import SeedRange, Split
from experience.store import ExperienceStore

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def launch(processes: int, module: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return subprocess.run(
        [*command, "-m", module, *args],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=300,
    )


def work(processes: int, engine: str, *folders: Path) -> None:
    folders[0].mkdir(exist_ok=True)
    done = launch(processes, "tests.parallel_worker", engine, *map(str, folders))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process gives."""
    folder = tmp_path_factory.mktemp("one")
    work(1, "ddp", folder)
    return folder


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_do_what_one_does(engine: str, one: Path, tmp_path: Path) -> None:
    """The same losses, norms of gradients and weights for the same global batch; checkpoints go both ways."""
    two, back = tmp_path / "two", tmp_path / "back"
    work(2, engine, two, one)
    for what in ("full", "lora"):
        expected = json.loads((one / f"{what}.json").read_text())
        for mine, theirs in zip(json.loads((two / f"{what}.json").read_text()), expected, strict=True):
            del mine["nodes"], theirs["nodes"]  # what the processes share is computed on each
            assert mine == pytest.approx(theirs, abs=1e-5)
        assert_same(two / f"{what}-3.safetensors", one / f"{what}-3.safetensors")
        assert_same(two / f"{what}-policy.safetensors", one / f"{what}-policy.safetensors")
        assert_same(two / f"{what}-resumed.safetensors", one / f"{what}-3.safetensors")
    work(1, "ddp", back, two)
    for what in ("full", "lora"):
        assert_same(back / f"{what}-resumed.safetensors", one / f"{what}-3.safetensors")


def assert_same(one: Path, two: Path) -> None:
    tensors, expected = load_file(one), load_file(two)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5, msg=name)


TINY: dict[str, Any] = {
    "env_kwargs": {"is_slippery": False}, "rounds": 1, "episodes": 10, "waves": 2, "steps": 3,
    "eval_every": 2, "batch_size": 8, "lr": 1e-3, "validation_episodes": 7, "test_episodes": 6, "num_envs": 4,
}  # fmt: skip


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_whole_run_on_two_processes(engine: str, walker_folder: Path, tmp_path: Path) -> None:
    """Every episode is played once, by either process, as one process plays it; one process writes."""
    flags = [
        arg
        for name, value in (TINY | {"model": str(walker_folder), "engine": engine}).items()
        for arg in (
            f"--{name.replace('_', '-')}",
            json.dumps(value) if isinstance(value, dict) else str(value),
        )
    ]
    two = tmp_path / "two"
    done = launch(2, "agents.self_improve", *flags, "--output", str(two))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("report:") == 1
    assert f"{two} on 2 processes ({engine})" in done.stderr
    results = json.loads((two / "results.json").read_text())
    assert results["processes"] == 2
    self_improve(
        SelfImproveConfig(model=str(walker_folder), output=tmp_path / "one", **TINY), Console(quiet=True)
    )
    columns = ["phase", "seed", "num_turns", "success"]
    tables = []
    for path in (two, tmp_path / "one"):
        with ExperienceStore(path / "experience.db") as store:
            frame = store.traces()
        # The arms that play trained weights may differ in the last bit of a logit.
        frame = frame[frame["policy_id"].isin(["base", "step0"])]
        tables.append(frame[columns].sort_values(columns).reset_index(drop=True))
    assert tables[0].equals(tables[1])
    resumed = launch(2, "agents.self_improve", "--resume", str(two))
    assert resumed.returncode == 0, resumed.stderr[-3000:]


@pytest.mark.parametrize("more", [[], ["--engine", "fsdp", "--lora-rank", "2"]], ids=["ddp", "fsdp"])
def test_a_dead_process_ends_the_run_with_a_message(
    more: list[str], walker_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    script = (
        "import os, sys\n"
        "from distill.opcd import OPCD\n"
        "step, rank = OPCD.step, int(os.environ['RANK'])\n"
        "def dies(self, *args):\n"
        "    if self.step_count == 1 and rank == 1: os._exit(9)\n"
        "    return step(self, *args)\n"
        "OPCD.step = dies\n"
        "from agents.reflection import Reflection\n"
        "gate = Reflection.gate\n"
        "Reflection.gate = lambda self, *args: gate(self, *args) or args[1][0]\n"
        "from agents.self_improve import main\n"
        "sys.exit(main())\n"
    )
    (tmp_path / "dying.py").write_text(script)
    flags = ["--model", str(walker_folder), "--output", str(path), *more]
    for name, value in TINY.items():
        flags += [f"--{name.replace('_', '-')}", json.dumps(value) if isinstance(value, dict) else str(value)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(tmp_path / "dying.py"), *flags],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
        timeout=300,
    )
    assert done.returncode != 0
    assert "another process of this run has died" in done.stderr
    assert f"--resume {path}" in done.stderr
    assert launch(2, "agents.self_improve", "--resume", str(path)).returncode == 0
    assert (path / "results.json").exists()
    assert not list(path.glob("*.safetensors"))  # of no process
    merged: Any = AutoModelForCausalLM.from_pretrained(path / "model")
    if more:
        base = AutoModelForCausalLM.from_pretrained(walker_folder)
        adapted: Any = PeftModel.from_pretrained(base, path / "adapter")
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)


def test_shares_make_up_the_whole() -> None:
    for size in (1, 2, 3, 7):
        for count in (0, 1, 5, 14):
            items = list(range(count))
            shares = [Ranks(rank=rank, size=size).share(items) for rank in range(size)]
            assert [item for share in shares for item in share] == items
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
            seeds = SeedRange(split=Split.TRAIN, run_seed=1, start=3, size=count)
            parts = [seed for rank in range(size) for seed in seeds.part(rank, size)]
            assert parts == list(seeds)


def test_alone_nothing_is_exchanged() -> None:
    ranks = Ranks()
    assert ranks.gather([1, 2]) == [1, 2]
    assert ranks.broadcast("x") == "x"
    assert ranks.sums([1.5, 2.0]) == [1.5, 2.0]
    assert ranks.maximum(3) == 3
    tensor = torch.ones(2)
    assert whole(tensor) is tensor
    assert torch.equal(like(tensor, torch.zeros(2)), tensor)


def test_a_launcher_that_starts_one_process_of_several_is_noticed(tmp_path: Path) -> None:
    script = tmp_path / "joins.py"
    script.write_text("from distill.parallel import Ranks\nprint(Ranks.connect('cpu').size)\n")

    def run(*launcher: str) -> subprocess.CompletedProcess[str]:
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-m", *launcher, str(script)]
        return subprocess.run(
            command, capture_output=True, text=True, env=ENVIRONMENT | path, check=False, timeout=120
        )

    accelerate = ("accelerate.commands.launch", "--cpu", "--num_processes")
    assert "torchrun --nproc-per-node" in run(*accelerate, "2").stderr
    assert run(*accelerate, "1").stdout.split() == ["1"]
