"""Many processes as one: who they are, what they tell each other, and how they share a model.

The processes are started by ``accelerate launch`` or ``torchrun``; without either there is one. Models are
shared by torch's own engines: DDP keeps a whole copy per process, FSDP2 (``fully_shard``) a shard of
weights, gradients and optimizer moments.
"""

import atexit
import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from distill.examples import DistillError
from distill.lm.reason import reason
from distill.lm.shards import PATIENCE, Meeting, Root, Shards

Sharding = Literal["ddp", "fsdp"]
Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among all."""

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    """Of this process, where there are several."""
    meeting: Meeting = field(default_factory=Meeting, repr=False, compare=False)
    """Where they wait for each other, before anything that takes all."""

    @classmethod
    def connect(cls, device: str = "auto") -> "Ranks":
        """Join the processes that a launcher started; a process that was started plainly is alone.

        Raises:
            DistillError: ``accelerate launch`` was asked for several processes and started one, or what the
                launcher says in the environment does not bring them together.
        """
        if (size := _told("WORLD_SIZE", 1)) == 1:
            # What it sets for several processes without telling this one that it is one of them: --cpu.
            if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
                raise DistillError(
                    "accelerate launch was asked for several processes, and on CPUs it starts one: take "
                    "torchrun --nproc-per-node N -m agents.self_improve ... instead"
                )
            return cls()
        from accelerate import PartialState  # here, so that one process needs none of it

        on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        try:
            state = PartialState(cpu=on_cpu, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            raise DistillError(f"this one of {size} processes cannot join them: {reason(error)}") from error
        if state.num_processes != size:
            raise DistillError(
                f"this one of {size} processes is alone: there is no LOCAL_RANK, as torchrun and accelerate "
                f"launch set it, or no GPU for --device {device}"
            )
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

        self.meeting.join()
        return cast("list[Item]", gather_object(items))

    def broadcast(self, value: Item) -> Item:
        """The main process's value, on every process."""
        return self.from_main(lambda: value)

    def from_main(self, make: Callable[[], Item]) -> Item:
        """What ``make`` gives, or raises, on the main process, where alone it is called, on every process."""
        if self.size == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        made: Item | None = None
        error: Exception | None = None
        if self.is_main:
            try:
                made = make()
            except Exception as failed:
                error = failed
        self.meeting.join()
        made, told = broadcast_object_list([made, None if error is None else _portable(error)])
        if told is not None:
            raise error or told
        return cast("Item", made)

    def mapping(self, mine: Mapping[str, Item]) -> Mapping[str, Item]:
        """The main process's, on every process; all look up the same in it, and then an entry travels."""
        return mine if self.size == 1 else _FromMain(self, mine)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes."""
        return self._reduced(values, "SUM")

    def maximum(self, values: Sequence[int]) -> list[int]:
        """The largest of the processes' numbers for each value."""
        return list(map(int, self._reduced(values, "MAX")))

    def _reduced(self, values: Sequence[float], how: str) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.size > 1:
            self.meeting.join()
            dist.all_reduce(tensor, getattr(dist.ReduceOp, how))
        return cast("list[float]", tensor.tolist())


def _portable(error: Exception) -> Exception:
    """An error as it may be sent: somebody else's need not be fit for it, and would hide behind another."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever its own methods raise
        return RuntimeError(f"the main process has failed: {type(error).__name__}: {error}")
    return error


LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "timed out waiting")
"""By which gloo says that another process is gone, or has not come."""
_PROCESSES: list[tuple[str, int]] = []
"""Machine and process id of each rank, where there are several."""
ALONE = Ranks()
"""One process, whatever others there are."""


class _FromMain(Mapping[str, Item]):
    def __init__(self, ranks: Ranks, mine: Mapping[str, Item]) -> None:
        self._ranks, self._mine = ranks, mine
        self._keys = ranks.from_main(lambda: list(mine))

    def __getitem__(self, key: str) -> Item:
        return self._ranks.from_main(lambda: self._mine[key])

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def is_main_process() -> bool:
    """Whether this process is the main one, as its launcher says; one that is alone is."""
    return _told("WORLD_SIZE", 1) == 1 or _told("RANK", 0) == 0


def _told(name: str, default: int) -> int:
    """A number that a launcher gives in the environment.

    Raises:
        DistillError: It is none.
    """
    text = os.environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError as error:
        raise DistillError(f"{name} is {text!r} in the environment, and no number") from error


def is_lost_connection(error: BaseException) -> bool:
    """Whether ``error`` says that another process is gone, or has not come for ``PATIENCE``."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(sign in text for sign in LOST)


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


def shared(
    model: PreTrainedModel, ranks: Ranks, engine: Sharding, narrow: torch.dtype | None = None
) -> Callable[[Callable[[], Value]], Value]:
    """How all processes together make a forward pass of the model from which gradients flow, averaged.

    Args:
        model: The same on every process. Alone it is left as it is; with ``fsdp`` it becomes shards, if it is
            none yet.
        ranks: The processes.
        engine: See the module's docstring.
        narrow: See ``Shards``, which alone it is for.
    """
    if ranks.size == 1:
        return Root(model)
    if engine == "ddp":
        return DistributedDataParallel(Root(model), gradient_as_bucket_view=True)
    return (Shards.of(model) or shard(model, ranks, narrow)).run_together


def shard(model: PreTrainedModel, ranks: Ranks, narrow: torch.dtype | None = None) -> Shards:
    """Leave of the model, in place, what is this process's part; see ``Shards``."""
    assert ranks.device is not None
    ranks.meeting.join()
    return Shards(model, ranks.meeting, ranks.device, narrow)


def cast_shards(
    make: Callable[[], Item],
    model_of: Callable[[Item], PreTrainedModel],
    copies: int,
    ranks: Ranks,
    narrow: torch.dtype | None = None,
) -> list[Item]:
    """Copies of something with a model in it, in shards; every process gets its own.

    The main process alone has it whole, in its host memory, and lets go of each weight that has been sent.

    Args:
        make: Called on the main process. Everything but parameters must be small, and fit to be pickled.
        model_of: The model in it.
        copies: How many; their weights are the same, and nothing else is shared.
        ranks: The processes, which do this together.
        narrow: See ``Shards``.
    """
    assert ranks.device is not None
    made: list[Item] = []

    def outline() -> bytes:
        made.append(make())
        file = BytesIO()
        _Outline(file, pickle.HIGHEST_PROTOCOL).dump(made[0])
        return file.getvalue()

    form = ranks.from_main(outline)
    items: list[Item] = [pickle.loads(form) for _ in range(copies)]  # the main process's, as broadcasts are
    models = [model_of(item) for item in items]
    for model in models:
        shard(model, ranks, narrow)
    places = [_places(model) for model in models]
    sources = dict(model_of(made[0]).named_parameters()) if made else {}
    for name in [name for name, _ in models[0].named_parameters()]:
        hollow = models[0].get_parameter(name)
        assert isinstance(hollow, DTensor)
        source = sources[name].detach() if made else torch.empty(hollow.shape, dtype=hollow.dtype)
        source = source.to(ranks.device)
        for model, where in zip(models, places, strict=True):
            placed = distribute_tensor(source, hollow.device_mesh, hollow.placements)
            filled = torch.nn.Parameter(placed, requires_grad=hollow.requires_grad)
            for module, attribute in where[id(model.get_parameter(name))]:
                setattr(module, attribute, filled)
        if made:
            sources[name].data = torch.empty(0)
    for model in models:
        model.eval()
    return items


class _Outline(pickle.Pickler):
    """Writes down everything but the values of parameters."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.nn.Parameter):
            return _hollow, (tuple(value.shape), value.dtype, value.requires_grad)
        return NotImplemented


def _hollow(shape: tuple[int, ...], dtype: torch.dtype, requires_grad: bool) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=requires_grad)


def _places(model: torch.nn.Module) -> Mapping[int, Sequence[tuple[torch.nn.Module, str]]]:
    """Where each parameter is, by its identity: in several places where weights are tied."""
    places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(id(parameter), []).append((module, name))
    return places


def like(whole_tensor: torch.Tensor, model: torch.Tensor) -> torch.Tensor:
    """A whole tensor, which every process has, placed as ``model`` is."""
    placed = whole_tensor.to(model.device)
    if not isinstance(model, DTensor) or placed.dim() == 0:
        return placed
    return distribute_tensor(placed, model.device_mesh, model.placements, src_data_rank=None)
