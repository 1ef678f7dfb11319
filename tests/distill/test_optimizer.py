"""Moments in 8 bits: they train, are small, and do not depend on the number of processes."""

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from agents.run.parts import Joined
from distill.examples import DistillExample
from distill.lm.freezing import freeze_unreached
from distill.lm.prefix_lm import PrefixLM
from distill.lm.shards import whole as full
from distill.lora import LoRA
from distill.opcd import OPCD, DistillError
from distill.optimizer import AdamW8bit, make_optimizer
from distill.parallel import Ranks, Sharding, cast_shards, like
from distill.teacher import FrozenTeacher
from tests.conftest import tiny_llama
from tests.processes import launch

EXAMPLES = [
    DistillExample(student_prompt_ids=(5, i), teacher_prompt_ids=(5, i, 9), completion_ids=(i, 20, 21))
    for i in range(30, 34)
]
WIDE = 64
"""Per head, which makes rows of 256 numbers."""


def weights() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((32, 512), (48, 100), (512,))]


def trained(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> None:
    for step in range(30):
        for parameter in parameters:
            torch.manual_seed(step)
            parameter.grad = 0.1 * parameter.detach() + 0.01 * torch.randn_like(parameter)
        parameters[0].grad[3] = 0  # type: ignore[index]  # as a token that is not there has
        optimizer.step()
        optimizer.zero_grad()


def test_it_is_adamw_with_small_moments() -> None:
    pytest.importorskip("bitsandbytes")
    exact, small = weights(), weights()
    trained(make_optimizer("adamw", exact, lr=1e-2, weight_decay=0.1), exact)
    optimizer = make_optimizer("adamw-8bit", small, lr=1e-2, weight_decay=0.1)
    trained(optimizer, small)
    moved = [(new - old).norm() for new, old in zip(exact, weights(), strict=True)]
    apart = [(one - two).norm() for one, two in zip(exact, small, strict=True)]
    assert 0 < apart[0] < 0.05 * moved[0]
    assert apart[1:] == [0, 0]  # of 32 bits: no whole blocks, and too few
    assert torch.equal(exact[0][3], small[0][3])  # nothing but decay
    held = [state.nbytes for state in optimizer.state[small[0]].values()]
    assert sum(held) <= 2.05 * small[0].numel()


def trainer(ranks: Ranks, engine: str, what: str = "full") -> OPCD:
    def make() -> Any:
        model = tiny_llama(head_dim=WIDE)
        if what == "lora":
            LoRA(model, rank=16, alpha=16)
        freeze_unreached(model)
        return model

    shards = engine == "fsdp" and ranks.size > 1
    student = cast_shards(make, lambda model: model, 1, ranks)[0] if shards else make()
    return OPCD(
        student,
        FrozenTeacher(PrefixLM(tiny_llama(1, head_dim=WIDE))),
        lr=1e-3,
        optimizer="adamw-8bit",
        ranks=ranks,
        engine=cast(Sharding, engine),
    )


@pytest.mark.parametrize("what", ["full", "lora"])
def test_it_goes_on_exactly(what: str) -> None:
    pytest.importorskip("bitsandbytes")
    whole, first, second = (trainer(Ranks(), "ddp", what) for _ in range(3))
    kls = [whole.step(EXAMPLES).kl for _ in range(4)]
    assert kls[-1] < kls[0]
    for _ in range(2):
        first.step(EXAMPLES)
    state = copy.deepcopy(first.state())
    assert sum(tensor.dtype == torch.uint8 for tensor in state.values()) >= 8
    second.load_state(state)
    for _ in range(2):
        second.step(EXAMPLES)
    expected, found = whole.state(), second.state()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_other_kinds_moments_are_refused() -> None:
    pytest.importorskip("bitsandbytes")
    eight = trainer(Ranks(), "ddp")
    eight.step(EXAMPLES)
    plain = OPCD(tiny_llama(head_dim=WIDE), FrozenTeacher(PrefixLM(tiny_llama(1, head_dim=WIDE))), lr=1e-3)
    with pytest.raises(DistillError, match="another optimizer"):
        plain.load_state(eight.state())
    plain.step(EXAMPLES)
    with pytest.raises(DistillError, match="another optimizer"):
        eight.load_state(plain.state())


def _same_in_parts() -> None:
    """Of the same gradients parts of a weight make what the whole makes, to the last bit."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    whole, cut = (
        [torch.nn.Parameter(place(weight.detach())) for weight in weights()]
        for place in (torch.clone, lambda weight: distribute_tensor(weight, mesh, [Shard(0)]))
    )
    optimizers = [make_optimizer("adamw-8bit", some, lr=1e-2, weight_decay=0.1) for some in (whole, cut)]
    for step in range(5):
        for one, two in zip(whole, cut, strict=True):
            torch.manual_seed(step)
            one.grad = torch.randn_like(one)
            two.grad = like(one.grad, two)
        for optimizer in optimizers:
            optimizer.step()
    for one, two in zip(whole, cut, strict=True):
        assert torch.equal(one, full(two))


def worker(engine: str, out: str, start: str) -> None:
    """Three steps from the beginning, and their state after the first; and two from one that is given."""
    ranks = Ranks.connect("cpu")
    _same_in_parts()

    def save(name: str, mine: Mapping[str, torch.Tensor]) -> None:
        parts = [part for part in ranks.gather([mine]) if part]
        if ranks.is_main:
            save_file({k: v.contiguous() for k, v in Joined(parts).items()}, Path(out) / name)

    for begun in (False, True):
        opcd = trainer(ranks, engine)
        if begun:
            opcd.load_state(load_file(start))
        else:
            opcd.step(ranks.share(EXAMPLES))
            save("1.safetensors", opcd.state())
        for _ in range(2):
            opcd.step(ranks.share(EXAMPLES))
        save("resumed.safetensors" if begun else "3.safetensors", opcd.state())


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_two_processes_do_what_one_does(engine: str, tmp_path: Path) -> None:
    """But for a rounding that the sum of two gradients brings; checkpoints go both ways."""
    pytest.importorskip("bitsandbytes")
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    alone = trainer(Ranks(), "ddp")
    alone.step(EXAMPLES)
    save_file({k: v.clone() for k, v in alone.state().items()}, one / "1.safetensors")
    for _ in range(2):
        alone.step(EXAMPLES)
    launch(2, worker, engine, str(two), str(one / "1.safetensors"), said=tmp_path / "said")
    back = trainer(Ranks(), "ddp")
    back.load_state(load_file(two / "1.safetensors"))
    for _ in range(2):
        back.step(EXAMPLES)
    expected, before = alone.state(), trainer(Ranks(), "ddp").state()
    for state in (load_file(two / "3.safetensors"), load_file(two / "resumed.safetensors"), back.state()):
        assert {name: tensor.dtype for name, tensor in state.items()} == {
            name: tensor.dtype for name, tensor in expected.items()
        }
        for name in [name for name in state if name.startswith("weight/")]:
            # Where a gradient is nearly 0, its rounding decides which way a step of Adam's goes.
            apart, moved = (state[name] - expected[name]).norm(), (expected[name] - before[name]).norm()
            assert apart <= 0.05 * moved, name


def test_without_the_package_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(DistillError, match=r"pip install 'opcd-gym\[8bit\]'"):
        AdamW8bit(weights(), lr=1e-3)
