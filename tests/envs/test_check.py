"""The commonest mistakes of custom envs, and what the checker says of each."""

import re
import string
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from envs import check, check_text_env, register_text
from envs.check import _outside
from envs.deadline import TimeLimit
from envs.registry import _REGISTERED


class Walk(gym.Env[Any, Any]):
    """Nothing is wrong with it, but for ``mistake``."""

    observation_space = Box(0, 20, (1,), np.int64)
    action_space = Discrete(2)
    place = 0

    def __init__(self, mistake: str = "") -> None:
        self.mistake = mistake
        self.unseeded = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        while self.mistake == "reset loops":
            pass
        draws = self.unseeded if self.mistake == "reset draws" else self.np_random
        if self.mistake != "left over" or self.place == 0:
            self.place = 3 + int(draws.integers(10))
        return self.seen() if self.mistake == "old reset" else (self.seen(), {})

    def step(self, action: Any) -> Any:
        while self.mistake == "step loops":
            pass
        while self.mistake == "step waits":
            time.sleep(1)
        draws = self.unseeded if self.mistake == "step draws" else self.np_random
        self.place = min(max(self.place + (1 if action else -1) + int(draws.integers(2)), 1), 20)
        end: Any = self.place == 20
        reward: Any = {"no number": None, "nan": float("nan"), "rewards": np.array([0.0, 1.0])}.get(
            self.mistake, float(end) - ("costs" in self.mistake)
        )
        info: Any = {"is_success": "no"} if self.mistake == "success" else {}
        if "says" in self.mistake:
            info = {"is_success": end}
        if self.mistake == "old step":
            return self.seen(), reward, end, info
        return self.seen(), reward, int(end) if self.mistake == "end" else end, False, info

    def seen(self) -> Any:
        if self.mistake == "nothing":
            return None
        return np.array([self.place], np.float64 if self.mistake == "type" else np.int64)


gym.register("tests/Walk-v0", entry_point=f"{__name__}:Walk", max_episode_steps=30)


@pytest.fixture
def say() -> Iterator[Callable[..., None]]:
    yield lambda **words: register_text("tests/Walk-v0", **words)
    register_text("tests/Walk-v0")


def test_no_mistake() -> None:
    assert check_text_env("tests/Walk-v0") == []


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        ("old reset", r"reset\(\) has to return \(observation, info\)"),
        ("old step", r"step\(\) has to return \(observation, reward, terminated, truncated, info\)"),
        ("reset draws", r"two episodes of seed \d begin differently: draw from self.np_random only"),
        ("step draws", r"episodes of seed \d with the same actions part: draw from self.np_random only"),
        ("left over", "seed 0 begins differently after other episodes"),
        ("no number", "a reward is None: a finite number is needed"),
        ("nan", "a reward is nan: a finite number"),
        ("rewards", r"a reward is array\(\[0., 1.\]\)"),
        ("type", r"an observation is not in Box\(.*int64\): float64 array"),
        ("nothing", r"an observation is not in Box\(.*int64\): None"),
        ("costs", "steps cost, and success is a positive return"),
        ("end", r"terminated and truncated are \(0, False\): True or False is needed"),
        ("success", "info has to be a dictionary, and its is_success a truth value"),
    ],
)
def test_mistakes_of_envs(mistake: str, complaint: str) -> None:
    found = check_text_env("tests/Walk-v0", {"mistake": mistake})
    assert any(re.match(complaint, said) or said.endswith(complaint) for said in found), found
    assert all("\n" not in said for said in found)


@pytest.mark.parametrize("mistake", ["reset loops", "step loops", "step waits"])
def test_what_never_ends(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "LIMIT", TimeLimit(processor=0.2, clock=0.5 if "waits" in mistake else 60.0))
    [said] = check_text_env("tests/Walk-v0", {"mistake": mistake})
    assert re.fullmatch(
        r"it took longer than 0\.\d s( of processor time)?: a step or reset hangs or is slow", said
    )


def test_words_of_a_misspelt_id() -> None:
    gym.register("tests/Bare-v0", entry_point=f"{__name__}:Walk", max_episode_steps=30)
    register_text("tests/Bear-v0", actions=["a", "b"])
    register_text("tests/Other-v0", actions=["a", "b"])  # of a module that has not registered its env yet
    try:
        [complaint] = check_text_env("tests/Bare-v0")
        assert complaint.startswith("it has no words of its own; register_text was called for tests/Bear")
        del _REGISTERED["tests/Bear-v0"]
        assert check_text_env("tests/Bare-v0") == []
    finally:
        del _REGISTERED["tests/Other-v0"]
        gym.registry.pop("tests/Bare-v0")


def test_a_charset_that_is_too_small() -> None:
    said = _outside(gym.spaces.Text(100), "You are at 3.")
    assert said == "; its charset lacks ' .': give Text(..., charset=string.printable)"
    said = _outside(gym.spaces.Text(100, charset=string.printable), "你 at 3")
    assert said == "; its charset lacks '你': take AnyText() of envs.any_text"
    assert _outside(gym.spaces.Text(3), "longer").startswith("; it has 6 characters, and may have 1 to 3")


def test_an_env_that_says_itself_what_success_is_may_cost() -> None:
    assert check_text_env("tests/Walk-v0", {"mistake": "none, costs and says"}) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"describe": lambda _: "Here."}, "every observation reads the same"),
        ({"describe": lambda seen: f"{seen}\x00"}, "describe() gives"),
        ({"describe": lambda seen: int(seen[0])}, "it raises TypeError: describe() has to give a text"),
        ({"describe": lambda seen: seen["place"]}, "it raises IndexError"),
        ({"actions": ["a", "b"], "parse": lambda _: 0}, "the action 'b' is not read back from its own text"),
        ({"parse": lambda reply: 7}, "it raises ValueError: parse() gave 7, which is not in"),
        ({"parse": lambda reply: 1}, "the action '0' is not read back"),
        ({"actions": ["a", "b"], "parse": lambda _: 0}, "an empty reply is taken for an action"),
        ({"advise": lambda where, _: f"{where} Go on."}, "advise() words two actions alike"),
    ],
)
def test_mistakes_of_words(words: dict[str, Any], complaint: str, say: Callable[..., None]) -> None:
    say(**words)
    found = check_text_env("tests/Walk-v0")
    assert any(said.startswith(complaint) for said in found), found


class Quiz(gym.Env[Any, Any]):
    """Twelve questions, dealt to seeds or drawn."""

    observation_space = action_space = gym.spaces.Text(40, charset=string.printable)

    def __init__(self, questions: int = 12, deals: bool = True) -> None:
        self.questions, self.deals = questions, deals

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        number, part = divmod(seed or 0, 3)
        drawn = int(self.np_random.integers(self.questions))
        return f"What is {3 * (number % 4) + part if self.deals else drawn} + 1?", {}

    def step(self, action: Any) -> Any:
        return "That was all.", 0.0, True, False, {}


gym.register("tests/Quiz-v0", entry_point=f"{__name__}:Quiz", max_episode_steps=3)


@pytest.mark.parametrize(
    ("kwargs", "is_said"), [({}, False), ({"deals": False}, True), ({"deals": False, "questions": 1}, False)]
)
def test_questions_of_training_and_of_the_test_differ(kwargs: dict[str, Any], is_said: bool) -> None:
    found = check_text_env("tests/Quiz-v0", kwargs)
    assert any("deal them to seeds by the seed's remainder by 3" in each for each in found) == is_said


class Ask(gym.Env[str, str]):
    """One question, one reply, and nothing to read after it."""

    observation_space = gym.spaces.Text(40, min_length=0, charset=string.printable)
    action_space = gym.spaces.Text(10)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return f"What is {(seed or 0) % 3} + 1?", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", 0.0, True, False, {}


def test_questions_differ_though_nothing_follows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    gym.register("tests/Ask-v0", entry_point=f"{__name__}:Ask", max_episode_steps=1)
    try:
        assert check_text_env("tests/Ask-v0") == []
        monkeypatch.setattr(Ask, "observation_space", gym.spaces.Text(40, charset=string.printable))
        [said] = check_text_env("tests/Ask-v0")
        assert said.startswith("an observation is not in its Text space: ''; it has 0 characters, and may")
    finally:
        gym.registry.pop("tests/Ask-v0")
