"""TextArena's games, Gymnasium's neighbours, and envs that are observed in images."""

import importlib
import importlib.util
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.spaces import Box, Dict, Discrete, Space, Tuple

from agents import self_improve
from envs import EnvError, TextEnv, check_text_env, make_text_env, register_text
from envs.adapters.own_draws import OwnDraws
from envs.deadline import EnvFault, TimeLimit, guarded
from envs.games.random_lake import boards
from tests.conftest import run_main, save_walker

needs_textarena = pytest.mark.skipif(
    importlib.util.find_spec("textarena") is None, reason="pip install 'opcd-gym[textarena]'"
)
GARBAGE = [
    "", "[]", "[[", "[up][down]", "[½]", "[9 9 9]", "[1²]", "[-1]", "[" + "9" * 4400 + "]", "\ud800\x00[A B]",
    "é" * 5000, "[None]", "[up",
]  # fmt: skip


# ------------------------------------------------------------------------------------------------- TextArena


@needs_textarena
@pytest.mark.parametrize(
    "game", ["FrozenLake-v0", "GuessTheNumber-v0", "2048-v0-train", "TowerOfHanoi-v0", "Countdown-v0-raw"]
)
def test_games_end_under_random_and_garbage_replies(game: str) -> None:
    env, draws = make_text_env(f"textarena:{game}", {}), random.Random(0)
    seen, _ = env.reset(seed=0)
    episodes = 0
    for number in range(200):
        hinted = re.findall(r"\[[^\[\]\n]{1,20}\]", seen)
        reply = draws.choice(GARBAGE) if number % 2 or not hinted else draws.choice(hinted)
        seen, reward, terminated, truncated, _ = env.step(reply)
        assert env.observation_space.contains(seen)
        assert isinstance(reward, float)
        if terminated or truncated:
            episodes += 1
            seen, _ = env.reset(seed=number)
    assert episodes > 5
    assert check_text_env(f"textarena:{game}") == []


@needs_textarena
def test_the_lake_of_textarena_is_won() -> None:
    env = make_text_env("textarena:FrozenLake-v0", {"size": 2, "num_holes": 0})
    seen, _ = env.reset(seed=0)
    assert seen.startswith("[GAME] Welcome to Frozen Lake!")
    assert "2, 2" not in seen
    assert env.step("I go [down]")[4]["text/action"] == "[down]"
    _, reward, terminated, _, info = env.step("[right]")
    assert (reward, terminated) == (1.0, True)
    assert env.words.success.of(info, float(reward), terminated)
    assert not env.words.success.of({}, 0.95, True)  # most of the way is no success


@needs_textarena
def test_an_invalid_move_is_told_once() -> None:
    env = make_text_env("textarena:FrozenLake-v0", {})
    env.reset(seed=0)
    for reply, ends in (("[up]", False), ("[right]", False), ("no brackets", False), ("[fly]", True)):
        _, _, terminated, _, info = env.step(reply)
        assert terminated is ends
        assert (info["text/action"] is None) is (reply != "[right]")


@needs_textarena
def test_a_game_draws_from_its_seed_only() -> None:
    env, other = (make_text_env("textarena:2048-v0-train", {}) for _ in range(2))
    alone = [env.reset(seed=7)[0], *(env.step(f"[{move}]")[0] for move in ("left", "up", "right", "down"))]
    random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    beside = [env.reset(seed=7)[0]]
    other.reset(seed=8)
    for move in ("left", "up", "right", "down"):
        beside.append(env.step(f"[{move}]")[0])
        other.step("[up]")
    assert beside == alone
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]


def test_own_draws_go_on_where_they_were() -> None:
    draws = OwnDraws(3)
    with draws.drawing():
        first = random.random(), np.random.rand()
    random.seed(9)
    with draws.drawing():
        second = random.random(), np.random.rand()
    once = OwnDraws(3)
    with once.drawing():
        assert [(random.random(), np.random.rand()) for _ in range(2)] == [first, second]


@needs_textarena
def test_the_two_lakes_have_the_same_boards() -> None:
    env = make_text_env("textarena:FrozenLake-v0", {"size": 3, "num_holes": 2})
    drawn = set()
    for seed in range(300):
        env.reset(seed=seed)
        game: Any = env.unwrapped
        drawn.add("".join("".join(row) for row in game._game.state.game_state["grid"]))
    ours = {"".join(board).replace("S", " ").replace("F", " ") for board in boards()}
    assert drawn == ours


@needs_textarena
def test_a_game_that_hangs_is_interrupted() -> None:
    env: Any = make_text_env("textarena:FrozenLake-v0", {})
    env.reset(seed=0)
    env.unwrapped._game.env.step = lambda action: time.sleep(30)
    with pytest.raises(EnvFault, match="took longer than") as fault:
        guarded(lambda: env.step("[up]"), TimeLimit(clock=0.1))
    assert fault.value.timed_out


@needs_textarena
@pytest.mark.parametrize(
    ("game", "kwargs", "match"),
    [
        ("FrozenLak-v0", {}, "did you mean FrozenLake-v0"),
        ("Chess-v7", {}, "has no game 'Chess-v7'"),
        ("", {}, "has no game ''"),
        ("TicTacToe-v0", {}, "TicTacToe-v0 is not a game for one player: only those can be played"),
        ("Poker-v0", {}, "not a game for one player"),
        ("TwentyQuestions-v0", {}, "set OPENROUTER_API_KEY"),
        ("LightsOut-v0-train", {}, "cannot begin: ValueError"),
        ("FrozenLake-v0", {"sice": 3}, "cannot begin: TypeError.*sice"),
        ("FrozenLake-v0", {"size": 0}, "cannot begin"),
        ("FrozenLake-v0", {"game": 0}, "cannot be made"),
        ("FrozenLake-v0", {"max_episode_steps": 0}, "max_episode_steps must be"),
    ],
)
def test_games_that_cannot_be_played(
    game: str, kwargs: dict[str, Any], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(EnvError, match=match) as error:
        make_text_env(f"textarena:{game}", kwargs)
    assert "\n" not in str(error.value)


@needs_textarena
def test_data_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    nltk = importlib.import_module("nltk")
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    with pytest.raises(EnvError, match=r"Hangman-v0 needs data of nltk's: python -m nltk.downloader words$"):
        make_text_env("textarena:Hangman-v0", {})


def test_without_the_package() -> None:
    with (
        patch.object(importlib.util, "find_spec", return_value=None),
        pytest.raises(EnvError, match=r"pip install 'opcd-gym\[textarena\]'"),
    ):
        make_text_env("textarena:FrozenLake-v0", {})


@pytest.fixture(scope="session")
def reader_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The walker, with a window that a game's prompt fits into."""
    folder = save_walker(tmp_path_factory.mktemp("reader"))
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 16_384}))
    return folder


@needs_textarena
@pytest.mark.parametrize(
    ("game", "kwargs"),
    [
        ("FrozenLake-v0-train", {"size": 3, "num_holes": 2, "max_episode_steps": 3}),
        ("GuessTheNumber-v0", {"max_episode_steps": 3}),
    ],
)
def test_a_game_goes_through_the_whole_command(
    game: str, kwargs: dict[str, Any], reader_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = tmp_path / "rules.txt"
    context.write_text("Answer with [down] or with [7].")
    options = {
        "env": f"textarena:{game}", "env-kwargs": json.dumps(kwargs), "model": reader_folder,
        "output": tmp_path / "run", "context-file": context, "rounds": 1, "waves": 1, "episodes": 2,
        "steps": 1, "batch-size": 2, "validation-episodes": 2, "test-episodes": 2, "max-new-tokens": 3,
    }  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    code, said = run_main(self_improve.main, capsys, *words)
    assert code == 0, said
    assert "the game gives a reward of 1" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------- Gymnasium's neighbours


@pytest.mark.parametrize("env_id", ["MiniGrid-DoorKey-5x5-v0", "MiniGrid-MemoryS7-v0", "BabyAI-GoToLocal-v0"])
def test_missions_are_told_and_views_left_out(env_id: str) -> None:
    pytest.importorskip("minigrid", reason="pip install minigrid")
    env = make_text_env(f"minigrid:{env_id}", {})
    seen, _ = env.reset(seed=1)
    assert re.fullmatch(r"direction: \d, mission: [a-z ]+\.", seen)
    assert check_text_env(f"minigrid:{env_id}") == []


class Dark(CartPoleEnv):
    """Derived from an env that has words of its own, and shows less."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(-5.0, 5.0, (1,))

    def reset(self, **settings: Any) -> Any:
        return super().reset(**settings)[0][:1], {}

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)  # type: ignore[no-untyped-call]
        return observation[:1], *rest


def test_our_words_are_not_for_what_is_derived_from_our_envs() -> None:
    gym.register("tests/Dark-v0", entry_point=f"{__name__}:Dark", max_episode_steps=9)
    assert make_text_env("tests/Dark-v0", {}).reset(seed=0)[0].startswith("X1 ")
    narrow = gym.wrappers.TransformObservation(
        gym.make("CartPole-v1"), lambda seen: seen[:1], Box(-5.0, 5.0, (1,))
    )
    assert TextEnv(narrow).reset(seed=0)[0].startswith("X1 ")
    assert make_text_env("CartPole-v1", {}).reset(seed=0)[0].startswith("Cart position")


class Camera(gym.Env[Any, Any]):
    """Sees what it is told to see."""

    action_space = Discrete(2)

    def __init__(self, space: Space[Any]) -> None:
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation_space.sample(), 0.0, False, False, {}


gym.register("tests/Camera-v0", entry_point=f"{__name__}:Camera", max_episode_steps=5)
PICTURE = Box(0, 255, (84, 84, 3), np.uint8)


@pytest.mark.parametrize(
    "space",
    [PICTURE, Box(0, 255, (84, 84), np.uint8), Box(0, 255, (4, 7, 7), np.uint8), Dict(a=Tuple((PICTURE,)))],
    ids=str,
)
def test_images_are_refused(space: Space[Any]) -> None:
    with pytest.raises(
        EnvError, match=r"Camera-v0 is observed in images .*register_text\(describe="
    ) as error:
        make_text_env("tests/Camera-v0", {"space": space})
    assert "\n" not in str(error.value)


def test_images_beside_other_things_are_left_out() -> None:
    env = make_text_env("tests/Camera-v0", {"space": Dict(eye=PICTURE, ear=Discrete(3))})
    assert env.reset(seed=0)[0] in {f"ear: {number}." for number in range(3)}
    deep = Tuple((PICTURE, Dict(head=Dict(eye=PICTURE, ear=Discrete(1)), hand=Discrete(1))))
    env = make_text_env("tests/Camera-v0", {"space": deep})
    assert env.reset(seed=0)[0] == "(head: ear: 0, hand: 0)."


@pytest.fixture
def described() -> Iterator[None]:
    register_text("tests/Camera-v0", describe=lambda picture: f"It is {picture.mean():.0f} bright.")
    yield
    register_text("tests/Camera-v0")


@pytest.mark.usefixtures("described")
def test_images_in_ones_own_words() -> None:
    env = make_text_env("tests/Camera-v0", {"space": PICTURE})
    assert re.fullmatch(r"It is 12\d bright.", env.reset(seed=0)[0])


@pytest.mark.parametrize(
    "space",
    [Box(0, 1, (4, 4, 16), np.uint8), Box(0, 255, (3, 3), np.uint8), Box(0, 255, (20, 20, 3))],
    ids=str,
)
def test_other_arrays_are_printed(space: Space[Any]) -> None:
    assert make_text_env("tests/Camera-v0", {"space": space}).reset(seed=0)[0]
