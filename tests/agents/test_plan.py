"""What a run will take, what of it fits, and that finding out changes nothing."""

import io
import json
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import pandas as pd
import pytest
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from rich.console import Console

from agents.cli import parse_args
from agents.config import PLANNED, ConfigError, SelfImproveConfig
from agents.costs import Call, Costs, Episodes, fit
from agents.plan import TEST, VALIDATION, Estimate, Outlook, _told, fitted
from agents.rehearsal import TURN_COLUMNS, Rehearsal, _turns
from agents.rehearsed_step import _tokens
from agents.run.progress import Bars
from agents.run.resume import begun
from agents.self_improve import self_improve
from envs import register_text
from evals.baselines import Baselines
from evals.result import EvalResult
from experience.seeds import SeedRange, Split
from experience.store import ExperienceStore
from experience.trace import StopReason, Trace, Turn
from tests.agents.test_self_improve import KEPT, QUIET, contents, open_gate

KNOWN = Episodes(turns=10, episodes=100, decisions=1000, prompts=16, once=0, twice=0)
"""Of an env whose observations were all seen often."""
NEW = Episodes(turns=10, episodes=5, decisions=50, prompts=50, once=50, twice=0)
"""Of one that never says the same twice."""


def costs(kind: Episodes, **changes: Any) -> Costs:
    return Costs(
        **{
            "bare": kind,
            "greedy": kind,
            "exploring": kind,
            "informed": kind,
            "train": kind,
            "per_call": 0.01,
            "per_prompt": 0.02,
            "per_decision": 0.0005,
            "step": 2.0,
            "remember": 0.03,
            "env_step": 1e-5,
            "random_turns": 8.0,
            "seconds": 5.0,
            **changes,
        }
    )


def outlook(kind: Episodes, **changes: Any) -> Outlook:
    return Outlook(
        costs=costs(kind, **changes),
        insights=kind.prompts,
        waves=12,
        tried=1.0,
        untried=1.0,
        written=0,
        actions=4,
        processes=1,
        validation=10**9,
        test=10**9,
    )


def asked(minutes: float | None = None) -> SelfImproveConfig:
    return SelfImproveConfig(minutes=minutes, steps=30)


def test_prompts_are_counted_as_they_come() -> None:
    assert KNOWN.distinct(1) == 10
    assert KNOWN.distinct(10**5) == 16
    assert NEW.distinct(10**5) == 10**6
    assert replace(NEW, states=500).distinct(10**5) == 500  # the env counts them
    half = Episodes(turns=10, episodes=10, decisions=100, prompts=40, once=20, twice=9)
    assert 40 < half.distinct(20) < half.distinct(40) < 57.1
    assert half.distinct(10**6) == pytest.approx(57.1)  # Chao2: 40 + 9/10 * 20 * 19 / 20
    talking = replace(half, is_open=True)
    assert talking.distinct(1000) == pytest.approx(400)  # Heaps: 40 * (1000/10) ** (20/40)


def test_a_step_has_more_tokens_where_there_are_more_prompts() -> None:
    """Prompts of four tokens that differ in the last."""
    run: Any = SimpleNamespace(
        config=SimpleNamespace(seed=0),
        agent=SimpleNamespace(student=SimpleNamespace(encode=lambda prompt: prompt)),
    )
    pairs: Any = {"left": [((0, 1, 2, 10 + i), ()) for i in range(8)]}
    assert _tokens(run, pairs, 4) == 3 + 4
    assert _tokens(run, pairs, 32) == 3 + 8
    assert _tokens(run, pairs, 32, pool=16) == 3 + 16
    assert _tokens(run, pairs, 32, pool=80) == pytest.approx(3 + 32)


def test_costs_are_told_apart() -> None:
    calls = [
        Call(decisions=n, new=new, seconds=0.5 * (new > 0) + 0.1 * new + 0.01 * n, between=0.002 * n)
        for n, new in [(4, 4), (16, 16), (16, 2), (16, 0), (7, 1), (3, 0)]
    ]
    assert fit(calls) == pytest.approx((0.5, 0.1, 0.012))


def test_what_is_set_up_is_not_taken_for_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only the random policy's calls move: the first by 100 seconds, others by 0.01."""
    now, random = 0.0, Baselines.random

    def moving(self: Baselines, seeds: SeedRange) -> EvalResult:
        nonlocal now
        now += 0.01 if self.steps else 100.0
        return random(self, seeds)

    monkeypatch.setattr(Baselines, "random", moving)
    monkeypatch.setattr("agents.rehearsal.time", SimpleNamespace(monotonic=lambda: now))
    rehearsal = object.__new__(Rehearsal)
    rehearsal._run = SimpleNamespace(config=SelfImproveConfig())  # type: ignore[assignment]
    env_step, turns = rehearsal._random()
    assert 0 < env_step < 0.001
    assert turns > 3


def test_turns_are_told_as_a_store_tells_them(tmp_path: Path) -> None:
    def turn(observation: str, action: str | None) -> Turn:
        return Turn(
            observation=observation, insight_ids=(), prompt_tokens=1, reply="x", token_ids=(1,),
            logprobs=(0.0,), action=action, reward=0.5,
        )  # fmt: skip

    traces = [
        Trace(
            phase="play0",
            split=Split.TRAIN,
            seed=seed,
            env_id="",
            policy_id="",
            context_id="none",
            turns=turns,
            final_observation="end",
            stop_reason=stop,
            success=seed == 3,
        )
        for seed, turns, stop in [
            (0, (turn("a", "left"), turn("b", None)), StopReason.TRUNCATED),
            (3, (turn("b", "left"),), StopReason.TERMINATED),
            (6, (), StopReason.ERROR),
        ]
    ]
    with ExperienceStore(tmp_path / "experience.db") as store:
        store.add_traces(traces)
        told = store.turns()[list(TURN_COLUMNS)]
    pd.testing.assert_frame_equal(_turns(traces), told, check_dtype=False)


def test_an_estimate_in_words() -> None:
    parts = {"play": 60.0, "gate": 120.0, "training": 480.0, "validation": 60.0, "test": 120.0}
    assert str(Estimate(**parts)) == "about 14 minutes: 3 to play, 8 to train, 3 to measure"
    quick = Estimate(**{part: seconds / 60 for part, seconds in parts.items()})
    assert str(quick) == "about 14 seconds: 3 to play, 8 to train, 3 to measure"
    slow = Estimate(**{part: 60 * seconds for part, seconds in parts.items()})
    assert str(slow) == "about 14 hours: 3 to play, 8 to train, 3 to measure"


def test_measuring_goes_before_learning() -> None:
    """The rule, at four budgets of one env that never says the same twice."""
    there = outlook(NEW)
    whole = there.estimate(asked()).total
    assert fitted(asked(1), there, whole) == asked(1)
    seen = []
    for share in (0.5, 0.15, 0.06, 0.03):
        seconds = share * whole
        config = fitted(asked(seconds / 60), there, seconds)
        assert 0.7 * seconds < there.estimate(config).total <= seconds
        seen.append([getattr(config, name) for name in PLANNED])
    episodes, steps, validation, test = zip(*seen, strict=True)
    assert list(test) == sorted(test, reverse=True)
    assert list(validation) == sorted(validation, reverse=True)
    assert list(episodes) == sorted(episodes, reverse=True)
    assert list(steps) == sorted(steps, reverse=True)
    assert (episodes[0], steps[0]) == (asked().episodes, asked().steps)  # precision goes first
    assert all(n % 12 == 0 for n in episodes)
    for i in range(4):
        if episodes[i] < asked().episodes:
            assert (validation[i], test[i]) <= (VALIDATION, TEST)
    assert test[-1] < TEST  # last of all


def test_few_steps_are_said_to_be_few() -> None:
    there = outlook(NEW)
    few = [line for line in _told(asked(1), replace(asked(1), steps=14), there) if "too few to learn" in line]
    assert len(few) == 1
    assert few[0].startswith("14 steps of 30 may well be too few")
    minutes = float(few[0].partition("--minutes ")[2].split()[0])
    assert fitted(asked(minutes), there, 60 * minutes - there.costs.seconds) == asked(minutes)
    assert not any("too few to learn" in line for line in _told(asked(1), replace(asked(1), steps=15), there))


def test_nothing_is_ever_raised() -> None:
    small = replace(asked(1e5), episodes=12, waves=4, steps=2, validation_episodes=20, test_episodes=30)
    assert fitted(small, outlook(KNOWN), 1e9) == small
    assert fitted(small, outlook(NEW), 60.0).test_episodes <= 30


def test_too_few_minutes_say_how_many_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"minutes 0.1 are too few: .* Give --minutes \d+") as error:
        fitted(asked(0.1), outlook(NEW, step=60.0), 6.0)
    minutes = float(str(error.value).partition("--minutes ")[2].partition(",")[0])
    enough = 60 * minutes
    assert fitted(asked(minutes), outlook(NEW, step=60.0), enough).test_episodes < TEST


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Costs]:
    """What rehearsals find in the course of a test."""
    found: list[Costs] = []
    costs = Rehearsal.costs

    def noted(self: Rehearsal) -> Costs:
        found.append(costs(self))
        return found[-1]

    monkeypatch.setattr(Rehearsal, "costs", noted)
    return found


def test_a_rehearsal_changes_nothing(
    walker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[Costs]
) -> None:
    """To the digit: weights, traces and figures, where it is measured and where it is not.

    The env closes badly, which is nothing to anybody.
    """
    monkeypatch.setattr(FrozenLakeEnv, "close", sys.exit)
    settings = KEPT | {"rounds": 1, "memory": "last-2"}
    # Replies of one token are not drawn to be trained on, so not in a rehearsal either.
    never = patch("agents.examples.sample_examples", side_effect=AssertionError)
    with open_gate(), never:
        self_improve(SelfImproveConfig(model=str(walker_folder), output=tmp_path / "a", **settings), QUIET)
    assert measured[0].step > 0
    assert measured[0].informed.decisions > 1
    monkeypatch.setattr("agents.self_improve.plan", lambda run, reflection, gate: None)
    with open_gate():
        self_improve(SelfImproveConfig(model=str(walker_folder), output=tmp_path / "b", **settings), QUIET)
    assert len(measured) == 1
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_plan_is_kept_printed_and_can_be_repeated(
    walker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = costs(NEW, step=5.0, per_call=0.001, per_prompt=0.004)
    monkeypatch.setattr(Rehearsal, "costs", lambda self: slow)
    console = Console(record=True, width=400, quiet=False, file=(tmp_path / "log").open("w"))
    settings = KEPT | {"rounds": 1, "episodes": 24, "steps": 6}
    config = SelfImproveConfig(model=str(walker_folder), output=tmp_path / "planned", minutes=0.5, **settings)
    with open_gate():
        self_improve(config, console)
    about = json.loads((tmp_path / "planned" / "config.json").read_text())
    chosen = {name: about["config"][name] for name in PLANNED}
    assert 1 < chosen["steps"] < 6
    assert 2 < chosen["episodes"] < 24
    told = console.export_text()
    line = next(line for line in told.splitlines() if "0.5 minutes have room for: " in line)
    printed = parse_args([*line.partition("0.5 minutes have room for: ")[2].split(), "--waves", "2"])
    assert {name: getattr(printed, name) for name in PLANNED} == chosen
    assert about["expected_seconds"].keys() == {"play", "gate", "training", "validation", "test"}

    # The flags that were printed give the same figures without any minutes.
    with open_gate():
        self_improve(
            SelfImproveConfig(model=str(walker_folder), output=tmp_path / "said", **{**settings, **chosen}),
            QUIET,
        )
    assert contents(tmp_path / "said") == contents(tmp_path / "planned")

    # A run that goes on keeps its plan, whatever the machine does meanwhile.
    monkeypatch.setattr(Rehearsal, "costs", lambda self: pytest.fail("measured again"))
    (tmp_path / "planned" / "results.json").unlink()
    self_improve(SelfImproveConfig(resume=tmp_path / "planned"), QUIET)
    again = json.loads((tmp_path / "planned" / "config.json").read_text())
    assert again == about
    with pytest.raises(ConfigError, match="minutes 5"):
        parse_args(["--resume", str(tmp_path / "planned"), "--minutes", "5"])
    # As part of a suite it is known again by what was asked for.
    assert begun(replace(config, output=None), tmp_path / "planned").resume == tmp_path / "planned"


class Endless(gym.Env[Any, Any]):
    """Every observation is new, and no episode ends before 5000 steps."""

    observation_space = gym.spaces.Box(0, 10**9, (), int)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.at = int(self.np_random.integers(10**6)) * 1000
        return self.at, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.at += 1
        return self.at, 0.0, False, False, {}


def test_episodes_that_do_not_end_are_taken_as_long_as_they_may_be(
    walker_folder: Path, tmp_path: Path, measured: list[Costs]
) -> None:
    gym.register("Endless-v0", entry_point="tests.agents.test_plan:Endless", max_episode_steps=5000)
    register_text(
        "Endless-v0", rules="Go on.", actions=("left", "right"), describe=lambda at: f"At {at}.",
        reply_prefix="I move", max_invalid_replies=10**6,
    )  # fmt: skip
    config = SelfImproveConfig(
        env="Endless-v0", model=str(walker_folder), output=tmp_path / "run", minutes=0.2, insights="llm",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"minutes 0\.2 are too few: the least that can be played"):
        self_improve(config, QUIET)
    assert not (tmp_path / "run").exists()
    assert not measured[0].bare.has_ended
    assert measured[0].bare.turns == 5000


def test_a_line_a_minute_where_there_is_no_terminal() -> None:
    told = io.StringIO()
    bars = Bars(Console(file=told), lambda: "3 of about 14 minutes")
    bars.due = 0.0
    for number in range(2):
        bar = bars.bar(f"round1/play{number}", 64)
        bar.update(bar.task_ids[0], completed=12, note="success 1.0%")
        with bar:
            until = time.monotonic() + 20
            while number == 0 and not told.getvalue() and time.monotonic() < until:
                time.sleep(0.01)
    # The second bar was over before the next minute was.
    assert told.getvalue() == "round1/play0: 12 of 64; success 1.0%; 3 of about 14 minutes\n"
    before = threading.active_count()
    quiet = Bars(Console(quiet=True, file=told), lambda: "")
    with quiet.bar("round1/play0", 64):
        assert threading.active_count() == before
