"""A KL of student and teacher row by row, and its gradient by the student's logits, in their place.

The gradients by the student's logits z, with a_j = log p_j - log q_j, L the loss of the position, S the
support and P_S, Q_S its mass; ``r`` is the bucket of all tokens outside S:

============= ================================ =============================
mode          reverse, dL/dz_j                 forward, dL/dz_j
============= ================================ =============================
truncated     p_j (1_S (a_j + 1) - L - P_S)    p_j Q_S - 1_S q_j
renormalised  p~_j (a~_j - L) on S, else 0     p~_j - q~_j on S, else 0
tail          p_j (a_j - L), a_j = a_r off S   p_j - q_j; off S p_j (1 - q_r/p_r)
full          p_j (a_j - L)                    p_j - q_j
============= ================================ =============================

``gated`` is g times forward and 1 - g times reverse, with g the total variation of p and q on the support.

Shape letters: V vocabulary, K top-k, B rows, T positions.
"""

from typing import NamedTuple

import torch

from distill.loss import Direction, Mode

FLOOR = -1e4
"""Stands for minus infinity relative to the largest logit: its exponential is 0 in fp32 and fp64."""


class ScoredTopK(NamedTuple):
    """A teacher that is known only at chosen tokens, as one that is served elsewhere."""

    index_TK: torch.Tensor
    """The student's top-k token ids, as of ``topk_ids``; forward the teacher's own."""
    logprobs_TK: torch.Tensor
    """The teacher's log-probabilities of these tokens, its temperature already in them."""


def kl_rows(
    student_BV: torch.Tensor,
    teacher_BV: torch.Tensor,
    scratch_BV: torch.Tensor,
    scored: ScoredTopK | None,
    *,
    direction: Direction,
    mode: Mode,
    k: int,
) -> torch.Tensor:
    """KL, masses and entropies of some rows, [5, B]; the student's logits become the KL's gradient by them.

    The teacher's logits and the scratch space are used up.
    """
    if mode == "full":
        return _full_kl_rows(student_BV, teacher_BV, direction)
    if scored is not None:
        index_BK = scored.index_TK
    else:
        index_BK = _likely(student_BV, teacher_BV, scratch_BV, direction).topk(k, dim=-1).indices
    # First: its exponentials in the scratch space make way for the student's, which the gradient needs.
    teacher = _parts(teacher_BV, index_BK, scratch_BV) if scored is None else _scored_parts(scored)
    student = _parts(student_BV, index_BK, scratch_BV)
    p, q = _Restricted.of(student, mode), _Restricted.of(teacher, mode)
    if direction == "reverse":
        kl = _reverse(p, q, student, mode)
    elif direction == "forward":
        kl = _forward(p, q, student, mode)
    else:
        apart_B1 = ((p.top_BK - q.top_BK).abs().sum(-1, keepdim=True) + (p.rest_B1 - q.rest_B1).abs()) / 2
        both = zip(_reverse(p, q, student, mode), _forward(p, q, student, mode), strict=True)
        kl = _KL(*(torch.lerp(reverse, forward, apart_B1) for reverse, forward in both))
    torch.mul(scratch_BV, kl.rest_factor_B1, out=student_BV)
    student_BV.scatter_(-1, index_BK, kl.grad_BK)
    return torch.stack([kl.kl_B1[:, 0], student.mass(), teacher.mass(), student.entropy(), teacher.entropy()])


def _likely(
    student_BV: torch.Tensor, teacher_BV: torch.Tensor, scratch_BV: torch.Tensor, direction: Direction
) -> torch.Tensor:
    """[B, V]: by what the support is chosen, in logits: the student's, the teacher's, or of the likelier."""
    if direction != "gated":
        return student_BV if direction == "reverse" else teacher_BV
    shift_B1 = student_BV.logsumexp(-1, keepdim=True) - teacher_BV.logsumexp(-1, keepdim=True)
    return torch.maximum(torch.add(teacher_BV, shift_B1, out=scratch_BV), student_BV, out=scratch_BV)


class _Restricted(NamedTuple):
    """A distribution as a mode sees it."""

    log_top_BK: torch.Tensor
    log_rest_B1: torch.Tensor
    top_BK: torch.Tensor
    rest_B1: torch.Tensor
    """0 where the mode has no bucket for the rest."""

    @classmethod
    def of(cls, parts: "_Parts", mode: Mode) -> "_Restricted":
        log_top_BK = parts.top_BK.log_softmax(-1) if mode == "renormalised" else parts.top_BK
        rest_B1 = parts.rest_B1.exp() if mode == "tail" else torch.zeros_like(parts.rest_B1)
        return cls(log_top_BK, parts.rest_B1, log_top_BK.exp(), rest_B1)


class _KL(NamedTuple):
    """A KL, and its gradient by the student's logits."""

    kl_B1: torch.Tensor
    grad_BK: torch.Tensor
    """On the support."""
    rest_factor_B1: torch.Tensor
    """Off it, over the exponentials in the scratch space."""


def _divergence(p: _Restricted, q: _Restricted) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """KL(p || q), and the log-ratios of which it is the mean: on the support, and of the rest."""
    ratio_BK = torch.where(p.top_BK > 0, p.log_top_BK - q.log_top_BK, 0.0)
    ratio_rest_B1 = torch.where(p.rest_B1 > 0, p.log_rest_B1 - q.log_rest_B1, 0.0)
    kl_B1 = (p.top_BK * ratio_BK).sum(-1, keepdim=True) + p.rest_B1 * ratio_rest_B1
    return kl_B1, ratio_BK, ratio_rest_B1


def _reverse(p: _Restricted, q: _Restricted, student: "_Parts", mode: Mode) -> _KL:
    kl_B1, ratio_BK, ratio_rest_B1 = _divergence(p, q)
    if mode == "truncated":
        mass_B1 = p.top_BK.sum(-1, keepdim=True)
        grad_BK = p.top_BK * (ratio_BK + 1 - kl_B1 - mass_B1)
        rest_factor_B1 = -(kl_B1 + mass_B1)
    else:
        grad_BK = p.top_BK * (ratio_BK - kl_B1)
        rest_factor_B1 = ratio_rest_B1 - kl_B1 if mode == "tail" else torch.zeros_like(kl_B1)
    return _KL(kl_B1, grad_BK, rest_factor_B1 * student.rest_scale_B1)


def _forward(p: _Restricted, q: _Restricted, student: "_Parts", mode: Mode) -> _KL:
    kl_B1, _, _ = _divergence(q, p)
    if mode == "tail":
        # p_j q_r / p_r, as e_j q_r / sum(e): p_r may be too small for a number.
        factor_B1 = student.rest_scale_B1 - q.rest_B1 / student.rest_sum_B1.clamp(min=1.0)
        return _KL(kl_B1, p.top_BK - q.top_BK, factor_B1)
    mass_B1 = q.top_BK.sum(-1, keepdim=True)  # 1 when renormalised
    is_inside = mode == "renormalised"
    factor_B1 = torch.zeros_like(mass_B1) if is_inside else mass_B1 * student.rest_scale_B1
    return _KL(kl_B1, p.top_BK * mass_B1 - q.top_BK, factor_B1)


class _Parts(NamedTuple):
    """A distribution as its support and the rest."""

    top_BK: torch.Tensor
    """Log-probabilities of the support."""
    rest_B1: torch.Tensor
    """Log-probability of all other tokens together."""
    rest_scale_B1: torch.Tensor
    """Times the exponentials in the scratch space: the other tokens' probabilities."""
    rest_sum_B1: torch.Tensor
    """The sum of these exponentials: at least 1, unless every one of them is 0."""
    rest_energy_B: torch.Tensor
    """Sum over the other tokens of their probability times its log."""

    def mass(self) -> torch.Tensor:
        return self.top_BK.exp().sum(-1)

    def entropy(self) -> torch.Tensor:
        top_B = torch.where(self.top_BK > -torch.inf, self.top_BK.exp() * self.top_BK, 0.0).sum(-1)
        return -(top_B + self.rest_energy_B)


def _parts(logits_BV: torch.Tensor, index_BK: torch.Tensor, scratch_BV: torch.Tensor) -> _Parts:
    """Split logits, which are used up; ``scratch_BV`` gets exp(logit - the rest's largest), 0 on the support.

    The rest has a logsumexp of its own: 1 - (mass of the support) would cancel to nothing in fp32.
    """
    top_BK = logits_BV.gather(-1, index_BK)
    logits_BV.scatter_(-1, index_BK, -torch.inf)
    largest_B1 = logits_BV.amax(-1, keepdim=True)
    # Where no token is possible beside the support, its own: relative to 0 the scale could overflow.
    largest_B1 = torch.where(largest_B1 > -torch.inf, largest_B1, top_BK.amax(-1, keepdim=True))
    logits_BV.sub_(largest_B1).clamp_(min=FLOOR)
    torch.exp(logits_BV, out=scratch_BV)
    sum_B1 = scratch_BV.sum(-1, keepdim=True)
    rest_B1 = largest_B1 + sum_B1.log()
    norm_B1 = torch.logaddexp(rest_B1, top_BK.logsumexp(-1, keepdim=True))
    scale_B1 = (largest_B1 - norm_B1).exp()
    products_B = torch.linalg.vecdot(scratch_BV, logits_BV)  # sum of e^x x
    energy_B = scale_B1[:, 0] * (products_B + (largest_B1 - norm_B1)[:, 0] * sum_B1[:, 0])
    energy_B = torch.where(sum_B1[:, 0] > 0, energy_B, 0.0)
    return _Parts(top_BK - norm_B1, rest_B1 - norm_B1, scale_B1, sum_B1, energy_B)


def _scored_parts(scored: ScoredTopK) -> _Parts:
    top_BK = scored.logprobs_TK
    # Rounding can make the masses of a served teacher sum to a little more than 1.
    rest_B1 = torch.log1p(-top_BK.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-7))
    unknown_B1 = torch.full_like(rest_B1, torch.nan)
    return _Parts(top_BK, rest_B1, unknown_B1, unknown_B1, unknown_B1[:, 0])


def _full_kl_rows(student_BV: torch.Tensor, teacher_BV: torch.Tensor, direction: Direction) -> torch.Tensor:
    log_p_BV, log_q_BV = student_BV.log_softmax(-1), teacher_BV.log_softmax(-1)
    p_BV, q_BV = log_p_BV.exp(), log_q_BV.exp()
    entropy_B = -torch.where(p_BV > 0, p_BV * log_p_BV, 0.0).sum(-1)
    teacher_entropy_B = -torch.where(q_BV > 0, q_BV * log_q_BV, 0.0).sum(-1)
    if direction == "forward":
        kl_B = torch.where(q_BV > 0, q_BV * (log_q_BV - log_p_BV), 0.0).sum(-1)
        torch.sub(p_BV, q_BV, out=student_BV)
    else:
        ratio_BV = torch.where(p_BV > 0, log_p_BV - log_q_BV, 0.0)
        kl_B = torch.linalg.vecdot(p_BV, ratio_BV)
        torch.mul(p_BV, ratio_BV.sub_(kl_B[:, None]), out=student_BV)
    if direction == "gated":
        apart_B = (p_BV - q_BV).abs().sum(-1) / 2
        forward_B = torch.where(q_BV > 0, q_BV * (log_q_BV - log_p_BV), 0.0).sum(-1)
        kl_B = torch.lerp(kl_B, forward_B, apart_B)
        student_BV.lerp_(p_BV - q_BV, apart_B[:, None])
    ones_B = torch.ones_like(kl_B)
    return torch.stack([kl_B, ones_B, ones_B, entropy_B, teacher_entropy_B])
