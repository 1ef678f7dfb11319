"""The losses of ``distill/loss.py`` from hidden states, with a hand-written backward.

Logits exist for one chunk of positions at a time, in fp32, and the gradients of the hidden states and of
the head are accumulated chunk by chunk in the forward pass. So nothing of size positions x vocabulary
outlives its chunk, and no head product is computed twice: two for the logits (one when the teacher's
log-probabilities are given), one for the hidden states' gradient and one for the head's (when it has one).

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

Shape letters: T positions, V vocabulary, K top-k, D hidden size, C positions of a chunk, B rows of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from distill.lm.head import LogitMap
from distill.loss import Direction, Mode, check_top_k

FLOOR = -1e4
"""Stands for minus infinity relative to the largest logit: its exponential is 0 in fp32 and fp64."""
CACHED_ELEMENTS = 1 << 21
"""On a CPU element-wise work goes in blocks of about this many logits, so that they stay in its cache."""


class KLResult(NamedTuple):
    """What a chunked loss gives. Only ``loss`` has a gradient."""

    loss: torch.Tensor
    """Scalar: the weighted sum of ``kl_T``."""
    kl_T: torch.Tensor
    """Nats, at weight 0 left out: 0."""
    student_mass_T: torch.Tensor
    """The student's probability of the support."""
    teacher_mass_T: torch.Tensor
    student_entropy_T: torch.Tensor
    """Nats, over the whole vocabulary."""
    teacher_entropy_T: torch.Tensor
    """NaN when only the teacher's log-probabilities on the support are known."""


class ScoredTopK(NamedTuple):
    """A teacher that is known only at chosen tokens, as one that is served elsewhere."""

    index_TK: torch.Tensor
    """The student's top-k token ids, as of ``topk_ids``; forward the teacher's own."""
    logprobs_TK: torch.Tensor
    """The teacher's log-probabilities of these tokens, its temperature already in them."""


def chunked_kl(
    direction: Direction,
    student_hidden_TD: torch.Tensor,
    student_head_VD: torch.Tensor,
    teacher_hidden_TD: torch.Tensor | None = None,
    teacher_head_VD: torch.Tensor | None = None,
    *,
    k: int = 256,
    mode: Mode = "tail",
    chunk: int = 256,
    weights_T: torch.Tensor | None = None,
    student_map: LogitMap | None = None,
    teacher_map: LogitMap | None = None,
    scored: ScoredTopK | None = None,
) -> KLResult:
    """``topk_reverse_kl``, ``forward_kl`` or ``gated_kl`` of ``distill.loss``.

    Args:
        direction: Which of them.
        student_hidden_TD: What goes into the student's head; fp32, bf16 or, for tests, fp64.
        student_head_VD: Its output embedding; without gradient if it requires none.
        teacher_hidden_TD: The teacher's; its hidden size may be another.
        teacher_head_VD: Of the same vocabulary.
        k: Size of the support, at least 1.
        mode: See ``distill.loss.topk_reverse_kl``.
        chunk: Positions whose logits exist at a time: 2 x chunk x V x 4 bytes, more with ``full``, a
            soft-cap, or a GPU.
        weights_T: What each position counts; 1 for all by default. Weight 0 leaves a position out, whatever
            its hidden state holds.
        student_map: Bias, scale, soft-cap and temperature of the student's logits. A bias gets its gradient.
        teacher_map: The same for the teacher.
        scored: The teacher, where only its log-probabilities at k ids are known, in place of
            ``teacher_hidden_TD`` and ``teacher_head_VD``. These ids are the support: the student's top-k,
            or, going ``forward``, the teacher's own.

    Returns:
        The weighted sum, and what is worth logging, in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: Shapes or vocabularies that do not fit, k or chunk below 1, an unknown mode, no teacher or
            two, or ``full`` for a teacher that is known at a top-k only.
    """
    if scored is not None and (mode == "full" or k >= student_head_VD.shape[0]):
        raise ValueError("mode full needs the teacher's whole distribution, not its scores of a top-k")
    check_top_k(k, mode)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    hidden_TD, head_VD, student_map = student_hidden_TD, student_head_VD, student_map or LogitMap()
    if hidden_TD.dim() != 2 or head_VD.dim() != 2 or hidden_TD.shape[1] != head_VD.shape[1]:
        raise ValueError(
            "hidden states must be [T, D] and the head [V, D]: "
            f"{tuple(hidden_TD.shape)}, {tuple(head_VD.shape)}"
        )
    size, (vocabulary, _) = hidden_TD.shape[0], head_VD.shape
    if weights_T is None:
        weights_T = torch.ones(size, device=hidden_TD.device)
    if weights_T.shape != (size,):
        raise ValueError(f"weights must be [{size}], not {tuple(weights_T.shape)}")
    local = teacher_hidden_TD is not None and teacher_head_VD is not None
    if local == (scored is not None):
        raise ValueError("give the teacher either as hidden states and head, or as scores of the top-k")
    if teacher_hidden_TD is not None and teacher_head_VD is not None:
        if teacher_hidden_TD.dim() != 2 or teacher_hidden_TD.shape[1] != teacher_head_VD.shape[1]:
            raise ValueError("the teacher's hidden states and head do not fit each other")
        if (teacher_hidden_TD.shape[0], teacher_head_VD.shape[0]) != (size, vocabulary):
            raise ValueError(
                f"student and teacher differ in positions or vocabulary: {size} x {vocabulary} against "
                f"{teacher_hidden_TD.shape[0]} x {teacher_head_VD.shape[0]}"
            )
    if scored is not None and not scored.index_TK.shape == scored.logprobs_TK.shape == (size, k):
        raise ValueError(f"the teacher's scores must be [{size}, {k}], not {tuple(scored.logprobs_TK.shape)}")
    call = _Call(
        direction=direction,
        k=k,
        mode="full" if k >= vocabulary else mode,
        chunk=chunk,
        student_map=student_map,
        teacher_hidden_TD=None if teacher_hidden_TD is None else teacher_hidden_TD.detach(),
        teacher_head_VD=None if teacher_head_VD is None else teacher_head_VD.detach(),
        teacher_map=teacher_map or LogitMap(),
        scored=scored,
        weights_T=weights_T.detach(),
    )
    apply: Any = _ChunkedKL.apply  # untyped in torch
    outputs = apply(hidden_TD, head_VD, student_map.bias_V, call)
    return KLResult(*outputs)


@torch.no_grad()
def topk_ids(
    hidden_TD: torch.Tensor, head_VD: torch.Tensor, *, k: int, chunk: int = 256, map: LogitMap | None = None
) -> torch.Tensor:
    """The ids of the k most probable tokens at each position, [T, K]: what a remote teacher has to score."""
    dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
    parts = []
    for hidden_CD in hidden_TD.split(chunk):
        space_CV = hidden_CD.new_empty((len(hidden_CD), head_VD.shape[0]), dtype=dtype)
        logits_CV = (map or LogitMap()).apply_(_product(hidden_CD, head_VD, space_CV))
        parts.append(logits_CV.topk(min(k, head_VD.shape[0]), dim=-1).indices)
    return torch.cat(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """All that has no gradient."""

    direction: Direction
    k: int
    mode: Mode
    chunk: int
    student_map: LogitMap
    teacher_hidden_TD: torch.Tensor | None
    teacher_head_VD: torch.Tensor | None
    teacher_map: LogitMap
    scored: ScoredTopK | None
    weights_T: torch.Tensor

    def teacher_logits(self, index_C: torch.Tensor, out_CV: torch.Tensor) -> torch.Tensor:
        """The teacher's logits at chosen positions."""
        assert self.teacher_hidden_TD is not None
        assert self.teacher_head_VD is not None
        return self.teacher_map.apply_(
            _product(self.teacher_hidden_TD[index_C], self.teacher_head_VD, out_CV)
        )


class _ChunkedKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: torch.Tensor, head_VD: torch.Tensor, bias_V: torch.Tensor | None, call: _Call
    ) -> tuple[torch.Tensor, ...]:
        wants_hidden, wants_head, wants_bias, _ = ctx.needs_input_grad
        dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
        device = hidden_TD.device
        stats_5T = torch.zeros((5, hidden_TD.shape[0]), dtype=dtype, device=device)
        d_hidden_TD = torch.zeros_like(hidden_TD, dtype=dtype) if wants_hidden else None
        d_head_VD = torch.zeros_like(head_VD, dtype=dtype) if wants_head else None
        d_bias_V = torch.zeros_like(bias_V, dtype=dtype) if wants_bias and bias_V is not None else None
        counted = call.weights_T.nonzero()[:, 0]
        # Allocated once: fresh memory of this size costs as much as working through it.
        shape = (min(call.chunk, len(counted)), head_VD.shape[0])
        space_CV = hidden_TD.new_empty(shape, dtype=dtype)
        teacher_space_CV = space_CV if call.scored is not None else torch.empty_like(space_CV)
        scratch_BV = torch.empty_like(space_CV[: _block_size(space_CV)])
        with torch.autocast(device.type, enabled=False):
            for start in range(0, len(counted), call.chunk):
                index_C = counted[start : start + call.chunk]
                hidden_CD = hidden_TD[index_C]
                student_CV = _product(hidden_CD, head_VD, space_CV[: len(index_C)])
                student_CV = call.student_map.apply_(student_CV)
                teacher_CV = teacher_space_CV[: len(index_C)]
                if call.scored is None:
                    teacher_CV = call.teacher_logits(index_C, teacher_CV)
                slope_CV = None
                if call.student_map.softcap is not None:
                    slope_CV = call.student_map.slope_(student_CV.clone())
                for block in range(0, len(index_C), len(scratch_BV)):
                    rows = slice(block, block + len(scratch_BV))
                    # From here on student_CV holds the gradient by the logits.
                    stats_5T[:, index_C[rows]] = _kl_rows(
                        student_CV[rows],
                        teacher_CV[rows],
                        scratch_BV[: len(index_C[rows])],
                        None if call.scored is None else ScoredTopK(*(p[index_C[rows]] for p in call.scored)),
                        call,
                    )
                student_CV.mul_(call.weights_T[index_C].to(dtype)[:, None])
                if slope_CV is not None:
                    student_CV.mul_(slope_CV)
                elif (factor := call.student_map.scale / call.student_map.temperature) != 1.0:
                    student_CV.mul_(factor)
                if d_hidden_TD is not None:
                    d_hidden_TD[index_C] = _times_head(student_CV, head_VD)
                if d_head_VD is not None:
                    _add_product_(d_head_VD, student_CV.T, hidden_CD)
                if d_bias_V is not None:
                    d_bias_V += student_CV.sum(0)
        loss = (stats_5T[0] * call.weights_T.to(dtype)).sum()
        ctx.grads = (d_hidden_TD, d_head_VD, d_bias_V)
        ctx.dtypes = (hidden_TD.dtype, head_VD.dtype, None if bias_V is None else bias_V.dtype)
        stats = stats_5T.unbind()
        ctx.mark_non_differentiable(*stats)
        return (loss, *stats)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_loss: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("the chunked loss was differentiated twice: its gradients are used up")
        grads, ctx.grads = ctx.grads, None
        scaled = [
            None if grad is None else grad.mul_(d_loss).to(dtype)
            for grad, dtype in zip(grads, ctx.dtypes, strict=True)
        ]
        return (*scaled, None)


def _kl_rows(
    student_BV: torch.Tensor,
    teacher_BV: torch.Tensor,
    scratch_BV: torch.Tensor,
    scored: ScoredTopK | None,
    call: _Call,
) -> torch.Tensor:
    """KL, masses and entropies of some rows, [5, B]; the student's logits become the KL's gradient by them.

    The teacher's logits and the scratch space are used up.
    """
    if call.mode == "full":
        return _full_kl_rows(student_BV, teacher_BV, call.direction)
    if scored is not None:
        index_BK = scored.index_TK
    else:
        index_BK = _likely(student_BV, teacher_BV, scratch_BV, call.direction).topk(call.k, dim=-1).indices
    # First: its exponentials in the scratch space make way for the student's, which the gradient needs.
    teacher = _parts(teacher_BV, index_BK, scratch_BV) if scored is None else _scored_parts(scored)
    student = _parts(student_BV, index_BK, scratch_BV)
    p, q = _Restricted.of(student, call.mode), _Restricted.of(teacher, call.mode)
    if call.direction == "reverse":
        kl = _reverse(p, q, student, call.mode)
    elif call.direction == "forward":
        kl = _forward(p, q, student, call.mode)
    else:
        apart_B1 = ((p.top_BK - q.top_BK).abs().sum(-1, keepdim=True) + (p.rest_B1 - q.rest_B1).abs()) / 2
        kl = _KL(
            *(
                torch.lerp(one, other, apart_B1)
                for one, other in zip(
                    _reverse(p, q, student, call.mode), _forward(p, q, student, call.mode), strict=True
                )
            )
        )
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


def _reverse(p: _Restricted, q: _Restricted, student: "_Parts", mode: Mode) -> _KL:
    ratio_BK = torch.where(p.top_BK > 0, p.log_top_BK - q.log_top_BK, 0.0)
    ratio_rest_B1 = torch.where(p.rest_B1 > 0, p.log_rest_B1 - q.log_rest_B1, 0.0)
    kl_B1 = (p.top_BK * ratio_BK).sum(-1, keepdim=True) + p.rest_B1 * ratio_rest_B1
    if mode == "truncated":
        mass_B1 = p.top_BK.sum(-1, keepdim=True)
        grad_BK = p.top_BK * (ratio_BK + 1 - kl_B1 - mass_B1)
        rest_factor_B1 = -(kl_B1 + mass_B1)
    else:
        grad_BK = p.top_BK * (ratio_BK - kl_B1)
        rest_factor_B1 = ratio_rest_B1 - kl_B1 if mode == "tail" else torch.zeros_like(kl_B1)
    return _KL(kl_B1, grad_BK, rest_factor_B1 * student.rest_scale_B1)


def _forward(p: _Restricted, q: _Restricted, student: "_Parts", mode: Mode) -> _KL:
    ratio_BK = torch.where(q.top_BK > 0, q.log_top_BK - p.log_top_BK, 0.0)
    ratio_rest_B1 = torch.where(q.rest_B1 > 0, q.log_rest_B1 - p.log_rest_B1, 0.0)
    kl_B1 = (q.top_BK * ratio_BK).sum(-1, keepdim=True) + q.rest_B1 * ratio_rest_B1
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
    largest_B1 = torch.where(largest_B1 > -torch.inf, largest_B1, 0.0)
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


def _block_size(logits_CV: torch.Tensor) -> int:
    """How many rows are worked on together."""
    rows, vocabulary = logits_CV.shape
    if logits_CV.device.type == "cpu":
        rows = min(rows, CACHED_ELEMENTS // vocabulary)
    return max(1, rows)


def _product(hidden_CD: torch.Tensor, head_VD: torch.Tensor, out_CV: torch.Tensor) -> torch.Tensor:
    """``out_CV``, filled with hidden states times the head."""
    if _is_narrow(hidden_CD, head_VD):
        return torch.mm(hidden_CD, head_VD.T, out_dtype=out_CV.dtype, out=out_CV)
    hidden_CD = hidden_CD.to(out_CV.dtype)
    _per_head_block(
        head_VD, out_CV.dtype, lambda rows, block_UD: torch.mm(hidden_CD, block_UD.T, out=out_CV[:, rows])
    )
    return out_CV


def _times_head(grad_CV: torch.Tensor, head_VD: torch.Tensor) -> torch.Tensor:
    """[C, D]: the gradient by the logits times the head."""
    if _is_narrow(head_VD):
        return torch.mm(grad_CV.to(head_VD.dtype), head_VD, out_dtype=grad_CV.dtype)
    out_CD = grad_CV.new_zeros((grad_CV.shape[0], head_VD.shape[1]))
    _per_head_block(head_VD, grad_CV.dtype, lambda rows, block_UD: out_CD.addmm_(grad_CV[:, rows], block_UD))
    return out_CD


def _add_product_(sum_VD: torch.Tensor, grad_VC: torch.Tensor, hidden_CD: torch.Tensor) -> None:
    """Add the head's gradient by a chunk."""
    if _is_narrow(hidden_CD):
        sum_VD += torch.mm(grad_VC.to(hidden_CD.dtype), hidden_CD, out_dtype=sum_VD.dtype)
    else:
        sum_VD.addmm_(grad_VC, hidden_CD.to(sum_VD.dtype))


def _is_narrow(*tensors: torch.Tensor) -> bool:
    """Whether products can take 16-bit factors as they are and add up in fp32, as a GPU's matrix units do.

    Of what goes in nothing is lost then but of the gradients by the logits, which are rounded to the type
    that the gradients become in the end. A CPU widens the factors, a part at a time.
    """
    return all(tensor.is_cuda and tensor.itemsize == 2 for tensor in tensors)


def _per_head_block(
    head_VD: torch.Tensor, dtype: torch.dtype, work: Callable[[slice, torch.Tensor], object]
) -> None:
    """Go over the head; one of a narrower type is widened a part at a time, never as a whole."""
    size = head_VD.shape[0] if head_VD.dtype == dtype else 1 << 14
    for start in range(0, head_VD.shape[0], size):
        rows = slice(start, start + size)
        work(rows, head_VD[rows].to(dtype))
