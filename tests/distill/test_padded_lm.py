"""Padded batches: prefixes as they are alone, whatever stands beside them, and however they grow."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from distill.examples import DistillExample
from distill.lm.head import decoder_of
from distill.lm.padded_lm import PaddedLM, PaddedPass
from distill.lm.prefix_cache import PrefixCache
from distill.lm.prefix_lm import PrefixLM
from distill.lm.span import Prefix, Span
from distill.lm.support import find_support, language_model, supported
from distill.lm.ways import Support, UnsupportedModelError, set_support, support_of
from distill.opcd import OPCD
from distill.teacher import FrozenTeacher
from tests.conftest import byte_tokenizer, tiny_llama
from tests.distill.test_prefix_lm import Sequences, plain_logits


def hybrid() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen3_5TextConfig(
        vocab_size=258, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8, layer_types=["linear_attention", "full_attention"],
        initializer_range=0.3, bos_token_id=0, eos_token_id=1, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = Qwen3_5ForCausalLM(config).eval()
    result: PreTrainedModel = model
    return result


LLAMA, HYBRID = tiny_llama(dtype=torch.float64), hybrid()


@settings(max_examples=30)
@given(
    st.lists(Sequences, min_size=1, max_size=4),
    st.sampled_from([8, 2048]),
    st.sampled_from([1, 1 << 14, 1 << 28]),
    st.booleans(),
)
def test_logits_are_those_of_the_plain_model(
    calls: list[list[Prefix]], max_nodes: int, max_bytes: int, grow: bool
) -> None:
    lm = PaddedLM(LLAMA, max_nodes=max_nodes, max_bytes=max_bytes)
    for prefixes in calls:
        found = lm.logits(prefixes) if grow else lm.head.logits(lm.hidden(prefixes)).float()
        for prefix, logits_V in zip(prefixes, found, strict=True):
            torch.testing.assert_close(logits_V, plain_logits(LLAMA, prefix), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("growth", ["joined", "alike", "none"])
@pytest.mark.parametrize("model", [LLAMA, HYBRID], ids=["llama", "hybrid"])
def test_prompts_of_many_lengths_grow_side_by_side(model: PreTrainedModel, growth: Any) -> None:
    """Some divide, some end and are asked for again, one comes later."""
    set_support(model, Support(way="padded", attention="sdpa", growth=growth))
    lm = PaddedLM(model)
    prompts: list[Prefix] = [(5, 6, 7), (5, 6, 8, 8, 9, 10, 11), (9,), (12, 13)]
    rounds: list[list[Prefix]] = [
        prompts,
        [(*prompt, 20) for prompt in prompts],
        [(5, 6, 7, 20, 21), (5, 6, 7, 20, 22), (9, 20, 23), (30, 31)],
        [(12, 13, 20, 24), (9, 20, 23, 25)],
    ]
    for prefixes in rounds:
        for prefix, logits_V in zip(prefixes, lm.logits(prefixes), strict=True):
            torch.testing.assert_close(logits_V, plain_logits(model, prefix), atol=1e-4, rtol=1e-4)
    # 13 tokens of prompts, then a token for each; one came later with two.
    if growth != "none":
        assert lm.computed_tokens == 13 + 4 + 3 + 2 + 2
    set_support(model, None)


def test_equal_sequences_and_beginnings_are_computed_once() -> None:
    lm = PaddedLM(LLAMA)
    lm.hidden([(1, 2, 3, 4), (1, 2, 3, 4), (1, 2), (5, 6, 7, 8)])
    assert lm.computed_tokens == 8


@given(Sequences, st.integers(1, 30))
def test_pack_covers_everything_within_the_limit(sequences: list[Prefix], limit: int) -> None:
    groups = PaddedPass.pack(LLAMA, sequences, limit)
    assert sorted(index for group in groups for index in group) == list(range(len(sequences)))
    for group in groups:
        batch = PaddedPass.of(LLAMA, [Span.of(sequences[index]) for index in group])
        assert batch.tokens <= limit or len(batch.batches[0]) == 1


@pytest.mark.parametrize("make", [tiny_llama, hybrid], ids=["llama", "hybrid"])
def test_the_policy_draws_what_generate_gives(make: Callable[[], PreTrainedModel]) -> None:
    policy = HFPolicy(make(), byte_tokenizer(), compute="padded")
    prompts = [Prompt(messages=(Message(role="user", content=text),)) for text in ("a", "bb", "a long one")]
    completions = policy.generate(prompts, Sampling(temperature=0, max_tokens=8), [0, 0, 0])
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([policy.encode(prompt)])
        model: Any = policy.lm.model
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8, pad_token_id=0
        )
        assert list(completion.token_ids) == out[0, ids.shape[1] :].tolist()


def test_a_step_is_the_trees_step() -> None:
    """Loss and weights after it, and what was drawn does not matter."""
    examples = [
        DistillExample(student_prompt_ids=(5, 6), teacher_prompt_ids=(7, 5, 6), completion_ids=(8, 9, 10)),
        DistillExample(student_prompt_ids=(5, 6), teacher_prompt_ids=(7, 5, 6), completion_ids=(8, 11)),
        DistillExample(student_prompt_ids=(4,), teacher_prompt_ids=(7, 4), completion_ids=(3,)),
    ]
    results = []
    for way in ("tree", "padded"):
        student = tiny_llama(dtype=torch.float64)
        teacher = FrozenTeacher(PaddedLM(tiny_llama(1, torch.float64)))
        opcd = OPCD(student, teacher, lr=1e-3, compute=way, max_nodes=6)
        results.append((opcd.step(examples).kl, student.state_dict()))
    (tree_loss, tree), (padded_loss, padded) = results
    assert padded_loss == pytest.approx(tree_loss, abs=1e-9)
    for name, weight in tree.items():
        torch.testing.assert_close(padded[name], weight, atol=1e-7, rtol=1e-5)


def test_what_no_text_reaches_is_frozen(model: PreTrainedModel) -> None:
    model.vision = torch.nn.Linear(3, 3)
    OPCD(model, PaddedLM(tiny_llama(1)), lr=1e-3)
    assert not model.vision.weight.requires_grad
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("vision"))


def test_longrope_short_beside_long() -> None:
    """A short prompt is what it is alone, however long the one beside it, and so is one that grows long."""
    from tests.distill.test_families import tiny

    model = tiny("Phi 3 with longrope")
    find_support(model)
    draws = torch.Generator().manual_seed(0)
    long = tuple(torch.randint(3, 60, (20,), generator=draws).tolist())
    lm = PaddedLM(model)
    prefixes = [long[:4], long, long[:12], long[:13], (9, 8)]
    for found in (lm.logits(prefixes), lm.fresh().head.logits(lm.fresh().hidden(prefixes))):
        for prefix, logits_V in zip(prefixes, found, strict=True):
            torch.testing.assert_close(logits_V, plain_logits(model, prefix), atol=1e-3, rtol=1e-3)
    lm.clear()
    for end in range(10, 16):
        prefixes = [long[:end], (9, *long[: end - 6])]
        for prefix, logits_V in zip(prefixes, lm.logits(prefixes), strict=True):
            torch.testing.assert_close(logits_V, plain_logits(model, prefix), atol=1e-3, rtol=1e-3)


def test_decoding_is_a_batch_of_its_own() -> None:
    decoding, computed = PrefixCache(HYBRID).read([(5, 6, 7), (8,)])
    assert computed == 4
    decoding.keep([1, 0, 1])
    hidden_ND = decoding.step([[9], [10], [11]])
    expected = PaddedLM(HYBRID).hidden([(8, 9), (5, 6, 7, 10), (8, 11)])
    torch.testing.assert_close(hidden_ND, expected, atol=1e-4, rtol=1e-4)
    assert hidden_ND.untyped_storage().nbytes() == hidden_ND.numel() * hidden_ND.element_size()


def test_a_hybrid_is_computed_as_it_was_found_unless_asked_otherwise() -> None:
    """What was found goes with copies; where nothing was, it is found at once."""
    found, new = copy.deepcopy(hybrid()), hybrid()
    find_support(found)
    for model in (copy.deepcopy(found), new):
        assert HFPolicy(copy.deepcopy(model), byte_tokenizer()).lm.way == "padded"
        with pytest.raises(UnsupportedModelError, match="tree with") as error:
            PrefixLM(model)
        assert "\n" not in str(error.value)
        with pytest.raises(UnsupportedModelError, match="tree with"):
            OPCD(model, language_model(model), lr=1e-3, compute="tree")
        opcd = OPCD(model, FrozenTeacher(language_model(copy.deepcopy(model))), lr=1e-3)
        assert opcd._pass is PaddedLM.forward_pass


def test_a_way_that_is_refused_leaves_the_model_as_it_was() -> None:
    model = hybrid()
    found = find_support(model)
    with pytest.raises(UnsupportedModelError):
        find_support(model, "tree")
    assert support_of(model) == found
    assert decoder_of(model).config._attn_implementation == found.attention


def test_what_is_in_shards_is_not_tried() -> None:
    model = hybrid()
    vars(model)["_shards"] = object()
    with pytest.raises(UnsupportedModelError, match="before it is cut into shards"):
        supported(model)
