import copy
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.models.llama.modeling_llama import LlamaAttention

from distill.examples import DistillExample
from distill.lm import tree_attention
from distill.lm.language_model import context_window
from distill.lm.logit_map import LogitMap
from distill.lm.prefix_lm import PrefixLM
from distill.lm.prefix_tree import PrefixTree, is_beginning, pack, shared_length
from distill.lm.span import Prefix
from distill.lm.support import find_support
from distill.lm.ways import UnsupportedModelError
from distill.loss import topk_reverse_kl
from distill.opcd import OPCD
from distill.teacher import FrozenTeacher
from tests.conftest import tiny_llama

# Few letters, so that prefixes are shared often.
Sequences = st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=12).map(tuple), min_size=1, max_size=8)

MODEL = tiny_llama(dtype=torch.float64)


def plain_logits(model: PreTrainedModel, prefix: Prefix) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([prefix])).logits[0, -1]
    return logits.float()


@given(Sequences)
def test_tree_nodes_are_the_distinct_prefixes(sequences: list[Prefix]) -> None:
    tree = PrefixTree()
    for end in range(len(sequences[0])):  # the beginnings of one, each the last one and a token more
        tree.add(sequences[0][: end + 1])
    paths = [tree.add(sequence) for sequence in sequences]
    assert len(tree) == len({s[: i + 1] for s in sequences for i in range(len(s))})
    for sequence, path in zip(sequences, paths, strict=True):
        assert [tree.tokens[node] for node in path] == list(sequence)
        assert [tree.depths[node] for node in path] == list(range(len(sequence)))
        assert [*reversed(tree.ancestors(path[-1])), path[-1]] == path


@given(Sequences, st.integers(1, 4), st.data())
def test_blocks_show_each_query_its_ancestors(
    sequences: list[Prefix], most: int, data: st.DataObject
) -> None:
    tree = PrefixTree()
    for sequence in sequences:
        tree.add(sequence)
    queries = sorted(data.draw(st.sets(st.sampled_from(range(len(tree))), min_size=1)))
    above = (node for query in queries for node in tree.ancestors(query))
    assert tree.with_ancestors(queries) == sorted({*queries, *above})
    keys = data.draw(st.permutations(range(len(tree))))
    with patch("distill.lm.prefix_tree.MIN_BLOCK", most):
        blocks = tree.blocks(queries, keys)
    longest = blocks.queries_BL.shape[1]
    for row, (query, place) in enumerate(zip(queries, blocks.places_Q, strict=True)):
        block, line = divmod(int(place), longest)
        assert blocks.queries_BL[block, line] == row
        attended = blocks.keys_BP[block][blocks.mask_BLP[block, line]]
        assert sorted(keys[column] for column in attended) == sorted({query, *tree.ancestors(query)})
    assert blocks.mask_BLP.any(-1).all()  # nothing attends to nothing


@given(Sequences, st.integers(1, 30))
def test_pack_covers_everything_within_the_limit(sequences: list[Prefix], limit: int) -> None:
    groups = pack(sequences, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(sequences)))
    for group in groups:
        tree = PrefixTree()
        for index in group:
            tree.add(sequences[index])
        longest = max((sequences[index] for index in group), key=len)
        assert len(tree) <= limit or all(is_beginning(sequences[index], longest) for index in group)


def test_a_long_conversation_is_one_group() -> None:
    conversation = tuple(range(100))
    assert pack([conversation[: i + 1] for i in range(100)], 10) == [list(range(100))]


def test_shared_length() -> None:
    assert shared_length((1, 2, 3), (1, 2, 4)) == 2
    assert shared_length((1, 2), (1, 2, 4)) == 2
    assert shared_length((), (1,)) == 0


@settings(max_examples=40)
@given(
    st.lists(Sequences, min_size=1, max_size=4),
    st.sampled_from([8, 2048]),
    st.sampled_from([1, 1 << 14, 1 << 28]),
)
def test_logits_are_those_of_the_plain_model(
    calls: list[list[Prefix]], max_nodes: int, max_bytes: int
) -> None:
    """Whatever was asked before, however the work is cut, and however little may be kept."""
    lm = PrefixLM(MODEL, max_nodes=max_nodes, max_bytes=max_bytes)
    for prefixes in calls:
        logits = lm.logits(prefixes)
        for prefix, logits_V in zip(prefixes, logits, strict=True):
            torch.testing.assert_close(logits_V, plain_logits(MODEL, prefix), atol=1e-5, rtol=1e-5)


def test_nothing_is_computed_twice(model: PreTrainedModel) -> None:
    lm = PrefixLM(model)
    lm.logits([(1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 4)])
    assert lm.computed_tokens == 5
    lm.logits([(1, 2, 3, 4)])
    assert lm.computed_tokens == 5
    lm.logits([(1, 2, 3, 4, 6), (1, 2, 7)])  # only 6 and 7 are new
    assert lm.computed_tokens == 7


@pytest.mark.parametrize("how", ["in place", "optimiser", "load"])
def test_new_weights_are_noticed(model: PreTrainedModel, how: str) -> None:
    lm = PrefixLM(model)
    before = lm.logits([(1, 2, 3)])
    if how == "in place":
        with torch.no_grad():
            next(iter(model.parameters())).mul_(1.1)
    elif how == "optimiser":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        model(torch.tensor([[1, 2]])).logits.square().sum().backward()
        optimizer.step()
    else:
        model.load_state_dict(tiny_llama(3).state_dict())
    after = lm.logits([(1, 2, 3)])
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after[0], plain_logits(model, (1, 2, 3)), atol=1e-4, rtol=1e-4)


def test_memory_is_bounded(model: PreTrainedModel) -> None:
    one = 32 * 4
    lm = PrefixLM(model, max_bytes=8 * one)
    for start in range(2, 100):
        lm.logits([(start, start + 1, start + 2)])
        assert len(lm._hidden) <= 8
        assert sum(k.numel() * 4 for rows in lm._cache._rows for k in rows) <= 2 * 8 * one  # room doubles


def test_models_that_cannot_share_prefixes_are_refused(model: PreTrainedModel) -> None:
    find_support(model, "tree")
    recurrent = tiny_llama()
    attend = LlamaAttention.forward

    def leaky(self: LlamaAttention, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Like a recurrent layer: what stands before a token leaks in, masked or not."""
        return attend(self, hidden_states.cumsum(1), *args, **kwargs)

    with patch.object(LlamaAttention, "forward", leaky), pytest.raises(UnsupportedModelError, match="off by"):
        find_support(recurrent, "tree")


SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0,
    "eos_token_id": 1, "initializer_range": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(
            **SMALL, final_logit_softcapping=2.0, attn_logit_softcapping=3.0, query_pre_attn_scalar=8
        ),
        GraniteConfig(**SMALL, logits_scaling=8.0, attention_multiplier=0.3, residual_multiplier=0.5),
        CohereConfig(**SMALL, logit_scale=0.25),
        MistralConfig(**SMALL),
        Qwen3Config(**SMALL),
        PhiConfig(**{k: v for k, v in SMALL.items() if k != "head_dim"}),  # a head with a bias
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_cap_scale_or_shift_their_logits(config: PreTrainedConfig) -> None:
    """Exactly, through the trees, the head and the gradients."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    if (bias := model.get_output_embeddings().bias) is not None:
        torch.nn.init.normal_(bias)
    prefixes = [(3, 4, 5), (3, 4, 6, 7), (8, 9)]
    expected = torch.stack([plain_logits(model, prefix) for prefix in prefixes])
    model.set_attn_implementation(tree_attention.NAME)
    find_support(model, "tree")
    torch.testing.assert_close(PrefixLM(model).logits(prefixes), expected, atol=1e-4, rtol=1e-4)

    example = DistillExample(student_prompt_ids=(3, 4), teacher_prompt_ids=(3, 5), completion_ids=(6, 7))
    naive = copy.deepcopy(model)
    OPCD(model, FrozenTeacher(PrefixLM(copy.deepcopy(model))), lr=1e-3, temperature=0.7, k=8).step([example])
    student_TV = naive(torch.tensor([[3, 4, 6]])).logits[0, 1:]
    teacher_TV = naive(torch.tensor([[3, 5, 6]])).logits[0, 1:]
    topk_reverse_kl(student_TV / 0.7, teacher_TV, k=8).mean().backward()
    torch.nn.utils.clip_grad_norm_(naive.parameters(), 1.0)
    torch.optim.AdamW(naive.parameters(), lr=1e-3, weight_decay=0.0).step()
    for (name, mine), theirs in zip(model.named_parameters(), naive.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5, rtol=1e-4), name


def test_a_head_that_does_more_than_is_known_is_refused() -> None:
    class Odd(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits.abs()
            return output

    torch.manual_seed(0)
    config: Any = tiny_llama().config
    model: Any = Odd(config)
    with pytest.raises(UnsupportedModelError, match="its head does more than"):
        find_support(model.eval())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "scale", "cap"),
    [
        (lambda logits: logits, 1.0, None),
        (lambda logits: logits * 0.0195, 0.0195, None),
        (lambda logits: logits.float() / 6.0, 1 / 6, None),
        (lambda logits: 50.0 * (logits / 50.0).tanh(), 1.0, 50.0),
        (lambda logits: 30.0 * (logits.float() * 0.1 / 30.0).tanh(), 0.1, 30.0),
        (lambda logits: logits.clamp(-30.0, 30.0), None, None),
        (lambda logits: 30.0 * (logits / 30.0).sin(), None, None),
        (lambda logits: logits.relu(), None, None),
        (lambda logits: logits + 1e-3, None, None),
        (lambda logits: logits - logits.logsumexp(-1, keepdim=True), None, None),
        (lambda logits: logits[..., :-2], None, None),
    ],
)
def test_what_a_model_makes_of_its_heads_product_is_measured(
    make: Any, scale: float | None, cap: float | None, dtype: torch.dtype
) -> None:
    """Whatever its configuration calls it, and also where its logits are too small to show a cap."""

    class Odd(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = make(output.logits)
            return output

    model: Any = Odd(LlamaConfig(**SMALL | {"initializer_range": 0.01}))
    model.to(dtype=dtype)
    if scale is None:
        with pytest.raises(UnsupportedModelError, match=r"its head does more than|logits are not those"):
            find_support(model)
    else:
        found = find_support(model).logit_map
        assert found == LogitMap(scale=found.scale, softcap=cap)
        assert found.scale == pytest.approx(scale, rel=1e-7)


def test_a_hidden_state_may_be_scaled_before_the_head() -> None:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SMALL))
    model.lm_head.register_forward_pre_hook(lambda _, states: (states[0] / 24.0,))
    find_support(model)
    prefixes = [(3, 4, 5), (8, 9)]
    expected = torch.stack([plain_logits(model, prefix) for prefix in prefixes])
    torch.testing.assert_close(PrefixLM(model).logits(prefixes), expected)
    model.lm_head.register_forward_pre_hook(lambda _, states: (states[0].abs(),))
    with pytest.raises(UnsupportedModelError, match="no multiple of its hidden states"):
        find_support(model)


def test_a_head_that_is_no_linear_layer_is_refused(model: PreTrainedModel) -> None:
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(UnsupportedModelError, match="a Sequential, not a linear layer"):
        find_support(model, "tree")


def test_the_context_window_is_what_positions_reach(model: PreTrainedModel) -> None:
    """A sliding window is part of the masks, and no limit."""
    assert context_window(model) == 512
    assert context_window(MistralForCausalLM(MISTRAL)) == 300


@pytest.mark.parametrize("family", ["Llama", "Gemma 3", "Gemma 2", "gpt-oss"])
def test_one_sequence_alone_needs_no_mask_where_all_is_seen(family: str) -> None:
    """Then it is as fast as the plain model. Behind a known beginning, and in a window, there is a mask."""
    from tests.distill.test_families import tiny

    model, text = tiny(family), tuple(range(3, 50))
    lm = PrefixLM(model)
    seen: list[bool] = []
    attend = tree_attention._attend

    def note(module: Any, query: Any, key: Any, value: Any, mask: Any, **settings: Any) -> torch.Tensor:
        seen.append(mask is None)
        return attend(module, query, key, value, mask, **settings)

    naive = copy.deepcopy(model)
    naive.set_attn_implementation("eager")
    with patch.object(tree_attention, "_attend", note):
        for length in (40, 47):
            found = lm.logits([text[:length]])[0]
            torch.testing.assert_close(found, plain_logits(naive, text[:length]), atol=1e-3, rtol=1e-3)
    assert seen == [family == "Llama"] + [True] + 2 * [False]


def test_a_sliding_window_is_exact_beyond_it() -> None:
    torch.manual_seed(0)
    model: Any = MistralForCausalLM(MISTRAL).double().eval()
    prefixes = [tuple(range(3, 23)), tuple(range(3, 13)), (*range(3, 11), 40, 41, 42), (5,)]
    expected = torch.stack([plain_logits(model, prefix) for prefix in prefixes])
    for cut in (2, 2048):
        lm = PrefixLM(model, max_nodes=cut)
        torch.testing.assert_close(lm.logits(prefixes), expected, atol=1e-5, rtol=1e-5)


MISTRAL = MistralConfig(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=300,
    sliding_window=4,
)
