"""Whatever an env does wrong ends its own episode, and nothing else."""

import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
import torch

from agents.policies.policy import Sampling
from agents.rollout import check_played, rollout
from envs import EnvError, TextEnv, deadline, make_text_env
from envs.deadline import MAX_ERROR_CHARS, EnvFault, TimeLimit, guarded
from envs.place import MAX_RETURN, LocalPlace, ProcessPlace, Vectorization, vector_env
from envs.words import truth
from evals.baselines import Baselines
from evals.result import EvalResult, cut_short, cut_short_text, success_rate
from experience.context import NO_CONTEXT
from experience.seeds import SeedRange, Split
from experience.trace import StopReason, Trace
from tests.envs.odd_env import DEADLY, ODDITIES, SLOW, Odd, swallows
from tests.scripted import ScriptedPolicy

SOON = TimeLimit(processor=0.3, clock=0.6)
LATE = TimeLimit(processor=60.0, clock=120.0)
"""For what does not take long: a busy machine is no fault of it."""

ENV = "tests.envs.odd_env:tests/Odd-v0"


def odd(does: str) -> Callable[[], TextEnv]:
    """Makes the env; nothing of this file goes along, which a process of its own would have to import."""
    return partial(make_text_env, ENV, {"does": does})


def play(
    make: Callable[[], TextEnv],
    num_envs: int = 2,
    n: int = 6,
    vectorization: Vectorization = "sync",
    timeout: TimeLimit = LATE,
) -> list[Trace]:
    envs = vector_env(make, num_envs, vectorization=vectorization, timeout=timeout)
    seeds = SeedRange(split=Split.TRAIN, run_seed=0, start=0, size=n)
    policy = ScriptedPolicy(lambda *_: " 1")
    try:
        traces = rollout(
            envs,
            odd("")().words,
            policy,
            {"p": NO_CONTEXT},
            seeds,
            sampling=Sampling(),
            policy_id="p",
            env_id="e",
        )
        return sorted(traces, key=lambda trace: trace.seed)
    finally:
        envs.close()


@pytest.mark.parametrize("does", [name for name in ODDITIES if name not in DEADLY])
def test_what_an_env_does_is_its_own_episodes(does: str) -> None:
    timeout = SOON if does in SLOW else LATE
    traces = play(odd(does), timeout=timeout)
    assert len(traces) == 6
    for trace in traces:
        if trace.seed % 2 == 0 or "fine" in does:
            assert (trace.stop_reason, trace.error, trace.total_reward) == (StopReason.TERMINATED, None, 3.0)
        else:
            assert trace.stop_reason == (StopReason.TIMED_OUT if does in SLOW else StopReason.ERROR)
            assert not trace.success
            assert trace.error is not None
            assert len(trace.error) <= MAX_ERROR_CHARS + 120
            assert "\x1b" not in trace.error
    baseline = Baselines(ENV, {"does": does}, timeout=timeout).random(
        SeedRange(split=Split.TRAIN, run_seed=0, start=0, size=2)
    )
    assert baseline.endings is not None
    assert sum(baseline.endings.values()) == 2
    assert baseline.endings.get("terminated", 0) == (
        2 if "fine" in does or does.startswith("observation") else 1
    )


def test_a_process_that_hangs_or_dies_is_begun_again() -> None:
    place = ProcessPlace(odd("c loop"), TimeLimit(processor=0.3, clock=0.3))
    for seed, fault in ((1, "hung for 0.3 s"), (2, None)):
        place.begin(seed)
        assert place.outcome().fault is None
        place.act("1")
        assert place.outcome().fault is None
        place.act("1")
        outcome = place.outcome()
        assert (outcome.fault is None) if fault is None else fault in str(outcome.fault)
        assert outcome.timed_out == (fault is not None)
    place.close()


def test_a_process_whose_env_is_never_made_is_said_to_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.place.START_SECONDS", 0.1)
    place = ProcessPlace(partial(time.sleep, 600))  # type: ignore[arg-type]
    for _ in range(2):
        place.begin(1)
        outcome = place.outcome()
        assert (outcome.fault, outcome.timed_out) == ("hung for 0.1 s: its process was ended", True)
    place.close()


def test_where_one_place_cannot_be_those_before_it_are_closed() -> None:
    made: list[Closes] = []

    def make() -> gym.Env[Any, Any]:
        if len(made) == 2:
            raise EnvError("no more")
        made.append(Closes())
        return made[-1]

    with pytest.raises(EnvError, match="no more"):
        vector_env(make, 3)
    assert [env.is_closed for env in made] == [True, True]


@pytest.mark.parametrize(("does", "how"), [("dies", "exit code 0"), ("killed", "signal 9")])
def test_a_process_that_ends_is_a_fault_of_its_episode(does: str, how: str) -> None:
    traces = play(odd(does), vectorization="async", num_envs=1, n=3)
    assert [trace.error for trace in traces] == [None, f"its process ended, {how}", None]


class Closes(gym.Env[Any, Any]):
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


class Judged(gym.Wrapper[Any, Any, Any, Any]):
    """Says of success what the seed says: 0, 0.9, nothing, True, or an array."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        assert seed is not None
        self.seed = seed
        return self.env.reset(seed=seed)

    def step(self, action: Any) -> Any:
        *rest, _ = self.env.step(action)
        says = [0, 0.9, None, np.array([True]), 0.0][self.seed // 3 % 5]
        return *rest, {"is_success": says, "n": np.arange(self.seed % 7)}


def test_success_does_not_depend_on_how_many_play_side_by_side() -> None:
    played = [play(lambda: TextEnv(Judged(odd("")().env)), num, 40) for num in (1, 2, 4, 8)]
    assert played[0] == played[1] == played[2] == played[3]
    assert sum(trace.success for trace in played[0]) == 24


class Slams(Odd):
    """Hangs or exits when it is closed."""

    def close(self) -> None:
        sys.exit(0)


def test_closing_is_guarded() -> None:
    place = LocalPlace(lambda: TextEnv(gym.wrappers.TimeLimit(Slams(), 5)))
    place.begin(0)
    assert place.outcome().fault is None
    place.close()


def test_after_a_fault_the_env_is_made_anew() -> None:
    made = []

    def make() -> TextEnv:
        made.append(1)
        if len(made) == 2:
            sys.exit(0)
        return odd("exit")()

    place = LocalPlace(make)
    place.begin(1)
    place.act("1")
    assert place.outcome().reward == 1.0
    place.act("1")
    assert re.search(r"SystemExit: 0 \(odd_env\.py:\d+\) \(reply '1'\)", str(place.outcome().fault))
    place.begin(2)
    assert str(place.outcome().fault).startswith("SystemExit: 0 (test_place.py:")
    place.begin(2)
    assert place.outcome().fault is None


def test_the_working_directory_of_an_env_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(deadline, "_theirs", None)
    seen = []

    class Goes(Odd):
        def step(self, action: Any) -> Any:
            seen.append(Path.cwd())
            os.chdir(there)
            return super().step(action)

    place = LocalPlace(lambda: TextEnv(Goes()))
    place.begin(0)
    for _ in range(2):
        place.act("1")
        assert place.outcome().fault is None
        assert Path.cwd() == here
    assert seen == [here, there]


def test_returns_too_large_for_a_mean_are_refused() -> None:
    class Rich(Odd):
        def step(self, action: Any) -> Any:
            return 1, 0.6 * MAX_RETURN, False, False, {}

    place = LocalPlace(lambda: TextEnv(gym.wrappers.TimeLimit(Rich(), 5)))
    place.begin(0)
    place.act("1")
    assert place.outcome().reward == 0.6 * MAX_RETURN
    place.act("1")
    assert "beyond 1e+100" in str(place.outcome().fault)


def test_what_is_cut_off_or_not_judged_is_told_apart() -> None:
    class Unsure(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            return 0, 0.0, False, True, {"not_judged": True}

    [trace] = play(lambda: TextEnv(Unsure(odd("")().env)), n=1)
    assert trace.stop_reason == StopReason.NOT_JUDGED
    env = odd("")()
    env.reset(seed=0)
    info = env.step("I choose action <think> 1")[4]
    assert (info["text/cut_off"], "text/action" in info) == (True, False)
    assert env.step("I choose action <think>0 or 1? I choose action 0</think> 1")[4]["text/action"] == "1"
    assert env.step("<think>0?</think> I choose action 1.")[4]["text/action"] == "1"


def test_a_phase_that_only_fails_is_an_error() -> None:
    traces = play(odd("exit"))
    check_played(traces)
    check_played([])
    with pytest.raises(EnvError, match=r"e failed in each of 3 episodes of p, the first .*SystemExit: 0"):
        check_played([trace for trace in traces if trace.is_fault])


def test_whole_limits_only() -> None:
    assert TimeLimit.of(0) == TimeLimit()
    assert TimeLimit.of(1) == TimeLimit(processor=1, clock=30)
    assert TimeLimit.of(60) == TimeLimit(processor=60, clock=600)
    assert TimeLimit.of(60, share=0.25) == TimeLimit(processor=60, clock=2400)
    for seconds in (float("inf"), float("nan"), -1.0):
        with pytest.raises(ValueError, match="from 0 up"):
            TimeLimit.of(seconds)


def test_processor_time_does_not_pass_while_waiting() -> None:
    guarded(lambda: time.sleep(0.3), TimeLimit(processor=0.1, clock=30))
    with pytest.raises(EnvFault, match="of processor time"):
        guarded(swallows, TimeLimit(processor=0.1, clock=30))


@pytest.mark.parametrize("value", [True, np.True_, 1, 0.9, np.float32(2), np.array([[3]]), torch.tensor([1])])
def test_what_is_true(value: Any) -> None:
    assert truth(value, "x") is True
    assert truth(0 * value, "x") is False


@pytest.mark.parametrize("value", ["", "yes", [], [1, 1], {}, object(), float("nan"), 1j, b"1", None])
def test_what_is_neither(value: Any) -> None:
    with pytest.raises(ValueError, match="neither true nor false"):
        truth(value, "x")


# ------------------------------------------------------------------------ envs that cannot even be made


class Weird(Odd):
    """Wrong from the beginning."""

    def __init__(self, how: str) -> None:
        super().__init__()
        if how == "exit":
            sys.exit(0)
        if how == "no space":
            self.action_space = None  # type: ignore[assignment]
        if how == "space of its own":
            self.action_space = gym.Space()  # type: ignore[assignment]


gym.register("tests/Weird-v0", entry_point=f"{__name__}:Weird", max_episode_steps=10)
gym.register("tests/BadThreshold-v0", entry_point=Odd, reward_threshold="much", max_episode_steps=9)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["exit", "no space", "space of its own"])
def test_envs_that_cannot_be_made_are_clear_errors(how: str) -> None:
    with pytest.raises(EnvError, match=r"cannot be made|cannot be written") as error:
        make_text_env("tests/Weird-v0", {"how": how})
    assert "\n" not in str(error.value)


def test_a_spec_that_makes_no_sense_is_a_clear_error() -> None:
    with pytest.raises(EnvError, match="cannot be put into words: ValueError"):
        make_text_env("tests/BadThreshold-v0", {})


def test_results_leave_out_what_was_not_judged() -> None:
    frame = pd.DataFrame(
        {
            "seed": range(5),
            "stop_reason": ["terminated", "not_judged", "error", "timed_out", "terminated"],
            "success": [True, False, False, False, True],
            "total_reward": [1.0, 0.0, 0.0, 0.0, 1.0],
            "num_turns": [1] * 5,
            "invalid_replies": [0] * 5,
            "prompt_tokens": [7] * 5,
            "error": [None, None, "E: x", "took long", None],
        }
    )
    result = EvalResult.from_traces(frame)
    assert (result.successes, result.n, result.success_rate) == (2, 4, 0.5)
    assert result.endings == {"error": 1, "not_judged": 1, "terminated": 2, "timed_out": 1}
    assert success_rate(frame) == 0.5
    assert success_rate(frame[1:2]) == 0.0
    found = cut_short(frame)
    assert found["endings"] == {"error": 1, "timed_out": 1, "not_judged": 1}
    assert cut_short_text(found) == (
        "Of 5 episodes of this run some were cut short: 1 by an error of the env; 1 since the env took too "
        "long (--env-timeout); 1 with an answer that could not be judged, which counts as neither right nor "
        "wrong. The first error: E: x"
    )
    assert cut_short_text(cut_short(frame[frame["success"]])) == cut_short_text(None) == ""
