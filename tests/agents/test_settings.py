"""Numbers that cannot be meant are refused at the start; runs that begin together have names of their own."""

import math
from typing import Any

import pytest

from agents.config import LIMITS, ConfigError, SelfImproveConfig
from agents.play import PlayConfig
from agents.policies.policy import Sampling
from agents.self_improve import default_output

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("value", [NAN, INF, -INF, 1e300, -1.0, 10**30])
@pytest.mark.parametrize("name", LIMITS)
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
        ("action_power", 1e6),
        ("temperature", 1e-300),
        ("teacher_temperature", 0.0),
        ("ema_decay", NAN),
        ("vllm_memory", NAN),
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
    for env in ("FrozenLake-v1", "Taxi-v4", "Math-v0", "Choice-v0", "OPCD/RandomFrozenLake-v0"):
        SelfImproveConfig.for_env(env)


def test_runs_that_begin_together_have_names_of_their_own() -> None:
    assert len({default_output("FrozenLake-v1") for _ in range(20)}) >= 19
