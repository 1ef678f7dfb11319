"""The real vLLM, in the environment of ``make test-vllm``."""

import copy
import importlib.util
from collections import Counter

import pytest
import torch
from scipy.stats import chi2_contingency
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.hf_policy import HFPolicy
from agents.policy import FinishReason, Message, Prompt, Sampling
from agents.vllm_engine import LocalEngine
from agents.vllm_policy import VLLMError, VLLMPolicy
from distill.lora import LoRA
from tests.conftest import byte_tokenizer, tiny_llama

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM here: make test-vllm"),
]
HEAD_DIM = 32
"""The smallest that vLLM's attention takes on a CPU."""


def prompt(text: str, prefix: str = "I move") -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),), reply_prefix=prefix)


def changed(model: PreTrainedModel, seed: int = 1) -> PreTrainedModel:
    """Weights after something like an optimiser step."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def engine() -> LocalEngine:
    return LocalEngine(tiny_llama(head_dim=HEAD_DIM), dtype=torch.float32, window=512, memory=0.5)


@pytest.fixture
def pair(engine: LocalEngine) -> tuple[HFPolicy, VLLMPolicy]:
    """The same model, tied embeddings and all, played by transformers and by vLLM."""
    model, tokenizer = tiny_llama(head_dim=HEAD_DIM), byte_tokenizer()
    return HFPolicy(model, tokenizer), VLLMPolicy(model, tokenizer, engine=engine)


def test_greedy_is_the_same(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    prompts = [prompt(text) for text in ("a", "bb", "a long question", "a")]
    ours, theirs = (p.generate(prompts, Sampling(temperature=0, max_tokens=8), [0] * 4) for p in pair)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        assert (mine.text, mine.token_ids, mine.finish_reason, mine.prompt_tokens) == (
            other.text,
            other.token_ids,
            other.finish_reason,
            other.prompt_tokens,
        )


def test_logprobs_are_those_of_temperature_1(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, policy = pair
    sampling = Sampling(temperature=0.5, top_p=0.9, max_tokens=12)
    asked = [prompt(str(i)) for i in range(8)]
    completions = policy.generate(asked, sampling, range(8))
    gap = policy.gap(
        (policy.encode(p), c.token_ids, c.logprobs) for p, c in zip(asked, completions, strict=True)
    )
    assert gap.max < 1e-3


def test_a_completion_depends_on_prompt_and_seed_only(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, policy = pair
    sampling, seeds = Sampling(max_tokens=6), [2**64 - 1 - i for i in range(12)]
    prompts = [prompt(str(i % 4)) for i in range(12)]
    together = policy.generate(prompts, sampling, seeds)
    alone = [policy.generate([p], sampling, [s])[0] for p, s in zip(prompts, seeds, strict=True)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert len({c.token_ids for c in together[::4]}) == 3


def test_draws_follow_the_models_distribution(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    n, sampling = 2000, Sampling(temperature=2.0, top_p=0.9, max_tokens=1)
    counts = [Counter(c.token_ids for c in p.generate([prompt("x")] * n, sampling, range(n))) for p in pair]
    common = [token for token in counts[0] | counts[1] if counts[0][token] + counts[1][token] >= 10]
    table = [[side[token] for token in common] for side in counts]
    assert len(common) > 5
    assert chi2_contingency(table).pvalue > 1e-3


def test_endings(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, policy = pair
    completions = policy.generate([prompt("s")] * 200, Sampling(temperature=2.0, max_tokens=40), range(200))
    stopped = [c for c in completions if c.finish_reason == FinishReason.STOP]
    assert stopped
    assert all(c.token_ids[-1] == 1 and 1 not in c.token_ids[:-1] for c in stopped)
    assert all(len(c.token_ids) == 40 for c in completions if c.finish_reason == FinishReason.LENGTH)
    long, short = policy.generate([prompt("x" * 600), prompt("x")], Sampling(max_tokens=2), [0, 0])
    assert (long.finish_reason, long.token_ids) == (FinishReason.OVERFLOW, ())
    assert len(short.token_ids) > 0


def test_more_prompts_than_a_pass_takes(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, policy = pair
    prompts = [prompt(f"{i} " * 60) for i in range(64)]
    completions = policy.generate(prompts, Sampling(max_tokens=2), range(64))
    assert all(c.prompt_tokens + len(c.token_ids) <= 512 and c.token_ids for c in completions)


def test_new_weights_are_used_at_once(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    ours, theirs = pair
    asked, sampling = [prompt(str(i)) for i in range(6)], Sampling(temperature=0, max_tokens=6)
    before = theirs.generate(asked, sampling, range(6))
    for seed in (1, 2):
        changed(theirs.lm.model, seed)
        after = theirs.generate(asked, sampling, range(6))
        assert [c.token_ids for c in after] == [c.token_ids for c in ours.generate(asked, sampling, range(6))]
        assert theirs.prove().max < 1e-3
    assert [c.logprobs for c in before] != [c.logprobs for c in after]


def test_policies_share_an_engine(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, first = pair
    second = VLLMPolicy(changed(copy.deepcopy(first.lm.model)), first.tokenizer, engine=first.engine)
    asked, sampling = [prompt(str(i)) for i in range(4)], Sampling(max_tokens=6)
    turns = [p.generate(asked, sampling, range(4)) for p in (first, second, first, second)]
    assert turns[0] == turns[2] != turns[1] == turns[3]


def test_lora_is_drawn_with_and_without(engine: LocalEngine, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_llama(head_dim=HEAD_DIM)
    lora = LoRA(model, rank=4, alpha=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    student = VLLMPolicy(model, tokenizer, engine=engine, weights=lambda: lora.weights(merged=True))
    base = VLLMPolicy(
        model, tokenizer, engine=engine, weights=lambda: lora.weights(merged=False), within=lora.off
    )
    asked, sampling = [prompt(str(i)) for i in range(4)], Sampling(max_tokens=6)
    with_adapters, without = (p.generate(asked, sampling, range(4)) for p in (student, base))
    assert with_adapters != without
    plain = VLLMPolicy(tiny_llama(head_dim=HEAD_DIM), tokenizer, engine=engine)
    assert plain.generate(asked, sampling, range(4)) == without


def test_an_engine_with_other_weights_is_found_out(pair: tuple[HFPolicy, VLLMPolicy]) -> None:
    _, policy = pair
    stale = VLLMPolicy(
        changed(copy.deepcopy(policy.lm.model)),
        policy.tokenizer,
        engine=policy.engine,
        weights=lambda: policy.lm.model.state_dict().items(),
    )
    with pytest.raises(VLLMError, match="off by"):
        stale.generate([prompt("a")], Sampling(), [0])
    assert policy.engine.holds is None
    assert policy.generate([prompt("a")], Sampling(), [0])


@pytest.mark.parametrize("temperature", [2.5, 0.001])
def test_temperatures_that_vllm_would_change_are_refused(
    pair: tuple[HFPolicy, VLLMPolicy], temperature: float
) -> None:
    with pytest.raises(VLLMError, match="temperature"):
        pair[1].generate([prompt("a")], Sampling(temperature=temperature), [0])


def test_a_model_that_vllm_does_not_know() -> None:
    model = tiny_llama(head_dim=HEAD_DIM)
    model.__class__ = type("NobodysForCausalLM", (type(model),), {})
    with pytest.raises(VLLMError, match="NobodysForCausalLM"):
        LocalEngine(model, dtype=torch.float32, window=512, memory=0.5)
