"""What is trained on: completions under the bare prompt and under the prompt with its context."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

TokenIds = tuple[int, ...]
Average = Literal["completions", "tokens"]
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

    def __post_init__(self) -> None:
        if not (self.student_prompt_ids and self.teacher_prompt_ids and self.completion_ids):
            raise ValueError("prompts and completion must have at least one token each")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTurn:
    """What a conversation grew by: first the prompts' new tokens, then the reply to them."""

    student_ids: TokenIds
    """All between the last reply and this one as the student sees it: the end of the last message, the
    new observation, the beginning of the reply."""
    teacher_ids: TokenIds
    """The same for the teacher."""
    completion_ids: TokenIds
    """The reply."""


def conversation_examples(turns: Iterable[ConversationTurn]) -> list[DistillExample]:
    """One example per reply of an agent that keeps its conversation.

    Each example's prompts are all that went before, token by token. So the examples of one episode lie on one
    path of the prefix tree: its history is computed once, not once per turn. Empty replies give no example.
    """
    examples = []
    student: TokenIds = ()
    teacher: TokenIds = ()
    for turn in turns:
        student, teacher = student + turn.student_ids, teacher + turn.teacher_ids
        if turn.completion_ids:
            examples.append(
                DistillExample(
                    student_prompt_ids=student,
                    teacher_prompt_ids=teacher,
                    completion_ids=turn.completion_ids,
                )
            )
        student, teacher = student + turn.completion_ids, teacher + turn.completion_ids
    return examples


def count(examples: Sequence[DistillExample], average: Average) -> int:
    """What the loss divides by: completions, or their tokens."""
    return len(examples) if average == "completions" else sum(len(e.completion_ids) for e in examples)


def scored_prefixes(
    examples: Sequence[DistillExample], average: Average = "completions", total: int | None = None
) -> dict[tuple[TokenIds, TokenIds], float]:
    """Every distinct (student prefix, teacher prefix) at which a next token is scored, with its weight.

    With ``completions`` the loss is the mean over completions of the mean over a completion's tokens (the
    paper's): a token of a completion of n tokens weighs 1 / (total n). With ``tokens`` it is the mean over
    all tokens: each weighs 1 / total. Equal ones add up and are computed once.

    Args:
        examples: A step's, or one process's share of them.
        average: See above.
        total: The ``count`` of the whole step; by default that of ``examples``. The weights of the whole
            step sum to 1.
    """
    total = count(examples, average) if total is None else total
    weights: dict[tuple[TokenIds, TokenIds], float] = {}
    for example in examples:
        length = len(example.completion_ids)
        weight = 1.0 / (total * length) if average == "completions" else 1.0 / total
        for position in range(length):
            written = example.completion_ids[:position]
            key = (example.student_prompt_ids + written, example.teacher_prompt_ids + written)
            weights[key] = weights.get(key, 0.0) + weight
    return weights


def repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """The share of n-grams that were there before: 0 for varied or short text, near 1 for a loop."""
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
