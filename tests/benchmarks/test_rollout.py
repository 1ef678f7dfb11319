import random
from pathlib import Path

import pytest
from rich.console import Console

from agents.policies.policy import Message, Prompt
from tests.benchmarks.rollout import BenchConfig, bench, same_distribution


def test_both_sides_answer_alike(walker_folder: Path) -> None:
    result = bench(BenchConfig(model=str(walker_folder), steps=1500, num_envs=32), Console(quiet=True))
    assert result["env_steps"] >= 1500
    assert 0 < result["distinct_prompts"] <= 11
    assert result["times_faster"]["hf"] > 0
    assert result["same_distribution_p"]["generate"] > 1e-3


def test_other_distributions_are_told_apart() -> None:
    a, b = (Prompt(messages=(Message(role="user", content=text),)) for text in "ab")
    draw = random.Random(0)
    prompts = [a, b] * 200
    even = ["xy"[draw.random() < 0.5] for _ in prompts]
    assert same_distribution(prompts, even, ["xy"[draw.random() < 0.5] for _ in prompts]) > 0.01
    assert same_distribution(prompts, even, ["xy"[draw.random() < 0.8] for _ in prompts]) < 1e-6
    # The same replies in all, but not to the same prompts.
    assert same_distribution(prompts, ["x", "y"] * 200, ["y", "x"] * 200) < 1e-6


@pytest.mark.parametrize("bad", [{"steps": 0}, {"num_envs": 0}, {"temperature": 0.0}])
def test_bad_settings(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BenchConfig(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("policies", ["hf,tgi", "generate", "hf,hf", ""])
def test_bad_policies(policies: str) -> None:
    with pytest.raises(ValueError, match="policies must be"):
        BenchConfig(policies=policies)
