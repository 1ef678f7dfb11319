"""What has to be seen on a GPU: exactness, the loss at scale, OPCD steps in real shapes, decoding.

    python -m tests.gpu_check --json figures.json     at most six minutes on one H100
    python -m tests.gpu_check --tiny                  the same code in seconds, anywhere

Weights are random, so nothing is downloaded; all it needs is torch, transformers, gymnasium and this checkout
(adapters also peft). Times are medians of repeated runs on a warm device, in this process alone.
Shape letters: T positions, V vocabulary, D hidden size.
"""

import argparse
import copy
import gc
import importlib.util
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast
from unittest.mock import patch

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config

from agents.policies.local import HFPolicy
from agents.policies.policy import Sampling
from distill import opcd as opcd_module
from distill.chunked_loss import chunked_kl
from distill.examples import DistillExample
from distill.lm import support, tree_attention
from distill.lm.compiled import as_they_are, compiled_layers
from distill.lm.support import language_model
from distill.lm.ways import Support, Way, set_support
from distill.loss import topk_reverse_kl
from distill.opcd import OPCD
from distill.teacher import FrozenTeacher

Row = dict[str, Any]
TEACHER_TOKENS = 16_384
"""Of one of the teacher's passes."""
MIN_NEW = 20
"""Tokens of a first run, which warms up: more than are drawn from tables."""
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}
"""Dense bf16 operations per second, by the vendor's data sheets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's sizes."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    inner: int
    is_tied: bool
    vocabulary: int = 151_936
    head_width: int = 128
    lora_rank: int = 0

    def model(self, device: torch.device, dtype: torch.dtype, way: Way) -> PreTrainedModel:
        """Random weights."""
        config = Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_width,
            max_position_embeddings=8192,
            tie_word_embeddings=self.is_tied,
        )
        torch.manual_seed(0)
        with torch.device(device):
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=tree_attention.NAME if way == "tree" else "sdpa"
            )
        model.eval()
        set_support(model, Support(way=way, attention=model.config._attn_implementation))
        return cast("PreTrainedModel", model)


SHAPES: Mapping[str, Shape] = {
    "qwen3-0.6b": Shape(name="0.6B", layers=28, width=1024, heads=16, kv_heads=8, inner=3072, is_tied=True),
    "qwen3-1.7b": Shape(name="1.7B", layers=28, width=2048, heads=16, kv_heads=8, inner=6144, is_tied=True),
    "qwen3-8b": Shape(name="8B", layers=36, width=4096, heads=32, kv_heads=8, inner=12288, is_tied=False),
    "qwen3-32b": Shape(name="32B", layers=64, width=5120, heads=64, kv_heads=8, inner=25600, is_tied=False),
    "llama-70b": Shape(
        name="70B",
        layers=80,
        width=8192,
        heads=64,
        kv_heads=8,
        inner=28672,
        is_tied=False,
        vocabulary=128_256,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of the checks."""

    exact: tuple[int, int, int] = (256, 8192, 512)
    """T, V, D."""
    large: tuple[int, int, int] = (8192, 151_936, 4096)
    shapes: tuple[Shape, ...] = (
        SHAPES["qwen3-0.6b"],
        SHAPES["qwen3-1.7b"],
        replace(SHAPES["qwen3-8b"], name="8B LoRA", lora_rank=16),
    )
    completions: int = 64
    completion: int = 1024
    student_prompt: int = 128
    teacher_prompt: int = 256
    decoded: int = 512
    repeats: int = 3


TINY = Sizes(
    exact=(16, 512, 32),
    large=(64, 1024, 64),
    shapes=tuple(
        Shape(
            name=name, layers=2, width=64, heads=4, kv_heads=2, inner=128, is_tied=not rank, vocabulary=512,
            head_width=16, lora_rank=rank,
        )
        for name, rank in (("tiny", 0), ("tiny LoRA", 4))
    ),
    completions=8, completion=32, student_prompt=8, teacher_prompt=16, decoded=24, repeats=1,
)  # fmt: skip


def exactness(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """The chunked loss and its gradients against float64, relative to their norms."""
    for dtype in (torch.float32, torch.bfloat16):
        student_TD, head_VD, teacher_TD, teacher_VD = _inputs(sizes.exact, device, dtype)
        mine = _graded(student_TD, head_VD)
        result = chunked_kl("reverse", mine[0], mine[1], teacher_TD, teacher_VD, k=64, chunk=64)
        result.loss.backward()
        exact = _graded(student_TD.double(), head_VD.double())
        logits_TV = teacher_TD.double() @ teacher_VD.double().T
        reference = topk_reverse_kl(exact[0] @ exact[1].T, logits_TV, k=64).sum()
        reference.backward()
        pairs = {
            "loss": (result.loss, reference),
            "d_hidden": (mine[0].grad, exact[0].grad),
            "d_head": (mine[1].grad, exact[1].grad),
        }
        for name, (got, wanted) in pairs.items():
            assert got is not None
            assert wanted is not None
            error = ((got.double() - wanted).norm() / wanted.norm()).item()
            limit = 1e-4 if dtype == torch.float32 else 2e-2
            yield {"what": f"{name} {_name(dtype)}", "relative error": error, "ok": error < limit}


def large_loss(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """Ours against the plain form and against the matrix products that neither can do without."""
    student_TD, head_VD, teacher_TD, teacher_VD = _inputs(sizes.large, device, torch.bfloat16)
    grad_TV = torch.empty((sizes.large[0], sizes.large[1]), dtype=torch.bfloat16, device=device).normal_()

    def products() -> None:
        student_TD @ head_VD.T
        teacher_TD @ teacher_VD.T
        grad_TV @ head_VD
        grad_TV.T @ student_TD

    def ours(chunk: int) -> None:
        mine = _graded(student_TD, head_VD)
        chunked_kl("reverse", mine[0], mine[1], teacher_TD, teacher_VD, chunk=chunk).loss.backward()

    def plain() -> None:
        mine = _graded(student_TD, head_VD)
        with torch.no_grad():
            teacher_TV = (teacher_TD @ teacher_VD.T).float()
        topk_reverse_kl((mine[0] @ mine[1].T).float(), teacher_TV).sum().backward()

    floor, _ = _measured(products, sizes.repeats, device)
    yield {"what": "the four products", "seconds": floor}
    for chunk in (1024, 3534, 8192):
        seconds, peak = _measured(lambda chunk=chunk: ours(chunk), sizes.repeats, device)  # type: ignore[misc]
        yield {
            "what": f"chunked, {chunk}",
            "seconds": seconds,
            "of the products": seconds / floor,
            "GiB": peak,
        }
    seconds, peak = _measured(plain, sizes.repeats, device)
    yield {"what": "plain", "seconds": seconds, "of the products": seconds / floor, "GiB": peak}


def steps(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """Whole OPCD steps: tokens per second are the completions', operations those of the model's matrices."""
    small = sizes.shapes[0]
    few = replace(sizes, completions=max(1, sizes.completions // 8))
    yield _step(few, small, device, "tree")
    yield _step(few, small, device, "padded")
    with (
        patch.object(support, "compile_layers", lambda _: None),
        patch.object(opcd_module, "compile_layers", lambda _: None),
    ):
        yield {**_step(sizes, small, device, "padded"), "compute": "padded, not compiled"}
    for shape in sizes.shapes:
        if not shape.lora_rank or importlib.util.find_spec("peft") is not None:
            yield _step(sizes, shape, device, "padded")


def _step(sizes: Sizes, shape: Shape, device: torch.device, way: Way) -> Row:
    gc.collect()
    _clear(device)
    within: dict[str, Any] = {}
    if shape.lora_rank:
        from distill.lora import LoRA

        model = shape.model(device, torch.bfloat16, way)
        lora = LoRA(model, rank=shape.lora_rank, alpha=32)
        teacher, within = model, {"within": lora.off}
    else:
        model = shape.model(device, torch.float32, way)
        frozen: Any = copy.deepcopy(model)
        teacher = frozen.to(torch.bfloat16).requires_grad_(False)
    compute = torch.bfloat16 if model.dtype == torch.float32 else None
    opcd = OPCD(
        model,
        FrozenTeacher(language_model(teacher, way, max_nodes=TEACHER_TOKENS, **within)),
        lr=1e-6,
        compute_dtype=compute,
        compute=way,
    )
    generator = torch.Generator().manual_seed(0)

    def tokens(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(shape.vocabulary, (size,), generator=generator).tolist())

    def batch() -> list[DistillExample]:
        return [
            DistillExample(
                student_prompt_ids=tokens(sizes.student_prompt),
                teacher_prompt_ids=tokens(sizes.teacher_prompt),
                completion_ids=tokens(sizes.completion),
            )
            for _ in range(sizes.completions)
        ]

    times = []
    for _ in range(1 + sizes.repeats // 2):
        examples = batch()
        _wait(device)
        started = time.perf_counter()
        stats = opcd.step(examples)
        _wait(device)
        times.append(time.perf_counter() - started)
    seconds = min(times)
    scored = sizes.completions * sizes.completion
    operations = scored_operations(sizes, shape)
    return {
        "what": shape.name,
        "compute": way,
        "completions": sizes.completions,
        "seconds": seconds,
        "first": times[0],
        "tokens/s": scored / seconds,
        "MFU": operations / seconds / _peak(device),
        "GiB": _peak_gib(device),
        "KL": stats.kl,
    }


def decoding(sizes: Sizes, device: torch.device) -> Iterator[Row]:
    """Long replies by the transformers policy, beside plain ``generate``."""
    shape = sizes.shapes[1 if len(sizes.shapes) > 2 else 0]
    gc.collect()
    _clear(device)
    model: Any = shape.model(device, torch.bfloat16, "padded")
    model.generation_config.eos_token_id = None
    generator = torch.Generator().manual_seed(0)
    size = (sizes.completions, sizes.student_prompt)
    ids_BT = torch.randint(shape.vocabulary, size, generator=generator)
    policy = HFPolicy(model, _tokenizer(), compute="padded")
    prompts = [tuple(row) for row in ids_BT.tolist()]

    def ours(new: int) -> None:
        policy.complete(prompts, Sampling(max_tokens=new), range(len(prompts)))

    def plain(new: int) -> None:
        ids = ids_BT.to(device)
        with as_they_are(compiled_layers(model)):
            model.generate(ids, do_sample=True, top_k=0, max_new_tokens=new, pad_token_id=0)

    for name, work in (("policy", ours), ("generate", plain)):
        work(MIN_NEW)
        _wait(device)
        started = time.perf_counter()
        work(sizes.decoded)
        _wait(device)
        seconds = time.perf_counter() - started
        drawn = sizes.completions * sizes.decoded
        yield {"what": f"{shape.name}, {name}", "seconds": seconds, "tokens/s": drawn / seconds}


def _tokenizer() -> PreTrainedTokenizerFast:
    """A policy wants one; nothing is asked of it here."""
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"x": 0}, unk_token="x")))
    fast.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return fast


def scored_operations(sizes: Sizes, shape: Shape) -> float:
    """Of one step, in multiplications and additions: what the model's matrices and attention must compute.

    Weights that are trained cost 6 per token, frozen ones under adapters 4, the teacher's 2; nothing that is
    computed twice counts.
    """
    attention = shape.head_width * (2 * shape.heads + 2 * shape.kv_heads) * shape.width
    body = shape.layers * (attention + 3 * shape.width * shape.inner)
    head = shape.vocabulary * shape.width
    trained = 4 if shape.lora_rank else 6
    student = sizes.completions * (sizes.student_prompt + sizes.completion)
    teacher = sizes.completions * (sizes.teacher_prompt + sizes.completion)
    scored = sizes.completions * sizes.completion
    pairs = {
        name: sizes.completions * (prompt + sizes.completion) ** 2 / 2
        for name, prompt in (("student", sizes.student_prompt), ("teacher", sizes.teacher_prompt))
    }
    per_pair = 4 * shape.layers * shape.heads * shape.head_width
    return (
        body * (trained * student + 2 * teacher)
        + head * scored * (trained + 2)
        + per_pair * (3 * pairs["student"] + pairs["teacher"])
    )


def _inputs(
    size: tuple[int, int, int], device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    positions, vocabulary, width = size
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    head_VD = normal(vocabulary, width) * 2 * width**-0.5
    student_TD = normal(positions, width)
    return student_TD, head_VD, student_TD + 0.3 * normal(positions, width), head_VD


def _graded(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(tensor.detach().clone().requires_grad_() for tensor in tensors)


def _measured(work: Callable[[], None], repeats: int, device: torch.device) -> tuple[float, float]:
    """Seconds, the median, and the peak in GiB beyond what was there; NaN where it does not fit."""
    _clear(device)
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    times = []
    try:
        for _ in range(1 + repeats):
            _wait(device)
            started = time.perf_counter()
            work()
            _wait(device)
            times.append(time.perf_counter() - started)
    except torch.OutOfMemoryError:
        return float("nan"), float("nan")
    return statistics.median(times[1:]), _peak_gib(device) - before / 2**30


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _clear(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")


def _peak(device: torch.device) -> float:
    name = torch.cuda.get_device_name() if device.type == "cuda" else ""
    return next((peak for card, peak in BF16_PEAK.items() if card in name), float("nan"))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


SECTIONS: dict[str, Callable[[Sizes, torch.device], Iterator[Row]]] = {
    "exactness": exactness,
    "loss": large_loss,
    "steps": steps,
    "decoding": decoding,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a CPU")
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--json", help="a file for the figures")
    asked = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}", flush=True)
    rows: list[Row] = []
    started = time.perf_counter()
    for section in asked.only:
        try:
            for row in SECTIONS[section](TINY if asked.tiny else Sizes(), device):
                rows.append({"section": section, **row})
                print(_line(rows[-1]), f"[{time.perf_counter() - started:.0f} s]", flush=True)
        except Exception as error:  # the other sections are worth having
            traceback.print_exc()
            rows.append({"section": section, "what": str(error).splitlines()[0], "ok": False})
    if asked.json:
        with open(asked.json, "w", encoding="utf-8") as file:
            json.dump({"card": card, "torch": torch.__version__, "rows": rows}, file, indent=2)
    return int(not all(row.get("ok", True) for row in rows))


def _line(row: Row) -> str:
    return "  ".join(
        f"{name} {value:.4g}"
        if isinstance(value, float)
        else f"{name} {value}"
        if name not in ("section", "what")
        else f"{value}"
        for name, value in row.items()
    )


if __name__ == "__main__":
    sys.exit(main())
