"""A model that several processes hold in parts, and how each can use it whenever it likes.

A layer that is cut into shards is gathered by all processes at once, used, and let go again. But processes
play different episodes, and the main one does work of its own: they make different numbers of forward passes.
So whoever comes to a forward pass, or to anything else that takes all, comes to a ``Meeting``: all say what
they came for, the passes that anyone wants are made by all (those who have no use for one send a single token
through), and only when nobody wants one does the other business go on. Whoever waits thus helps.

Memory per process: its shards, and one layer and the model's ends (embedding and head) while they are used.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from distill.lm.head import LMHead

Value = TypeVar("Value")

PATIENCE = timedelta(hours=2)
"""The others wait so long while one does what takes nobody else, such as measuring baselines."""


class Meeting:
    """Where the processes of a run wait for each other, and help meanwhile."""

    def __init__(self) -> None:
        self._helps: list[Callable[[], object]] = []
        self._agreed: list[tuple[Callable[[], bool], Callable[[], object]]] = []
        self._group: Any = None
        self.is_busy = False
        """Whether they are at work together."""

    def add(self, *helps: Callable[[], object]) -> int:
        """Say how to help with what is wanted of a model; all processes do so, in the same order.

        Returns:
            The number of the first, by which ``join`` knows it.
        """
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=PATIENCE)  # tells a GPU nothing
        self._helps += helps
        return len(self._helps) - len(helps)

    def add_agreed(self, wants: Callable[[], bool], work: Callable[[], object]) -> None:
        """Say what this process does as soon as all want it; all processes do so, in the same order.

        Args:
            wants: Whether this process does.
            work: Takes no other process.
        """
        self._agreed.append((wants, work))

    def join(self, wish: int | None = None, work: Callable[[], Value] | None = None) -> Value | None:
        """Do ``work`` together with the others; without any, wait until nobody has any.

        Args:
            wish: What the others have to help with, by number.
            work: Calls on the same layers in the same order as ``wish``'s help. Nobody meets within it.
        """
        if self.is_busy or not self._helps:
            return None if work is None else work()
        while True:
            asked = torch.zeros(len(self._helps) + len(self._agreed), dtype=torch.int32)
            if wish is not None:
                asked[wish] = 1
            for number, (wants, _) in enumerate(self._agreed, len(self._helps)):
                asked[number] = wants()
            dist.all_reduce(asked, group=self._group)
            wanted, votes = asked[: len(self._helps)], asked[len(self._helps) :]
            for (_, agreed), count in zip(self._agreed, votes.tolist(), strict=True):
                if count == dist.get_world_size(self._group):
                    agreed()
            result: Value | None = None
            self.is_busy = True
            try:
                for number in wanted.nonzero().flatten().tolist():
                    if number == wish and work is not None:
                        result = work()
                    else:
                        self._helps[number]()
            finally:
                self.is_busy = False
            if wish is not None or not wanted.any():
                return result

    def all_do(self, work: Callable[[], Value]) -> Value:
        """Work that every process has come for; within it there are no meetings."""
        self.join()
        was_busy, self.is_busy = self.is_busy, True
        try:
            return work()
        finally:
            self.is_busy = was_busy


class Root(torch.nn.Module):
    """A model as a module whose forward pass is whatever is done with it: what DDP and FSDP2 wrap."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Value]) -> Value:
        """What ``work`` does."""
        return work()


class Shards:
    """What a model in parts needs to be used; the model knows it, and ``run`` and ``head_of`` ask for it."""

    def __init__(
        self,
        model: PreTrainedModel,
        meeting: Meeting,
        device: torch.device,
        narrow: torch.dtype | None = None,
    ) -> None:
        """Cut the model's parameters into shards; those on the meta device are still to be filled.

        Every process has the same model, or none of it; it is changed in place.

        Args:
            model: Which.
            meeting: Of the processes.
            device: This process's.
            narrow: What linear layers always compute in, by autocast, where it is not the weights' own type.
                What autocast would make of their weights is gathered then: half as much is sent, and all is
                computed as without it. The shards, and the sums of the processes' gradients, stay in the
                type of the weights. What is no decoder layer (embedding, head) is gathered as it is.
        """
        self._model, self._meeting, self._narrow = model, meeting, narrow
        mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        policy = MixedPrecisionPolicy(
            param_dtype=narrow, reduce_dtype=torch.float32 if narrow else None, cast_forward_inputs=False
        )
        self._root = Root(model)
        layers = layers_of(model)
        holders = Counter(weight for layer in layers for weight in layer.parameters())
        for layer in layers:
            if any(holders[weight] > 1 for weight in layer.parameters()):
                continue  # what several layers share, as Zamba 2's do, is gathered with the ends
            others = None if narrow is None else _all_but_linear(layer)
            if others:
                fully_shard(others, mesh=mesh)
            fully_shard(layer, mesh=mesh, mp_policy=MixedPrecisionPolicy() if others is None else policy)
        # Not its ends either stay gathered: between forward passes there is nothing but shards.
        fully_shard(self._root, mesh=mesh, reshard_after_forward=True)
        self._number = meeting.add(self._pass_a_token, self._gather_head)
        vars(model)["_shards"] = self  # no submodule, which it would be as an attribute

    @staticmethod
    def of(model: PreTrainedModel) -> "Shards | None":
        """A model's, if it is in parts."""
        shards: Shards | None = vars(model).get("_shards")
        return shards

    def run(self, work: Callable[[], Value]) -> Value:
        """See the function."""
        if self._meeting.is_busy:  # with a larger work, of which this is a part
            return work()
        return cast("Value", self._meeting.join(self._number, partial(self._root, work)))

    def run_together(self, work: Callable[[], Value]) -> Value:
        """The same where all have come for it. Gradients flow; the backward pass averages and cuts them."""
        result: Value = self._meeting.all_do(partial(self._root, work))
        return result

    def join(self) -> None:
        """Come together for something else, which all are about to do."""
        self._meeting.join()

    @property
    def head(self) -> LMHead:
        """See ``head_of``."""
        return cast("LMHead", self._meeting.join(self._number + 1, self._gather_head))

    def _gather_head(self) -> LMHead:
        return LMHead.of(self._model).moved(whole)

    @torch.no_grad()
    def _pass_a_token(self) -> None:
        forward = partial(
            self._model,
            input_ids=torch.zeros((1, 1), dtype=torch.long, device=self._model.device),
            use_cache=False,
        )
        with torch.autocast(self._model.device.type, dtype=self._narrow, enabled=self._narrow is not None):
            # In a context of its own: this process may be about to make masks for a pass of another model.
            Context().run(self._root, forward)


def run(model: PreTrainedModel, work: Callable[[], Value]) -> Value:
    """A forward pass of the model; where it is in parts, the other processes help.

    ``work`` goes through the model's layers once.
    """
    shards = Shards.of(model)
    return work() if shards is None else shards.run(work)


def head_of(model: PreTrainedModel) -> LMHead:
    """The model's head, outside of its forward passes; where it is in parts it is gathered for this call."""
    shards = Shards.of(model)
    return LMHead.of(model) if shards is None else shards.head


def weights_of(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's ``state_dict``, whole, one tensor after the other.

    Where it is in parts, every process has to take part, and gets them.
    """
    if (shards := Shards.of(model)) is not None:
        shards.join()
    for name, tensor in model.state_dict().items():
        yield name, whole(tensor)


def layers_of(model: PreTrainedModel) -> Sequence[torch.nn.Module]:
    """Its decoder layers, and those of other towers; no part of one, which models may name as well."""
    found = [m for m in model.modules() if type(m).__name__ in (model._no_split_modules or ())]
    parts = {part for layer in found for part in layer.modules() if part is not layer}
    return [layer for layer in found if layer not in parts]


def _all_but_linear(layer: torch.nn.Module) -> list[torch.nn.Module] | None:
    """The modules of a layer whose weights autocast leaves as they are: its norms.

    Returns:
        ``None`` where there are others, which may be read by whom they do not belong to, or be factors of
        products that autocast does not know.
    """
    others = [
        module
        for module in layer.modules()
        if type(module) is not torch.nn.Linear and next(module.parameters(recurse=False), None) is not None
    ]
    is_plain = all(
        next(module.children(), None) is None and all(p.dim() == 1 for p in module.parameters())
        for module in others
    )
    return others if is_plain else None


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be sharded, as a whole; every process has to take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: torch.Tensor) -> torch.Tensor:
    """Of a tensor that may be sharded, what this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
