"""How fast and lean one OPCD step is, against TRL's SDFTTrainer on the same work, and on two processes.

pip install 'opcd-gym[bench]'
python -m tests.benchmarks.step
"""

import copy
import itertools
import random
import tempfile
import time
from functools import partial
from typing import Any, Literal

import torch
import transformers
import tyro

from agents.examples import Question, sample_examples
from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from distill.lm.autocast import narrow_for_good
from distill.lm.load import compute_dtype, load_model
from distill.lm.prefix_lm import PrefixLM
from distill.opcd import OPCD
from distill.parallel import Ranks, Sharding
from distill.teacher import FrozenTeacher
from tests.benchmarks.sides import answer_as_worker, compare, side

RULES = "You are good at mathematics. Answer with the number only."
INSIGHT = "Experience: Add the ones first and carry, then add the tens."
NEW_TOKENS = 32


def ours(
    steps: int, prompts: int, bf16: bool, gradient_checkpointing: bool = False, engine: Sharding = "ddp"
) -> dict[str, Any]:
    """Generate, teacher, update, with this toolkit."""
    loaded = load_model("smollm2")
    ranks = Ranks.connect("cpu")
    dtype = torch.bfloat16 if bf16 else None
    student = HFPolicy(copy.deepcopy(loaded.model), loaded.tokenizer, compute_dtype=dtype)
    narrow_for_good(loaded.model, dtype)
    trainer = OPCD(
        student.lm.model,
        FrozenTeacher(PrefixLM(loaded.model, compute_dtype=dtype)),
        lr=1e-5,
        compute_dtype=dtype,
        k=256,
        mode="tail",
        gradient_checkpointing=gradient_checkpointing,
        ranks=ranks,
        engine=engine,
    )
    seconds = []
    for step in range(steps + 1):
        asked = [
            Question(prompts=(_prompt(question), _prompt(question, INSIGHT)), seed=prompts * step + number)
            for number, question in enumerate(_questions(step, prompts))
        ]
        started = time.perf_counter()
        examples = sample_examples(
            student,
            student.encode,
            ranks.share(asked),
            Sampling(max_tokens=NEW_TOKENS),
        )
        student.clear()
        trainer.step(examples)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[1:]}


def trl(steps: int, prompts: int, bf16: bool, gradient_checkpointing: bool) -> dict[str, Any]:
    """The same work with TRL's SDFTTrainer."""
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    loaded = load_model("smollm2")
    loaded.model.set_attn_implementation("sdpa")
    questions = [question for step in range(steps + 1) for question in _questions(step, prompts)]
    chats = [
        [{"role": message.role, "content": message.content} for message in _prompt(question).messages]
        for question in questions
    ]
    rows = Dataset.from_dict({"prompt": chats, "privileged_context": [INSIGHT] * len(chats)})
    ends: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        trainer = SDFTTrainer(
            model=loaded.model,
            processing_class=loaded.tokenizer,
            train_dataset=rows,
            callbacks=[Clock()],
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
                bf16=bf16,
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        trainer.train()
    # From the end of a step to the end of the next: fetching a batch is generating it.
    return {"seconds": [after - before for before, after in itertools.pairwise(ends)]}


def _questions(step: int, count: int) -> list[str]:
    generator = random.Random(step)
    return [f"What is {generator.randint(1, 99)} + {generator.randint(1, 99)}?" for _ in range(count)]


def _prompt(question: str, insight: str = "") -> Prompt:
    content = f"{question}\n{insight}" if insight else question
    return Prompt(messages=(Message(role="system", content=RULES), Message(role="user", content=content)))


def main(
    repeats: int = 2,
    steps: int = 4,
    prompts: int = 16,
    products: Literal["auto", "float32", "bfloat16"] = "auto",
    only: tuple[str, ...] = (),
) -> None:
    """Measure a whole step: 32 new tokens, two-term sums, SmolLM2-135M.

    Args:
        repeats: Times that the sides take turns.
        steps: Optimiser steps per turn, after one to warm up.
        prompts: Completions per step.
        products: What both sides compute them in; auto is bfloat16 where it is fast, as in a run.
        only: Sides to measure, by the names that the table has; by default all.
    """
    dtype = compute_dtype(products, torch.device("cpu"))
    bf16 = dtype == "bfloat16"
    make = partial(side, "tests.benchmarks.step", steps=steps, prompts=prompts, bf16=bf16)
    sides = {
        "TRL": make("trl", gradient_checkpointing=False),
        "opcd-gym": make("ours"),
        "TRL, gradient checkpointing": make("trl", gradient_checkpointing=True),
        "opcd-gym, gradient checkpointing": make("ours", gradient_checkpointing=True),
        "opcd-gym, one core": make("ours", threads=1),
        "opcd-gym, two processes of one core, DDP": make("ours", processes=2, threads=1),
        "opcd-gym, two processes of one core, FSDP2": make("ours", processes=2, threads=1, engine="fsdp"),
    }
    if only:
        sides = {name: made for name, made in sides.items() if name in only}
    title = f"One OPCD step: {prompts} sums, {NEW_TOKENS} new tokens, SmolLM2-135M, products in {dtype}"
    compare(title, repeats, sides)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    if not answer_as_worker({"ours": ours, "trl": trl}):
        tyro.cli(main, prog="python -m tests.benchmarks.step")
