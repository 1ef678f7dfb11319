"""Keys and values that grow in place are those that are copied at every token."""

import random

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st

from distill.lm.decoding import Decoding
from distill.lm.padded_lm import PaddedLM
from distill.lm.span import Prefix
from distill.lm.spare_columns import SpareColumns
from distill.lm.support import find_support
from tests.distill.test_families import tiny


@drawn(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), min_size=1, max_size=30),
    st.sampled_from([None, 1, 4]),
)
def test_what_was_given_before_stays_and_can_be_gone_on_with(
    steps: list[tuple[int, int]], keep: int | None
) -> None:
    """Whichever of them is gone on with, how often, and by how much."""
    columns, draws = SpareColumns(), torch.Generator().manual_seed(0)
    first = torch.rand((2, 1, 3, 2), generator=draws)
    given, expected = [first], [first]
    for which, new in steps:
        which %= len(given)
        fresh = torch.rand((2, 1, new, 2), generator=draws)
        everything, held = columns.append(given[which], fresh, keep)
        wanted = torch.cat([expected[which], fresh], -2)
        assert torch.equal(everything, wanted)
        given.append(held)
        expected.append(wanted if keep is None else wanted[..., -keep:, :])
    assert all(map(torch.equal, given, expected))


@pytest.mark.parametrize("keep", [None, 50])
def test_few_tokens_are_copied(keep: int | None) -> None:
    columns, held, copied = SpareColumns(), torch.zeros((1, 1, 1, 1)), 0
    for _ in range(5000):
        before = held
        _, held = columns.append(before, torch.zeros((1, 1, 1, 1)), keep)
        is_in_place = held.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
        copied += 0 if is_in_place else before.shape[-2]
        assert held.untyped_storage().nbytes() <= 4 * (1.125 * held.shape[-2] + 20)
    assert copied < 10 * 5000  # 12 million if each token copies all before it


@pytest.mark.parametrize("name", ["Llama", "Gemma 3", "gpt-oss", "Falcon-H1", "LFM2"])
def test_long_replies_grow_in_place(name: str) -> None:
    """Beyond windows and what there was to spare, while others end, and as the plain model has it."""
    model, draws = tiny(name), random.Random(0)
    find_support(model)
    talks: list[Prefix] = [(5, 6, 7), (8, 9, 10), (11, 12, 13), (8, 9, 11)]
    decoding = Decoding(model, len(talks))
    decoding.step(talks)
    places = set()
    for length in range(70):
        if length == 20:
            kept = decoding.part([3, 1])
            decoding.keep([0, 2, 1])
            left, talks = [talks[3], talks[1]], [talks[0], talks[2], talks[1]]
        new = [draws.randrange(3, 60) for _ in talks]
        decoding.step([[token] for token in new])
        talks = [(*talk, token) for talk, token in zip(talks, new, strict=True)]
        layer = next(layer for layer in decoding._cache.layers if getattr(layer, "keys", None) is not None)
        places.add(layer.keys.untyped_storage().data_ptr())
    for batch, expected in (
        (decoding.hidden, talks),
        (kept.step([[5], [6]]), [(*left[0], 5), (*left[1], 6)]),
    ):
        torch.testing.assert_close(batch, PaddedLM(model).hidden(expected), atol=1e-3, rtol=1e-3)
    assert len(places) <= 12
