"""The OPCD loss: reverse KL on the student's top-k tokens (arXiv 2602.12275).

Shape letters: T positions, V vocabulary, K top-k.
"""

from typing import Literal, get_args

import torch

Mode = Literal["truncated", "renormalised", "tail", "full"]


def topk_reverse_kl(
    student_logits_TV: torch.Tensor,
    teacher_logits_TV: torch.Tensor,
    *,
    k: int = 256,
    mode: Mode = "tail",
) -> torch.Tensor:
    """KL(student || teacher) at each position, with the support cut to the student's top-k tokens.

    With p the student's and q the teacher's probabilities and S the student's k most probable tokens:

    - ``truncated``: sum over S of p log(p/q), the paper's. Not a KL: it can go below zero, and its
      gradient raises tokens outside S.
    - ``renormalised``: the KL of p and q, both renormalised on S.
    - ``tail``: a true KL in which all tokens outside S form one bucket; a lower bound on ``full``.
    - ``full``: over the whole vocabulary.

    Args:
        student_logits_TV: Already divided by the student's temperature. Gradients flow.
        teacher_logits_TV: Already divided by the teacher's temperature. No gradients flow.
        k: Size of S, at least 1; k >= V makes every mode ``full``.
        mode: See above.

    Returns:
        [T] in nats, fp32 (fp64 for fp64 inputs). Infinite where the teacher gives zero probability to a
        token to which the student does not.

    Raises:
        ValueError: Shapes that differ, k < 1, or an unknown mode.
    """
    if student_logits_TV.shape != teacher_logits_TV.shape or student_logits_TV.dim() != 2:
        raise ValueError(
            f"both logits must be [T, V]: {tuple(student_logits_TV.shape)}, {tuple(teacher_logits_TV.shape)}"
        )
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")
    teacher_logits_TV = teacher_logits_TV.detach()
    if student_logits_TV.dtype != torch.float64:
        student_logits_TV, teacher_logits_TV = student_logits_TV.float(), teacher_logits_TV.float()
    if k >= student_logits_TV.shape[-1]:
        mode = "full"

    if mode == "full":
        return _kl(student_logits_TV.log_softmax(-1), teacher_logits_TV.log_softmax(-1))
    student_top_TK, index_TK = student_logits_TV.topk(k, dim=-1)
    teacher_top_TK = teacher_logits_TV.gather(-1, index_TK)
    if mode == "renormalised":
        return _kl(student_top_TK.log_softmax(-1), teacher_top_TK.log_softmax(-1))
    student_norm_T1 = student_logits_TV.logsumexp(-1, keepdim=True)
    teacher_norm_T1 = teacher_logits_TV.logsumexp(-1, keepdim=True)
    student_top_TK = student_top_TK - student_norm_T1
    teacher_top_TK = teacher_top_TK - teacher_norm_T1
    if mode == "truncated":
        return _kl(student_top_TK, teacher_top_TK)
    # The rest's mass as its own logsumexp: 1 - (mass of S) would cancel to nothing in fp32.
    student_rest_T1 = student_logits_TV.scatter(-1, index_TK, -torch.inf).logsumexp(-1, keepdim=True)
    teacher_rest_T1 = teacher_logits_TV.scatter(-1, index_TK, -torch.inf).logsumexp(-1, keepdim=True)
    return _kl(
        torch.cat([student_top_TK, student_rest_T1 - student_norm_T1], -1),
        torch.cat([teacher_top_TK, teacher_rest_T1 - teacher_norm_T1], -1),
    )


def _kl(student_logprobs: torch.Tensor, teacher_logprobs: torch.Tensor) -> torch.Tensor:
    """Sum of p (log p - log q) over the last dimension, where 0 log 0 = 0."""
    possible = student_logprobs > -torch.inf
    # Both branches of a where are differentiated: impossible tokens must not meet inf - inf.
    student = torch.where(possible, student_logprobs, 0.0)
    teacher = torch.where(possible, teacher_logprobs, 0.0)
    return torch.where(possible, student.exp() * (student - teacher), 0.0).sum(-1)
