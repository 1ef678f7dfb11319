"""Long replies: drawing them against plain ``generate``, an update on them, and padded batches against the tree.

    python -m tests.benchmarks.long_replies --what draw

Seconds are the process's own processor time on one thread, so that a busy machine changes little: in each
table the sides take turns. A table goes to standard error, JSON to standard output.
"""

import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import transformers
import tyro
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from agents.policies.local import HFPolicy
from agents.policies.policy import Sampling
from agents.run.folder import peak_rss_bytes
from distill.chunked_loss import chunked_topk_reverse_kl
from distill.examples import DistillExample, scored
from distill.lm.language_model import Way
from distill.lm.load import load_model
from distill.lm.padded_lm import PaddedLM
from distill.opcd import OPCD
from distill.teacher import FrozenTeacher
from tests.benchmarks.sides import answer_as_worker, compare, side
from tests.conftest import byte_tokenizer

PROMPT = 32
"""Tokens of each prompt, which are distinct."""
SHAPES = {
    "64 situations, 1 prompt, 1 token": (64, 4, 76, 1),
    "16 sums, 16 prompts, 32 tokens": (16, 16, 40, 32),
    "8 replies to 1 prompt, 128 tokens": (8, 1, 64, 128),
    "4 conversations of 4 turns, 64 tokens": (4, 4, 64, 64),
}
"""Completions, distinct prompts, their tokens, tokens of a completion."""


def tiny(vocabulary: int, hidden: int, seed: int = 0) -> Any:
    """A random Llama of two layers without an end of sequence."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def drawn(way: Literal["generate", "policy"], replies: int, tokens: int, vocabulary: int, hidden: int) -> dict[str, Any]:
    """Replies to distinct prompts, at temperature 1."""
    model = tiny(vocabulary, hidden)
    ids_BT = torch.randint(3, 250, (replies, PROMPT), generator=torch.Generator().manual_seed(0))
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    policy = HFPolicy(model, tokenizer)
    prompts = [tuple(row) for row in ids_BT.tolist()]

    def draw(count: int) -> None:
        if way == "policy":
            policy.complete(prompts, Sampling(max_tokens=count), range(replies))
        else:
            mask_BT = torch.ones_like(ids_BT)
            model.generate(
                ids_BT, attention_mask=mask_BT, do_sample=True, top_k=0, max_new_tokens=count, pad_token_id=0
            )

    draw(20)
    return _measured(partial(draw, tokens))


def updated(way: Literal["plain", "opcd"], completions: int, tokens: int, vocabulary: int, hidden: int) -> dict[str, Any]:
    """One update on distinct completions; ``plain``: the models' own forward and backward passes alone."""
    student, teacher = tiny(vocabulary, hidden), tiny(vocabulary, hidden, seed=1)
    drawn_BT = torch.randint(vocabulary, (completions, PROMPT + tokens), generator=torch.Generator().manual_seed(0))
    examples = [
        DistillExample(student_prompt_ids=row[:PROMPT], teacher_prompt_ids=(5, *row[:PROMPT]), completion_ids=row[PROMPT:])
        for row in map(tuple, drawn_BT.tolist())
    ]
    if way == "opcd":
        opcd = OPCD(student, FrozenTeacher(PaddedLM(teacher)), lr=1e-5)
        return _measured(lambda: opcd.step(examples))

    def plain() -> None:
        for row in drawn_BT:  # as many at a time as the update takes
            with torch.no_grad():
                teacher(row[None], use_cache=False)
            logits = student(row[None, :-1], use_cache=False).logits
            logits.backward(torch.ones_like(logits))

    return _measured(plain)


def shape(way: Way, name: str) -> dict[str, Any]:
    """SmolLM2's forward and backward over a batch, with its loss and a hash of its gradients."""
    ...


def _measured(work: Callable[[], object]) -> dict[str, Any]:
    before, started = peak_rss_bytes(), time.process_time()
    work()
    return {"seconds": [time.process_time() - started], "peak_bytes": peak_rss_bytes() - before}
