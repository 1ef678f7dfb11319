"""Some optimiser steps on however many processes were started; the main one saves what came out.

With all weights and with adapters: three steps from the beginning, their state after the first; and two
more steps from such a state in FROM.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from agents.run.parts import Joined
from distill.examples import DistillExample
from distill.lm.freezing import freeze_unreached
from distill.lm.prefix_lm import PrefixLM
from distill.lm.shards import whole
from distill.lm.support import language_model
from distill.lora import LoRA
from distill.opcd import OPCD
from distill.parallel import Ranks, Sharding, cast_shards, shard
from distill.teacher import FrozenTeacher
from tests.conftest import tiny_llama
from tests.distill.test_families import FAMILIES, tiny

GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
"""By which shards are put together; torch 2.13 has a new name for it."""
EXAMPLES = [
    DistillExample(student_prompt_ids=x, teacher_prompt_ids=(*x, 9, 7), completion_ids=y)
    for x, y in (
        ((5, 6), (20, 21)),
        ((5, 6), (20, 22, 23)),
        ((5, 8, 3), (30,)),
        ((4,), (9, 9)),
        ((7, 7), (8,)),
    )
]


def student(what: str, seed: int) -> PreTrainedModel:
    model = tiny_llama(seed, torch.float64)
    # As a vision tower is for text: the loss never reaches it, and DDP would wait for its gradients.
    model.add_module("tower", torch.nn.Linear(4, 4, dtype=torch.float64))
    if what == "lora":
        LoRA(model, rank=2, alpha=4)
    return model


def main(engine: str, out: str, start: str = "") -> None:
    ranks = Ranks.connect("cpu")

    def placed(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
        """Of shards only the main process ever makes the whole."""
        if engine == "ddp" or ranks.size == 1:
            return make()

        def frozen() -> PreTrainedModel:
            model = make()
            freeze_unreached(model)
            return model

        [model] = cast_shards(frozen, lambda model: model, 1, ranks)
        return model

    def trainer(what: str, seed: int) -> OPCD:
        return OPCD(
            placed(lambda: student(what, seed)),
            FrozenTeacher(PrefixLM(placed(lambda: tiny_llama(1, torch.float64)))),
            lr=1e-3,
            k=16,
            max_nodes=4,  # several passes, and not the same number on every process
            ranks=ranks,
            engine=cast(Sharding, engine),
        )

    def save(name: str, mine: Mapping[str, torch.Tensor]) -> None:
        parts = [part for part in ranks.gather([mine]) if part]
        if ranks.is_main:
            tensors = Joined(parts)
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, Path(out) / name)

    for what in ("full", "lora"):
        opcd = trainer(what, 0)
        stats = [opcd.step(ranks.share(EXAMPLES)).as_dict()]
        assert not any("tower" in name for name in opcd.parameters)
        save(f"{what}-1.safetensors", opcd.state())
        stats += [opcd.step(ranks.share(EXAMPLES)).as_dict() for _ in range(2)]
        save(f"{what}-3.safetensors", opcd.state())
        # Each process asks for as much as it likes, in as many forward passes, and the main one for more.
        played = PrefixLM(opcd.student, max_nodes=4)
        prefixes = [x.student_prompt_ids + x.completion_ids for x in EXAMPLES]
        logits = ranks.gather([played.logits(prefixes[: 2 + ranks.rank])])
        more = ranks.from_main(partial(played.logits, prefixes))
        for found in logits:
            torch.testing.assert_close(found, more[: len(found)])
        save(f"{what}-policy.safetensors", {"logits": more} if ranks.is_main else {})
        if ranks.is_main:
            (Path(out) / f"{what}.json").write_text(json.dumps(stats))
        if start:
            resumed = trainer(what, 0)
            resumed.load_state(load_file(Path(start) / f"{what}-1.safetensors"))
            for _ in range(2):
                resumed.step(ranks.share(EXAMPLES))
            save(f"{what}-resumed.safetensors", resumed.state())


def mixed(out: str) -> None:
    """Products in bfloat16, with DDP, and with FSDP2, which gathers linear layers in bfloat16."""
    ranks = Ranks.connect("cpu")
    found: dict[str, Any] = {}
    for rank, name in itertools.product((0, 2), ("ddp", "fsdp")):
        student, base = (tiny_llama(seed) for seed in (0, 1))
        if rank:
            LoRA(student, rank=rank, alpha=4)
        sent: Counter[torch.dtype] = Counter()
        gather = getattr(dist, GATHER)

        def counting(output: torch.Tensor, *rest: Any, **more: Any) -> Any:
            sent[output.dtype] += output.nbytes  # noqa: B023 -- of this turn
            return gather(output, *rest, **more)  # noqa: B023

        if name == "fsdp":
            shard(base, ranks, torch.bfloat16)
        opcd = OPCD(
            student,
            FrozenTeacher(PrefixLM(base, compute_dtype=torch.bfloat16)),
            lr=1e-3,
            k=16,
            max_nodes=4,
            compute_dtype=torch.bfloat16,
            ranks=ranks,
            engine=cast(Sharding, name),
        )
        with patch.object(dist, GATHER, counting):
            stats = [opcd.step(ranks.share(EXAMPLES)).as_dict() for _ in range(2)]
            gathered = {str(dtype): size for dtype, size in sent.items()}
        # One passes a token, and the others help.
        played = ranks.from_main(partial(PrefixLM(student, compute_dtype=torch.bfloat16).logits, [(5, 6, 7)]))
        weights = {key: whole(p.detach()).flatten()[:200] for key, p in opcd.parameters.items()}
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        found[f"{name}-{rank}"] = {
            "stats": stats,
            "gathered": gathered,
            "played": played.tolist(),
            "weights": {key: weight.tolist() for key, weight in weights.items()},
        }
    if ranks.is_main:
        (Path(out) / "mixed.json").write_text(json.dumps(found))


def layers_in_layers() -> None:
    """Mamba names a layer and its part, and Zamba 2's layers share weights: shards compute the same."""
    ranks = Ranks.connect("cpu")
    kind, settings = FAMILIES["Zamba 2"]
    more = {"num_hidden_layers": 3, "layer_types": ["mamba", "hybrid", "hybrid"], "hybrid_layer_ids": [1, 2]}
    with patch.dict(FAMILIES, {"Zamba 2": (kind, settings | more)}):
        for family in ("Mamba", "Zamba 2"):
            lm = language_model(tiny(family))
            expected = lm.logits([(5, 6, 7)])
            shard(lm.model, ranks)
            assert all(isinstance(weight, DTensor) for weight in lm.model.parameters())
            torch.testing.assert_close(lm.fresh().logits([(5, 6, 7)]), expected)
