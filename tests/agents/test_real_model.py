"""The real SmolLM2-135M: the whole method with a small budget, a system prompt, and what docs/ shows.

All that run it stand here, so that one process runs them, and loads and probes it once.
"""

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import AutoModelForCausalLM

from agents.config import SelfImproveConfig
from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from agents.self_improve import self_improve
from distill.lm.load import Dtype, LoadedModel, load_model
from tests.agents.test_self_improve import QUIET, open_gate
from tests.agents.test_system_prompt import SHIPPED
from tests.test_docs import blocks


@pytest.fixture(scope="module", autouse=True)
def loaded() -> Iterator[LoadedModel]:
    """As ``load_model`` gives it, which takes five seconds; who asks for it gets a copy."""
    once = load_model("smollm2")

    def load(name: str, *, dtype: Dtype = "auto", **_: Any) -> LoadedModel:
        assert name == "smollm2"
        assert dtype in ("auto", "float32")
        return replace(once, model=copy.deepcopy(once.model))

    with (
        patch("agents.agent.load_model", load),
        patch("distill.lm.load.load_model", load),
        # Which changes nothing that is tested.
        patch("agents.rehearsal.SECONDS", 1.0),
        patch("agents.training.Training._save_checkpoint", lambda _: None),
    ):
        yield once


@pytest.mark.model
def test_memoised_decoding_is_exact_on_the_real_model(loaded: LoadedModel) -> None:
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
            steps=20,
            batch_size=12,
            eval_every=20,
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


@pytest.mark.model
def test_the_real_model_keeps_to_the_format_without_its_prompt(tmp_path: Path) -> None:
    config = SelfImproveConfig.for_env(
        "Choice-v0",
        env_kwargs={"file": str(SHIPPED / "safety.jsonl")},
        context_file=SHIPPED / "safety.txt",
        context_place="chat",
        output=tmp_path / "run",
        episodes=8,
        steps=4,
        off_policy_steps=3,
        lr=2e-4,
        batch_size=2,
        eval_every=4,
        eval_temperature=(0.0,),
        validation_episodes=4,
        test_episodes=6,
        max_new_tokens=12,  # half as many again as the form takes
    )
    with open_gate():
        results = self_improve(config, QUIET)
    arms = results["arms"]
    assert arms["before"]["invalid_rate"] == 1.0
    in_form = {name: 1 - arms[name]["invalid_rate"] for name in ("before_with_experience", "after")}
    assert in_form["before_with_experience"] > 0.9
    assert in_form["after"] >= 0.9 * in_form["before_with_experience"]


@pytest.mark.model
def test_distilling_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, *_ = blocks("docs/distill.md", "python")
    names: dict[str, Any] = {"STEPS": 5, "FOLDER": tmp_path / "model"}
    exec(compile(script, "docs/distill.md", "exec"), names)
    losses = [float(loss) for loss in re.findall(r"StepStats\(kl=([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 5
    assert losses[-1] < 0.8 * losses[0]
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = names["loaded"].model
    assert not torch.equal(trained.lm_head.weight, before.get_output_embeddings().weight)
