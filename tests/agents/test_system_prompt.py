"""System prompts into weights: Choice-v0, the command on a tiny model, the shipped files, bad input."""

import dataclasses
import json
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import agents.system_prompt
from agents.config import ConfigError, SelfImproveConfig
from agents.examples import answers
from agents.play import PlayConfig, experience, settings
from agents.policies.policy import Message
from agents.prompts import Layout, build_prompt, conversation
from agents.run.run import Run
from agents.self_improve import self_improve
from agents.system_prompt import SystemPromptConfig, main, print_table, system_prompt
from distill.opcd import OPCD
from envs import EnvError, make_text_env
from envs.questions.choice_env import Match, read_label
from tests.agents.test_self_improve import fail_at, open_gate
from tests.conftest import run_main

QUIET = Console(quiet=True)
SHIPPED = Path(agents.system_prompt.__file__).with_name("system_prompts")
ROWS = [{"text": f"message {n}", "label": n % 2, "a": "one", "b": "two"} for n in range(90)]
KWARGS: dict[str, Any] = {"question": "text", "answer": "label", "labels": {"0": "no", "1": "yes"}}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


# --- Choice-v0 -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*render")
def test_gymnasium_is_content(inputs: Path) -> None:
    check_env(gym.make("Choice-v0", file=str(inputs), **KWARGS).unwrapped)


def test_right_wrong_and_unreadable(inputs: Path) -> None:
    env = make_text_env("Choice-v0", {"file": str(inputs), **KWARGS})
    question, info = env.reset(seed=4)
    gold = "yes" if int(question.split()[-1]) % 2 else "no"
    assert info == {"gold": gold, "gold_reply": f"<answer>{gold}</answer>"}
    other = {"yes": "no", "no": "yes"}[gold]
    outcomes = {}
    for reply in (f"<answer>{gold}</answer>", f"<answer>{other}</answer>", gold, ""):
        env.reset(seed=4)
        _, reward, terminated, _, info = env.step(reply)
        assert terminated
        outcomes[reply] = (reward, info["text/action"], info["is_success"])
    assert list(outcomes.values()) == [
        (1.0, gold, True),
        (0.0, other, False),
        (0.0, None, False),
        (0.0, None, False),
    ]


@pytest.mark.parametrize(
    ("reply", "match", "label"),
    [
        ("<answer>yes</answer>", "tag", "yes"),
        ("I think <ANSWER> Yes\n</ANSWER>.", "tag", "yes"),
        ("<answer>yes</answer><answer>no</answer>", "tag", None),
        ("<answer>maybe</answer>", "tag", None),
        ("<answer>yes", "tag", None),
        ("yes", "tag", None),
        (" Yes. ", "exact", "yes"),
        ('"no"', "exact", "no"),
        ("yes indeed", "exact", None),
    ],
)
def test_labels_in_replies(reply: str, match: Match, label: str | None) -> None:
    assert read_label(reply, ("yes", "no"), match) == label


@pytest.mark.parametrize(
    ("reply", "label"),
    [("B", "B"), ("(b) The liver", "B"), ("**C.** x", "C"), ("Because", None), ("E", None), ("", None)],
)
def test_letters_in_replies(reply: str, label: str | None) -> None:
    assert read_label(reply, tuple("ABCD"), "letter") == label


@given(st.text(max_size=300) | st.text("<answer>/ yesno\n", max_size=300))
def test_any_reply_can_be_read(reply: str) -> None:
    for match in ("tag", "exact"):
        assert read_label(reply, ("yes", "no"), match) in ("yes", "no", None)
    assert read_label(reply, ("A", "B"), "letter") in ("A", "B", None)


def test_hostile_replies_take_no_time() -> None:
    began = time.process_time()
    for match in ("tag", "exact", "letter"):
        for piece in ("<answer>", " ", "<answer>" + " " * 99, "'", "x"):
            read_label((piece * 65_536)[:65_536], ("yes", "no"), match)
    assert time.process_time() - began < 5


def test_options_stand_under_the_question(inputs: Path) -> None:
    env = gym.make("Choice-v0", file=str(inputs), options=["a", "b"], **KWARGS)
    question, _ = env.reset(seed=0)
    assert question.splitlines()[1:] == ["A. one", "B. two"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"question": "q"}, "has no column 'q': name one with question=; it has text, label, a, b"),
        ({"answer": "x"}, "has no column 'x': name one with answer="),
        ({"options": ["a", "c"]}, "no column 'c'"),
        (
            {"labels": {"0": "no", "1": "yes", "2": "maybe"}},
            "labels has '2', which no row of .* has in 'label'; there is '0', '1'",
        ),
        ({"labels": {"0": "no"}}, "has '1' in 'label', which labels does not have"),
        ({"labels": {"0": "no", "1": "no"}}, "nothing is to be chosen"),
        ({"labels": {"0": "no", "1": "<b>"}}, "'<b>' cannot be a label"),
        (
            {"labels": {"0": "yes", "1": "Yes "}},
            "label 'Yes' cannot be given: with match tag it is read as 'yes'",
        ),
        ({"labels": {"0": "U.S.", "1": "no"}, "match": "exact"}, "label 'U.S.' cannot be given"),
        ({"labels": {"0": 0, "1": ["x"]}}, "labels must be text, not 0, \\['x'\\]"),
        ({"answer": "text", "labels": None}, "has 90 different answers in 'text'"),
        ({"match": "word"}, "match must be one of tag, exact, letter"),
        ({"match": "letter"}, "labels of one letter, not"),
        ({"dataset": "x"}, "exactly one of file= and dataset="),
        ({"file": "{folder}/empty.jsonl"}, "empty.jsonl is empty"),
        ({"file": "{folder}/broken.jsonl"}, "broken.jsonl cannot be read as jsonl: line 2: "),
        ({"file": "{folder}/list.jsonl"}, "line 2 is not a JSON object"),
        ({"file": "{folder}/broken.csv"}, "cannot be read as csv: row 2 has 3 fields and the header 2"),
        ({"file": "{folder}/latin.csv"}, "cannot be read as csv: it is not text in UTF-8"),
        ({"file": "{folder}/none.jsonl"}, "none.jsonl cannot be read: No such file"),
        ({"file": "{folder}/blank.jsonl"}, "row 1: 'label' is empty"),
        ({"file": "{folder}/long.jsonl"}, "row 1: 'text' has 60000 characters; it can have"),
    ],
)
def test_bad_questions_are_clear_errors(
    change: dict[str, Any], match: str, inputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"text": "x", "label": 0}\n{"text": \n')
    (tmp_path / "list.jsonl").write_text('{"text": "x", "label": 0}\n[1]\n')
    (tmp_path / "broken.csv").write_text("text,label\nx,0\ny,1,2\n")
    (tmp_path / "latin.csv").write_text("text,label\ncafé,0\n", encoding="latin-1")
    (tmp_path / "blank.jsonl").write_text('{"text": "x", "label": null}\n')
    (tmp_path / "long.jsonl").write_text(
        "".join(json.dumps({"text": "x" * 60_000, "label": n}) + "\n" for n in range(2))
    )
    kwargs = {"file": str(inputs), **KWARGS, **change}
    kwargs["file"] = kwargs["file"].replace("{folder}", str(tmp_path))
    with pytest.raises(EnvError, match=match) as error:
        make_text_env("Choice-v0", kwargs)
    assert "\n" not in str(error.value)


# --- prompts -------------------------------------------------------------------------------------


def test_a_prompt_with_example_turns(inputs: Path) -> None:
    words = make_text_env("Choice-v0", {"file": str(inputs), **KWARGS}).words
    layout = Layout(place="chat")
    text = "Be brief.\n\n### user\nHi?\n\n### assistant\nHello."
    assert build_prompt(words, "Well?", [text], layout).messages == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="Hi?"),
        Message(role="assistant", content="Hello."),
        Message(role="user", content="Well?"),
    )
    assert build_prompt(words, "Well?").messages == (Message(role="user", content="Well?"),)
    assert conversation("Be brief. ### user") == ("Be brief. ### user", ())
    for bad in ("### assistant\nx", "### user\nx", "x\n### user\n\n### assistant\ny"):
        with pytest.raises(ValueError, match="example turns"):
            conversation(bad)


def test_a_prompt_file_as_windows_editors_write_it(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("### user\nHi?\n\n### assistant\nHello.", encoding="utf-8-sig")
    config = SelfImproveConfig(context_file=file, context_place="chat")
    assert config.context_text.startswith("### user")
    file.write_text("Be brief.", encoding="utf-16")
    with pytest.raises(ConfigError, match=r"prompt\.txt cannot be read: it is not text in UTF-8"):
        SelfImproveConfig(context_file=file)


@given(
    st.text(max_size=200) | st.lists(st.sampled_from(["### user", "### assistant", "x", ""])).map("\n".join)
)
def test_any_prompt_file_is_a_conversation_or_refused(text: str) -> None:
    try:
        system, turns = conversation(text)
    except ValueError:
        assert "### " in text
        return
    assert system == system.strip()
    assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
    assert all(turn.content for turn in turns)


# --- what is shipped -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["medical", "safety"])
def test_the_shipped_files(name: str) -> None:
    text = (SHIPPED / f"{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 600
    assert all(row["note"] == "synthetic" for row in rows)
    prompt, turns = conversation((SHIPPED / f"{name}.txt").read_text(encoding="utf-8"))
    assert prompt
    # No example of the prompt is among the questions.
    assert not {turn.content for turn in turns} & {row["question"] for row in rows}
    labels = sorted({row["answer"] for row in rows})
    replies = [turn.content for turn in turns if turn.role == "assistant"]
    assert all(read_label(reply, labels, "tag") for reply in replies)


# --- the command ---------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "episodes": 6,
    "steps": 3,
    "off_policy_steps": 1,
    "eval_every": 2,
    "batch_size": 4,
    "lr": 1e-3,
    "validation_episodes": 6,
    "test_episodes": 6,
    "num_envs": 4,
    "max_new_tokens": 3,
    "precision": "float32",
}


@pytest.fixture
def config(inputs: Path, tmp_path: Path, walker_folder: Path) -> SystemPromptConfig:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Say yes or no.\n### user\nx\n### assistant\nyes\n")
    return SystemPromptConfig(
        prompt_file=prompt,
        inputs=inputs,
        run=SelfImproveConfig.for_env(
            "Choice-v0", model=str(walker_folder), output=tmp_path / "runs", **TINY
        ),
        **KWARGS,
    )


def test_both_trainings_as_one_table(config: SystemPromptConfig, capsys: pytest.CaptureFixture[str]) -> None:
    sampled: list[str] = []
    directions: list[str] = []
    step = OPCD.step

    def note(agent: Any, policy: Any, questions: Any, data: Any) -> Any:
        sampled.append(data)
        return answers(agent, policy, questions, data)

    def noted_step(self: OPCD, examples: Any, direction: Any) -> Any:
        directions.append(direction)
        return step(self, examples, direction)

    with (
        open_gate(),
        patch("agents.training.answers", note),
        patch.object(OPCD, "step", noted_step),
    ):
        with fail_at(OPCD, "step", 5)(), pytest.raises(KeyboardInterrupt):
            system_prompt(config, QUIET)
        table = system_prompt(config, QUIET)
    assert sampled[:3] == ["teacher", "student", "student"]
    assert directions[:3] == ["forward", "gated", "gated"]
    assert set(sampled[3:]) == {"teacher"}
    assert set(directions[3:]) == {"forward"}
    assert table["arms"].keys() == {"base", "with_prompt", "off_policy", "opcd"}
    for arm in table["arms"].values():
        assert arm["n"] == 6
        assert arm["format_rate"] == 1 - arm["invalid_rate"]
        assert arm["format_ci_low"] <= arm["format_rate"] <= arm["format_ci_high"]
    with_prompt, opcd = table["arms"]["with_prompt"], table["arms"]["opcd"]
    saved = with_prompt["prompt_tokens_per_turn"] - opcd["prompt_tokens_per_turn"]
    assert table["prompt_tokens_saved"] == saved > 20
    assert 0 < table["best_constant"]["success_rate"] < 1
    for kept, says in ((4, f"{saved:.0f} prompt tokens saved per call"), (0, "nothing was trained")):
        print_table(table | {"best_step": {"opcd": kept}})
        output = capsys.readouterr().out
        assert "OPCD - off-policy" in output
        assert says in output
    assert config.run.output is not None
    assert (config.run.output / "opcd" / "report.html").exists()
    with patch.object(Run, "play", side_effect=AssertionError("a finished run is not run again")):
        assert system_prompt(config, QUIET) == table
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, lr=1e-4))
    with pytest.raises(ConfigError, match="begun with lr"):
        system_prompt(other, QUIET)
    shown = settings(PlayConfig(run=config.run.output / "opcd"))
    words = make_text_env(shown.env, shown.env_kwargs).words
    assert (
        "Say yes or no."
        in experience(PlayConfig(run=config.run.output / "opcd"), shown, words).insights[0].text
    )
    config.prompt_file.write_text("Say no.")
    with pytest.raises(
        ConfigError, match=r"prompt\.txt is not what .* was begun with .*take another --output"
    ):
        system_prompt(config, QUIET)


command = partial(run_main, main)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--prompt-file", "nowhere.txt"], "there is no prompt file nowhere.txt"),
        (["--prompt-file", "{folder}/empty.txt"], "empty.txt is empty"),
        (["--prompt-file", "{folder}/latin.txt"], "latin.txt cannot be read"),
        (["--prompt-file", "{folder}/turns.txt"], "turns.txt: its example turns must be"),
        (["--prompt-file", "{folder}/long.txt"], "do not fit the model's window of 512: shorten it"),
        (["--inputs", "{folder}/few.jsonl"], "has 9 different questions, dealt into"),
        (["--inputs", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--question", "q"], "no column 'q'"),
        (["--labels", '{"0": "no", "1": "yes", "2": "x"}'], "labels has '2'"),
        (["--env", "FrozenLake-v1"], "--env is not for this command"),
        (["--context-place", "before"], "--context-place is not for this command"),
        (["--minutes", "5"], "--minutes is not for this command"),
    ],
)
def test_bad_input_is_one_clear_error(
    args: list[str],
    says: str,
    config: SystemPromptConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "turns.txt").write_text("x\n### assistant\ny\n")
    (tmp_path / "long.txt").write_text("long " * 200)
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:9]))
    given = {
        "--prompt-file": str(config.prompt_file),
        "--inputs": str(config.inputs),
        "--question": "text",
        "--answer": "label",
        "--labels": '{"0": "no", "1": "yes"}',
        "--model": config.run.model,
        "--output": str(tmp_path / "runs"),
    }
    given |= dict(zip(args[::2], (arg.replace("{folder}", str(tmp_path)) for arg in args[1::2]), strict=True))
    code, output = command(capsys, *(part for pair in given.items() for part in pair))
    assert code == 2
    assert says in output
    assert "Traceback" not in output
    assert not (tmp_path / "runs" / "opcd").exists()


def test_nobody_but_a_file_writes_turns() -> None:
    with pytest.raises(ConfigError, match="context_place chat needs a context_file"):
        SelfImproveConfig(context_place="chat")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, output = command(capsys, "--help")
    assert code == 0
    assert "--prompt-file" in output
    assert "--off-policy-steps" in output


def test_an_error_in_the_questions_stops_a_plain_run_too(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvError, match="no column"):
        self_improve(
            SelfImproveConfig.for_env("Choice-v0", env_kwargs={"file": str(inputs)}, output=tmp_path / "run"),
            QUIET,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("env", ["Choice-v0", "Math-v0"])
def test_a_file_too_small_for_three_splits_stops_before_anything_is_made(env: str, tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{n}", "answer": n}) + "\n" for n in range(2)))
    config = SelfImproveConfig.for_env(env, env_kwargs={"file": str(path)}, output=tmp_path / "run")
    with pytest.raises(EnvError, match="has no problem left for"):
        self_improve(config, QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_several_processes_speaks(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr("agents.system_prompt.system_prompt", lambda _, console: console.print("begins"))
    monkeypatch.setattr("agents.system_prompt.print_table", lambda _: print("ends"))
    arguments = ("--prompt-file", str(tmp_path / "prompt.txt"))
    assert run_main(main, capsys, *arguments) == (0, "" if rank else "ends begins")
