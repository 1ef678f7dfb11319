"""An episode on the terminal."""

import json
import re
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agents.config import SelfImproveConfig
from agents.play import main, play
from agents.policies.policy import Prompt, Sampling
from experience.context import NO_CONTEXT, Context
from experience.seeds import SeedRange, Split
from experience.store import ExperienceStore
from tests.scripted import ScriptedPolicy

DRY = SelfImproveConfig(env="FrozenLake-v1", env_kwargs={"is_slippery": False})


def told(
    reply: Any, context: Context = NO_CONTEXT, seed: int = 2, config: SelfImproveConfig = DRY
) -> list[str]:
    file = StringIO()
    console = Console(file=file, width=100, highlight=False)
    play(config, ScriptedPolicy(reply), Sampling(), seed, context, console)
    return [" ".join(line.split()) for line in file.getvalue().splitlines()]


def test_an_episode_is_told_turn_by_turn() -> None:
    moves = iter([" right", " right", " down", " fly", " down", " down", " right"])
    lines = told(lambda prompt, seed: next(moves), Context.fixed("Go\x1b[31m on."))
    assert lines[:3] == ["1 You are at row 1, column 1.", "experience: Go on.", "I move right"]
    assert "I move fly (not an action)" in lines
    assert lines[-4:] == [
        *("I move right", "reward 1", "You are at row 4, column 4."),
        "success after 7 turns: terminated, return 1",
    ]


def test_the_agent_reads_what_is_told() -> None:
    seen: list[Prompt] = []

    def reply(prompt: Prompt, seed: int) -> str:
        seen.append(prompt)
        return " down"

    told(reply, Context.fixed("Keep dry."))
    assert all("Keep dry." in prompt.messages[-1].content for prompt in seen)
    del seen[:]
    told(reply)
    assert not any("Keep dry." in prompt.messages[-1].content for prompt in seen)


def test_a_logged_conversation_is_told_as_one(tmp_path: Path) -> None:
    chats = [{"messages": [{"role": "user", "content": f"Hi {n}?"}]} for n in range(9)]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    config = SelfImproveConfig(env="Logs-v0", env_kwargs={"file": str(tmp_path / "chats.jsonl")})
    assert re.fullmatch(r"1 user: Hi \d\?", told(lambda *_: "Hello.", config=config)[0])


@pytest.mark.parametrize(
    ("does", "line"),
    [
        ("fine arrays", "success after 3 turns: terminated, return 3"),
        ("reward two", "no success after 1 turn: ValueError: the reward is array([1., 2.]) (reply "),
    ],
)
def test_a_reward_is_what_it_is_in_a_run(does: str, line: str) -> None:
    config = SelfImproveConfig(env="tests.envs.odd_env:tests/Odd-v0", env_kwargs={"does": does})
    assert line in " ".join(told(lambda prompt, seed: "0", seed=5, config=config))


@pytest.mark.parametrize("seed", [0, 1, 2, 7, 3_000_000, 123_456_789])
def test_a_seed_is_the_one_that_the_env_gets(seed: int) -> None:
    assert list(SeedRange.of_seed(seed)) == [seed]
    assert SeedRange.of_seed(2) == SeedRange(split=Split.TEST, run_seed=0, start=0, size=1)


def test_a_run_plays_with_and_without_its_experience(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(whole), "--seed", "5"]) == 0
    out = capsys.readouterr().out
    without, with_experience = out.split("\nwith experience: FrozenLake-v1, seed 5")
    assert without.startswith("without experience: FrozenLake-v1, seed 5")
    assert "experience: At row 1, column 1, move" in with_experience
    assert "experience: At" not in without
    # As the run's own test episode went.
    with ExperienceStore(whole / "experience.db") as store:
        turns = store.turns(trace_id="test/after@0/5")
        told = re.findall(r"^ +(I move \w+)", without, re.MULTILINE)
        assert told == list(turns["reply"])


def test_a_text_of_ones_own(walker_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    advice = tmp_path / "advice.txt"
    advice.write_text("Mind the [red]holes[/red].\n")
    assert main(["--model", str(walker_folder), "--context-file", str(advice)]) == 0
    assert "experience: Mind the [red]holes[/red]." in capsys.readouterr().out
    assert main(["--model", str(walker_folder)]) == 0
    assert "with experience" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--run", "/no/such/run"], "/no/such/run is not the folder of a run"),
        (["--run", "{run}", "--env", "Taxi-v4"], "which is FrozenLake-v1: give --env FrozenLake-v1"),
        (["--env", "FrozenLak-v1"], "did you mean FrozenLake-v1"),
        (["--model", "nowhere"], "no model 'nowhere'"),
        (["--context-file", "/no/such/file"], "there is no context_file /no/such/file"),
        (["--run", "{run}", "--context-file", "/no/such/file"], "there is no context_file /no/such/file"),
        (["--seed", "-1"], "seed must be at least 0"),
        (["--temperature", "-1"], "temperature must be at least 0"),
    ],
)
def test_bad_input_is_one_clear_error(
    args: list[str], says: str, whole: Path, walker_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--model" in args or "--run" in args else ["--model", str(walker_folder)]
    try:
        code = main([arg.format(run=whole) for arg in args] + model)
    except SystemExit as stop:  # tyro's own errors
        code = int(stop.code or 0)
    assert code == 2
    captured = capsys.readouterr()
    assert says in " ".join(captured.err.split())
    assert captured.out == ""


def test_a_run_without_a_model_says_so(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished = shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("model"))
    assert main(["--run", str(unfinished)]) == 2
    assert "has no trained model yet" in capsys.readouterr().err
