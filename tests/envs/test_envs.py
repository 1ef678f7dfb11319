import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.wrappers import TransformAction
from hypothesis import given
from hypothesis import strategies as st

from envs import EnvError, TextEnv, games, make_text_env, register_text
from envs.games.frozen_lake import ACTIONS, lake_map
from envs.registry import settings_for
from envs.text_env import make_env

DRY = {"is_slippery": False}


def lake(**kwargs: object) -> TextEnv:
    return make_text_env("FrozenLake-v1", {**DRY, **kwargs})


def test_the_five_tuple_stays() -> None:
    env = lake()
    observation, info = env.reset(seed=3)
    assert observation == "You are at row 1, column 1."
    assert info == {"prob": 1}
    assert env.step("I move right") == (
        "You are at row 1, column 2.",
        0.0,
        False,
        False,
        {"prob": 1.0, "text/action": "right"},
    )
    observation, reward, terminated, truncated, _ = env.step("down")  # a hole
    assert (observation, reward, terminated, truncated) == ("You are at row 2, column 2.", 0.0, True, False)


def test_the_goal() -> None:
    env = lake(desc=["SF", "HG"])
    env.reset(seed=0)
    env.step("I move right.")
    assert env.step("I move DOWN!")[1:4] == (1.0, True, False)


@pytest.mark.parametrize("size", ["4x4", "8x8"])
def test_words_follow_gymnasiums_actions(size: str) -> None:
    env, raw = lake(map_name=size), gym.make("FrozenLake-v1", is_slippery=False, map_name=size)
    for action, word in enumerate(ACTIONS):
        env.reset(seed=0)
        raw.reset(seed=0)
        state = raw.step(action)[0]
        row, column = divmod(state, int(size[0]))
        assert env.step(f"I move {word}")[0] == f"You are at row {row + 1}, column {column + 1}."


def test_an_unreadable_reply_does_not_step() -> None:
    env = lake()
    env.reset(seed=0)
    for expected in (False, False, True):
        observation, reward, terminated, truncated, info = env.step("I move north")
        assert (observation, reward, terminated) == ("You are at row 1, column 1.", 0.0, False)
        assert truncated is expected
        assert info == {"text/too_many_invalid": expected}


class Judged(gym.Wrapper[Any, Any, Any, Any]):
    """Pays for every step, and says itself that nothing is reached yet."""

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, 0.1, terminated, truncated, {**info, "is_success": False}


def test_what_the_env_says_of_success_stays_when_replies_are_unreadable() -> None:
    env = TextEnv(Judged(make_env("FrozenLake-v1", {"is_slippery": False})), max_invalid_replies=1)
    env.reset(seed=0)
    assert env.step("I move left")[4]["is_success"] is False
    _, _, _, truncated, info = env.step("hm")
    assert truncated
    assert info["is_success"] is False
    env.reset(seed=0)
    assert "is_success" not in env.step("hm")[4]


def test_an_env_may_have_more_patience() -> None:
    assert make_text_env("Taxi-v4", {}).words.max_invalid_replies == 20
    gym.register(
        "tests/Impatient-v0", "gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv", max_episode_steps=9
    )
    register_text("tests/Impatient-v0", actions=["left", "down", "right", "up"], max_invalid_replies=2)
    env = make_text_env("tests/Impatient-v0", {})
    env.reset(seed=0)
    assert [env.step("hm")[3] for _ in range(2)] == [False, True]
    register_text("tests/Impatient-v0", max_invalid_replies=0)
    with pytest.raises(EnvError, match="max_invalid_replies must be at least 1, not 0"):
        make_text_env("tests/Impatient-v0", {})


def test_a_readable_reply_ends_the_row_of_invalid_ones() -> None:
    env = lake()
    env.reset(seed=0)
    replies = ["?", "?", "I move left", "?", "?"]
    assert not any(env.step(reply)[3] for reply in replies)
    env.step("?")
    env.reset(seed=1)
    assert not env.step("?")[3]


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ("I move right", "right"),
        (" right", "right"),
        ("I move Right.", "right"),
        ("  up!\n", "up"),
        ("I move **down**", "down"),
        ("I move right or left", None),
        ("I move rightmost", None),
        ("I move right2", None),
        ("I move", None),
        ("", None),
        ("right" * 100, None),
        ("." * 10_000 + "up", None),
        ("i move up", None),
        ("__import__('os')", None),
        ("I move \uff55\uff50", None),  # full-width letters
    ],
)
def test_parsing_is_strict(reply: str, action: str | None) -> None:
    read = lake().words.parse(reply)
    assert (read and read.text) == action


@given(st.text(max_size=300) | st.sampled_from(ACTIONS).map(lambda a: f"I move {a}"))
def test_any_reply_is_an_action_or_none(reply: str) -> None:
    read = WORDS.parse(reply)
    assert read is None or ACTIONS[read.value] == read.text


WORDS = lake().words


def test_the_agent_is_not_told_the_map() -> None:
    words = lake().words
    text = words.rules + words.question + words.describe(5)
    assert (
        lake(desc=["SFFF", "FHFH", "FFFH", "HFFG"]).words.rules
        == lake(desc=["SFFF"] * 3 + ["FFFG"]).words.rules
    )
    assert "H" not in text
    assert words.describe(5) == "You are at row 2, column 2."
    assert words.advise is not None
    assert words.advise("You are at row 2, column 1.", "down") == "At row 2, column 1, move down."


def test_what_an_advice_is_about() -> None:
    words = lake().words
    assert words.advised("You are at row 2, column 1.", "At row 2, column 1, move down.") == "down"
    assert words.advised("You are at row 2, column 1.", "Do well.") is None


@pytest.mark.parametrize("rewards", [(1, 0, 0), (1, -1, -0.01), (10, -5, -0.1), (20, -1, 0.1), (0, -1, 0)])
def test_rewards_of_ones_own_tell_success(rewards: tuple[float, float, float]) -> None:
    goal, hole, ice = rewards
    success = lake(reward_schedule=rewards).words.success
    for walked in (0, 50, 98):
        assert success.of({}, goal + ice * walked, terminated=True)
        assert not success.of({}, hole + ice * walked, terminated=True)
        assert not success.of({}, ice * (walked + 1), terminated=False)


def test_a_wrapper_may_take_other_actions() -> None:
    dry = make_env("FrozenLake-v1", {"is_slippery": False})
    words = TextEnv(TransformAction(dry, lambda action: action + 1, gym.spaces.Discrete(2))).words
    assert words.actions == ("0", "1")


def test_a_map_of_ones_own() -> None:
    env = lake(desc=["SFF", "FHG"])
    assert lake_map(env) == ("SFF", "FHG")
    assert env.words.describe(5) == "You are at row 2, column 3."
    assert "2 rows and 3 columns" in env.words.rules


@pytest.mark.parametrize(
    ("env_id", "kwargs", "match"),
    [
        ("FrozenLak-v1", {}, "did you mean .*FrozenLake-v1"),
        ("FrozenLake-v7", {}, "did you mean .*FrozenLake-v1"),
        ("envs:FrozenLake-v7", {}, "did you mean .*envs:FrozenLake-v1"),
        ("Lift-v0", {}, "^no environment is called 'Lift-v0'; one of your own is module:Lift-v0"),
        ("envs:Lift-v0", {}, "^no environment is called 'envs:Lift-v0'; envs has .*OPCD/Cue-v0"),
        ("tests.envs.test_check:Wall-v0", {}, "test_check has tests/Walk-v0|did you mean .*:tests/Walk-v0"),
        ("no_such_module:Env-v0", {}, "no_such_module"),
        ("my_env.py:Env-v0", {}, "my_env.py.*without .py"),
        ("FrozenLake-v1", {"slip": 1}, r"FrozenLake-v1 cannot be made with \{'slip': 1\}.*slip"),
        ("FrozenLake-v1", {"map_name": "9x9"}, "cannot be made"),
        ("FrozenLake-v1", {"max_episode_steps": -1}, "no step limit"),
        ("FrozenLake-v1", {"map_name": None}, "random map"),
        ("FrozenLake-v1", {"reward_schedule": [1, -1, -0.1]}, "a return does not say whether the goal"),
        ("FrozenLake-v1", {"reward_schedule": [1, 0, 0.1]}, "a return does not say whether the goal"),
    ],
)
def test_bad_envs_are_clear_errors(env_id: str, kwargs: dict[str, object], match: str) -> None:
    with pytest.raises(EnvError, match=match) as error:
        make_text_env(env_id, kwargs)
    assert "\n" not in str(error.value)


def test_a_process_that_plays_loads_no_heavy_library() -> None:
    """There is one for each place, and it takes as long to begin as its imports."""
    code = "import sys, envs; print({'pandas', 'torch', 'pyarrow', 'scipy', 'sympy'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"


def test_settings_of_an_id_without_its_version() -> None:
    assert settings_for("Taxi") == settings_for("Taxi-v4") != {}
    assert settings_for("OPCD/Cue") == settings_for("OPCD/Cue-v0") != {}
    assert settings_for("Lift") == settings_for("no id") == {}


def test_a_game_is_found_by_itself() -> None:
    names = {f"envs.games.{path.stem}" for path in Path(games.__path__[0]).glob("[!_]*.py")}
    assert "envs.games.cue" in names
    assert names <= sys.modules.keys()


@pytest.mark.parametrize("code", ["sys.exit(0)", "argparse.ArgumentParser().parse_args(['--env', 'x'])"])
def test_a_module_that_exits_is_an_error(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "exits.py").write_text(f"import argparse, sys\n{code}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert settings_for("exits:Any-v0") == {}
    with pytest.raises(
        EnvError,
        match=r"exits:Any-v0 cannot be made: its code exits \(SystemExit: [02] \(exits.py:2\)\); what",
    ):
        make_env("exits:Any-v0", {})
