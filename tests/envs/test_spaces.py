"""Every kind of space as text, the built-in envs' words, and envs of one's own."""

import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Space,
    Text,
    Tuple,
)
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.policies.policy import Sampling
from agents.rollout import rollout
from envs import EnvError, Success, TextEnv, check_text_env, make_text_env, register_text
from envs.actions import MAX_ACTIONS, action_text, all_actions, explain, json_grammar
from envs.deadline import EnvFault, TimeLimit, guarded
from envs.games.random_lake import boards
from envs.observations import Components, number_text, value_text
from envs.place import vector_env
from envs.registry import _grammar
from evals.baselines import Baselines
from experience.context import NO_CONTEXT
from experience.seeds import SeedRange, Split
from experience.trace import StopReason
from tests.scripted import ScriptedPolicy

BUILT_IN = [
    "FrozenLake-v1",
    "FrozenLake8x8-v1",
    "OPCD/RandomFrozenLake-v0",
    "OPCD/Cue-v0",
    "Taxi-v4",
    "CliffWalking-v1",
    "CliffWalkingSlippery-v1",
    "Blackjack-v1",
    "CartPole-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Acrobot-v1",
    "Pendulum-v1",
]
SPACES = [
    Discrete(3, start=-1),
    Discrete(3, dtype=np.uint8),
    Discrete(100),
    MultiDiscrete([2, 3]),
    MultiDiscrete(np.array([[2, 3], [4, 50]]), start=np.array([[1, 0], [0, -5]])),
    MultiBinary(3),
    MultiBinary((2, 2)),
    Box(-1.0, 1.0, (2,)),
    Box(np.array([0.0, -5.0], np.float32), np.array([1.0, np.inf], np.float32)),
    Box(-np.inf, np.inf, (), np.float32),
    Box(0, 255, (2, 2), np.uint8),
    Box(0, 1, (2,), np.bool_),  # type: ignore[arg-type]
    Text(8),
    Tuple((Discrete(2), Box(-1.0, 1.0, (1,)))),
    Dict({"move": Discrete(4), "say": Text(5, min_length=0), "more": Tuple((MultiBinary(2), Discrete(3)))}),
]


class Echo(gym.Env[Any, Any]):
    """Any spaces; keeps what it was given."""

    def __init__(
        self, action_space: Space[Any] | None = None, observation_space: Space[Any] | None = None
    ) -> None:
        self.action_space = action_space or Discrete(2)
        self.observation_space = observation_space or Discrete(5)
        self.given: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.given.append(action)
        return self.observation_space.sample(), 1.0, len(self.given) >= 3, False, {}


gym.register("tests/Echo-v0", entry_point=f"{__name__}:Echo", max_episode_steps=10)


gym.register(
    "tests/Graphs-v0",
    entry_point=lambda **_: Echo(action_space=Graph(Discrete(2), None)),
    max_episode_steps=10,
)


def echo(**kwargs: Any) -> TextEnv:
    return make_text_env("tests/Echo-v0", kwargs)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_actions_of_any_space_are_written_and_read(space: Space[Any]) -> None:
    words = echo(action_space=space).words
    space.seed(0)
    for _ in range(50):
        value = space.sample()
        reply = value if isinstance(value, str) else action_text(value)
        read = words.parse(f"{words.reply_prefix} {reply}")
        assert read is not None
        assert space.contains(read.value)
        if not isinstance(space, Text):
            assert read.text == action_text(value)
    assert isinstance(space, Text) or explain(space) in words.rules or words.actions


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_every_action_is_counted_where_there_are_few(space: Space[Any]) -> None:
    actions = all_actions(space)
    read = [json_grammar(space)(text) for text in actions]
    assert len(set(actions)) == len(actions) <= MAX_ACTIONS
    assert all(action is not None and space.contains(action.value) for action in read)
    if isinstance(space, MultiBinary):
        assert len(actions) == 2 ** np.prod(space.shape)


def test_more_actions_than_a_float_can_count() -> None:
    assert all_actions(MultiBinary(1024)) == ()


@pytest.mark.parametrize(
    ("space", "reply"),
    [
        (Discrete(100), "100"),
        (Discrete(100), "-1"),
        (Discrete(100), "1.0"),
        (Discrete(100), "true"),
        (Discrete(100), "1 2"),
        (Discrete(100), "9" * 4000),
        (Discrete(100), '"1"'),
        (Discrete(3), "3"),
        (Discrete(3), "0 or 1"),
        (MultiBinary(2), "[0, 2]"),
        (MultiBinary(2), "[0, 1, 1]"),
        (MultiBinary(2), "[0, true]"),
        (Box(-1.0, 1.0, (2,)), "[0, 1.0000001]"),
        (Box(-1.0, 1.0, (2,)), "[0, NaN]"),
        (Box(-1.0, 1.0, (2,)), "[0, Infinity]"),
        (Box(-1.0, 1.0, (2,)), "[0]"),
        (Box(-1.0, 1.0, (2,)), "[[0], [0, 1]]"),
        (Box(-1.0, 1.0, (2,)), '["0", "1"]'),
        (Box(-np.inf, np.inf, (1,)), "[1e999]"),
        (Box(-np.inf, np.inf, (1,)), "[1e300]"),
        (Box(-np.inf, np.inf, (1,)), f"[{'9' * 400}]"),
        (Box(0, 255, (1,), np.uint8), "[1.5]"),
        (Dict({"a": Discrete(2)}), '{"a": 1, "b": 1}'),
        (Dict({"a": Discrete(2)}), "{}"),
        (Dict({"a": Discrete(2)}), '["a"]'),
        (Tuple((Discrete(2), Discrete(2))), "[1]"),
        (Tuple((Discrete(2), Box(0, 1, (1,)))), '{"a": 1}'),
        (Tuple((Discrete(2), Box(0, 1, (1,)))), "[" * 4000),
        (Tuple((Discrete(2), Box(0, 1, (1,)))), "__import__('os').system('true')"),
    ],
    ids=str,
)
def test_what_is_no_action_is_none(space: Space[Any], reply: str) -> None:
    words = echo(action_space=space).words
    assert words.parse(f"{words.reply_prefix} {reply}") is None


BOXES = [
    (Box(-0.7, 0.7, (1,)), "from -0.7 to 0.7"),
    (Box(-3.142, 3.142, (2,)), "from -3.142 to 3.142"),
    (Box(-np.pi, np.pi, (1,)), "from -3.1415927 to 3.1415927"),
    (Box(-1 / 3, 1 / 3, (1,), np.float64), "from -0.3333333333333333 to 0.3333333333333333"),
    (Box(0.1, 0.3, (1,), np.float16), "from 0.1 to 0.3"),
    (Box(-1e-5, 1e20, (1,)), "from -1e-05 to 1e+20"),
    (Box(np.finfo(np.float32).min, np.finfo(np.float32).max, (1,)), "from -3.4028235e+38 to 3.4028235e+38"),
    (Box(0, 123_456, (1,), np.int32), "from 0 to 123456"),
    (Box(-(2**63), 2**63 - 1, (1,), np.int64), "from -9223372036854775808 to 9223372036854775807"),
    (
        Box(np.array([[-0.1, 0.2]], np.float32), np.array([[0.7, 0.3]], np.float32)),
        "from [[-0.1, 0.2]] to [[0.7, 0.3]]",
    ),
    (Box(np.array([0, -5], np.float32), np.array([1, np.inf], np.float32)), "from [0, -5] to [1, no limit]"),
    (Box(-0.7, np.inf, (1,)), "of at least -0.7"),
    (Box(-np.inf, 0.7, (1,)), "of at most 0.7"),
    (MultiDiscrete([123_456, 7]), "from [0, 0] to [123455, 6]"),
]


@pytest.mark.parametrize(("space", "said"), BOXES, ids=str)
def test_what_is_said_of_bounds_is_what_is_accepted(space: Any, said: str) -> None:
    assert explain(space).endswith(said)
    read = json_grammar(space)
    ends = (space.low, space.high) if isinstance(space, Box) else (space.start, space.start + space.nvec - 1)
    for end in ends:
        if np.isfinite(end).all():
            action = read(action_text(end))
            assert action is not None
            assert np.array_equal(action.value, end)
            assert action.text == action_text(end)
    space.seed(0)
    for value in (space.sample() for _ in range(50)):
        action = read(action_text(value))
        assert action is not None
        assert np.array_equal(action.value, value)
    for end, beyond in zip(ends, (-1, 1), strict=True):
        if np.isfinite(end).all() and isinstance(space, Box) and space.dtype != np.int64:
            said_end = float(action_text(end.flat[0]))
            outside = (
                np.nextafter(said_end, beyond * np.inf) if space.dtype.kind == "f" else said_end + beyond
            )
            assert read(json.dumps(np.full(space.shape, outside).tolist())) is None


def test_what_is_said_of_texts() -> None:
    assert explain(Text(8)) == (
        "a text of 1 to 8 characters (letters from A to Z or a to z, and digits) in double quotes"
    )
    assert explain(Text(3, min_length=0, charset="ba")) == (
        'a text of at most 3 characters (only those in "ab") in double quotes'
    )


def test_a_key_that_stands_there_twice_is_no_action() -> None:
    assert json_grammar(Dict({"a": Discrete(2)}))('{"a": 1, "a": 0}') is None


@pytest.mark.parametrize("space", [Graph(Discrete(2), None), Sequence(Discrete(2))], ids=str)
def test_actions_without_a_text_form_are_a_clear_error(space: Space[Any]) -> None:
    with pytest.raises(EnvError, match="register_text"):
        echo(action_space=space)


@pytest.mark.parametrize(
    "space",
    [
        *(*SPACES, Graph(Discrete(2), None), Sequence(Discrete(2)), Box(0, 1, (84, 84, 3), np.uint8)),
        Box(0, 1, (0,)),
    ],
    ids=str,
)
def test_observations_of_any_space_become_text(space: Space[Any]) -> None:
    env = echo(observation_space=space)
    text, _ = env.reset(seed=1)
    assert env.observation_space.contains(text)
    assert 0 < len(text) <= 2000 or isinstance(space, Text)
    assert env.words.situation(text) == env.words.situation(text)


def test_long_texts_are_whole() -> None:
    """What is asked often stands at the end."""
    page = "word " * 800 + "What is asked?"
    assert value_text(page) == page
    assert value_text({"page": page, "hint": "None."}) == f"page: {page}, hint: None."


def test_numbers_are_rounded_and_large_arrays_abbreviated() -> None:
    assert (
        value_text({"a": np.float32(0.1234), "b": (1, np.array([1.0, 0.25]))})
        == "a: 0.12, b: (1, [1.   0.25])"
    )
    assert value_text({"a": np.array(1 / 3)}) == "a: 0.33"
    assert value_text(np.zeros((84, 84))).startswith("84x84 array [[0. 0. 0. ... 0. 0. 0.]")
    assert value_text("a\x00\ud800") == "a  "


def test_components_are_named_and_bucketed() -> None:
    components = Components(
        Box(np.array([-1.2, -np.inf]), np.array([0.6, np.inf]), dtype=np.float64), ["x", "v"]
    )
    sentence = components.describe(np.array([-0.5, 100.0]))
    assert sentence == "X -0.5, v 100."
    assert components.describe(np.array([-0.5, np.inf])) == "X -0.5, v inf."
    assert components.situation("X -0.5, v inf.") == components.situation(sentence)
    assert components.situation(sentence) == components.situation("X -0.45, v 7.")
    assert components.situation(sentence) != components.situation("X 0.4, v 7.")
    assert components.situation(components.situation(sentence)) == components.situation(sentence)
    with pytest.raises(ValueError, match="2 numbers"):
        components.describe(np.array([np.nan, 0.0]))


def test_wide_bounds_hide_no_small_numbers() -> None:
    components = Components(Box(-1000.0, 1000.0, (2,)), ["x", "v"])
    assert components.describe(np.array([0.25, -0.04])) == "X 0.25, v -0.04."


@given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4))
def test_a_situation_is_its_own_situation(numbers: list[float]) -> None:
    situation, describe = CART_POLE.situation, CART_POLE.describe
    sentence = describe(np.array(numbers))
    assert situation(situation(sentence)) == situation(sentence)


CART_POLE = make_text_env("CartPole-v1", {}).words


@pytest.mark.parametrize("env_id", BUILT_IN)
def test_the_built_in_envs_are_fit_for_text_agents(env_id: str) -> None:
    costs = "steps cost, and success is a positive return: if that is not meant, say success=Success(...)"
    assert check_text_env(env_id) == [costs] * (env_id == "Pendulum-v1")


def test_minigrid() -> None:
    pytest.importorskip("minigrid", reason="pip install minigrid")
    assert check_text_env("minigrid:MiniGrid-Empty-5x5-v0") == []


REPLIES = st.text(max_size=80) | st.builds(
    "".join,
    st.lists(
        st.sampled_from(
            [
                "I choose ",
                "I move",
                " left",
                "hit",
                "0",
                "1",
                "-",
                ".5",
                "[",
                "]",
                "{",
                '"',
                ",",
                " ",
                "1e9",
                "nan",
            ]
        ),
        max_size=12,
    ),
)


@settings(max_examples=200)
@given(st.lists(REPLIES, min_size=50, max_size=50))
def test_any_reply_is_an_action_of_the_space_or_none(replies: list[str]) -> None:
    """10,000 replies for each env."""
    for reply in replies:
        for env in ENVS.values():
            action = env.words.parse(reply)
            assert action is None or env.env.action_space.contains(action.value)


ENVS = {env_id: make_text_env(env_id, {}) for env_id in BUILT_IN}


def test_taxi_in_words() -> None:
    words = ENVS["Taxi-v4"].words
    assert words.describe(328) == "Taxi at 4,2, passenger at yellow."
    assert words.describe(16) == "Taxi at 1,1, passenger to red."
    assert words.advise is not None
    assert words.advise(words.describe(16), "out") == "When the taxi is at 1,1, passenger to red, move out."


def test_blackjack_in_words() -> None:
    words = ENVS["Blackjack-v1"].words
    assert words.describe((14, 1, 0)) == "You have 14 without a usable ace, the dealer shows an ace."
    assert words.advise is not None
    assert words.advise(words.describe((19, 10, 1)), "stick") == (
        "When you have 19 with a usable ace and the dealer shows 10, choose to stick."
    )


@pytest.mark.parametrize(
    ("env_id", "total", "terminated", "success"),
    [
        ("CartPole-v1", 475.0, False, True),
        ("CartPole-v1", 474.0, True, False),
        ("MountainCar-v0", -150.0, True, True),
        ("MountainCar-v0", -200.0, False, False),
        ("CliffWalking-v1", -113.0, True, True),
        ("Taxi-v4", -200.0, False, False),
        ("Blackjack-v1", 0.0, True, False),
        ("Pendulum-v1", 0.0, False, False),
        ("MountainCarContinuous-v0", 90.0, True, True),
    ],
)
def test_success_is_defined_per_env(env_id: str, total: float, terminated: bool, success: bool) -> None:
    rule = ENVS[env_id].words.success
    assert rule.of({}, total, terminated) is success
    assert rule.of({"is_success": not success}, total, terminated) is not success
    assert rule.means


@pytest.mark.parametrize(
    ("env_id", "rate", "mean_return"),
    [("CliffWalking-v1", 1.0, -13.0), ("Taxi-v4", 1.0, 7.93), ("FrozenLake-v1", 0.744, 0.744)],
)
def test_optimal_policies(env_id: str, rate: float, mean_return: float) -> None:
    optimal = Baselines(env_id, {}).optimal()
    assert optimal is not None
    assert optimal.success_rate == pytest.approx(rate, abs=1e-3)
    assert optimal.mean_return == pytest.approx(mean_return, abs=0.01)


def test_random_actions_of_any_space_are_reproducible() -> None:
    seeds = SeedRange(split=Split.TEST, run_seed=0, start=0, size=20)
    for env_id in ("Pendulum-v1", "CliffWalking-v1"):
        assert Baselines(env_id, {}).random(seeds) == Baselines(env_id, {}).random(seeds)


def test_an_env_without_a_step_limit_gets_one() -> None:
    spec = make_text_env("CliffWalking-v1", {}).spec
    assert spec is not None
    assert spec.max_episode_steps == 200
    spec = make_text_env("CliffWalking-v1", {"max_episode_steps": 7}).spec
    assert spec is not None
    assert spec.max_episode_steps == 7


class Once(gym.Env[Any, Any]):
    """There can be only one of it, and it closes badly."""

    observation_space = action_space = Discrete(2)
    made = 0

    def __init__(self) -> None:
        Once.made += 1

    def close(self) -> None:
        raise RuntimeError("no window")


def test_an_env_without_a_step_limit_is_made_once() -> None:
    gym.register("tests/Once-v0", entry_point=f"{__name__}:Once")
    make_text_env("tests/Once-v0", {})
    assert Once.made == 1


def test_the_papers_lake_has_nineteen_boards_and_the_best_blind_path_wins_six() -> None:
    check_env(gym.make("OPCD/RandomFrozenLake-v0").unwrapped, skip_render_check=True)
    assert len(set(boards())) == len(boards()) == 19
    validation, test = (
        SeedRange(split=split, run_seed=0, start=0, size=19) for split in (Split.VALIDATION, Split.TEST)
    )
    blind, _ = Baselines("OPCD/RandomFrozenLake-v0", {}).blind([], validation, test)
    assert blind.success_rate == 6 / 19


def test_the_papers_lake_moves_as_it_says() -> None:
    env = gym.make("OPCD/RandomFrozenLake-v0")
    seed = 3 * boards().index(("SFF", "HFF", "FHG"))
    observation, info = env.reset(seed=seed)
    assert (observation, info["board"]) == ("P F F / H F F / F H G", ["SFF", "HFF", "FHG"])
    assert env.step(np.int64(3))[:4] == ("P F F / H F F / F H G", 0.0, False, False)  # into the wall
    assert env.step(np.int64(2))[0] == "F P F / H F F / F H G"
    assert env.step(np.int64(3))[2] is False  # a bump after a move is a first one again
    assert env.step(np.int64(3))[1:4] == (0.0, True, False)  # the second in a row
    env.reset(seed=seed)
    assert [env.step(np.int64(action))[1:3] for action in (2, 2, 1, 1)][-1] == (1.0, True)
    env.reset(seed=seed)
    assert env.step(np.int64(1))[1:3] == (0.0, True)  # a hole
    env.reset(seed=seed)
    assert [env.step(np.int64(action))[3] for action in (2, 0, 2, 0, 2)][-1] is True  # five moves


@pytest.mark.parametrize("first", [0, 4, 16])
def test_held_out_boards_are_only_in_tests(first: int) -> None:
    env = gym.make("OPCD/RandomFrozenLake-v0", held_out=5, first=first)
    seen = [{tuple(env.reset(seed=3 * n + part)[1]["board"]) for n in range(60)} for part in range(3)]
    assert seen[0] == seen[1]
    assert (len(seen[0]), len(seen[2]), len(seen[0] | seen[2])) == (14, 5, 19)
    order = boards()
    assert seen[2] == {order[(first + n) % 19] for n in range(5)}
    for name in ("held_out", "first"):
        with pytest.raises(EnvError, match=name):
            make_text_env("OPCD/RandomFrozenLake-v0", {name: 19})


# ------------------------------------------------------------------------------------- an env of one's own


class Corridor(gym.Env[Any, Any]):
    """Walk to the right end."""

    observation_space = Box(0, 10, (1,), np.int64)
    action_space = Discrete(2, start=5)
    place = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(3))
        return np.array([self.place]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = max(0, self.place + (1 if action == 6 else -1))
        return np.array([self.place]), -1.0, self.place == 10, False, {}


gym.register("tests/Corridor-v0", entry_point=f"{__name__}:Corridor", max_episode_steps=30)


@pytest.fixture
def corridor() -> Iterator[Callable[..., TextEnv]]:
    def make(**words: Any) -> TextEnv:
        register_text("tests/Corridor-v0", **words)
        return make_text_env("tests/Corridor-v0", {})

    yield make
    register_text("tests/Corridor-v0")


def test_an_env_of_ones_own_in_ones_own_words(corridor: Callable[..., TextEnv]) -> None:
    env = corridor(
        actions=["back", "on"],
        describe=lambda observation: f"Square {observation[0]} of 10.",
        success=Success(means="the end is reached", reached=lambda _, terminated: terminated),
    )
    assert check_text_env("tests/Corridor-v0") == []
    observation, _ = env.reset(seed=0)
    number = int(re.findall(r"\d+", observation)[0])
    assert env.step("I choose on")[0] == f"Square {number + 1} of 10."
    assert env.words.rules.endswith("Each turn you choose one of the actions back or on.")


def test_a_parser_of_ones_own(corridor: Callable[..., TextEnv]) -> None:
    env = corridor(actions=["back", "on"], parse=lambda reply: 6 if "forward" in reply else None)
    env.reset(seed=0)
    assert env.step("let us go forward!")[4]["text/action"] == "on"
    assert "text/action" not in env.step("on")[4]


def test_baselines_act_by_index_where_the_grammar_takes_no_bare_word(
    corridor: Callable[..., TextEnv],
) -> None:
    seeds = SeedRange(split=Split.TEST, run_seed=0, start=0, size=3)
    success = Success(means="it ends", reached=lambda _, terminated: terminated)
    corridor(actions=["back", "on"], parse=lambda reply: 6 if reply == "go on" else None, success=success)
    best, sequence = Baselines("tests/Corridor-v0", {}).blind([("on",), ("jump",)], seeds, seeds)
    assert (best.success_rate, set(sequence)) == (1.0, {"on"})


def test_a_parser_that_gives_what_is_no_action_is_an_error_not_another_word(
    corridor: Callable[..., TextEnv],
) -> None:
    env = corridor(actions=["back", "on"], parse=lambda _: 4)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="parse\\(\\) gave 4, which is not in"):
        env.step("x")


def test_a_parser_of_ones_own_without_words() -> None:
    env = make_text_env("FrozenLake-v1", {})
    grammar = _grammar(env.unwrapped, "FrozenLake-v1", None, lambda reply: True if reply == "on" else 7)
    assert grammar is not None
    action = grammar("on")
    assert action is not None
    assert action.text == "1"
    with pytest.raises(ValueError, match="parse\\(\\) gave 7, which is not in"):
        grammar("x")
    several = _grammar(echo(action_space=MultiDiscrete([2, 3])), "x", None, lambda _: [np.int64(1), 2])
    assert several is not None
    assert (several("x") or pytest.fail("none")).text == "[1, 2]"


@pytest.mark.parametrize("decimals", [0, 1])
def test_no_minus_before_zero(decimals: int) -> None:
    assert number_text(-0.03, decimals) == "0"


def test_what_the_checker_says(corridor: Callable[..., TextEnv]) -> None:
    corridor(describe=lambda _: "Here.")
    assert check_text_env("tests/Corridor-v0") == [
        "steps cost, and success is a positive return: if that is not meant, say success=Success(...)",
        "every observation reads the same: describe() leaves out what changes",
    ]
    corridor(describe=lambda observation: observation["no"])
    assert check_text_env("tests/Corridor-v0")[0].startswith("it raises IndexError")
    corridor(actions=["a", "b"], parse=lambda _: 5)
    assert "the action 'b' is not read back from its own text" in check_text_env("tests/Corridor-v0")
    corridor(describe=lambda observation: f"Square {observation}\x00")
    assert check_text_env("tests/Corridor-v0")[0].startswith("describe() gives")


def test_words_that_do_not_fit_are_clear_errors(corridor: Callable[..., TextEnv]) -> None:
    with pytest.raises(EnvError, match="different lower-case words"):
        corridor(actions=["Left", "right"])
    with pytest.raises(EnvError, match="3 action words do not fit"):
        corridor(actions=["a", "b", "c"])
    with pytest.raises(EnvError, match="different lower-case words"):
        corridor(actions=[0, 1])
    with pytest.raises(EnvError, match="describe must be a function, such as"):
        corridor(describe="Square {}.")
    with pytest.raises(EnvError, match="1 action words do not fit"):
        corridor(actions="lr")
    with pytest.raises(EnvError, match="rules, question must be a text"):
        corridor(rules=("Walk.",), question=1)
    with pytest.raises(EnvError, match="success must be Success"):
        corridor(success=lambda total, _: total > 0)


# ------------------------------------------------------------------------------------- slow and broken envs


class Troubled(gym.Env[Any, Any]):
    """Does on its second step, on odd seeds, what an env should not."""

    observation_space = Discrete(10)
    action_space = Discrete(2)

    def __init__(self, trouble: str) -> None:
        self.trouble = trouble

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.is_troubled = 0, bool(seed and seed % 2)
        return 0, {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 2 and self.is_troubled:
            if self.trouble == "raise":
                raise RuntimeError("broken")
            if self.trouble == "sleep":
                time.sleep(30)
            if self.trouble == "loop":
                while True:
                    pass
            if self.trouble == "reward":
                return 1, float("nan"), False, False, {}
            if self.trouble == "observation":
                return "x", 0.0, False, False, {}
            return 1, 0.0  # type: ignore[return-value]
        return self.steps, 1.0, self.steps == 3, False, {}


gym.register("tests/Troubled-v0", entry_point=f"{__name__}:Troubled", max_episode_steps=10)


SOON = TimeLimit(processor=0.2, clock=0.4)


def make_troubled(trouble: str) -> TextEnv:
    return make_text_env("tests.envs.test_spaces:tests/Troubled-v0", {"trouble": trouble})


@pytest.mark.parametrize("trouble", ["raise", "sleep", "loop", "reward", "observation", "tuple"])
def test_an_env_in_trouble_ends_its_own_episode(trouble: str) -> None:
    stops = play_troubled(trouble, "sync", SOON)
    failure = StopReason.TIMED_OUT if trouble in ("sleep", "loop") else StopReason.ERROR
    assert stops == {True: {failure}, False: {StopReason.TERMINATED}}


@pytest.mark.parametrize("trouble", ["raise", "sleep", "loop", "reward", "tuple"])
def test_baselines_survive_an_env_in_trouble(trouble: str) -> None:
    env_id = "tests.envs.test_spaces:tests/Troubled-v0"
    baselines = Baselines(env_id, {"trouble": trouble}, timeout=SOON)
    seeds = SeedRange(split=Split.TRAIN, run_seed=0, start=0, size=5)  # 0, 3, 6, 9, 12
    result = baselines.random(seeds)
    assert (result.successes, result.n) == (3, 5)
    assert result.mean_return == pytest.approx((3 * 3 + 2 * 1) / 5)  # as in play, what came before counts


def test_envs_in_processes_of_their_own() -> None:
    stops = play_troubled("sleep", "async", SOON)
    assert stops == {True: {StopReason.TIMED_OUT}, False: {StopReason.TERMINATED}}


def play_troubled(trouble: str, vectorization: Any, timeout: TimeLimit) -> dict[bool, set[StopReason]]:
    make = partial(make_troubled, trouble)
    envs = vector_env(make, 2, vectorization=vectorization, timeout=timeout)
    seeds = SeedRange(split=Split.TRAIN, run_seed=0, start=0, size=5)
    policy = ScriptedPolicy(lambda *_: " 1")
    traces = list(
        rollout(
            envs,
            make().words,
            policy,
            {"p": NO_CONTEXT},
            seeds,
            sampling=Sampling(),
            policy_id="p",
            env_id="e",
        )
    )
    envs.close()
    assert len(traces) == 5
    return {
        odd: {trace.stop_reason for trace in traces if bool(trace.seed % 2) is odd} for odd in (True, False)
    }


def test_a_limit_leaves_an_older_one_running() -> None:
    def nested() -> None:
        with pytest.raises(EnvFault, match=r"0\.05 s"):
            guarded(lambda: time.sleep(5), TimeLimit(clock=0.05))
        time.sleep(5)

    with pytest.raises(EnvFault, match=r"0\.3 s"):
        guarded(nested, TimeLimit(clock=0.3))


def test_json_keeps_its_order_and_letters() -> None:
    assert json.loads(action_text({"b": np.int64(1), "a": "é"})) == {"b": 1, "a": "é"}
