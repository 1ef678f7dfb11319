"""Many processes as one: who they are, what they tell each other, and how they share a model.

The processes are started by ``accelerate launch`` or ``torchrun``; without either there is one. Models are
shared by torch's own engines: DDP keeps a whole copy per process, FSDP2 (``fully_shard``) a shard of
weights, gradients and optimizer moments.
"""

import atexit
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from distill.examples import DistillError

Engine = Literal["ddp", "fsdp"]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among all."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    """Of this process, where there are several."""

    @classmethod
    def connect(cls, device: str = "auto") -> "Ranks":
        """Join the processes that a launcher started; a process that was started plainly is alone.

        Raises:
            DistillError: ``accelerate launch`` was asked for several processes and started one.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            # What it sets for several processes without telling this one that it is one of them: --cpu.
            if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
                raise DistillError(
                    "accelerate launch was asked for several processes, and on CPUs it starts one: take "
                    "torchrun --nproc-per-node N -m agents.self_improve ... instead"
                )
            return cls()
        from accelerate import PartialState  # here, so that one process needs none of it

        # The others wait while one measures baselines or lets an endpoint write.
        state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=timedelta(hours=2))
        atexit.register(state.destroy_process_group)  # else its threads may outlive what they need
        ranks = cls(rank=state.process_index, size=state.num_processes, device=state.device)
        _PROCESSES[:] = ranks.gather([(socket.gethostname(), os.getpid())])
        return ranks

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the database."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part, neighbours together; the parts differ in length by one at most."""
        return items[len(items) * self.rank // self.size : len(items) * (self.rank + 1) // self.size]

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes, on every one."""
        if self.size == 1:
            return items
        from accelerate.utils import gather_object

        return cast("list[Item]", gather_object(items))

    def broadcast(self, value: Item) -> Item:
        """The main process's value, on every process."""
        return self.from_main(lambda: value)

    def from_main(self, make: Callable[[], Item]) -> Item:
        """What ``make`` gives on the main process, where alone it is called, on every process."""
        if self.size == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        [shared] = broadcast_object_list([make() if self.is_main else None])
        return cast("Item", shared)

    def entry(self, tensors: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        """A tensor by name, of a mapping that the main process has, on every process."""
        return self.from_main(lambda: tensors[name])

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes."""
        return self._reduced(values, "SUM")

    def maximum(self, value: int) -> int:
        """The largest of the processes' values."""
        return int(self._reduced([value], "MAX")[0])

    def _reduced(self, values: Sequence[float], how: str) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            dist.all_reduce(tensor, getattr(dist.ReduceOp, how))
        return cast("list[float]", tensor.tolist())


_PROCESSES: list[tuple[str, int]] = []
"""Machine and process id of each rank, where there are several."""
ALONE = Ranks()
"""One process, whatever others there are."""


def is_main_process() -> bool:
    """Whether this process is the main one, as its launcher says."""
    return int(os.environ.get("RANK", "0")) == 0


def is_lost_connection(error: BaseException) -> bool:
    """Whether ``error`` says that another process is gone."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        sign in text for sign in ("connection closed by peer", "connection reset by peer", "broken pipe")
    )


def lost_ranks(seconds: float = 1.0) -> list[int]:
    """The ranks on this machine whose processes are gone, or go within ``seconds``."""
    if not _PROCESSES:
        return []
    import psutil  # accelerate brings it

    def is_gone(process: int) -> bool:
        try:
            return bool(psutil.Process(process).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True

    here, end = socket.gethostname(), time.monotonic() + seconds
    while True:  # a process closes its connections before it is gone
        lost = [rank for rank, (host, process) in enumerate(_PROCESSES) if host == here and is_gone(process)]
        if lost or time.monotonic() > end:
            return lost
        time.sleep(0.01)


def shared(module: torch.nn.Module, layers: Sequence[torch.nn.Module], ranks: Ranks, engine: Engine) -> Any:
    """The module as ``engine`` shares it among the processes; alone it is left as it is.

    Args:
        module: Whose forward pass gives the loss.
        layers: Its blocks, which FSDP2 gathers one at a time.
        ranks: The processes. Gradients come out averaged over them.
        engine: See the module's docstring.
    """
    if ranks.size == 1:
        return module
    if engine == "ddp":
        return DistributedDataParallel(module, gradient_as_bucket_view=True)
    assert ranks.device is not None
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be sharded, as a whole; every process has to take part."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(whole_tensor: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every process has, placed as ``model`` is."""
    placed = whole_tensor.to(model.device)
    if not isinstance(model, DTensor) or placed.dim() == 0:
        return placed
    return distribute_tensor(placed, model.device_mesh, model.placements, src_data_rank=None)
