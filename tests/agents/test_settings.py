"""Settings: their defaults, groups and ranges."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.agent import precision_on
from agents.cli import GROUPS, parse_args
from agents.config import ARGUMENTS, ConfigError, SelfImproveConfig
from agents.play import PlayConfig
from agents.policies.policy import Sampling
from agents.run.resume import default_output
from envs import make_text_env, register_text
from experience.text import printable

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e300, -1.0, 10**30])
@pytest.mark.parametrize(
    "name",
    [
        "temperature", "teacher_temperature", "eval_temperature", "lr", "env_timeout",
        "rounds", "episodes", "waves", "steps", "eval_every", "off_policy_steps", "batch_size", "top_k",
        "max_nodes", "lora_rank", "max_new_tokens", "insights_per_prompt", "num_envs",
    ],
)  # fmt: skip
def test_no_number_beyond_all_measure(name: str, value: Any) -> None:
    settings: dict[str, Any] = {name: (value,) if name == "eval_temperature" else value}
    with pytest.raises(ConfigError, match=name):
        SelfImproveConfig(**settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_temperature", (0.0, NAN)),
        ("eval_temperature", (1e-9,)),
        ("eval_temperature", ()),
        ("temperature", 1e-300),
        ("teacher_temperature", 0.0),
        ("seed", -1),
        ("seed", 10**12),
    ],
)
def test_numbers_that_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        SelfImproveConfig(**{name: value})


@pytest.mark.parametrize("value", [NAN, INF, -1.0])
def test_temperatures_elsewhere(value: float) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        PlayConfig(temperature=value)
    with pytest.raises(ValueError, match="temperature"):
        Sampling(temperature=value)


def test_the_defaults_are_within_measure() -> None:
    for env in (
        "FrozenLake-v1",
        "Taxi-v4",
        "Math-v0",
        "Choice-v0",
        "OPCD/RandomFrozenLake-v0",
        "OPCD/Cue-v0",
    ):
        SelfImproveConfig.for_env(env)


def test_runs_that_begin_together_have_names_of_their_own() -> None:
    assert len({default_output("FrozenLake-v1") for _ in range(20)}) >= 19


def test_defaults_follow_the_env() -> None:
    sums = parse_args(["--env", "Math-v0", "--steps", "3"])
    assert (sums.rounds, sums.steps, sums.batch_size) == (1, 3, 16)
    assert parse_args([]).steps is SelfImproveConfig().steps is None
    assert SelfImproveConfig.for_env("Math-v0", lr=1.0).lr == 1.0
    with pytest.raises(ConfigError, match="insight_model"):
        SelfImproveConfig(insight_url="http://host/v1")


def test_an_env_of_ones_own_brings_its_settings() -> None:
    register_text("Mine-v0", settings={"episodes": 40, "waves": 4, "lr": 1e-4})
    register_text("Odd-v0", settings={"epochs": 3, "rounds": 1})
    register_text("Bad-v0", settings={"rounds": 0})
    assert parse_args(["--env", "Mine-v0", "--waves", "2"]) == SelfImproveConfig(
        env="Mine-v0", episodes=40, waves=2, lr=1e-4
    )
    with pytest.raises(ConfigError, match="Odd-v0 recommends epochs, which is not a setting"):
        SelfImproveConfig.for_env("Odd-v0")
    with pytest.raises(ConfigError, match="rounds must be at least 1"):
        SelfImproveConfig.for_env("Bad-v0")
    # Making the env says what is wrong with its module.
    assert SelfImproveConfig.for_env("no_such_module:Any-v0").episodes == SelfImproveConfig().episodes


def test_settings_stay_few() -> None:
    """Beyond that nobody reads them: what always has one value is a constant with a reason."""
    assert len({field.name for field in dataclasses.fields(SelfImproveConfig)} - {*ARGUMENTS}) <= 50


@pytest.mark.parametrize("has_units", [True, False])
@pytest.mark.parametrize(
    ("env", "replies", "narrow"),
    [("FrozenLake-v1", "act", False), ("FrozenLake-v1", "think", True), ("Math-v0", "act", True)],
)
def test_words_are_told_apart_alike_on_every_cpu(
    env: str, replies: Any, narrow: bool, has_units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 Taxi's teacher was wrong at two of 200 places, with products that save little there."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_units)
    words = make_text_env(env, {"task": "chain_sum"} if env == "Math-v0" else {}, replies=replies).words
    config = SelfImproveConfig(env=env, replies=replies)
    chosen = precision_on(torch.device("cpu"), config, words)
    assert chosen == ("mixed" if narrow and has_units else "float32")
    asked = dataclasses.replace(config, precision="mixed")
    assert precision_on(torch.device("cpu"), asked, words) == "mixed"


def test_one_precision_for_weights_and_products() -> None:
    pairs = {
        precision: (config.weights_dtype, config.products_dtype)
        for precision in ("auto", "float32", "mixed", "bfloat16")
        if (config := SelfImproveConfig(precision=precision))
    }
    assert pairs == {
        "auto": ("float32", "auto"),
        "float32": ("float32", "float32"),
        "mixed": ("float32", "bfloat16"),
        "bfloat16": ("bfloat16", "bfloat16"),
    }


def test_a_file_of_prompts_is_for_a_model_that_writes() -> None:
    config = SelfImproveConfig(insights="mine/prompts.toml")
    assert (config.insight_kind, config.insight_prompts) == ("llm", Path("mine/prompts.toml"))
    assert SelfImproveConfig(insights="raw").insight_prompts is None


def test_help_shows_the_settings_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    text = printable(capsys.readouterr().out)
    assert "Gymnasium id of the environment" in text
    for field in dataclasses.fields(SelfImproveConfig):
        assert f"--{field.name.replace('_', '-')}" in text
    assert text.count("python -m agents.self_improve ") >= 5
    order = [text.index(f" {group} options ") for group in GROUPS]
    assert order == sorted(order)
    assert order[1] - order[0] < 25 * 81  # the first of them fits a screen
    assert len(dataclasses.fields(SelfImproveConfig)) == sum(
        len(dataclasses.fields(g)) for g in GROUPS.values()
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"lora_rank": -1}, "lora_rank"),
        ({"lr": math.inf}, "lr must be a finite number"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"eval_temperature": (0.0, 0.5, 1.0)}, "eval_temperature must have at most 2"),
        ({"loss": "none"}, "loss must be"),
        ({"precision": "float16"}, "precision must be"),
        ({"insights": "guesses"}, "insights must be auto, outcomes, llm, raw, or a .toml file"),
    ],
)
def test_settings_of_the_distillation_without_sense(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        SelfImproveConfig(**change)
