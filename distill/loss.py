"""The OPCD loss: reverse KL on the student's top-k tokens (arXiv 2602.12275), and its neighbours.

These are the plain forms, from logits. ``distill/chunked_loss.py`` computes the same from hidden states
without ever holding the logits of all positions.
Shape letters: T positions, V vocabulary, K top-k.
"""

from typing import Literal, get_args

import torch

Mode = Literal["truncated", "renormalised", "tail", "full"]
Direction = Literal["reverse", "forward", "gated"]


def topk_reverse_kl(
    student_logits_TV: torch.Tensor, teacher_logits_TV: torch.Tensor, *, k: int = 256, mode: Mode = "tail"
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
    student_logits_TV, teacher_logits_TV = _checked(student_logits_TV, teacher_logits_TV, k, mode)
    index_TK = student_logits_TV.topk(min(k, student_logits_TV.shape[-1]), dim=-1).indices
    return _kl(_restricted(student_logits_TV, index_TK, mode), _restricted(teacher_logits_TV, index_TK, mode))


def forward_kl(
    student_logits_TV: torch.Tensor, teacher_logits_TV: torch.Tensor, *, k: int = 256, mode: Mode = "tail"
) -> torch.Tensor:
    """KL(teacher || student) at each position, with the support cut to the teacher's top-k tokens.

    On the teacher's own completions this is context distillation, the paper's off-policy baseline.
    ``truncated`` is the sum over the teacher's top-k of q log(q/p); the other modes, the arguments, the
    result and the errors are as in ``topk_reverse_kl``.
    """
    student_logits_TV, teacher_logits_TV = _checked(student_logits_TV, teacher_logits_TV, k, mode)
    index_TK = teacher_logits_TV.topk(min(k, teacher_logits_TV.shape[-1]), dim=-1).indices
    return _kl(_restricted(teacher_logits_TV, index_TK, mode), _restricted(student_logits_TV, index_TK, mode))


def gated_kl(
    student_logits_TV: torch.Tensor, teacher_logits_TV: torch.Tensor, *, k: int = 256, mode: Mode = "tail"
) -> torch.Tensor:
    """Both at each position: g KL(teacher || student) + (1 - g) KL(student || teacher).

    g is how far they are apart: their total variation on the support, from 0 to 1; no gradient flows through
    it. The reverse KL's gradient on a token vanishes with the student's probability p of it: what a student
    hardly says it is never taught. The forward KL's is p - q. So where the two disagree the forward KL
    teaches, and where they agree the reverse KL, which is OPCD, refines. ToDi (arXiv 2505.16297) gates each
    token alike.

    The support are the k tokens that the likelier of the two finds most likely. Arguments, result and errors
    are as in ``topk_reverse_kl``.
    """
    student_logits_TV, teacher_logits_TV = _checked(student_logits_TV, teacher_logits_TV, k, mode)
    likelier_TV = torch.maximum(student_logits_TV.log_softmax(-1), teacher_logits_TV.log_softmax(-1))
    index_TK = likelier_TV.topk(min(k, likelier_TV.shape[-1]), dim=-1).indices
    p, q = (_restricted(logits_TV, index_TK, mode) for logits_TV in (student_logits_TV, teacher_logits_TV))
    apart_T = (p.exp() - q.exp()).abs().sum(-1).detach() / 2
    return apart_T * _kl(q, p) + (1 - apart_T) * _kl(p, q)


def check_top_k(k: int, mode: str) -> None:
    """Refuse settings that make no sense.

    Raises:
        ValueError: k < 1, or an unknown mode.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if mode not in get_args(Mode):
        raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, not {mode!r}")


def _checked(
    student_logits_TV: torch.Tensor, teacher_logits_TV: torch.Tensor, k: int, mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    if student_logits_TV.shape != teacher_logits_TV.shape or student_logits_TV.dim() != 2:
        raise ValueError(
            f"both logits must be [T, V]: {tuple(student_logits_TV.shape)}, {tuple(teacher_logits_TV.shape)}"
        )
    check_top_k(k, mode)
    teacher_logits_TV = teacher_logits_TV.detach()
    if student_logits_TV.dtype == torch.float64:
        return student_logits_TV, teacher_logits_TV.double()
    return student_logits_TV.float(), teacher_logits_TV.float()


def _restricted(logits_TV: torch.Tensor, index_TK: torch.Tensor, mode: Mode) -> torch.Tensor:
    """Log-probabilities on the support: [T, K], or [T, K + 1] with the tail's bucket last."""
    if mode == "full" or index_TK.shape[-1] == logits_TV.shape[-1]:
        return logits_TV.log_softmax(-1)
    top_TK = logits_TV.gather(-1, index_TK)
    if mode == "renormalised":
        return top_TK.log_softmax(-1)
    if mode == "tail":
        # The rest's mass as its own logsumexp: 1 - (mass of S) would cancel to nothing in fp32.
        rest_TV = logits_TV.scatter(-1, index_TK, -torch.inf)
        is_empty_T1 = rest_TV.amax(-1, keepdim=True) == -torch.inf  # where a logsumexp has no gradient
        rest_T1 = torch.where(is_empty_T1, 0.0, rest_TV).logsumexp(-1, keepdim=True)
        rest_T1 = torch.where(is_empty_T1, -torch.inf, rest_T1)
        top_TK = torch.cat([top_TK, rest_T1], -1)
    return top_TK - logits_TV.logsumexp(-1, keepdim=True)


def _kl(p_logprobs: torch.Tensor, q_logprobs: torch.Tensor) -> torch.Tensor:
    """Sum of p (log p - log q) over the last dimension, where 0 log 0 = 0."""
    possible = p_logprobs > -torch.inf
    # Both branches of a where are differentiated: impossible tokens must not meet inf - inf.
    p = torch.where(possible, p_logprobs, 0.0)
    q = torch.where(possible, q_logprobs, 0.0)
    return torch.where(possible, p.exp() * (p - q), 0.0).sum(-1)
