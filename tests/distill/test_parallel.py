"""Two gloo processes on the CPU against one, on DDP and on FSDP2, with all weights and with adapters."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate.commands.launch import main as accelerate_launch
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from agents.cli import run_command
from agents.config import SelfImproveConfig
from agents.self_improve import main, self_improve
from distill.lm.shards import _all_but_linear, whole
from distill.opcd import OPCD, DistillError, StepStats
from distill.parallel import Ranks, is_main_process, like
from experience.seeds import SeedRange, Split
from experience.store import ExperienceStore
from tests import parallel_worker
from tests.agents.test_self_improve import open_gate
from tests.conftest import tiny_llama
from tests.processes import SECONDS, begin, command, flags, launch

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def torchrun(call: Callable[..., int], *args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """``call(*args)`` in two processes, as a user starts them, by a script in ``folder``."""
    script, name = folder / "script.py", call.__name__
    script.write_text(f"import sys\nfrom {call.__module__} import {name}\nsys.exit({name}(*sys.argv[1:]))\n")
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


def test_shards_are_gathered_in_what_they_are_computed_in(tmp_path: Path) -> None:
    """In bfloat16 the linear layers are; the rest as it is, and all is computed as with whole copies."""
    launch(2, parallel_worker.mixed, str(tmp_path), said=tmp_path / "said")
    found = json.loads((tmp_path / "mixed.json").read_text())
    for rank in (0, 2):
        expected, shards = found[f"ddp-{rank}"], found[f"fsdp-{rank}"]
        for mine, theirs in zip(shards["stats"], expected["stats"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6, rel=1e-6)  # bfloat16 itself is good to 4e-3
        assert shards["weights"].keys() == expected["weights"].keys()
        for name, weights in shards["weights"].items():
            assert weights == pytest.approx(expected["weights"][name], abs=1e-6)
        assert shards["played"][0] == pytest.approx(expected["played"][0], abs=1e-6)
    model = tiny_llama()
    layers = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2)
    others = sum(p.numel() for p in model.parameters()) - layers
    gathered = found["fsdp-0"]["gathered"]
    assert gathered.keys() == {"torch.bfloat16", "torch.float32"}
    times = gathered["torch.bfloat16"] / (2 * layers)
    assert times == gathered["torch.float32"] / (4 * others)
    assert times >= 2 * 2 + 1  # forward and backward, and the teacher


def test_layers_may_have_parts_and_weights_in_common(tmp_path: Path) -> None:
    launch(2, parallel_worker.layers_in_layers, said=tmp_path / "said")


def test_what_autocast_may_not_narrow_is_gathered_as_it_is() -> None:
    linear, norm, conv = nn.Linear(4, 4), nn.RMSNorm(4), nn.Conv1d(4, 4, 2)
    assert _all_but_linear(nn.ModuleList([linear, norm])) == [norm]
    assert _all_but_linear(nn.ModuleList([linear, nn.Sequential(norm, linear)])) == [norm]
    assert _all_but_linear(nn.ModuleList([linear])) == []
    assert _all_but_linear(nn.ModuleList([linear, conv])) is None
    layer = nn.ModuleList([linear])
    layer.register_parameter("sinks", nn.Parameter(torch.zeros(4)))  # who has it has others in it
    assert _all_but_linear(layer) is None


def assert_same(one: Path, two: Path) -> None:
    tensors, expected = load_file(one), load_file(two)
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-5, msg=name)


TINY: dict[str, Any] = {
    "env_kwargs": {"is_slippery": False, "max_episode_steps": 25}, "rounds": 1, "episodes": 10, "waves": 2,
    "steps": 3, "eval_every": 2, "batch_size": 8, "lr": 1e-3, "validation_episodes": 7, "test_episodes": 6,
    "num_envs": 4, "eval_temperature": (0.0,),
}  # fmt: skip


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
    arguments = flags(**TINY, model=walker_folder, engine=engine, output=two)
    said = launch(2, command, main, *arguments, said=tmp_path / "said")
    assert said.count("report:") == 1
    assert f"{two} on 2 processes ({engine})" in said
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


def elsewhere(folder: str, *arguments: str) -> int:
    """The command in a folder, and its second process in another one, as on another machine."""
    os.chdir(Path(folder) / os.environ["RANK"] if arguments[-1] == "apart" else folder)
    with open_gate():
        return command(main, *arguments[:-1])


def test_shards_are_written_into_one_folder(walker_folder: Path, tmp_path: Path) -> None:
    """Nobody names it: it is called by one process. Where another does not see it, the run does not begin."""
    arguments = flags(**TINY, model=walker_folder, engine="fsdp")
    launch(2, elsewhere, str(tmp_path), *arguments, "", said=tmp_path / "said")
    [path] = (tmp_path / "runs").iterdir()
    assert (path / "results.json").exists()
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    said = launch(2, elsewhere, str(tmp_path), *arguments, "apart", said=tmp_path / "apart", codes=(2, 2))
    assert "rank 1 does not see the run folder" in said


def dies(*arguments: str) -> int:
    """The command, whose second process is gone after the first optimiser step."""
    step = OPCD.step

    def dying(self: OPCD, *args: Any) -> StepStats:
        if self.step_count == 1 and os.environ["RANK"] == "1":
            os._exit(9)
        return step(self, *args)

    with open_gate(), patch.object(OPCD, "step", dying):
        return command(main, *arguments)


@pytest.mark.parametrize("more", [[], ["--engine", "fsdp", "--lora-rank", "2"]], ids=["ddp", "fsdp"])
def test_a_dead_process_ends_the_run_with_a_message(
    more: list[str], walker_folder: Path, tmp_path: Path
) -> None:
    """As torchrun starts them, which ends the others too, and where the others notice it alone."""
    path = tmp_path / "run"
    arguments = [*flags(**TINY, model=walker_folder, output=path), *more]
    if more:
        said = launch(2, dies, *arguments, said=tmp_path / "died", codes=(3, 9))
    else:
        done = torchrun(dies, *arguments, folder=tmp_path)
        assert done.returncode != 0
        said = done.stderr
    assert "another process of this run has died (rank 1)" in said
    assert f"--resume {path}" in said
    launch(2, command, main, "--resume", str(path), said=tmp_path / "said")
    assert (path / "results.json").exists()
    assert not list(path.glob("*.safetensors"))  # of no process
    merged: Any = AutoModelForCausalLM.from_pretrained(path / "model")
    if more:
        base = AutoModelForCausalLM.from_pretrained(walker_folder)
        adapted: Any = PeftModel.from_pretrained(base, path / "adapter")
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, atol=1e-4, rtol=1e-4)


class EnvBrokenError(Exception):
    """As an env of somebody else's raises: pickled, and read again, it lacks an argument."""

    def __init__(self, env: str, why: str) -> None:
        super().__init__(f"{env} is broken: {why}")


def hears_of_an_error() -> int:
    def breaks() -> None:
        raise EnvBrokenError("the lake", "no water")

    ranks = Ranks.connect("cpu")
    for make in (breaks, lambda: int("x")):
        try:
            ranks.from_main(make)
        except Exception as error:
            print(ranks.rank, type(error).__name__, error)
    return 0


def loses_patience() -> int:
    def waits(_: Console) -> None:
        ranks = Ranks.connect("cpu")
        if ranks.is_main:
            ranks.gather([0])
        time.sleep(4)

    with patch("distill.parallel.PATIENCE", timedelta(seconds=2)):
        return run_command(waits, lambda: "")


def test_who_waits_for_too_long_says_so(tmp_path: Path) -> None:
    said = launch(2, loses_patience, said=tmp_path / "said", codes=(3, 0))
    assert "another process of this run has died (rank unknown: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize("rank", [0, 1])
def test_all_are_interrupted_and_one_says_so(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: Console) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    assert run_command(interrupted, lambda: "goes on") == 130
    assert capsys.readouterr().err.split() == ([] if rank else ["interrupted", "goes", "on"])


def test_any_error_of_the_main_process_is_told(tmp_path: Path) -> None:
    said = launch(2, hears_of_an_error, said=tmp_path / "said")
    assert "0 EnvBrokenError the lake is broken: no water" in said
    assert "1 RuntimeError the main process has failed: EnvBrokenError: the lake is broken: no water" in said
    assert "0 ValueError" in said
    assert "1 ValueError" in said


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
    assert ranks.maximum([3, 1]) == [3, 1]
    tensor = torch.ones(2)
    assert whole(tensor) is tensor
    assert torch.equal(like(tensor, torch.zeros(2)), tensor)


def joins(device: str) -> None:
    try:
        print(Ranks.connect(device).size, "in all")
    except DistillError as error:
        print(error)


@pytest.mark.parametrize(
    ("environment", "device", "expected"),
    [
        ({"WORLD_SIZE": "two"}, "cpu", "WORLD_SIZE is 'two' in the environment, and no number"),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, "cpu", "this one of 2 processes cannot join them: "),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}, "cuda", "this one of 2 processes is alone: "),
        ({"WORLD_SIZE": ""}, "cpu", "1 in all"),
    ],
)
def test_what_a_launcher_says_may_make_no_sense(
    environment: dict[str, str], device: str, expected: str, tmp_path: Path
) -> None:
    """A process that cannot join the others never goes on alone, as if it were the main one."""
    process = begin(joins, device, said=tmp_path / "said", environment={"RANK": "1"} | environment)
    process.join(SECONDS)
    assert expected in (tmp_path / "said").read_text(encoding="utf-8")


def test_who_is_alone_is_the_main_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert is_main_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not is_main_process()


def test_a_launcher_that_starts_one_process_of_several_is_noticed(tmp_path: Path) -> None:
    script = tmp_path / "joins.py"
    script.write_text("from distill.parallel import Ranks\nprint(Ranks.connect('cpu').size, 'in all')\n")

    def accelerate(size: int) -> str:
        """What it says, started by ``accelerate launch``."""
        said = tmp_path / f"said-{size}"
        arguments = ("--cpu", "--num_processes", str(size), str(script))
        path = {"PYTHONPATH": str(Path(__file__).parents[2])}
        process = begin(command, accelerate_launch, *arguments, said=said, environment=ENVIRONMENT | path)
        process.join(SECONDS)
        return said.read_text(encoding="utf-8")

    assert "torchrun --nproc-per-node" in accelerate(2)
    assert "1 in all" in accelerate(1)
