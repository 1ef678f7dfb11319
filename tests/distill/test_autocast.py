"""Narrowed weights are what autocast makes of the weights as they are now, no longer than they are used."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel

from distill.lm import decoding, prefix_lm
from distill.lm.autocast import narrow_for_good, products_in
from distill.lm.decoding import Decoding
from distill.lm.prefix_lm import NodeCache, PrefixLM
from distill.lm.spare_columns import spare_columns
from distill.lm.support import find_support
from tests.conftest import tiny_llama
from tests.distill.test_families import tiny
from tests.distill.test_padded_lm import hybrid

IDS = torch.tensor([[5, 6, 7, 8, 9]])
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "hybrid": hybrid,
    **{name: partial(tiny, name) for name in ("Gemma 2", "gpt-oss", "LFM2", "Bamba")},
}


def by_autocast(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits: torch.Tensor = model(IDS).logits
    return logits


def by_kept_weights(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad(), products_in(model, torch.bfloat16):
        logits: torch.Tensor = model(IDS).logits
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_they_are_what_autocast_makes_bit_for_bit_and_follow_the_weights(name: str) -> None:
    model = MODELS[name]().eval()
    first = by_kept_weights(model)
    assert torch.equal(first, by_autocast(model))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(IDS, labels=IDS).loss.backward()
    optimizer.step()
    second = by_kept_weights(model)
    assert torch.equal(second, by_autocast(model))
    assert not torch.equal(second, first)
    for parameter in model.parameters():
        parameter.data = parameter.data * 2  # which no version tells
    assert torch.equal(by_kept_weights(model), by_autocast(model))


@pytest.mark.parametrize("name", MODELS)
def test_for_good_they_are_the_same_in_less_memory(name: str) -> None:
    model = MODELS[name]().eval()
    before, bytes_before = by_autocast(model), model.get_memory_footprint()
    narrow_for_good(model, None)
    assert model.get_memory_footprint() == bytes_before
    narrow_for_good(model, torch.bfloat16)
    assert torch.equal(by_kept_weights(model), before)
    assert torch.equal(by_autocast(model), before)
    assert model.get_memory_footprint() < bytes_before


def test_weights_are_narrowed_once_and_stand_there_again_whatever_happens() -> None:
    model = tiny_llama()
    before = dict(model.named_parameters())
    with torch.no_grad(), products_in(model, torch.bfloat16):
        inside = {name: p for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert {name.rsplit(".", 2)[1] for name in inside} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    }

    def draw() -> None:
        with torch.no_grad(), products_in(model, torch.bfloat16):
            assert all(p is inside[name] for name, p in model.named_parameters() if name in inside)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw()
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)


def test_where_gradients_flow_they_reach_the_weights() -> None:
    model = tiny_llama()
    with products_in(model, torch.bfloat16):
        model(IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_type_of_its_own_is_left_to_it() -> None:
    model = tiny_llama()
    with torch.no_grad(), products_in(model, None):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    plain, narrow = (Decoding(model, 2, compute_dtype=dtype) for dtype in (None, torch.bfloat16))
    tokens = [[5, 6, 7], [8, 9, 10]]
    torch.testing.assert_close(plain.step(tokens), narrow.step(tokens).float(), atol=0.1, rtol=0.1)
    assert not torch.equal(plain.hidden, narrow.hidden.float())


@pytest.mark.parametrize("name", MODELS)
def test_keys_are_held_as_they_are_used_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a sequence grows. Turned keys are wide, where products are narrow."""
    model = MODELS[name]()
    find_support(model)

    def grown() -> tuple[list[torch.Tensor], set[torch.dtype]]:
        batch = Decoding(model, 2, compute_dtype=torch.bfloat16)
        hidden = [
            batch.step(tokens)
            for tokens in ([[5, 6], [8, 9]], [[3], [4]], [[7, 8, 9], [5, 5, 6]], [[6], [6]])
        ]
        keys = [getattr(layer, "keys", None) for layer in batch._cache.layers]
        return hidden, {key.dtype for key in keys if key is not None}

    narrow, types = grown()
    assert types == {torch.bfloat16}
    monkeypatch.setattr(decoding, "spare_columns", lambda cache, _: spare_columns(cache, None))
    wide, types = grown()
    assert torch.float32 in types
    assert all(map(torch.equal, narrow, wide))


def test_so_are_those_of_a_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()

    def read() -> tuple[list[torch.Tensor], set[torch.dtype]]:
        lm = PrefixLM(model, compute_dtype=torch.bfloat16)
        logits = [lm.logits(prefixes) for prefixes in ([(5, 6), (5, 7)], [(5, 6, 8), (5, 7, 9), (4,)])]
        return logits, {tensor.dtype for held in lm._cache._rows for tensor in held}

    narrow, types = read()
    assert types == {torch.bfloat16}
    monkeypatch.setattr(prefix_lm, "NodeCache", lambda *_: NodeCache())
    wide, types = read()
    assert torch.float32 in types
    assert all(map(torch.equal, narrow, wide))
