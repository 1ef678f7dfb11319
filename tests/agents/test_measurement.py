"""What the arms stand for."""

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from agents.config import SelfImproveConfig
from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from agents.run.run import Run
from agents.self_improve import self_improve
from distill.examples import DistillExample
from distill.opcd import OPCD
from distill.teacher import FrozenTeacher
from experience.phase import Phase
from experience.store import ExperienceStore
from tests.agents.test_self_improve import QUIET, TINY
from tests.conftest import tiny_llama


def test_an_empty_context_ends_at_the_untrained_model_sharpened(tokenizer: PreTrainedTokenizerFast) -> None:
    """Where the control arm plays, there is nothing left to train, and the two play alike."""
    temperature, teacher_temperature, played_at = 0.8, 0.4, 0.6
    base: PreTrainedModel = tiny_llama(tie=False)
    limit = copy.deepcopy(base)
    with torch.no_grad():
        limit.get_output_embeddings().weight.mul_(temperature / teacher_temperature)
    student, teacher = HFPolicy(limit, tokenizer), HFPolicy(base, tokenizer)
    prompts = [Prompt(messages=(Message(role="user", content=f"Place {i}."),)) for i in range(6)]
    examples = [
        DistillExample(
            student_prompt_ids=student.encode(prompt),
            teacher_prompt_ids=teacher.encode(prompt),
            completion_ids=completion.token_ids,
        )
        for prompt, completion in zip(
            prompts,
            student.generate(prompts, Sampling(temperature=temperature, max_tokens=5), range(6)),
            strict=True,
        )
    ]

    def loss(of: PreTrainedModel) -> float:
        opcd = OPCD(
            copy.deepcopy(of),
            FrozenTeacher(teacher.lm.fresh()),
            lr=1e-9,
            temperature=temperature,
            teacher_temperature=teacher_temperature,
            k=258,
            mode="full",
        )
        return opcd.step(examples).kl

    assert loss(base) > 0.01
    assert abs(loss(limit)) < 1e-6
    sharpened = played_at * teacher_temperature / temperature
    said, control = (
        [c.token_ids for c in policy.generate(prompts, Sampling(temperature=t, max_tokens=5), range(6))]
        for policy, t in ((student, played_at), (teacher, sharpened))
    )
    assert said == control


@pytest.mark.parametrize(
    ("settings", "played"),
    [
        ({"eval_temperature": (0.0,)}, []),  # sharpening changes nothing greedily
        ({"eval_temperature": (0.7,), "teacher_temperature": 1.0}, []),  # nor where nothing is sharpened
        ({"eval_temperature": (0.7,), "teacher": "ema"}, None),  # a teacher that moves has no such limit
        ({"eval_temperature": (0.0,), "loss": "truncated"}, None),  # nor has a loss that is least elsewhere
    ],
)
def test_the_control_is_only_played_where_it_differs(
    settings: dict[str, object],
    played: list[str] | None,
    walker_folder: Path,
    tmp_path: Path,
) -> None:
    config = {**TINY, "rounds": 1, "episodes": 4, "steps": 0, **settings}
    results = self_improve(
        SelfImproveConfig(model=str(walker_folder), output=tmp_path / "run", **config), QUIET
    )
    assert "test/empty_context" not in (tmp_path / "run" / "metrics.jsonl").read_text()
    if played is None:
        assert not {"empty_context", "against_empty_context"} & (results["arms"].keys() | results.keys())
    else:
        assert results["arms"]["empty_context"] == results["arms"]["before"]
        assert results["against_empty_context"] == results["comparison"]


def test_where_nothing_was_trained_after_is_before(
    walker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last reply, sampled ones too; and nobody plays it twice."""
    played: list[str] = []
    play = Run.play

    def noted(self: Run, phase: Phase, *args: Any) -> pd.DataFrame:
        played.append(str(phase))
        return play(self, phase, *args)

    monkeypatch.setattr(Run, "play", noted)
    config = TINY | {"rounds": 1, "episodes": 4, "steps": 0, "eval_temperature": (0.0, 1.0)}
    results = self_improve(
        SelfImproveConfig(model=str(walker_folder), output=tmp_path / "run", **config), QUIET
    )
    for arms in (results["arms"], results["sampled_arms"]):
        assert arms["after"] == arms["before"]
        assert arms["after_with_experience"] == arms["before_with_experience"]
    assert results["sampled_comparison"]["difference"] == 0
    assert "test/before@1" in played
    assert not [phase for phase in played if phase.startswith("test/after")]
    with ExperienceStore(tmp_path / "run" / "experience.db") as store:
        before, after = (store.turns(phases=[f"test/{arm}@1"]) for arm in ("before", "after"))
    assert len(after) > 0
    assert after["reply"].tolist() == before["reply"].tolist()
