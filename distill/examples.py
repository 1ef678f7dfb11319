"""What is trained on: completions under the bare prompt and under the prompt with its context."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from distill.lm.prefix_tree import shared_length
from distill.lm.span import Prefix, Span

TokenIds = tuple[int, ...]
Data = Literal["student", "teacher"]


class DistillError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillExample:
    """One completion under two prompts."""

    student_prompt_ids: TokenIds
    """The bare prompt x."""
    teacher_prompt_ids: TokenIds
    """The prompt with its context, c + x."""
    completion_ids: TokenIds
    """y, exactly as it was sampled; it has at least one token."""
    is_cut_off: bool = False
    """Whether the length limit ended it."""
    logprobs: tuple[float, ...] = ()
    """Of its tokens at temperature 1, as who sampled it says; may be unknown."""
    source: str = ""
    """What it is about, in the caller's words."""

    @property
    def spans(self) -> tuple[Span, Span]:
        """The prefixes after which its tokens are scored, as the student and as the teacher reads them."""
        written = self.completion_ids[:-1]
        student, teacher = self.student_prompt_ids, self.teacher_prompt_ids
        return Span(student + written, len(student)), Span(teacher + written, len(teacher))

    def __post_init__(self) -> None:
        if not (self.student_prompt_ids and self.teacher_prompt_ids and self.completion_ids):
            raise ValueError("prompts and completion must have at least one token each")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Where a next token is scored: each distinct pair of a student's and a teacher's prefix once."""

    student: tuple[Span, ...]
    """Sorted, and beside each the teacher's of the same size."""
    teacher: tuple[Span, ...]
    rows: tuple[int, ...]
    """Which of the spans' prefixes, laid end to end, the distinct ones are."""
    weights: tuple[float, ...]
    """What each of these counts."""
    of_pair: tuple[Sequence[int], ...]
    """Which of the distinct ones are along each pair of spans."""


def scored(examples: Sequence[DistillExample], total: int | None = None) -> Scored:
    """Where the examples are scored, in time that grows with their tokens.

    The loss is the mean over completions of the mean over a completion's tokens (the paper's): a token of a
    completion of n tokens weighs 1 / (total n). Equal ones add up and are computed once.

    Args:
        examples: A step's, or one process's share of them.
        total: How many the whole step has; by default ``examples`` is all. The weights of the whole step sum
            to 1.
    """
    total = len(examples) if total is None else total
    counted: dict[tuple[Span, Span], float] = {}
    for example in examples:
        length = len(example.completion_ids)
        pair = example.spans
        counted[pair] = counted.get(pair, 0.0) + 1.0 / (total * length)
    pairs = sorted(counted)
    rows: list[int] = []
    weights: list[float] = []
    of_pair: list[list[int]] = []
    # Of the last completion after two prompts: which of the rows its prefixes are.
    before: dict[tuple[Prefix, Prefix], tuple[Prefix, list[int]]] = {}
    laid = 0
    for student, teacher in pairs:
        weight, written = counted[student, teacher], student.tokens[student.start :]
        prompts = student.tokens[: student.start], teacher.tokens[: teacher.start]
        earlier, places = before.get(prompts, ((), []))
        shared = min(shared_length(earlier, written) + 1, len(places))  # sorted: with no other is it more
        for place in places[:shared]:
            weights[place] += weight
        places = [*places[:shared], *range(len(rows), len(rows) + student.size - shared)]
        rows += range(laid + shared, laid + student.size)
        weights += [weight] * (student.size - shared)
        before[prompts] = written, places
        of_pair.append(places)
        laid += student.size
    return Scored(
        student=tuple(student for student, _ in pairs),
        teacher=tuple(teacher for _, teacher in pairs),
        rows=tuple(rows),
        weights=tuple(weights),
        of_pair=tuple(of_pair),
    )


def repetition(token_ids: Sequence[int]) -> float:
    """The share of 4-grams that were there before: 0 for varied or short text, near 1 for a loop."""
    grams = [tuple(token_ids[i : i + 4]) for i in range(len(token_ids) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
