"""Long replies: drawing them against plain ``generate``, an update on them, padded batches against the tree.

    python -m tests.benchmarks.long_replies --what draw

Seconds are processor time on one thread, so that other work on the machine changes them little, and the sides
take turns. A table goes to standard error, JSON to standard output.
"""

import itertools
import json
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
import transformers
import tyro
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from agents.policies.local import HFPolicy
from agents.policies.policy import Sampling
from distill.examples import DistillExample, scored
from distill.lm.load import load_model
from distill.lm.padded_lm import PaddedLM
from distill.lm.support import language_model
from distill.lm.ways import Way
from distill.opcd import OPCD
from distill.teacher import FrozenTeacher
from tests.benchmarks.sides import answer_as_worker, compare, side
from tests.conftest import byte_tokenizer

PROMPT = 32
"""Tokens of each prompt, which are distinct."""
What = Literal["draw", "vocabulary", "update", "ways"]


def tiny(vocabulary: int, hidden: int, seed: int = 0) -> Any:
    """A random Llama of two layers that never ends a reply."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=8192, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def draw(
    by: Literal["generate", "policy"], replies: int, tokens: int, vocabulary: int, hidden: int
) -> dict[str, Any]:
    """Replies to distinct prompts, at temperature 1."""
    model = tiny(vocabulary, hidden)
    ids_BT = torch.randint(3, 250, (replies, PROMPT), generator=torch.Generator().manual_seed(0))
    policy = HFPolicy(model, byte_tokenizer())
    policy._eos_ids = frozenset()  # no reply ends before the others
    prompts = [tuple(row) for row in ids_BT.tolist()]
    ones_BT = torch.ones_like(ids_BT)

    def work(count: int) -> None:
        if by == "policy":
            completions = policy.complete(prompts, Sampling(max_tokens=count), range(replies))
            assert all(len(completion.token_ids) == count for completion in completions)
        else:
            how = {"do_sample": True, "top_k": 0, "max_new_tokens": count, "pad_token_id": 0}
            model.generate(ids_BT, attention_mask=ones_BT, **how)

    work(20)
    return _measured(partial(work, tokens))


def update(
    by: Literal["models", "opcd"], completions: int, tokens: int, vocabulary: int, hidden: int
) -> dict[str, Any]:
    """A step on distinct completions; ``models``: student's and teacher's own passes, and nothing else."""
    student, teacher = tiny(vocabulary, hidden), tiny(vocabulary, hidden, seed=1)
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(vocabulary, (completions, PROMPT + tokens), generator=generator)
    if by == "opcd":
        rows = map(tuple, ids_BT.tolist())
        examples = [_example(row[:PROMPT], row[PROMPT:]) for row in rows]
        opcd = OPCD(student, FrozenTeacher(PaddedLM(teacher)), lr=1e-5)
        opcd.step([_example((5, 6), (7, 8))])
        return _measured(lambda: opcd.step(examples))

    def work() -> None:
        for ids_1T in ids_BT[:, :-1].split(1):
            with torch.no_grad():
                theirs = teacher(ids_1T, use_cache=False, logits_to_keep=tokens).logits
            student(ids_1T, use_cache=False, logits_to_keep=tokens).logits.backward(theirs)

    teacher(ids_BT[:, :2])
    return _measured(work)


def _example(prompt: tuple[int, ...], completion: tuple[int, ...]) -> DistillExample:
    return DistillExample(
        student_prompt_ids=prompt, teacher_prompt_ids=(5, 6, *prompt), completion_ids=completion
    )


def _measured(work: Callable[[], object]) -> dict[str, Any]:
    started = time.process_time()
    work()
    return {"seconds": [time.process_time() - started]}


def batches() -> dict[str, list[DistillExample]]:
    """Four shapes of batch: with much, some and nothing that is shared."""
    draws = random.Random(0)

    def text(length: int) -> tuple[int, ...]:
        return tuple(draws.randrange(1000) for _ in range(length))

    rules, system, question = text(60), text(30), text(64)
    lake = [rules + text(16) for _ in range(11)]
    talks = []
    for _ in range(4):
        talk = text(64)
        for _ in range(4):
            talks.append(_example(talk, text(32)))
            talk += talks[-1].completion_ids + text(16)
    return {
        "64 moves from 11 places, 60 of 76 tokens shared": [
            _example(lake[i % 11], text(1)) for i in range(64)
        ],
        "16 answers of 32 tokens, 30 of 40 shared": [
            _example(system + text(10), text(32)) for _ in range(16)
        ],
        "8 answers of 128 tokens to one prompt": [_example(question, text(128)) for _ in range(8)],
        "4 conversations of 4 turns": talks,
    }


def ways(repeats: int) -> None:
    """SmolLM2's loss and gradients, and the time that they take, in both ways."""
    model = load_model("smollm2", device="cpu").model
    table = Table(title="Padded batches against the tree, SmolLM2", title_justify="left")
    columns = ("", "tree", "padded", "padded to tree", "loss off by", "gradients off by, of the largest")
    for column in columns:
        table.add_column(column)
    figures = {}
    console = Console(stderr=True, width=140)
    for name, examples in batches().items():
        seconds: dict[Way, list[float]] = {way: [] for way in get_args(Way)}
        found: dict[Way, tuple[float, list[torch.Tensor]]] = {}
        for _, way in itertools.product(range(repeats), seconds):
            opcd = OPCD(model, FrozenTeacher(language_model(model, way)), lr=1e-5, compute=way)
            started = time.process_time()
            sums, *_ = opcd._forward_backward(scored(examples))
            seconds[way].append(time.process_time() - started)
            found[way] = (
                float(sums[0]),
                [p.grad.clone() for p in opcd.parameters.values() if p.grad is not None],
            )
            model.zero_grad()
        (loss, tree), (other, padded) = found["tree"], found["padded"]
        largest = max(float(grad.abs().max()) for grad in tree)
        off = max(float((mine - grad).abs().max()) for mine, grad in zip(padded, tree, strict=True)) / largest
        medians = [statistics.median(times) for times in seconds.values()]
        figures[name] = {"seconds": seconds, "loss": [loss, other], "gradients_off": off}
        times = (*(f"{one:.1f} s" for one in medians), f"{medians[1] / medians[0]:.2f}")
        cells = (name, *times, f"{abs(other - loss):.0e}", f"{off:.0e}")
        console.print(" | ".join(cells))  # at once: the others take minutes
        table.add_row(*cells)
    console.print(table)
    print(json.dumps(figures, indent=2))


def main(what: What, repeats: int = 3, hidden: int = 256) -> None:
    """Measure one of the four.

    Args:
        what: ``draw``: 16 x 2,048 tokens; ``vocabulary``: 32 x 256 of 152,000; ``update``: on 8 x 4,096
            tokens; ``ways``: the tree and padded batches.
        repeats: Times that the sides take turns.
        hidden: Width of the tiny model.
    """
    make = partial(side, "tests.benchmarks.long_replies", threads=1, hidden=hidden)
    if what == "ways":
        torch.set_num_threads(1)
        ways(repeats)
    elif what == "update":
        size = {"completions": 8, "tokens": 4096, "vocabulary": 258}
        sides = {"the models' own passes": make("update", by="models", **size)}
        compare("An update, 8 x 4,096 tokens", repeats, sides | {"all": make("update", by="opcd", **size)})
    else:
        replies, tokens, vocabulary = (16, 2048, 258) if what == "draw" else (32, 256, 152_000)
        size = {"replies": replies, "tokens": tokens, "vocabulary": vocabulary}
        both = {by: make("draw", by=by, **size) for by in ("generate", "policy")}
        compare(f"{replies} x {tokens} new tokens, V = {vocabulary}", repeats, both)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    if not answer_as_worker({"draw": draw, "update": update}):
        tyro.cli(main, prog="python -m tests.benchmarks.long_replies")
