"""The losses of ``distill/loss.py`` from hidden states, with a hand-written backward.

Logits exist for one chunk of positions at a time, in fp32, and the gradients of the hidden states and of
the head are accumulated chunk by chunk in the forward pass. So nothing of size positions x vocabulary
outlives its chunk, and no head product is computed twice: two for the logits (one when the teacher's
log-probabilities are given), one for the hidden states' gradient and one for the head's (when it has one).
What is done to the logits of a row is in ``distill/kl_rows.py``.

Shape letters: T positions, V vocabulary, K top-k, D hidden size, C positions of a chunk, B rows of a block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from distill.kl_rows import ScoredTopK, kl_rows
from distill.lm.logit_map import LogitMap
from distill.loss import Direction, Mode, check_top_k

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
                    stats_5T[:, index_C[rows]] = kl_rows(
                        student_CV[rows],
                        teacher_CV[rows],
                        scratch_BV[: len(index_C[rows])],
                        None if call.scored is None else ScoredTopK(*(p[index_C[rows]] for p in call.scored)),
                        direction=call.direction,
                        mode=call.mode,
                        k=call.k,
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
