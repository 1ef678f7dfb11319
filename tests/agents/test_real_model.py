"""The whole method on the real SmolLM2-135M, with a small budget."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.config import SelfImproveConfig
from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from agents.self_improve import self_improve
from distill.lm.load import load_model


@pytest.mark.model
def test_memoised_decoding_is_exact_on_the_real_model() -> None:
    loaded = load_model("smollm2")
    policy = HFPolicy(loaded.model, loaded.tokenizer)
    questions = ["What is 2 + 3?", "What is 2 + 4?", "Name a colour."]
    prompts = [Prompt(messages=(Message(role="user", content=q),), reply_prefix="It is") for q in questions]
    for prompt, completion in zip(
        prompts, policy.generate(prompts, Sampling(temperature=0, max_tokens=6), [0] * 3), strict=True
    ):
        ids = [*policy.encode(prompt), *completion.token_ids]
        with torch.no_grad():
            logits_TV = loaded.model(torch.tensor([ids])).logits[0, completion.prompt_tokens - 1 : -1]
        assert logits_TV.argmax(-1).tolist() == list(completion.token_ids)
        logprobs = logits_TV.log_softmax(-1)[range(len(completion.token_ids)), list(completion.token_ids)]
        assert completion.logprobs == pytest.approx(logprobs.tolist(), abs=1e-3)


@pytest.mark.model
def test_the_agent_learns_to_cross_the_lake(tmp_path: Path) -> None:
    """A small budget on a small lake that is not slippery: from nothing to nearly always."""
    results = self_improve(
        SelfImproveConfig(
            env_kwargs={"is_slippery": False, "desc": ["SFF", "FHF", "FFG"]},
            output=tmp_path / "run",
            rounds=1,
            episodes=96,
            waves=4,
            steps=18,
            eval_every=9,
            validation_episodes=16,
            test_episodes=32,
            eval_temperature=(0.7,),
        )
    )
    assert results["arms"]["before"]["success_rate"] < 0.1
    assert results["arms"]["after"]["success_rate"] > 0.9
    assert results["comparison"]["p_value"] < 1e-6
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert model.num_parameters() > 1e8
