"""What a run on many GPUs takes, before anyone rents them: memory, traffic and time per step of each process.

    python -m tests.benchmarks.cluster --shape qwen3-8b --processes 8 --dry-run
    python -m tests.benchmarks.cluster                 measures here, on CPUs, what the formula says of memory
    python -m tests.benchmarks.cluster --update        measures here an update of two processes against one

The first computes; its assumptions are printed beside its figures. The second starts two and then four
processes (gloo) with a model of about 100M random weights, and compares the peak of each with the formula.
The third takes turns between one and two processes of one core each, with the same completions in all: it
takes some minutes, and two cores that have nothing else to do.
"""

import ctypes
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

from agents.policies.vllm.engine import MEMORY
from distill.examples import DistillExample
from distill.lm.prefix_lm import PrefixLM
from distill.lora import LoRA
from distill.opcd import OPCD
from distill.optimizer import BLOCK, OptimizerKind
from distill.parallel import Ranks, Sharding, cast_shards
from distill.teacher import FrozenTeacher
from tests.gpu_check import SHAPES, Shape
from tests.processes import launch

FULL = Shape(
    name="100M",
    layers=36,
    width=512,
    heads=8,
    kv_heads=8,
    inner=1280,
    is_tied=True,
    vocabulary=2048,
    head_width=64,
)
"""What memory is measured with: layers are small beside the whole, as they are in large models."""
QUICK = replace(FULL, name="26M", layers=18, width=320, heads=5, kv_heads=5, inner=1024)
UPDATED = replace(FULL, name="24M", layers=8)
"""What updates are timed with. Both what is sent and what is computed grow with the weights: how many
there are hardly matters, how many tokens does."""
MOMENT_BYTES: Mapping[OptimizerKind, float] = {"adamw": 8, "adamw-8bit": 2 * (1 + 4 / BLOCK)}
"""Per weight."""
ALLOWED = 1.15
"""Peak to formula."""
FASTER = 1.8
"""How many times as fast an update has to be on two processes."""
ENGINE_SHARE = 0.8
"""Of a vLLM's memory that its weights may take; the rest is for its cache."""
M_MMAP_THRESHOLD = -3
"""Of mallopt: from how many bytes on memory is mapped by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How a model is trained."""

    processes: int
    engine: Sharding = "fsdp"
    lora_rank: int = 0
    weight_bytes: int = 4
    """Per weight that is not trained, and with LoRA of the student's; what is trained is in fp32."""
    gathered_bytes: int = 4
    """Per weight of a layer, while its shards are together: 2 with --precision mixed or bfloat16."""
    optimizer: OptimizerKind = "adamw"

    @property
    def parts(self) -> int:
        """Into how many parts a model is cut."""
        return self.processes if self.engine == "fsdp" else 1


def layer_parameters(shape: Shape) -> int:
    """Of one decoder layer."""
    width, heads = shape.width, shape.head_width * (2 * shape.heads + 2 * shape.kv_heads)
    return width * heads + 3 * width * shape.inner + 2 * width


def end_parameters(shape: Shape) -> int:
    """Of embedding, head and last norm."""
    return shape.vocabulary * shape.width * (1 if shape.is_tied else 2) + shape.width


def parameters(shape: Shape) -> int:
    """Of the model."""
    return shape.layers * layer_parameters(shape) + end_parameters(shape)


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Of LoRA beside every linear layer but the head."""
    heads, kv_heads = shape.head_width * shape.heads, shape.head_width * shape.kv_heads
    ends = 4 * shape.width + 2 * heads + 2 * kv_heads + 3 * (shape.width + shape.inner)
    return shape.layers * rank * ends


def memory(shape: Shape, setup: Setup, *, gloo: bool = False) -> dict[str, float]:
    """Bytes of one process, but for activations.

    Args:
        shape: Of the model.
        setup: How it is trained.
        gloo: Whether that is how processes exchange, as they do on CPUs: it gathers into a buffer of its own.
    """
    size, parts = parameters(shape), setup.parts
    layer, ends, head = layer_parameters(shape), end_parameters(shape), shape.vocabulary * shape.width
    moment_bytes = MOMENT_BYTES[setup.optimizer]
    if setup.lora_rank:
        trained = adapter_parameters(shape, setup.lora_rank)  # hardly anything, in 8 bits or not
        held = {
            "weights, student and base in one": setup.weight_bytes * size / parts,
            "adapters, their gradients and moments": 16 * trained / parts,
        }
        ends_gradients = layer_gradients = 0
    else:
        held = {
            "trained weights": 4 * size / parts,
            "gradients": 4 * size / parts,
            "moments": moment_bytes * size / parts,
            "base": setup.weight_bytes * size / parts,
        }
        ends_gradients, layer_gradients = 4, setup.gathered_bytes + 4  # as they come, and in fp32 to be sent
    if parts > 1:
        held["gathered: two layers and the ends, and what their gradients are added up in"] = (
            2 * setup.gathered_bytes + layer_gradients
        ) * layer + (2 * setup.weight_bytes + ends_gradients) * ends
        held["the teacher's head"] = setup.weight_bytes * head
        if gloo:
            held["gloo's own copy of the layer that it gathers"] = setup.gathered_bytes * layer
    return held


def worker(shape: Shape, lora_rank: int) -> None:
    """In each process: two steps of OPCD, with playing and checkpoints between them."""
    # What is given back to the C library goes back to the system: else it is counted as held.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    torch.set_num_threads(1)
    ranks = Ranks.connect("cpu")
    # Libraries are loaded when used, and Python's objects are as many in a model of as many layers.
    _steps(ranks, replace(shape, width=32, inner=64), lora_rank)
    gc.collect()
    before = _held()
    _steps(ranks, shape, lora_rank)
    taken = ranks.gather([_held(peak=True) - before])
    if ranks.is_main:
        print(json.dumps({"taken": taken}))


def _steps(ranks: Ranks, shape: Shape, lora_rank: int) -> None:
    def make() -> tuple[PreTrainedModel, LoRA | None]:
        model = shape.model(torch.device("cpu"), torch.float32, "tree")
        return model, LoRA(model, rank=lora_rank, alpha=16) if lora_rank else None

    copies = cast_shards(make, lambda made: made[0], 1 if lora_rank else 2, ranks)
    student, lora = copies[0]
    base = PrefixLM(copies[-1][0], within=lora.off) if lora else PrefixLM(copies[-1][0])
    opcd = OPCD(
        student,
        FrozenTeacher(base),
        lr=1e-4,
        max_nodes=16,
        chunk=8,
        gradient_checkpointing=True,
        ranks=ranks,
        engine="fsdp",
    )
    prompts = [(1, 2, 3, number) for number in range(8)]
    for _ in range(2):
        PrefixLM(student).logits(ranks.share(prompts))
        examples = [
            DistillExample(student_prompt_ids=prompt, teacher_prompt_ids=(*prompt, 9), completion_ids=(5, 6))
            for prompt in ranks.share(prompts)
        ]
        opcd.step(examples)
        opcd.state()


def update_worker(shape: Shape, completions: int) -> None:
    """In each process: updates with DDP, without drawing; the main one prints the seconds of three."""
    torch.set_num_threads(1)
    ranks = Ranks.connect("cpu")
    student, base = (shape.model(torch.device("cpu"), torch.float32, "tree") for _ in range(2))
    opcd = OPCD(student, FrozenTeacher(PrefixLM(base)), lr=1e-5, ranks=ranks, engine="ddp")
    seconds = []
    for step in range(4):
        prompts = [
            tuple(range(step * completions + i, step * completions + i + 32)) for i in range(completions)
        ]
        examples = [
            DistillExample(
                student_prompt_ids=prompt, teacher_prompt_ids=(*prompt, 9), completion_ids=prompt[::-1]
            )
            for prompt in ranks.share(prompts)
        ]
        ranks.gather([0])  # all begin together
        started = time.perf_counter()
        opcd.step(examples)
        seconds.append(max(ranks.gather([time.perf_counter() - started])))
    if ranks.is_main:
        print(json.dumps({"taken": seconds[1:]}))  # the first step warms up


def _held(peak: bool = False) -> int:
    """Bytes of this process, now or at most since it began."""
    key = "VmHWM:" if peak else "VmRSS:"
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return 1024 * int(line.split()[1])


def measured(shape: Shape, processes: int, lora_rank: int = 0) -> list[int]:
    """Bytes that each of this many processes took at most for the model."""
    return list(map(int, _taken(processes, worker, shape, lora_rank)))


def _taken(processes: int, work: Callable[[Shape, int], None], shape: Shape, number: int) -> list[float]:
    """What workers on one core each say."""
    with tempfile.TemporaryDirectory() as folder:
        said = launch(processes, work, shape, number, said=Path(folder) / "said")
    [line] = [line for line in said.splitlines() if line.startswith('{"taken"')]
    taken: list[float] = json.loads(line)["taken"]
    return taken


def compare_update(shape: Shape, console: Console, *, completions: int = 48, turns: int = 5) -> float:
    """Print what an update takes on one process and on two; returns how many times as fast two are.

    Args:
        shape: Of the model.
        console: Where to print.
        completions: Of an update, on all processes together. By default as many as make whole passes of 768
            tokens, twice as many on one process as on each of two.
        turns: Each is one process and then two; the median of their ratios counts.
    """
    console.print(
        f"update, {completions} completions of 32 tokens, {parameters(shape) / 1e6:.0f}M weights, ddp, "
        "one core for a process; medians of 3 updates"
    )
    ratios = []
    for _ in range(turns):
        one, two = (statistics.median(_taken(n, update_worker, shape, completions)) for n in (1, 2))
        ratios.append(one / two)
        console.print(f"{one:.2f} s on one process, {two:.2f} s on two: {ratios[-1]:.2f} times as fast")
    ratio = statistics.median(ratios)
    console.print(f"median: {ratio:.2f} times as fast, wanted {FASTER}")
    return ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One optimiser step's work."""

    completions: int = 64
    completion: int = 1024
    student_prompt: int = 128
    teacher_prompt: int = 256

    def tokens(self, processes: int) -> tuple[int, int]:
        """What goes through student and teacher on each process."""
        each = -(-self.completions // processes)
        return each * (self.student_prompt + self.completion), each * (self.teacher_prompt + self.completion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is assumed of a GPU and its network."""

    memory: float = 80e9
    flops: float = 989e12
    """Dense bf16 operations per second of an H100, by its data sheet."""
    mfu: float = 0.37
    """Of them what an update reaches: measured with 1.7B and 8B on one H100 (docs/speed.md)."""
    memory_speed: float = 0.6 * 3.35e12
    """Bytes per second, of which decoding is a matter: 60% of the data sheet's."""
    inside: float = 300e9
    """Bytes per second that each GPU sends inside a machine, over NVLink."""
    between: float = 40e9
    """The same between machines, with a 400 Gb/s adapter for each GPU."""
    size: int = 8
    """GPUs of a machine."""
    disk: float = 2e9
    """Bytes per second that a machine writes, all its processes together."""
    pass_tokens: int = 32_768
    """Of one forward and backward pass, at most."""


def traffic(shape: Shape, setup: Setup, step: Step, machine: Machine) -> dict[str, float]:
    """Bytes that one process sends per optimiser step."""
    others = (setup.processes - 1) / setup.processes
    trained = adapter_parameters(shape, setup.lora_rank) if setup.lora_rank else parameters(shape)
    if setup.engine == "ddp":
        return {"gradients, all-reduced": 2 * 4 * trained * others}
    student, teacher = (-(-tokens // machine.pass_tokens) for tokens in step.tokens(setup.processes))
    layers = shape.layers * layer_parameters(shape)
    weights = (setup.gathered_bytes * layers + setup.weight_bytes * end_parameters(shape)) * others
    return {
        "weights, gathered for the student, forward and backward": 2 * student * weights,
        "weights, gathered for the teacher": teacher * weights,
        "gradients, scattered": student * 4 * trained * others,
    }


def engine_processes(shape: Shape, setup: Setup, machine: Machine) -> int | None:
    """How many processes have to share a vLLM for its weights to fit; ``None`` where all are too few."""
    room = ENGINE_SHARE * MEMORY * machine.memory
    numbers = (n for n in range(1, setup.processes + 1) if setup.processes % n == 0)
    return next((n for n in numbers if 2 * parameters(shape) / n <= room), None)


def seconds(shape: Shape, setup: Setup, step: Step, machine: Machine) -> dict[str, float]:
    """Of one optimiser step, where replies are drawn by vLLM in the processes."""
    size = parameters(shape)
    student, teacher = step.tokens(setup.processes)
    products = (6 if not setup.lora_rank else 4) + 2  # with activations that are computed again
    computing = (products * student + 2 * teacher) * size / (machine.mfu * machine.flops)
    speed = machine.inside if setup.processes <= machine.size else machine.between
    sending = sum(traffic(shape, setup, step, machine).values()) / speed
    together = engine_processes(shape, setup, machine) or setup.processes
    drawing = step.completion * 2 * size / together / machine.memory_speed
    return {
        f"drawing, --policy vllm:{together}: each token reads the weights in bf16": drawing,
        "computing the update": computing,
        "sending, which goes on beside it": sending,
        "step: drawing, and the longer of the two": drawing + max(computing, sending),
    }


def checkpoint(shape: Shape, setup: Setup, machine: Machine) -> tuple[float, float]:
    """Bytes that one process writes, the main one with ddp, and the seconds that it takes."""
    if setup.lora_rank:
        trained, moment_bytes = adapter_parameters(shape, setup.lora_rank), 8.0
    else:
        trained, moment_bytes = parameters(shape), MOMENT_BYTES[setup.optimizer]
    mine = (4 + moment_bytes) * trained / setup.parts
    return mine, mine * min(setup.parts, machine.size) / machine.disk


def print_costs(shape: Shape, setup: Setup, step: Step, machine: Machine, console: Console) -> None:
    """Print what each process takes, sends, and how long a step lasts."""
    held = memory(shape, setup)
    left = machine.memory - sum(held.values())
    how = f"LoRA of rank {setup.lora_rank}" if setup.lora_rank else "all weights"
    table = Table(
        title=f"{shape.name}: {parameters(shape) / 1e9:.2f}B parameters, {how}, {setup.engine}, "
        f"{setup.processes} processes, each:",
        title_justify="left",
    )
    table.add_column("")
    table.add_column("", justify="right", no_wrap=True)
    for name, value in held.items():
        table.add_row(name, f"{value / 1e9:,.1f} GB")
    table.add_row("memory in all", f"{sum(held.values()) / 1e9:,.1f} GB")
    fits = "left for activations and loss" if left > 0 else "DOES NOT FIT: missing"
    table.add_row(f"of {machine.memory / 1e9:.0f} GB {fits}", f"{abs(left) / 1e9:,.1f} GB", end_section=True)
    for name, value in traffic(shape, setup, step, machine).items():
        table.add_row(f"sent per step: {name}", f"{value / 1e9:,.1f} GB")
    table.rows[-1].end_section = True
    for name, value in seconds(shape, setup, step, machine).items():
        table.add_row(name, f"{value:,.1f} s")
    if engine_processes(shape, setup, machine) is None:
        table.add_row(f"vLLM, with {MEMORY:.0%} of the memory, DOES NOT FIT: take servers", "")
    table.rows[-1].end_section = True
    written, duration = checkpoint(shape, setup, machine)
    who = ", written by each" if setup.parts > 1 else ""
    table.add_row(f"checkpoint{who}", f"{written / 1e9:,.1f} GB")
    table.add_row("writing it", f"{duration:,.1f} s")
    console.print(table)
    console.print(f"assumed: {step}, {machine}; attention's own products and the host's work are left out")


def compare_memory(shape: Shape, console: Console) -> bool:
    """Print peaks beside the formula; whether they are what they may be."""
    table = Table(title=f"Peak of a process, {parameters(shape) / 1e6:.0f}M random weights, fsdp, CPU")
    for column in ("processes", "", "formula, MB", "peaks, MB", "largest to formula"):
        table.add_column(column, justify="right")
    is_fine = True
    for processes in (2, 4):
        for rank in (0, 8):
            expected = sum(memory(shape, Setup(processes=processes, lora_rank=rank), gloo=True).values())
            taken = measured(shape, processes, rank)
            # The main process has the whole while it is sent, which may be more than what it then keeps.
            ratio = max(taken[1:] if rank else taken) / expected
            is_fine = is_fine and ratio <= ALLOWED
            peaks = " ".join(f"{peak / 1e6:.0f}" for peak in taken)
            how = "LoRA, main process apart" if rank else "all weights"
            table.add_row(str(processes), how, f"{expected / 1e6:.0f}", peaks, f"{ratio:.2f}")
    console.print(table)
    return is_fine


def main(
    shape: str = "qwen3-8b",
    processes: int = 8,
    engine: Sharding = "fsdp",
    lora_rank: int = 0,
    bf16: bool = False,
    optimizer: OptimizerKind = "adamw",
    gpu_memory: float = 80.0,
    dry_run: bool = False,
    update: bool = False,
) -> int:
    """Compute what a run takes (--dry-run), or measure on CPUs that the formula of memory holds.

    What is computed is for GPUs with bfloat16, where --precision is mixed unless a run is told otherwise.

    Args:
        shape: Of the model; see SHAPES.
        processes: GPUs.
        engine: How they share it.
        lora_rank: Of adapters; 0 trains all weights.
        bf16: Whether what is not trained is in bfloat16 (--precision bfloat16 of a run, for LoRA).
        optimizer: As of a run.
        gpu_memory: Of one GPU, in GB.
        dry_run: Start nothing.
        update: Measure an update on two processes against one, in place of memory.
    """
    console = Console(width=110)
    if update:
        return 0 if compare_update(UPDATED, console) >= FASTER else 1
    if not dry_run:
        return 0 if compare_memory(FULL, console) else 1
    if shape not in SHAPES:
        console.print(f"no shape {shape!r}: take one of {', '.join(SHAPES)}")
        return 2
    setup = Setup(
        processes=processes,
        engine=engine,
        lora_rank=lora_rank,
        weight_bytes=2 if bf16 else 4,
        gathered_bytes=2,
        optimizer=optimizer,
    )
    print_costs(SHAPES[shape], setup, Step(), Machine(memory=1e9 * gpu_memory), console)
    return 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m tests.benchmarks.cluster"))
