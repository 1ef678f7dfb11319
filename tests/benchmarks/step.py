"""How fast and lean the distillation is, against what one would use otherwise, in the same run.

    pip install 'opcd-gym[bench]'
    python -m tests.benchmarks.step

Every measurement is a process of its own, so that peaks of memory are its own; sides that are compared take
turns.
JSON goes to standard output, tables to standard error.
"""

import copy
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import transformers
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from agents.run.folder import peak_rss_bytes
from agents.training import sample_examples
from distill.chunked_loss import ScoredTopK, chunked_topk_reverse_kl, topk_ids
from distill.examples import DistillExample
from distill.lm.load import load_model
from distill.lm.prefix_lm import PrefixLM
from distill.loss import topk_reverse_kl
from distill.opcd import OPCD
from distill.parallel import Engine, Ranks, is_main_process
from distill.teacher import FrozenTeacher

Part = Literal["step", "loss", "scaling", "processes"]
GIB = 1 << 30
RULES = "You are good at mathematics. Answer with the number only."
INSIGHT = "Experience: Add the ones first and carry, then add the tens."
NEW_TOKENS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """Measure the distillation engine against its baselines."""

    parts: tuple[Part, ...] = ("step", "loss", "scaling", "processes")
    """`step`: a whole OPCD step against TRL's SDFTTrainer; `loss`: the loss alone against its matrix
    products; `scaling`: training as the number of tokens grows; `processes`: two processes against one."""
    repeats: int = 2
    """Times that the sides take turns."""
    steps: int = 4
    """Optimiser steps per turn, after one to warm up."""
    positions: int = 8192
    """T of the loss."""
    vocabulary: int = 152_000
    """V of the loss."""
    hidden: int = 1024
    """D of the loss."""
    prompts: int = 16
    """Completions per step, for the step."""
    global_batch: int = 64
    """Completions per step, for the processes."""
    tokens: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    """Completion tokens per step, for the scaling."""

    def __post_init__(self) -> None:
        sizes = (
            self.repeats,
            self.steps,
            self.positions,
            self.vocabulary,
            self.hidden,
            *self.tokens,
            self.prompts,
            self.global_batch,
        )
        if min(sizes) < 1:
            raise ValueError("every number must be at least 1")


# --- what is measured, each in a process of its own ----------------------------------------------


def step_ours(
    steps: int, prompts: int, gradient_checkpointing: bool = False, engine: Engine = "ddp"
) -> dict[str, Any]:
    """Generate, teacher, update, with this toolkit."""
    loaded = load_model("smollm2")
    ranks = Ranks.connect("cpu")
    student = HFPolicy(copy.deepcopy(loaded.model), loaded.tokenizer)
    teacher = FrozenTeacher(PrefixLM(loaded.model))
    trained = copy.deepcopy(student.lm.model) if engine == "fsdp" else student.lm.model
    trainer = OPCD(
        trained,
        teacher,
        lr=1e-5,
        k=256,
        mode="tail",
        gradient_checkpointing=gradient_checkpointing,
        ranks=ranks,
        engine=engine,
    )
    seconds, parts, tokens = [], [], []
    for step in range(steps + 1):
        pairs = [(_prompt(question), _prompt(question, INSIGHT)) for question in _questions(step, prompts)]
        started = time.perf_counter()
        examples = sample_examples(
            student,
            student.encode,
            ranks.share(pairs),
            Sampling(max_tokens=NEW_TOKENS),
            ranks.share([prompts * step + i for i in range(prompts)]),
        )
        student.clear()
        sampled = time.perf_counter()
        trainer.step(examples)
        if trained is not student.lm.model:
            trainer.copy_to(student.lm.model)
        seconds.append(time.perf_counter() - started)
        parts.append(sampled - started)
        tokens.append(sum(len(e.completion_ids) for e in examples))
    return {"seconds": seconds[1:], "generate_seconds": parts[1:], "completion_tokens": tokens[1:]}


def step_trl(steps: int, prompts: int, gradient_checkpointing: bool) -> dict[str, Any]:
    """The same work with TRL's SDFTTrainer."""
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    loaded = load_model("smollm2")
    loaded.model.set_attn_implementation("sdpa")
    rows: dict[str, list[Any]] = {"prompt": [], "privileged_context": []}
    for step in range(steps + 1):
        for question in _questions(step, prompts):
            rows["prompt"].append(
                [{"role": m.role, "content": m.content} for m in _prompt(question).messages]
            )
            rows["privileged_context"].append(INSIGHT)

    class Clock(transformers.TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.times.append(time.perf_counter())

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SDFTTrainer(
            model=loaded.model,
            processing_class=loaded.tokenizer,
            train_dataset=Dataset.from_dict(rows),
            callbacks=[clock],
            args=SDFTConfig(
                output_dir=folder,
                per_device_train_batch_size=prompts,
                max_steps=steps + 1,
                max_completion_length=NEW_TOKENS,
                temperature=1.0,
                distillation_mode="topk_logits",
                distillation_topk=256,
                distillation_add_tail=True,
                distillation_alpha=1.0,
                teacher_prompt_template="{prompt}\n{privileged_context}",
                learning_rate=1e-5,
                gradient_checkpointing=gradient_checkpointing,
                bf16=False,
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        trainer.train()
    # From the end of a step to the end of the next: fetching a batch is generating it.
    return {"seconds": [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]}


def loss_ours(
    positions: int, vocabulary: int, hidden: int, head: bool, scored: bool, chunk: int = 256
) -> dict[str, Any]:
    """The chunked loss, forward and backward, and the matrix products that it cannot do without.

    Args:
        positions: T.
        vocabulary: V.
        hidden: D.
        head: Whether the student's head is trained.
        scored: Whether the teacher is given by its top-k log-probabilities.
        chunk: Positions at a time.
    """
    student_TD, student_VD, teacher_TD, teacher_VD = _loss_inputs(positions, vocabulary, hidden, head)
    scores = None
    if scored:
        index_TK = topk_ids(student_TD, student_VD, k=256, chunk=64)
        scores = ScoredTopK(index_TK, torch.full(index_TK.shape, -8.0))
    teacher = (None, None) if scored else (teacher_TD, teacher_VD)
    before = _resident_bytes()
    started = time.perf_counter()
    result = chunked_topk_reverse_kl(student_TD, student_VD, *teacher, chunk=chunk, scored=scores)
    result.loss.backward()
    seconds = time.perf_counter() - started
    extra = peak_rss_bytes() - before
    products = 2 + (not scored) + head
    logits_CV, grad_CD = torch.empty(chunk, vocabulary), torch.empty(chunk, hidden)
    grad_VD = torch.zeros(vocabulary, hidden) if head else None
    started = time.perf_counter()
    with torch.no_grad():
        for start in range(0, positions, chunk):
            rows = slice(start, start + chunk)
            out_CV = logits_CV[: len(student_TD[rows])]
            torch.mm(student_TD[rows], student_VD.T, out=out_CV)
            if not scored:
                torch.mm(teacher_TD[rows], teacher_VD.T, out=out_CV)
            torch.mm(out_CV, student_VD, out=grad_CD[: len(out_CV)])
            if grad_VD is not None:
                grad_VD.addmm_(out_CV.T, student_TD[rows])
    floor = time.perf_counter() - started
    grads = sum(t.grad.nbytes for t in (student_TD, student_VD) if t.grad is not None)
    return {
        "seconds": [seconds],
        "products": products,
        "products_seconds": [floor],
        "extra_bytes": extra,
        "of_that_gradients": grads,
    }


def loss_plain(positions: int, vocabulary: int, hidden: int) -> dict[str, Any]:
    """Logits and autograd."""
    student_TD, student_VD, teacher_TD, teacher_VD = _loss_inputs(positions, vocabulary, hidden, True)
    before = _resident_bytes()
    started = time.perf_counter()
    with torch.no_grad():
        teacher_TV = teacher_TD @ teacher_VD.T
    topk_reverse_kl(student_TD @ student_VD.T, teacher_TV).sum().backward()
    return {"seconds": [time.perf_counter() - started], "extra_bytes": peak_rss_bytes() - before}


def training(tokens: int) -> dict[str, Any]:
    """An update on ``tokens`` completion tokens: completions of 32 after prompts of 32, none alike."""
    loaded = load_model("smollm2")
    trainer = OPCD(copy.deepcopy(loaded.model), FrozenTeacher(PrefixLM(loaded.model)), lr=1e-5)
    generator = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(generator.randrange(100, 40_000) for _ in range(count))

    def examples(count: int) -> list[DistillExample]:
        made = []
        for _ in range(count):
            prompt = ids(32)
            made.append(
                DistillExample(
                    student_prompt_ids=prompt, teacher_prompt_ids=ids(16) + prompt, completion_ids=ids(32)
                )
            )
        return made

    trainer.step(examples(2))
    started = time.perf_counter()
    trainer.step(examples(max(1, tokens // 32)))
    return {"seconds": [time.perf_counter() - started]}


WORKERS: dict[str, Callable[..., dict[str, Any]]] = {
    worker.__name__: worker for worker in (step_ours, step_trl, loss_ours, loss_plain, training)
}


def _questions(step: int, count: int) -> list[str]:
    generator = random.Random(step)
    return [f"What is {generator.randint(1, 99)} + {generator.randint(1, 99)}?" for _ in range(count)]


def _prompt(question: str, insight: str = "") -> Prompt:
    content = f"{question}\n{insight}" if insight else question
    return Prompt(messages=(Message(role="system", content=RULES), Message(role="user", content=content)))


def _loss_inputs(positions: int, vocabulary: int, hidden: int, head: bool) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, std: float) -> torch.Tensor:
        return torch.empty(rows, hidden).normal_(std=std, generator=generator)

    student_TD, student_VD = normal(positions, 1.0), normal(vocabulary, 0.1)
    return (
        student_TD.requires_grad_(),
        student_VD.requires_grad_(head),
        normal(positions, 1.0),
        normal(vocabulary, 0.1),
    )


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


# --- the parts -----------------------------------------------------------------------------------


def measure(
    worker: str, *, processes: int = 1, threads: int | None = None, **settings: Any
) -> dict[str, Any]:
    """Run a worker in ``processes`` fresh processes; returns what the main one measured."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += ["-m", "tests.benchmarks.step", "--worker", worker, json.dumps(settings)]
    threaded = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=os.environ | threaded, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{worker} {settings} failed: {done.stderr.strip()[-2000:]}")
    [line] = [line for line in done.stdout.splitlines() if line.startswith('{"worker"')]
    measured = dict(json.loads(line))
    del measured["worker"]
    return measured


def take_turns(repeats: int, sides: dict[str, Callable[[], dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Measure the sides in turn, ``repeats`` times; times are put together, of memory the largest counts."""
    together: dict[str, dict[str, Any]] = {}
    for _ in range(repeats):
        for name, side in sides.items():
            for key, value in side().items():
                known = together.setdefault(name, {})
                if isinstance(value, list):
                    known[key] = [*known.get(key, []), *value]
                else:
                    known[key] = max(value, known.get(key, value))
    return together


def part_step(config: BenchConfig) -> tuple[dict[str, Any], Table]:
    """A whole step against TRL's."""
    sides = take_turns(
        config.repeats,
        {
            f"{name}{', checkpointed' if again else ''}": partial(
                measure, worker, steps=config.steps, prompts=config.prompts, gradient_checkpointing=again
            )
            for name, worker in (("opcd-gym", "step_ours"), ("TRL", "step_trl"))
            for again in (False, True)
        },
    )
    table = _table(
        f"One OPCD step: {config.prompts} sums, 32 new tokens, SmolLM2-135M",
        "seconds",
        "peak memory",
        "our time to its",
        "our memory to its",
    )
    ours = sides["opcd-gym"]
    for name, side in sides.items():
        side["median_seconds"] = statistics.median(side["seconds"])
        side["ours_to_it"] = {
            "seconds": statistics.median(ours["seconds"]) / side["median_seconds"],
            "peak_bytes": ours["peak_bytes"] / side["peak_bytes"],
        }
        ratios = [f"{side['ours_to_it'][key]:.2f}" for key in ("seconds", "peak_bytes")]
        table.add_row(name, f"{side['median_seconds']:.2f}", _gib(side["peak_bytes"]), *ratios)
    return sides, table


def part_loss(config: BenchConfig) -> tuple[dict[str, Any], Table]:
    """The loss alone against the products of hidden states, logits and heads that it cannot do without."""
    size = {"positions": config.positions, "vocabulary": config.vocabulary, "hidden": config.hidden}
    plain = min(config.positions, 512)  # at 8,192 positions it would not fit
    sides = take_turns(
        config.repeats,
        {
            "head trained": lambda: measure("loss_ours", head=True, scored=False, **size),
            "head frozen": lambda: measure("loss_ours", head=False, scored=False, **size),
            "head trained, teacher's scores given": lambda: measure(
                "loss_ours", head=True, scored=True, **size
            ),
            "plain autograd": lambda: measure("loss_plain", **{**size, "positions": plain}),
        },
    )
    table = _table(
        f"Loss, T = {config.positions}, V = {config.vocabulary}, D = {config.hidden}",
        "positions", "seconds", "its products", "ratio", "extra memory", "gradients",
    )  # fmt: skip
    for name, side in sides.items():
        side["positions"] = plain if name == "plain autograd" else config.positions
        side["median_seconds"] = statistics.median(side["seconds"])
        row = [name, str(side["positions"]), f"{side['median_seconds']:.1f}"]
        if "products" in side:
            pairs = zip(side["seconds"], side["products_seconds"], strict=True)
            side["ratio"] = statistics.median(seconds / floor for seconds, floor in pairs)
            floor = statistics.median(side["products_seconds"])
            row += [f"{side['products']} in {floor:.1f} s", f"{side['ratio']:.2f}"]
        else:
            row += ["", ""]
        gradients = side.get("of_that_gradients")
        table.add_row(*row, _gib(side["extra_bytes"]), "" if gradients is None else _gib(gradients))
    return sides, table


def part_scaling(config: BenchConfig) -> tuple[dict[str, Any], Table]:
    """Updates on more and more tokens."""
    rows = {str(tokens): measure("training", tokens=tokens) for tokens in config.tokens}
    table = _table("An update on SmolLM2-135M", "seconds", "per 1,000 tokens", "peak memory")
    for tokens, row in rows.items():
        [seconds] = row["seconds"]
        row["per_1000_tokens"] = 1000 * seconds / int(tokens)
        table.add_row(
            f"{tokens} tokens", f"{seconds:.1f}", f"{row['per_1000_tokens']:.2f}", _gib(row["peak_bytes"])
        )
    return rows, table


def part_processes(config: BenchConfig) -> tuple[dict[str, Any], Table]:
    """The same global batch on one process and on two, one core each."""
    step = partial(measure, "step_ours", steps=config.steps, prompts=config.global_batch, threads=1)
    sides: dict[str, Any] = take_turns(
        config.repeats,
        {
            "one": step,
            "two, DDP": partial(step, processes=2),
            "two, FSDP2": partial(step, processes=2, engine="fsdp"),
        },
    )
    table = _table(
        f"One OPCD step of {config.global_batch}, one core per process",
        "seconds",
        "speed-up",
        "peak memory of one",
    )
    one = statistics.median(sides["one"]["seconds"])
    for name, side in sides.items():
        side["median_seconds"] = statistics.median(side["seconds"])
        side["speed_up"] = one / side["median_seconds"]
        row = (f"{side['median_seconds']:.2f}", f"{side['speed_up']:.2f}", _gib(side["peak_bytes"]))
        table.add_row(name, *row)
    return sides, table


PARTS: dict[Part, Callable[[BenchConfig], tuple[dict[str, Any], Table]]] = {
    "step": part_step,
    "loss": part_loss,
    "scaling": part_scaling,
    "processes": part_processes,
}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


def main(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    transformers.utils.logging.disable_progress_bar()
    if args[:1] == ["--worker"]:
        _, worker, settings = args
        measured = WORKERS[worker](**json.loads(settings))
        if is_main_process():
            print(json.dumps({"worker": worker, **measured, "peak_bytes": peak_rss_bytes()}))
        return 0
    console = Console(stderr=True)
    try:
        config = tyro.cli(BenchConfig, prog="python -m tests.benchmarks.step", args=list(args))
    except ValueError as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 2
    results = {}
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for part in progress.track(config.parts, description="measuring"):
            results[part], table = PARTS[part](config)
            console.print(table)
    print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
