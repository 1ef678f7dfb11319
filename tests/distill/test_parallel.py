"""Two gloo processes on the CPU against one, on DDP and on FSDP2, with all weights and with adapters."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from agents.config import SelfImproveConfig
from agents.self_improve import main, self_improve
from distill.parallel import Ranks, like, whole
from experience.seeds import SeedRange, Split
from experience.store import ExperienceStore
from tests import parallel_worker
from tests.processes import command, launch

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def torchrun(script: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Two processes, as a user starts them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, str(script), *args],
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
        timeout=300,
    )


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process gives."""
    folder = tmp_path_factory.mktemp("one")
    parallel_worker.main("ddp", str(folder))
    return folder


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_do_what_one_does(engine: str, one: Path, tmp_path: Path) -> None:
    """The same losses, norms of gradients and weights for the same global batch; checkpoints go both ways."""
    two, back = tmp_path / "two", tmp_path / "back"
    for folder in (two, back):
        folder.mkdir()
    launch(2, parallel_worker.main, engine, str(two), str(one), said=tmp_path / "said")
    for what in ("full", "lora"):
        expected = json.loads((one / f"{what}.json").read_text())
        for mine, theirs in zip(json.loads((two / f"{what}.json").read_text()), expected, strict=True):
            del mine["nodes"], theirs["nodes"]  # what the processes share is computed on each
            assert mine == pytest.approx(theirs, abs=1e-5)
        assert_same(two / f"{what}-3.safetensors", one / f"{what}-3.safetensors")
        assert_same(two / f"{what}-policy.safetensors", one / f"{what}-policy.safetensors")
        assert_same(two / f"{what}-resumed.safetensors", one / f"{what}-3.safetensors")
    parallel_worker.main("ddp", str(back), str(two))
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


def flags(model: Path, **settings: Any) -> list[str]:
    """``TINY`` as a command line."""
    return [
        arg
        for name, value in (TINY | {"model": str(model), **settings}).items()
        for arg in (
            f"--{name.replace('_', '-')}",
            json.dumps(value) if isinstance(value, dict) else str(value),
        )
    ]


@pytest.fixture(scope="module")
def alone(walker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of one process."""
    path = tmp_path_factory.mktemp("alone") / "run"
    self_improve(SelfImproveConfig(model=str(walker_folder), output=path, **TINY), Console(quiet=True))
    return path


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_whole_run_on_two_processes(engine: str, alone: Path, walker_folder: Path, tmp_path: Path) -> None:
    """Every episode is played once, by either process, as one process plays it; one process writes."""
    two = tmp_path / "two"
    arguments = flags(walker_folder, engine=engine, output=two)
    said = launch(2, command, main, *arguments, said=tmp_path / "said")
    assert said.count("report:") == 1
    results = json.loads((two / "results.json").read_text())
    assert results["processes"] == 2
    columns = ["phase", "seed", "num_turns", "success"]
    tables = []
    for path in (two, alone):
        with ExperienceStore(path / "experience.db") as store:
            frame = store.traces()
        # The arms that play trained weights may differ in the last bit of a logit.
        frame = frame[frame["policy_id"].isin(["base", "step0"])]
        tables.append(frame[columns].sort_values(columns).reset_index(drop=True))
    assert tables[0].equals(tables[1])
    launch(2, command, main, "--resume", str(two), said=tmp_path / "said")


def test_a_dead_process_ends_the_run_with_a_message(walker_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    script = tmp_path / "dying.py"
    script.write_text(
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
    done = torchrun(script, *flags(walker_folder, output=path))
    assert done.returncode != 0
    assert "another process of this run has died" in done.stderr
    assert f"--resume {path}" in done.stderr
    launch(2, command, main, "--resume", str(path), said=tmp_path / "said")
    assert (path / "results.json").exists()


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
