import random
from pathlib import Path
from typing import Any

import pytest

from agents.policies.policy import Message, Prompt
from tests.benchmarks.rollout import bench, same_distribution


def test_both_sides_answer_alike(walker_folder: Path) -> None:
    result = bench(model=str(walker_folder), steps=1000, num_envs=32)
    assert result["env_steps"] >= 1000
    assert 0 < result["distinct_prompts"] <= 11
    assert result["policies"]["hf"]["times_faster"] > 0
    assert result["policies"]["generate"]["p"] > 1e-3


def test_other_distributions_are_told_apart() -> None:
    a, b = (Prompt(messages=(Message(role="user", content=text),)) for text in "ab")
    draw = random.Random(0)
    prompts = [a, b] * 200
    even = ["xy"[draw.random() < 0.5] for _ in prompts]
    assert same_distribution(prompts, even, ["xy"[draw.random() < 0.5] for _ in prompts]) > 0.01
    assert same_distribution(prompts, even, ["xy"[draw.random() < 0.8] for _ in prompts]) < 1e-6
    # The same replies in all, but not to the same prompts.
    assert same_distribution(prompts, ["x", "y"] * 200, ["y", "x"] * 200) < 1e-6


@pytest.mark.parametrize("bad", [{"steps": 0}, {"num_envs": 0}, {"policies": ("hf", "hf")}, {"policies": ()}])
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        bench(**bad)
