"""What OPCD trains on: completions of the student, under the bare prompt and under the teacher's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agents.policy import Policy, Prompt, Sampling

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillExample:
    """One completion under two prompts."""

    student_prompt_ids: TokenIds
    """The bare prompt x."""
    teacher_prompt_ids: TokenIds
    """The prompt with its context, c + x."""
    completion_ids: TokenIds
    """y, exactly as the student sampled it on x."""


def sample_examples(
    policy: Policy,
    encode: Callable[[Prompt], TokenIds],
    pairs: Sequence[tuple[Prompt, Prompt]],
    sampling: Sampling,
    seeds: Sequence[int],
) -> list[DistillExample]:
    """Let the student answer the bare prompts.

    Args:
        policy: The student.
        encode: A prompt's token ids, the same that the policy generates from.
        pairs: (bare prompt, prompt with context).
        sampling: How the student samples.
        seeds: One per pair.

    Returns:
        One example per non-empty completion.
    """
    completions = policy.generate([bare for bare, _ in pairs], sampling, seeds)
    return [
        DistillExample(
            student_prompt_ids=encode(bare),
            teacher_prompt_ids=encode(with_context),
            completion_ids=completion.token_ids,
        )
        for (bare, with_context), completion in zip(pairs, completions, strict=True)
        if completion.token_ids
    ]


def scored_prefixes(examples: Sequence[DistillExample]) -> dict[tuple[TokenIds, TokenIds], float]:
    """Every distinct (student prefix, teacher prefix) at which a next token is scored, with its weight.

    The loss is the mean over completions of the mean over a completion's tokens (the paper's). So a token
    of a completion of n tokens, of B in the step, weighs 1 / (B n); equal ones add up and are computed
    once. The weights sum to 1.
    """
    weights: dict[tuple[TokenIds, TokenIds], float] = {}
    for example in examples:
        length = len(example.completion_ids)
        for position in range(length):
            written = example.completion_ids[:position]
            key = (example.student_prompt_ids + written, example.teacher_prompt_ids + written)
            weights[key] = weights.get(key, 0.0) + 1.0 / (len(examples) * length)
    return weights
