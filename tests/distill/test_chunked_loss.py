"""The chunked loss against the plain one, and its hand-written gradients against everything there is."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.chunked_loss import KLResult, chunked_kl, topk_ids
from distill.kl_rows import ScoredTopK
from distill.lm.logit_map import LogitMap
from distill.loss import Direction, Mode, forward_kl, gated_kl, topk_reverse_kl

MODES, DIRECTIONS = get_args(Mode), get_args(Direction)
PLAIN = {"reverse": topk_reverse_kl, "forward": forward_kl, "gated": gated_kl}
T, V, D = 7, 50, 8


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Student and teacher, of different hidden sizes."""
    return (
        normal(T, D, seed=seed, dtype=dtype).requires_grad_(),
        normal(V, D, seed=seed + 1, dtype=dtype).requires_grad_(),
        normal(T, D + 3, seed=seed + 2, dtype=dtype),
        normal(V, D + 3, seed=seed + 3, dtype=dtype),
    )


def plain_logits(hidden: torch.Tensor, head: torch.Tensor, map: LogitMap) -> torch.Tensor:
    """What LogitMap says, out of place."""
    logits = hidden @ head.T
    if map.bias_V is not None:
        logits = logits + map.bias_V
    logits = logits * map.scale
    if map.softcap is not None:
        logits = map.softcap * (logits / map.softcap).tanh()
    return logits / map.temperature


MAPS = [
    LogitMap(),
    LogitMap(temperature=0.4),
    LogitMap(scale=0.3, temperature=1.7),
    LogitMap(softcap=4.0),
    LogitMap(bias_V=normal(V, seed=9).requires_grad_(), scale=2.0, softcap=5.0, temperature=0.7),
]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("k", "chunk"), [(1, 3), (5, 7), (49, 1), (50, 4), (80, 100)])
@pytest.mark.parametrize("map", MAPS)
def test_values_gradients_and_statistics_are_the_plain_ones(
    direction: Direction, mode: Mode, k: int, chunk: int, map: LogitMap
) -> None:
    hidden, head, teacher_hidden, teacher_head = inputs()
    teacher_map = LogitMap(scale=1.1, temperature=0.4)
    weights = torch.rand(T, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    weights[2] = 0
    student_logits = plain_logits(hidden, head, map)
    teacher_logits = plain_logits(teacher_hidden, teacher_head, teacher_map)
    kl = PLAIN[direction](student_logits, teacher_logits, k=k, mode=mode)
    trained = [hidden, head] + ([map.bias_V] if map.bias_V is not None else [])
    expected = torch.autograd.grad((weights * kl).sum(), trained)

    result: KLResult = chunked_kl(
        direction, hidden, head, teacher_hidden, teacher_head,
        k=k, mode=mode, chunk=chunk, weights_T=weights, student_map=map, teacher_map=teacher_map,
    )  # fmt: skip
    counted = weights > 0
    torch.testing.assert_close(result.loss, (weights * kl).sum())
    torch.testing.assert_close(result.kl_T, torch.where(counted, kl, 0.0))
    torch.testing.assert_close(torch.autograd.grad(2.5 * result.loss, trained), [2.5 * g for g in expected])

    p, q = student_logits.log_softmax(-1)[counted], teacher_logits.log_softmax(-1)[counted]
    likely = {"reverse": p, "forward": q, "gated": torch.maximum(p, q)}
    support = likely[direction].topk(min(k, V) if mode != "full" else V).indices
    for logprobs, mass, entropy in (
        (p, result.student_mass_T, result.student_entropy_T),
        (q, result.teacher_mass_T, result.teacher_entropy_T),
    ):
        torch.testing.assert_close(mass[counted], logprobs.exp().gather(-1, support).sum(-1))
        torch.testing.assert_close(entropy[counted], -(logprobs.exp() * logprobs).sum(-1))


class Again(torch.autograd.Function):
    """The chunked loss computed anew in every backward pass: gradcheck makes several."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, bias: torch.Tensor, loss: Any) -> Any:
        ctx.save_for_backward(hidden, head, bias)
        ctx.loss = loss
        return loss(hidden, head, bias).detach()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in ctx.saved_tensors]
            grads = torch.autograd.grad(ctx.loss(*leaves), leaves, grad)
        return (*grads, None)


@pytest.mark.parametrize("direction", ["reverse", "forward"])  # the gate of the third has no gradient
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_gradcheck(direction: Direction, mode: Mode, softcap: float | None) -> None:
    def loss(hidden: torch.Tensor, head: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        map = LogitMap(bias_V=bias, scale=0.9, softcap=softcap, temperature=0.8)
        result = chunked_kl(
            direction,
            hidden,
            head,
            normal(3, 5, seed=3),
            normal(11, 5, seed=4),
            k=4,
            mode=mode,
            chunk=2,
            student_map=map,
        )
        return result.loss

    leaves = [normal(*shape, seed=i).requires_grad_() for i, shape in enumerate([(3, 4), (11, 4), (11,)])]
    apply: Any = Again.apply
    assert torch.autograd.gradcheck(lambda *tensors: apply(*tensors, loss), leaves)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 9), st.sampled_from(MODES))
def test_any_input_gives_the_plain_value(seed: int, k: int, chunk: int, mode: Mode) -> None:
    hidden, head, teacher_hidden, teacher_head = inputs(seed=seed)
    for direction in DIRECTIONS:
        result = chunked_kl(
            direction, hidden, head, teacher_hidden, teacher_head, k=k, mode=mode, chunk=chunk
        )
        plain = PLAIN[direction](hidden @ head.T, teacher_hidden @ teacher_head.T, k=k, mode=mode)
        torch.testing.assert_close(result.kl_T, plain)


def test_frozen_heads_get_no_gradient_and_tied_ones_get_both() -> None:
    hidden, head, teacher_hidden, teacher_head = inputs()
    frozen = head.detach()
    chunked_kl("reverse", hidden, frozen, teacher_hidden, teacher_head, k=5).loss.backward()
    assert hidden.grad is not None
    assert frozen.grad is None

    ids = torch.tensor([3, 1, 4, 1, 5, 9, 2])
    embedding = normal(V, D, seed=7).requires_grad_()
    result = chunked_kl("reverse", embedding[ids].tanh(), embedding, teacher_hidden, teacher_head, k=5)
    plain = topk_reverse_kl(embedding[ids].tanh() @ embedding.T, teacher_hidden @ teacher_head.T, k=5)
    [mine] = torch.autograd.grad(result.loss, embedding)
    [expected] = torch.autograd.grad(plain.sum(), embedding)
    torch.testing.assert_close(mine, expected)


def test_half_precision_inputs_are_computed_in_single() -> None:
    hidden, head, teacher_hidden, teacher_head = inputs(torch.bfloat16)
    result = chunked_kl("reverse", hidden, head, teacher_hidden, teacher_head, k=5, chunk=3)
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, head)]
    exact = topk_reverse_kl(wide[0] @ wide[1].T, teacher_hidden.double() @ teacher_head.double().T, k=5)
    assert result.loss.dtype == torch.float32
    torch.testing.assert_close(result.kl_T.double(), exact, atol=1e-4, rtol=1e-4)
    mine = torch.autograd.grad(result.loss, (hidden, head))
    for grad, expected in zip(mine, torch.autograd.grad(exact.sum(), wide), strict=True):
        assert grad.dtype == torch.bfloat16
        torch.testing.assert_close(grad.double(), expected, atol=1e-2, rtol=1e-2)


def test_autocast_does_not_reach_inside() -> None:
    hidden, head, teacher_hidden, teacher_head = inputs(torch.float32)
    outside = chunked_kl("reverse", hidden, head, teacher_hidden, teacher_head, k=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = chunked_kl("reverse", hidden, head, teacher_hidden, teacher_head, k=5)
    assert torch.equal(inside.kl_T, outside.kl_T)


@pytest.mark.parametrize("mode", ["truncated", "renormalised", "tail"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_teacher_known_at_the_top_k_only(mode: Mode, temperature: float) -> None:
    """As one that is served elsewhere: its scores of the student's top-k are all that is needed."""
    hidden, head, teacher_hidden, teacher_head = inputs()
    local = chunked_kl("reverse",
        hidden, head, teacher_hidden, teacher_head,
        k=5, mode=mode, teacher_map=LogitMap(temperature=temperature),
    )  # fmt: skip
    index = topk_ids(hidden, head, k=5, chunk=2)
    logprobs = (teacher_hidden @ teacher_head.T / temperature).log_softmax(-1).gather(-1, index)
    remote = chunked_kl("reverse", hidden, head, k=5, mode=mode, chunk=3, scored=ScoredTopK(index, logprobs))
    torch.testing.assert_close(remote.kl_T, local.kl_T)
    assert remote.teacher_entropy_T.isnan().all()
    for mine, expected in zip(
        torch.autograd.grad(remote.loss, (hidden, head)),
        torch.autograd.grad(local.loss, (hidden, head)),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_masked_positions_may_hold_anything(direction: Direction, mode: Mode) -> None:
    hidden, head, teacher_hidden, teacher_head = inputs()
    weights = torch.ones(T)
    weights[[1, 6]] = 0
    clean = chunked_kl(
        direction, hidden, head, teacher_hidden, teacher_head, k=5, mode=mode, weights_T=weights
    )
    with torch.no_grad():
        hidden[1], teacher_hidden[6] = torch.nan, torch.inf
    dirty = chunked_kl(
        direction, hidden, head, teacher_hidden, teacher_head, k=5, mode=mode, weights_T=weights
    )
    assert torch.equal(dirty.kl_T, clean.kl_T)
    [grad] = torch.autograd.grad(dirty.loss, hidden)
    assert torch.equal(grad[[1, 6]], torch.zeros(2, D, dtype=torch.float64))
    assert grad.isfinite().all()


def test_nothing_but_masked_positions() -> None:
    hidden, head, teacher_hidden, teacher_head = inputs()
    result = chunked_kl("reverse", hidden, head, teacher_hidden, teacher_head, weights_T=torch.zeros(T))
    assert result.loss.item() == 0
    for grad in torch.autograd.grad(result.loss, (hidden, head)):
        assert not grad.any()


@pytest.mark.parametrize("mode", MODES)
def test_ties_cost_the_same_whichever_side_they_fall(mode: Mode) -> None:
    """Eight tokens alike for the student, five of which fit the support."""
    hidden, teacher_hidden = torch.ones(1, 1, requires_grad=True), torch.ones(1, 1)
    head, teacher_head = torch.zeros(8, 1), torch.arange(8.0)[:, None] / 8
    result = chunked_kl("reverse", hidden, head, teacher_hidden, teacher_head, k=5, mode=mode)
    plain = topk_reverse_kl(hidden @ head.T, teacher_hidden @ teacher_head.T, k=5, mode=mode)
    torch.testing.assert_close(result.kl_T, plain)
    assert result.student_mass_T.item() == pytest.approx(1.0 if mode == "full" else 5 / 8)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("k", "possible"), [(2, 4), (3, 4), (3, 2)])
@pytest.mark.parametrize("shift", [0.0, -1000.0])
def test_impossible_tokens(direction: Direction, mode: Mode, k: int, possible: int, shift: float) -> None:
    """Logits of minus infinity on both sides, wherever the others are: finite values and gradients."""
    bias = torch.tensor([0.0, 1.0, 0.5, 0.2, -torch.inf]) + shift
    bias[possible:] = -torch.inf
    hidden, head = torch.zeros(2, 3, requires_grad=True), torch.zeros(5, 3, requires_grad=True)
    map = LogitMap(bias_V=bias)
    result = chunked_kl(
        direction, hidden, head, torch.ones(2, 3), torch.ones(5, 3),
        k=k, mode=mode, student_map=map, teacher_map=map,
    )  # fmt: skip
    assert result.kl_T.isfinite().all()
    assert result.student_entropy_T.isfinite().all()
    for grad in torch.autograd.grad(result.loss, (hidden, head)):
        assert grad.isfinite().all()


def test_what_the_other_excludes_costs_infinitely_much() -> None:
    excluded = LogitMap(bias_V=torch.tensor([0.0, -torch.inf, 0.0]))
    zeros = (torch.zeros(1, 2), torch.zeros(3, 2)) * 2
    for mode in ("tail", "full"):
        assert chunked_kl("reverse", *zeros, k=2, mode=mode, teacher_map=excluded).loss.item() == math.inf
        assert chunked_kl("forward", *zeros, k=2, mode=mode, student_map=excluded).loss.item() == math.inf


def test_a_sharpened_teachers_tail_does_not_vanish() -> None:
    """Its rest has probability e-200 or so, below all fp32 numbers, and still a finite log."""
    hidden = torch.ones(1, 1, requires_grad=True)
    head, teacher_head = torch.zeros(40, 1), torch.zeros(40, 1)
    head[:2], teacher_head[:2] = 2.0, 80.0
    result = chunked_kl(
        "reverse", hidden, head, torch.ones(1, 1), teacher_head, k=2, teacher_map=LogitMap(temperature=0.4)
    )
    exact = topk_reverse_kl(hidden @ head.T, torch.ones(1, 1) @ teacher_head.T / 0.4, k=2)
    assert 50 < result.loss.item() < math.inf
    torch.testing.assert_close(result.kl_T, exact)


def test_no_more_than_a_chunk_of_logits_is_ever_held() -> None:
    """Every tensor that is allocated is counted: none is of size positions x vocabulary."""
    size = 64
    hidden, teacher_hidden = normal(size, D, seed=0).requires_grad_(), normal(size, D, seed=1)
    head, teacher_head = normal(V * 20, D, seed=2).requires_grad_(), normal(V * 20, D, seed=3)
    with torch.profiler.profile(profile_memory=True) as profile:
        chunked_kl("reverse", hidden, head, teacher_hidden, teacher_head, k=5, chunk=8).loss.backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 8 * V * 20 * 8  # a chunk's logits in fp64
    assert largest < size * V * 20 * 8


def test_it_is_differentiated_once() -> None:
    hidden, head, teacher_hidden, teacher_head = inputs()
    loss = chunked_kl("reverse", hidden, head, teacher_hidden, teacher_head).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        loss.backward()


GOOD = [tensor.detach() for tensor in inputs()]
SCORES = ScoredTopK(torch.zeros(T, 5, dtype=torch.long), torch.zeros(T, 5))


@pytest.mark.parametrize(
    ("args", "kwargs", "match"),
    [
        (GOOD, {"k": 0}, "k must"),
        (GOOD, {"mode": "half"}, "mode"),
        (GOOD, {"chunk": 0}, "chunk"),
        (GOOD, {"weights_T": torch.ones(T - 1)}, "weights"),
        ([GOOD[0], GOOD[3], *GOOD[2:]], {}, r"\[T, D\]"),
        ([*GOOD[:2], GOOD[2], GOOD[1]], {}, "do not fit"),
        ([*GOOD[:2], GOOD[2][1:], GOOD[3]], {}, "differ in positions or vocabulary: 7 x 50 against 6 x 50"),
        ([*GOOD[:3], GOOD[3][1:]], {}, "differ in positions or vocabulary: 7 x 50 against 7 x 49"),
        (GOOD[:2], {}, "either as"),
        (GOOD, {"scored": SCORES}, "either as"),
        (GOOD[:2], {"scored": SCORES, "mode": "full"}, "whole distribution"),
        (GOOD[:2], {"scored": SCORES, "k": 4}, "scores must be"),
    ],
)
def test_bad_input(args: list[torch.Tensor], kwargs: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        chunked_kl("reverse", *args, **{"k": 5, **kwargs})


def test_temperature_must_be_above_zero() -> None:
    with pytest.raises(ValueError, match="temperature"):
        LogitMap(temperature=0.0)
