"""What is gone on with costs its new tokens only, and is what reading it anew gives."""

import random
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer

from distill.lm.decoding import Decoding, kind_of_length
from distill.lm.padded_lm import PaddedLM
from distill.lm.prefix_cache import PrefixCache, shared_prefixes
from distill.lm.span import Prefix
from distill.lm.support import find_support
from distill.lm.ways import leaps
from tests.conftest import tiny_llama
from tests.distill.test_families import tiny
from tests.distill.test_padded_lm import hybrid

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": tiny_llama,
    "hybrid": hybrid,
    **{name: partial(tiny, name) for name in ("Gemma 2", "gpt-oss", "LFM2", "Bamba", "Llama 4, text")},
}


def text(draws: random.Random, length: int) -> Prefix:
    return tuple(draws.randrange(3, 60) for _ in range(length))


@pytest.mark.parametrize("name", MODELS)
def test_a_conversation_costs_its_new_tokens(name: str) -> None:
    model, draws = MODELS[name](), random.Random(0)
    find_support(model)
    cache, lm = PrefixCache(model, max_tokens=16), PaddedLM(model)
    talks = [text(draws, length) for length in (3, 9, 3, 12, 5)]
    known = dict.fromkeys(talks, 0)  # of each that many tokens
    for _ in range(5):
        kinds = {kind_of_length(model, len(talk)) for talk in talks}
        for kind in kinds:
            alike = [talk for talk in talks if kind_of_length(model, len(talk)) == kind]
            batch, computed = cache.read(alike)
            assert computed == sum(len(talk) - known[talk] for talk in alike)
            assert batch.lengths == list(map(len, alike))
            torch.testing.assert_close(batch.hidden, lm.hidden(alike), atol=1e-3, rtol=1e-3)
            cache.hold(batch, {talk: row for row, talk in enumerate(alike)})
        first, _, *others = talks  # one ends, another divides
        new = draws.randint(1, 9)
        longer = {first + text(draws, new): first, first + text(draws, new): first}
        longer |= {talk + text(draws, draws.randint(1, 9)): talk for talk in others}
        talks, known = [*longer], {talk: len(parent) for talk, parent in longer.items()}


@pytest.mark.parametrize("name", MODELS)
def test_what_many_begin_with_is_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rules, under each of them a few lessons, and a few questions about each of these."""
    monkeypatch.setattr("distill.lm.prefix_cache.CPU_PASS", 4)
    model, draws = MODELS[name](), random.Random(0)
    find_support(model)
    rules, lessons, questions = text(draws, 9), [text(draws, 7) for _ in range(3)], [text(draws, 3)] * 4
    asked = [(*rules, *lesson, *q[1:], index) for lesson in lessons for index, q in enumerate(questions, 3)]
    cache = PrefixCache(model)
    batch, computed = cache.read(asked)
    if leaps(model):
        assert computed == 9 + 3 * (7 + 2) + 12
    else:
        assert computed == 12 * 19
    torch.testing.assert_close(batch.hidden, PaddedLM(model).hidden(asked), atol=1e-3, rtol=1e-3)
    assert not any(cache.parents(asked))  # what was shared is a part of them now


def test_what_is_read_is_never_there_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of each length are a batch of their own; those that were read lie in their places by then."""
    model, draws = tiny_llama(), random.Random(0)
    step, batches, most = Decoding.step, weakref.WeakSet[Decoding](), 0

    def watched(batch: Decoding, tokens: list[list[int]]) -> torch.Tensor:
        nonlocal most
        hidden_ND = step(batch, tokens)
        batches.add(batch)
        most = max(most, sum(each.bytes for each in batches))
        return hidden_ND

    monkeypatch.setattr(Decoding, "step", watched)
    whole, _ = PrefixCache(model).read([text(draws, length) for length in range(40, 80)])
    assert most < 1.05 * whole.bytes


def test_nor_is_what_is_left_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = PrefixCache(tiny_llama()).read([(5, 6, 7), (8, 9), (5, 5, 6)])
    before = [weakref.ref(layer.keys) for layer in whole._cache.layers]
    there: list[int] = []
    reorder = DynamicLayer.reorder_cache

    def watched(layer: DynamicLayer, rows: torch.Tensor) -> None:
        there.append(sum(keys() is not None for keys in before))
        reorder(layer, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(DynamicLayer, "reorder_cache", watched)
    whole.keep([2, 0])
    assert there == [2, 1]


@given(
    st.sets(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), max_size=12), st.integers(0, 9)
)
def test_prefixes_are_shared_where_that_is_cheaper(prefixes: set[Prefix], price: int) -> None:
    shared = shared_prefixes([*prefixes], price)
    saved = sum(
        max((len(s) for s in shared if len(p) > len(s) and p[: len(s)] == s), default=0) for p in prefixes
    )
    assert sum(len(s) + price for s in shared) <= saved
    together = min(map(len, prefixes), default=0) - 1
    if together > 0 and len({p[:together] for p in prefixes}) == 1:  # all alike but for the end of each
        assert (len(prefixes) - 1) * together <= price or shared


def test_prefixes_may_begin_with_each_other_however_often() -> None:
    nested = [(3,) * length + (4,) for length in range(1, 3000)]
    [shared] = shared_prefixes(nested, 128)
    assert shared == (3,) * len(shared)


def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    model, draws = tiny_llama(), random.Random(0)
    each = 2 * 2 * 2 * 8 * 4  # bytes of a token: keys and values of two layers, two heads of width 8
    cache = PrefixCache(model, max_bytes=40 * each)
    talks = [text(draws, 10) for _ in range(6)]
    longer = [(*talk, 5) for talk in talks]
    for talk in talks:
        batch, _ = cache.read([talk])
        assert batch.bytes == 10 * each
        cache.hold(batch, {talk: 0})
    assert [bool(parent) for parent in cache.parents(longer)] == [False] * 2 + [True] * 4
    both, _ = cache.read([talks[2] + (5, 6), talks[3] + (5,) * 50])
    assert both.bytes == 2 * 60 * each
    cache.hold(both, {talks[3] + (5,) * 50: 1, talks[2] + (5, 6): 0})  # too much, but the last stays
    assert not any(cache.parents(longer))
    assert cache.read([talks[2] + (5, 6, 7, 8)])[0].bytes == 14 * each  # what padded it is gone


def test_an_interrupt_leaves_nothing_that_is_half_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    cache = PrefixCache(model)
    batch, _ = cache.read([(5, 6, 7)])
    cache.hold(batch, {(5, 6, 7): 0})

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Decoding, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cache.read([(5, 6, 7, 8)])
    monkeypatch.undo()
    found, computed = cache.read([(5, 6, 7, 8)])
    assert computed == 4
    torch.testing.assert_close(found.hidden, PaddedLM(model).hidden([(5, 6, 7, 8)]))


@pytest.mark.parametrize("name", ["Mamba", "Jamba"])
def test_who_cannot_go_on_by_several_tokens_reads_anew(name: str) -> None:
    model, draws = tiny(name), random.Random(0)
    assert not find_support(model).leaps
    cache, lm = PrefixCache(model), PaddedLM(model)
    talks = [text(draws, 4), text(draws, 7)]
    batch, _ = cache.read(talks)
    cache.hold(batch, {talk: row for row, talk in enumerate(talks)})
    longer = [talks[0] + (5,), talks[1] + (5, 6, 7)]
    found, computed = cache.read(longer)
    assert computed == 1 + 10
    torch.testing.assert_close(found.hidden, lm.hidden(longer), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["Gemma 2", "gpt-oss"])
def test_one_sequence_alone_grows_as_it_is(name: str) -> None:
    """Without padding there is no mask: then a token sees all before it, not the first one only."""
    model, draws = tiny(name), random.Random(0)
    find_support(model)
    talk = text(draws, 5)
    batch, _ = PrefixCache(model).read([talk])
    for token in text(draws, 8):
        talk += (token,)
        torch.testing.assert_close(
            batch.step([[token]]), PaddedLM(model).hidden([talk]), atol=1e-3, rtol=1e-3
        )
