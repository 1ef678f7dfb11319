"""What the loss alone costs, against the matrix products of heads that it cannot do without.

    python -m tests.benchmarks.loss

A table goes to standard error, JSON to standard output.
"""

import resource
import time
from functools import partial
from typing import Any

import torch
import tyro

from agents.run.folder import peak_rss_bytes
from distill.chunked_loss import chunked_kl
from tests.benchmarks.sides import answer_as_worker, compare, side

CHUNK = 256
"""Positions at a time."""
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Student's hidden states [T, D] and head [V, D], and the teacher's."""


def ours(positions: int, vocabulary: int, hidden: int) -> dict[str, Any]:
    """The chunked loss, forward and backward."""
    inputs = _inputs(positions, vocabulary, hidden)
    before, started = _resident_bytes(), time.perf_counter()
    chunked_kl("reverse", *inputs, chunk=CHUNK).loss.backward()
    return {"seconds": [time.perf_counter() - started], "peak_bytes": peak_rss_bytes() - before}


def products(positions: int, vocabulary: int, hidden: int) -> dict[str, Any]:
    """Both heads' logits, and the gradients of the student's hidden states and head."""
    student_TD, student_VD, teacher_TD, teacher_VD = _inputs(positions, vocabulary, hidden)
    before, started = _resident_bytes(), time.perf_counter()
    logits_CV, grad_VD = torch.empty(CHUNK, vocabulary), torch.zeros(vocabulary, hidden)
    with torch.no_grad():
        for start in range(0, positions, CHUNK):
            rows = slice(start, start + CHUNK)
            out_CV = logits_CV[: len(student_TD[rows])]
            torch.mm(student_TD[rows], student_VD.T, out=out_CV)
            torch.mm(teacher_TD[rows], teacher_VD.T, out=out_CV)
            torch.mm(out_CV, student_VD)
            grad_VD.addmm_(out_CV.T, student_TD[rows])
    return {"seconds": [time.perf_counter() - started], "peak_bytes": peak_rss_bytes() - before}


def _inputs(positions: int, vocabulary: int, hidden: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def normal(rows: int, std: float) -> torch.Tensor:
        return torch.empty(rows, hidden).normal_(std=std, generator=generator)

    student_TD, student_VD = normal(positions, 1.0), normal(vocabulary, 0.1)
    teacher_TD, teacher_VD = normal(positions, 1.0), normal(vocabulary, 0.1)
    return student_TD.requires_grad_(), student_VD.requires_grad_(), teacher_TD, teacher_VD


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main(repeats: int = 2, positions: int = 8192, vocabulary: int = 152_000, hidden: int = 1024) -> None:
    """Measure the loss, forward and backward; memory is what comes on top of its inputs.

    Args:
        repeats: Times that the sides take turns.
        positions: T.
        vocabulary: V.
        hidden: D.
    """
    make = partial(side, "tests.benchmarks.loss", positions=positions, vocabulary=vocabulary, hidden=hidden)
    sides = {
        "the four products": make("products"),
        "chunked loss": make("ours"),
    }
    compare(f"The loss, T = {positions}, V = {vocabulary}, D = {hidden}", repeats, sides)


if __name__ == "__main__":
    if not answer_as_worker({"ours": ours, "products": products}):
        tyro.cli(main, prog="python -m tests.benchmarks.loss")
