"""OpenEnv's servers as envs: a real one, one that dies or hangs, and some that are none."""

import importlib.util
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from agents.policies.policy import Sampling
from agents.rollout import rollout
from envs import EnvError, check_text_env, make_text_env
from envs.adapters import openenv_session
from envs.adapters.json_action import MAX_EXPLANATION, JsonAction
from envs.adapters.json_seen import seen_text
from envs.place import vector_env
from experience.context import NO_CONTEXT
from experience.seeds import SeedRange, Split
from experience.trace import StopReason
from tests.scripted import ScriptedPolicy
from tests.serving import Handler, serving

needs_openenv = pytest.mark.skipif(
    importlib.util.find_spec("openenv") is None, reason="pip install 'opcd-gym[openenv]'"
)


@contextmanager
def serving_games() -> Iterator[str]:
    """A server of the games; gives what stands before their names for ``--env``."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = int(bound.getsockname()[1])
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.envs.openenv_server", str(port)], cwd=Path(__file__).parents[2]
    )
    try:
        for _ in range(600):
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server ended"
            time.sleep(0.1)
        yield f"openenv:http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """One for all that leaves it alive."""
    with serving_games() as prefix:
        yield prefix


@needs_openenv
def test_a_server_is_played(server: str) -> None:
    env_id = f"{server}/alone"
    env = make_text_env(env_id, {"max_episode_steps": 20})
    assert env.words.actions == ("left", "right", "die", "hang")
    first = [env.reset(seed=seed)[0] for seed in (3, 4, 5, 6, 3)]
    assert first[0] == first[-1]  # the server is given the seed
    assert len(set(first)) > 1
    square = int(first[0][len("Square ") : -1])
    for step in range(square, 6):
        seen, reward, terminated, truncated, info = env.step("I choose right")
        assert (seen, reward, terminated, truncated) == (
            f"Square {step + 1}.",
            float(step == 5),
            step == 5,
            False,
        )
        assert info["text/action"] == "right"
    env.reset(seed=0)
    assert env.step("fly")[4]["text/too_many_invalid"] is False
    env.close()
    shorter = make_text_env(env_id, {"size": 3})  # the one session is free again; settings go to the reset
    shorter.reset(seed=0)
    assert any(shorter.step("right")[2] for _ in range(3))
    shorter.close()


@needs_openenv
def test_an_action_that_is_text(server: str) -> None:
    env = make_text_env(f"{server}/say", {})
    env.reset(seed=0)
    seen, reward, terminated, _, info = env.step(" héllo\x00 ")
    assert (seen, reward, terminated, info["text/action"]) == ("You said héllo.", 1.0, False, "héllo")
    seen, reward, terminated, _, info = env.step("x" * 21)  # the server takes none so long
    assert (seen, reward, terminated, info["text/action"]) == ("You said héllo.", 0.0, False, None)
    assert env.step("bye")[2]
    env.close()


@needs_openenv
def test_an_action_of_several_fields(server: str) -> None:
    env_id = f"{server}/form"
    env = make_text_env(env_id, {})
    assert env.words.rules.endswith('JSON object of {"x": "a number below 9", "label": "string"}.')
    env.reset(seed=0)
    for reply in ("seven", "[1]", "[" * 5000, '{"x": 9}', '{"y": 1}', '{"x": "a"}', '{"x": 1, "z": 2}'):
        assert env.step(reply)[4]["text/action"] is None
    seen, reward, terminated, _, _ = env.step('{"x": 7, "label": "top"}')
    assert (seen, reward, terminated) == ("top 7", 7.0, True)
    env.close()
    assert check_text_env(env_id) == []


def played(env_id: str, places: int, last_word: str) -> dict[str, set[StopReason]]:
    """First observation -> how six episodes ended; on square 1 the last word is said, which is on the way of
    all that do not begin on square 2."""
    envs = vector_env(lambda: make_text_env(env_id, {}), places)
    policy = ScriptedPolicy(
        lambda prompt, _: f" {last_word if 'Square 1.' in prompt.messages[-1].content else 'right'}"
    )
    seeds = SeedRange(split=Split.TRAIN, run_seed=0, start=0, size=6)
    words = make_text_env(env_id, {}).words
    ends: dict[str, set[StopReason]] = {}
    count = 0
    for trace in rollout(
        envs,
        words,
        policy,
        {"p": NO_CONTEXT},
        seeds,
        sampling=Sampling(),
        policy_id="p",
        env_id="e",
    ):
        ends.setdefault(trace.turns[0].observation if trace.turns else "", set()).add(trace.stop_reason)
        count += 1
    envs.close()
    assert count == 6
    return ends


@needs_openenv
@pytest.mark.parametrize("places", [1, 3])
def test_a_server_that_hangs_ends_its_own_episodes(
    places: int, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openenv_session, "LONGEST_ANSWER", 0.5)
    ends = played(f"{server}/walk", places, "hang")
    assert ends.pop("Square 2.") == {StopReason.TERMINATED}
    assert set.union(*ends.values()) == {StopReason.ERROR}


@needs_openenv
def test_a_server_that_dies_ends_all_that_it_would_play() -> None:
    with serving_games() as prefix:
        ends = played(f"{prefix}/walk", 2, "die")
    assert ends[""] == {StopReason.ERROR}  # there was no server any more


@needs_openenv
def test_a_server_that_takes_no_more_sessions(server: str) -> None:
    env, other = (make_text_env(f"{server}/alone", {}) for _ in range(2))
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="CAPACITY_REACHED"):
        other.reset(seed=0)
    env.close()
    other.reset(seed=0)
    other.close()


@needs_openenv
def test_images_are_refused(server: str) -> None:
    with pytest.raises(EnvError, match="begins no episode: its observation's 'screen' is an image, or 7056"):
        make_text_env(f"{server}/film", {})


# ----------------------------------------------------------------------------------------- no server of its


@pytest.fixture
def web(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server on this machine that answers all that it is asked with the parameter."""

    class Answer(Handler):
        def reply(self) -> None:
            self.answer(request.param)

    with serving(Answer) as server:
        yield f"openenv:{server.url}"


@pytest.fixture
def installed() -> Iterator[None]:
    """As if the client were: none of these tests comes so far as to need it."""
    with patch.object(importlib.util, "find_spec", return_value=object()):
        yield


ACTION = {"action": {"properties": {"say": {"type": "string"}}}}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "web",
    [b"<html>", b"{}", b"[]", b'{"action": []}', b'{"action": {"properties": 1}}', b"[" * 9999],
    indirect=True,
)
def test_another_protocol(web: str) -> None:
    with pytest.raises(EnvError, match=r"127.0.0.1:\d+ is not an OpenEnv server") as error:
        make_text_env(web, {})
    assert "\n" not in str(error.value)


@needs_openenv
@pytest.mark.parametrize("web", [json.dumps(ACTION).encode()], indirect=True)
def test_a_schema_without_sessions(web: str) -> None:
    with pytest.raises(EnvError, match="begins no episode: Failed to connect") as error:
        make_text_env(web, {})
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("url", "match"),
    [
        ("", "needs a server's URL"),
        ("localhost:8000", "needs a server's URL, as in openenv:http://127.0.0.1:8000"),
        ("file:///etc/passwd", "needs a server's URL"),
        ("http://127.0.0.1:1", "no OpenEnv server answers at http://127.0.0.1:1/schema"),
        ("http://[bad", "no OpenEnv server answers"),
    ],
)
def test_no_server(url: str, match: str) -> None:
    with pytest.raises(EnvError, match=match) as error:
        make_text_env(f"openenv:{url}", {})
    assert "\n" not in str(error.value)


def test_without_the_package() -> None:
    with (
        patch.object(importlib.util, "find_spec", return_value=None),
        pytest.raises(EnvError, match=r"pip install 'opcd-gym\[openenv\]'"),
    ):
        make_text_env("openenv:http://127.0.0.1:8000", {})


# ------------------------------------------------------------------------------------------ schemas and JSON


@pytest.mark.parametrize(
    ("schema", "field", "choices"),
    [
        ({"a": {"type": "string"}}, "a", ()),
        ({"a": {"enum": ["up", "Down"]}, "metadata": {"type": "object"}}, "a", ("up", "Down")),
        ({"a": {"enum": ["up", "UP"]}}, None, ()),  # no two words
        ({"a": {"enum": ["go up"]}}, None, ()),
        ({"a": {"enum": [["up"], {}]}}, None, ()),
        ({"a": {"type": "boolean"}}, "a", (False, True)),
        ({"a": {"type": "integer", "minimum": 1, "maximum": 3}}, "a", (1, 2, 3)),
        ({"a": {"type": "integer", "minimum": -1, "maximum": 3}}, None, ()),
        ({"a": {"type": "integer", "minimum": 0, "maximum": 10**30}}, None, ()),
        ({"a": {"type": "integer", "minimum": 5, "maximum": 3}}, None, ()),
        ({"a": {"type": "number"}}, None, ()),
        ({"a": {"$ref": "#/$defs/A"}}, "a", ("x", "y")),
        ({"a": {"$ref": "#/$defs/B"}}, None, ()),
        ({"a": {"$ref": 3}, "b": {"type": "string"}}, None, ()),
        ({"a": 3}, None, ()),
        ({}, None, ()),
    ],
)
def test_what_an_agent_writes(schema: dict[str, Any], field: str | None, choices: tuple[Any, ...]) -> None:
    action = JsonAction({"properties": schema, "$defs": {"A": {"enum": ["x", "y"]}}})
    assert (action.field, action.choices) == (field, choices)
    assert len(action.explanation) <= MAX_EXPLANATION


def test_the_one_field_that_is_needed() -> None:
    kinds = {"say": {"type": "string"}, "loud": {"type": "boolean", "description": "shout"}}
    assert JsonAction({"properties": kinds, "required": ["say"]}).field == "say"
    both = JsonAction({"properties": kinds, "required": ["say", "loud"]})
    assert (both.field, both.explanation) == (None, '{"say": "string", "loud": "shout"}')
    assert both.filled('{"say": "a"}') == {"say": "a"}


def test_what_is_seen() -> None:
    assert seen_text({"text": "Hi\x00 ", "metadata": {"a": 1}, "legal": [], "x": None}) == "Hi"
    assert seen_text({"text": "Hi", "legal": ["a", 1], "n": 0}) == 'text: Hi\nlegal: ["a", 1]\nn: 0'
    assert seen_text([1, "é"]) == '[1, "é"]'
    assert seen_text({}) == seen_text(None) == ""
    with pytest.raises(EnvError, match="'board' is an image, or 400 numbers"):
        seen_text({"board": [[0.5] * 20] * 20})
