"""Some optimiser steps on however many processes were started; the main one saves what came out.

With all weights and with adapters: three steps from the beginning, their state after the first; and two
more steps from such a state in FROM.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from distill.examples import DistillExample
from distill.lm.prefix_lm import PrefixLM
from distill.lora import LoRA
from distill.opcd import OPCD
from distill.parallel import Engine, Ranks
from distill.teacher import FrozenTeacher
from tests.conftest import tiny_llama

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
    if what == "lora":
        LoRA(model, rank=2, alpha=4)
    return model


def main(engine: str, out: str, start: str = "") -> None:
    ranks = Ranks.connect("cpu")

    def trainer(what: str, seed: int) -> OPCD:
        return OPCD(
            student(what, seed),
            FrozenTeacher(PrefixLM(tiny_llama(1, torch.float64))),
            lr=1e-3,
            k=16,
            max_nodes=4,  # several passes, and not the same number on every process
            ranks=ranks,
            engine=cast(Engine, engine),
        )

    def save(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        if ranks.is_main:
            save_file({k: v.detach().contiguous() for k, v in tensors.items()}, Path(out) / name)

    for what in ("full", "lora"):
        opcd = trainer(what, 0)
        stats = [opcd.step(ranks.share(EXAMPLES)).as_dict()]
        save(f"{what}-1.safetensors", opcd.state())
        stats += [opcd.step(ranks.share(EXAMPLES)).as_dict() for _ in range(2)]
        save(f"{what}-3.safetensors", opcd.state())
        policy = student(what, 5)
        opcd.copy_to(policy)
        trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        save(f"{what}-policy.safetensors", trained)
        if ranks.is_main:
            (Path(out) / f"{what}.json").write_text(json.dumps(stats))
        if start:
            resumed = trainer(what, 0)
            resumed.load_state(load_file(Path(start) / f"{what}-1.safetensors") if ranks.is_main else {})
            for _ in range(2):
                resumed.step(ranks.share(EXAMPLES))
            save(f"{what}-resumed.safetensors", resumed.state())
