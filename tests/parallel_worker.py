"""Some optimiser steps on however many processes were started; the main one saves what came out.

python -m torch.distributed.run --nproc-per-node 2 -m tests.parallel_worker ENGINE lora|full STEPS OUT [FROM]
"""

import json
import sys
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors.torch import load_file, save_file

from agents.prefix_lm import PrefixLM
from distill.lora import LoRA
from distill.opcd import OPCD
from distill.parallel import Ranks
from distill.teacher import FrozenTeacher
from tests.conftest import tiny_llama
from tests.test_opcd import EXAMPLES


def main(engine: str, what: str, steps: str, out: str, start: str = "") -> None:
    torch.manual_seed(0)
    ranks = Ranks.connect("cpu")
    student = tiny_llama(0, torch.float64)
    if what == "lora":
        LoRA(student, rank=2, alpha=4)
    opcd = OPCD(
        student,
        FrozenTeacher(PrefixLM(tiny_llama(1, torch.float64))),
        lr=1e-3,
        k=16,
        max_nodes=4,  # several passes, and not the same number on every process
        ranks=ranks,
        engine=cast(Literal["ddp", "fsdp"], engine),
    )
    if start:
        opcd.load_state(load_file(start) if ranks.is_main else {})
    stats = [opcd.step(ranks.share(EXAMPLES)).as_dict() for _ in range(int(steps))]
    state = opcd.state()
    policy = tiny_llama(5, torch.float64)
    if what == "lora":
        LoRA(policy, rank=2, alpha=4)
    opcd.copy_to(policy)
    if ranks.is_main:
        weights = {f"policy/{name}": p.detach() for name, p in policy.named_parameters() if p.requires_grad}
        save_file({k: v.contiguous() for k, v in {**state, **weights}.items()}, out)
        Path(out).with_suffix(".json").write_text(json.dumps(stats))


if __name__ == "__main__":
    main(*sys.argv[1:])
