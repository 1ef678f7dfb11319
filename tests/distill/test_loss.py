import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl.experimental.sdft.loss_utils import compute_topk_self_distillation_loss

from distill.loss import Mode, forward_kl, gated_kl, topk_reverse_kl

MODES = get_args(Mode)


def reference(student: torch.Tensor, teacher: torch.Tensor, k: int, mode: str) -> torch.Tensor:
    """From probabilities, token by token, in plain Python floats."""
    rows = []
    for s, t in zip(student.double(), teacher.double(), strict=True):
        p, q = s.softmax(-1).tolist(), t.softmax(-1).tolist()
        top = sorted(range(len(p)), key=lambda i: -p[i])[: k if mode != "full" else len(p)]
        ps, qs = [p[i] for i in top], [q[i] for i in top]
        if mode == "renormalised":
            ps, qs = [x / sum(ps) for x in ps], [x / sum(qs) for x in qs]
        if mode == "tail" and len(top) < len(p):
            ps.append(1 - sum(ps))
            qs.append(1 - sum(qs))
        rows.append(sum(a * math.log(a / b) for a, b in zip(ps, qs, strict=True)))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [1, 5, 49, 50, 1000])
def test_forward_is_reverse_with_the_parts_exchanged(mode: Mode, k: int) -> None:
    """Value: KL(q || p) on the teacher's top-k is the reverse KL of a student that is the teacher."""
    student, teacher = logits(0), logits(1)
    kl = forward_kl(student, teacher, k=k, mode=mode)
    torch.testing.assert_close(kl, reference(teacher, student, k, "full" if k >= 50 else mode))
    torch.testing.assert_close(kl, topk_reverse_kl(teacher, student, k=k, mode=mode))


@pytest.mark.parametrize("mode", MODES)
def test_forward_gradcheck(mode: Mode) -> None:
    student, teacher = logits(2, T=3, V=9).requires_grad_(), logits(3, T=3, V=9)
    assert torch.autograd.gradcheck(lambda s: forward_kl(s, teacher, k=4, mode=mode), (student,))


@pytest.mark.parametrize(("alpha", "ours"), [(1.0, topk_reverse_kl), (0.0, forward_kl)])
@pytest.mark.parametrize(("mode", "add_tail"), [("tail", True), ("renormalised", False)])
def test_trl_computes_the_same(alpha: float, ours: Any, mode: Mode, add_tail: bool) -> None:
    """TRL takes the student's top-k in both directions; forward is compared where both top-k agree."""
    student, teacher = logits(5).float(), logits(6).float()
    if alpha == 0.0:  # the same ten tokens on top of both
        student[:, :10] += 20
        teacher[:, :10] += 20
    theirs = compute_topk_self_distillation_loss(
        student, teacher, distillation_topk=10, distillation_alpha=alpha, distillation_add_tail=add_tail
    )
    torch.testing.assert_close(ours(student, teacher, k=10, mode=mode), theirs, atol=1e-5, rtol=1e-4)


def logits(seed: int, T: int = 7, V: int = 50, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(T, V, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [1, 5, 49, 50, 1000])
def test_against_the_definition(mode: Mode, k: int) -> None:
    student, teacher = logits(0), logits(1)
    expected = reference(student, teacher, k, "full" if k >= 50 else mode)
    torch.testing.assert_close(topk_reverse_kl(student, teacher, k=k, mode=mode), expected)
    single = topk_reverse_kl(student.float(), teacher.float(), k=k, mode=mode)
    torch.testing.assert_close(single.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode: Mode) -> None:
    student, teacher = logits(2, T=3, V=9).requires_grad_(), logits(3, T=3, V=9)
    assert torch.autograd.gradcheck(lambda s: topk_reverse_kl(s, teacher, k=4, mode=mode), (student,))


@pytest.mark.parametrize("mode", MODES)
def test_zero_when_equal(mode: Mode) -> None:
    student = logits(4)
    kl = topk_reverse_kl(student, student + 3.0, k=8, mode=mode)  # a shift changes no distribution
    torch.testing.assert_close(kl, torch.zeros(7, dtype=torch.float64))


@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0.1, 8.0))
def test_bounds(seed: int, k: int, scale: float) -> None:
    student, teacher = logits(seed, scale=scale), logits(seed + 1, scale=scale)
    tail, full, renormalised = (
        topk_reverse_kl(student, teacher, k=k, mode=mode) for mode in ("tail", "full", "renormalised")
    )
    assert (tail >= -1e-9).all()
    assert (renormalised >= -1e-9).all()
    assert (tail <= full + 1e-9).all()


def test_direction() -> None:
    """Reverse: the student's probabilities weigh. Forward KL would be 0.2 log(0.2/0.9) + 0.8 log(0.8/0.1)."""
    student, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.2, 0.8]]).log()
    expected = 0.9 * math.log(0.9 / 0.2) + 0.1 * math.log(0.1 / 0.8)
    assert topk_reverse_kl(student, teacher, mode="full").item() == pytest.approx(expected, rel=1e-5)


def test_truncated_goes_below_zero_and_leaks() -> None:
    """Why it is not the default (DESIGN section 5)."""
    student = torch.tensor([[0.4, 0.3, 0.3]], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([[0.9, 0.05, 0.05]], dtype=torch.float64).log()
    loss = topk_reverse_kl(student, teacher, k=1, mode="truncated")
    assert loss.item() < 0
    loss.sum().backward()
    assert student.grad is not None
    # Descent raises the logits outside the top 1: dL/dz = -p (L + P_S) there.
    p, total = 0.3, 0.4
    assert student.grad[0, 1].item() == pytest.approx(-p * (loss.item() + total))


def test_impossible_tokens() -> None:
    student = torch.tensor([[0.0, 1.0, -torch.inf, 0.5]], requires_grad=True)
    teacher = torch.tensor([[0.0, 1.0, 0.3, 0.5]])
    for mode in MODES:
        kl = topk_reverse_kl(student, teacher, k=2, mode=mode)
        assert torch.isfinite(kl).all()
        (gradient,) = torch.autograd.grad(kl.sum(), student)
        assert torch.isfinite(gradient).all()
    # A token that the teacher excludes and the student does not costs infinitely much.
    assert topk_reverse_kl(teacher, student.detach(), mode="full").item() == math.inf


def test_tail_survives_a_saturated_student() -> None:
    """The rest has probability e-40, which 1 - P_S cannot hold in fp32."""
    student = torch.zeros(1, 1000)
    student[0, :2] = torch.tensor([50.0, 49.0])
    teacher = torch.zeros(1, 1000)
    kl = topk_reverse_kl(student, teacher, k=2, mode="tail")
    expected = reference(student, teacher, 2, "full")  # a lower bound that is tight here
    assert 0 < kl.item() <= expected.item() + 1e-4


@pytest.mark.parametrize(
    ("student", "teacher", "kwargs", "match"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), {}, "T, V"),
        (torch.zeros(3), torch.zeros(3), {}, "T, V"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"k": 0}, "k must"),
        (torch.zeros(2, 3), torch.zeros(2, 3), {"mode": "forward"}, "mode"),
    ],
)
def test_bad_input(
    student: torch.Tensor, teacher: torch.Tensor, kwargs: dict[str, object], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        topk_reverse_kl(student, teacher, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [topk_reverse_kl, forward_kl])
def test_the_tail_has_gradients_where_nothing_is_left_for_it(form: Any) -> None:
    """All outside the top k is impossible: the tail's KL is then the KL, and so are its gradients."""
    nothing = torch.full((1, 4), -torch.inf, dtype=torch.float64)
    gradients = []
    for mode in ("tail", "full"):
        top = torch.tensor([[1.0, 0.5, -2.0]], dtype=torch.float64, requires_grad=True)
        teacher = torch.tensor([[0.0, 1.0, 0.3]], dtype=torch.float64)
        form(
            torch.cat([top, nothing], -1), torch.cat([teacher, nothing], -1), k=3, mode=mode
        ).sum().backward()
        assert top.grad is not None
        assert torch.isfinite(top.grad).all()
        gradients.append(top.grad)
    torch.testing.assert_close(*gradients)


def test_the_gate_is_the_total_variation() -> None:
    student, teacher = logits(0), logits(1)
    apart = (student.softmax(-1) - teacher.softmax(-1)).abs().sum(-1) / 2
    forward, reverse = (form(student, teacher, mode="full") for form in (forward_kl, topk_reverse_kl))
    torch.testing.assert_close(
        gated_kl(student, teacher, mode="full"), apart * forward + (1 - apart) * reverse
    )


def test_the_gate_teaches_what_a_student_hardly_says() -> None:
    """A student that is certain of the wrong token: the right one's logit gets q, where reverse gives p."""
    student = torch.tensor([[20.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.0, 20.0, 0.0]], dtype=torch.float64)
    [reverse], [gated] = (
        torch.autograd.grad(form(student, teacher, mode="full").sum(), student)[0].tolist()
        for form in (topk_reverse_kl, gated_kl)
    )
    assert abs(reverse[1]) < 1e-6
    assert gated[1] == pytest.approx(-1, abs=1e-3)


@given(st.integers(0, 10**6), st.floats(0.1, 30))
def test_a_gated_step_is_bounded_by_its_parts(seed: int, scale: float) -> None:
    student, teacher = logits(seed, scale=scale).requires_grad_(), logits(seed + 1, scale=scale)
    grads = [
        torch.autograd.grad(form(student, teacher, mode="full").sum(), student)[0].abs().amax(-1)
        for form in (gated_kl, topk_reverse_kl, forward_kl)
    ]
    assert (grads[0] <= torch.maximum(grads[1], grads[2]) + 1e-9).all()
    assert grads[2].max() <= 1 + 1e-9
