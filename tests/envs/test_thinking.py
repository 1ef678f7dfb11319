"""Where the action of an agent stands that thinks before it acts."""

import time
from typing import Any

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs import EnvError, TextEnv, make_text_env, register_text
from envs.thinking import RULES, parted
from envs.words import EnvWords


def words(env_id: str = "FrozenLake-v1") -> EnvWords:
    return make_text_env(env_id, {}, replies="think").words


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ("The hole is to the right. Action: down", "down"),
        ("<think>Left? Action: left</think> I move right", "right"),
        ("<think>Left?</think>\n\nAction: right", "right"),
        ("Action: right", "right"),
        ("I move to the right", "right"),
        (r"\boxed{right}", "right"),
        ("right", "right"),
        # the last that says something
        ("Action: left? No.\nAction: down", "down"),
        ("Action: right\nAction:", "right"),
        ("I am to end with `Action: ...`.\nAction: up", "up"),
        ("Action: right\nI hope so.", "right"),
        ("The right way is long.\nright.", "right"),
        ("Right or down?\nI will go down.", "down"),
        # as others write it
        ("**Action:** Right.", "right"),
        ("**Action**: `up`", "up"),
        ("My final action: UP!", "up"),
        ("action :\nup", "up"),
        ("Action\uff1aup", "up"),
        ("Action: <up>", "up"),
        ("Action: I move up.", "up"),
        ("Action: move to the left", "left"),
        (r"Action: $\boxed{\text{ left }}$", "left"),
        (r"So it is $\boxed{down}$.", "down"),
        (r"Left is not safe, so it is $\boxed{down}$.", "down"),
        ("\\boxed{left}? No.\n\\boxed{down}", "down"),
        ("<think>Left?</think>\n<answer>\nright\n</answer>", "right"),
        ("<answer>I see a hole.\nI move right</answer>", "right"),
        ("<think>Left?</think><response>Action: right</response>", "right"),
        ("Action: <action>Right</action>", "right"),
        # not clearly one
        ("Action: ...", None),
        ("Action: left or right", None),
        ("Action: not right", None),
        ("I do not move right", None),
        ("Action: left. No, right", None),
        ("Action: right\nAction: banana", None),
        (r"\boxed{right or left}", None),
        (r"\boxed{right} or \boxed{left}", None),
        (r"Action: not $\boxed{left}$", None),
        (r"I shouldn't move \boxed{left}.", None),
        ("<action>right</action> or <action>left</action>", None),
        ("I think that the hole is to the right, so I", None),
        ("Transaction: up", None),
        ("", None),
        # thoughts are none
        ("<think>Action: right", None),
        ("Action: right <think>or is it left?", None),
        ("<think>Action: right</think>", None),
    ],
)
def test_what_is_read(reply: str, action: str | None) -> None:
    read = words().parse(reply)
    assert (None if read is None else read.text) == action


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ("It hangs.\nAction: [1.5]", "[1.5]"),
        ("Action:\n```json\n[1.5]\n```", "[1.5]"),
        ("I choose action [1]", "[1.0]"),
        ("Action: [3]", None),
        ("Action: 1.5, or [1.5]", None),
    ],
)
def test_actions_that_are_json(reply: str, action: str | None) -> None:
    read = words("Pendulum-v1").parse(reply)
    assert (None if read is None else read.text) == action


def test_a_format_of_ones_own_reads_whole_replies_as_ever() -> None:
    seen = []

    def parse(reply: str) -> int | None:
        seen.append(reply)
        return {"[[0]]": 0, "[[1]]": 1}.get(reply.partition("\n")[0])

    gym.register("tests/OwnFormat-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv")
    register_text("tests/OwnFormat-v0", parse=parse, actions=["left", "right"])
    own = words("tests/OwnFormat-v0")
    for reply in ("[[1]]\nsince it falls to the right", "It falls.\nAction: [[1]]"):
        read = own.parse(reply)
        assert read is not None
        assert read.text == "right"
    assert seen == ["[[1]]\nsince it falls to the right", "[[1]]"]


def test_the_rules_ask_for_it_and_the_reply_is_not_begun() -> None:
    act, think = make_text_env("FrozenLake-v1", {}).words, words()
    assert think.rules == f"{act.rules}\n{RULES}"
    assert (act.reply_prefix, think.reply_prefix) == ("I move", "")
    assert (act.actions, act.question) == (think.actions, think.question)
    assert act.parse("Action: right") is None


def test_an_episode() -> None:
    env = make_text_env("FrozenLake-v1", {"is_slippery": False}, replies="think")
    env.reset(seed=0)
    _, _, _, _, info = env.step("<think>Where am I?")
    assert info["text/cut_off"]
    assert "text/action" not in info
    text, _, _, _, info = env.step("<think>Down.</think>There is ice below.\nAction: down")
    assert "text/cut_off" not in info
    assert info["text/action"] == "down"
    assert text == "You are at row 2, column 1."


class Echo(gym.Env[Any, Any]):
    """Whose actions are text."""

    observation_space = action_space = gym.spaces.Text(9)


def test_replies_that_are_text_are_not_thought_about() -> None:
    with pytest.raises(EnvError, match="replies think is for envs with actions to read; in Echo a"):
        TextEnv(Echo(), replies="think")


@given(st.lists(st.sampled_from(["Action:", "action", ": ", "\n", "right", r"\boxed{", "}", "I ", "*"])))
def test_nothing_is_lost(pieces: list[str]) -> None:
    text = "".join(pieces).rstrip()
    assert "".join(parted(text)) in (text, text[: sum(map(len, parted(text)))])
    words().parse(text)


def test_hostile_texts_take_no_time() -> None:
    read = words().parse
    began = time.process_time()
    for piece in (
        "Action:",
        "Action: right ",
        "action " + " " * 9,
        r"\boxed{",
        r"\boxed{\text{",
        r"not \boxed{a}",
        "<answer>\n",
        "I move ",
        "a",
        "*",
    ):
        read(piece * (1_000_000 // len(piece)))
    assert time.process_time() - began < 5
