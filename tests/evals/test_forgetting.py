"""What else a model can do: instructions that rules check, held-out text, the built-in tasks."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from agents.asked import exam
from agents.cli import USER_ERRORS
from agents.exam import sit, text_nats
from agents.policies.local import HFPolicy
from envs.text_env import make_text_env
from envs.words import EnvError
from evals.agent_process import AgentError
from evals.command import EvalError
from evals.forgetting import (
    HELD_OUT,
    TASKS,
    TEXT,
    Exam,
    ForgettingConfig,
    Task,
    forgetting,
    main,
    model_folder,
    print_table,
    save,
)
from evals.instructions import INSTRUCTIONS, MAX_REPLY_CHARS, RULES, Instruction
from tests.agents.test_self_improve import QUIET
from tests.conftest import byte_tokenizer, tiny_llama
from tests.evals.conftest import LITTLE


def ask_here(what: str, question: Any) -> Any:
    """Ask this process; there and back all is JSON."""
    assert what == "exam"
    try:
        return json.loads(json.dumps(exam(json.loads(json.dumps(question)))))
    except USER_ERRORS as error:
        raise AgentError(str(error)) from error


@pytest.fixture(autouse=True)
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evals.forgetting.ask", ask_here)


FOLLOWED = {
    "capitals": ("BREAD IS GOOD.", "Bread is good."),
    "lower case": ("bread is good.", "Bread is good."),
    "no commas": ("It is warm. It is brown.", "It is warm, and brown."),
    "at most ten words": ("Warm, brown and good.", "one two three four five six seven eight nine ten eleven"),
    "one word": ("Yeast.", "Some yeast"),
    "three bullets": ("- a\n\n- b\n- c", "- a\n- b"),
    "first word": ("Today we bake.", "We bake today."),
    "last words": ("We ate it, the end.", "The end was near"),
    "keyword": ("A Lantern shone.", "A lamp shone."),
    "quotation marks": ('"Bread is good."', 'Bread is "good".'),
    "question": ("Is it warm?", "Is it warm? Yes."),
    "JSON": ('{"topic": "bread"}', '["bread"]'),
}


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_can_be_followed_and_broken(rule: str) -> None:
    mine = [instruction for instruction in INSTRUCTIONS if instruction.rule == rule]
    good, bad = FOLLOWED[rule]
    for instruction in mine:
        assert instruction.is_followed(f" {good}\n")
        assert not instruction.is_followed(bad)
        assert not instruction.is_followed(" \n")
    assert len({instruction.prompt for instruction in mine}) == len(mine) >= 5


def test_what_is_thought_is_no_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    thoughts = ["<think>\nA lantern, I think", "<think>\nOne word only.\n</think>\n\nOven"]
    said = [SimpleNamespace(text=text) for text in thoughts]
    policy = HFPolicy(tiny_llama(), byte_tokenizer())
    monkeypatch.setattr(policy, "generate", lambda *_: said)
    exam = Exam(passages=(), tasks={}, episodes=1, seed=0, instructions=("a", "b"), max_new_tokens=4)
    assert sit(policy, exam).replies == ["", "\n\nOven"]


@given(st.text(max_size=200))
def test_any_reply_can_be_checked(reply: str) -> None:
    for instruction in INSTRUCTIONS[:: len(INSTRUCTIONS) // len(RULES)]:
        assert instruction.is_followed(reply) in (True, False)


@pytest.mark.parametrize("reply", ["[" * 10**6, '{"a":' * 10**6, "\ud800\x00", "9" * 10**6])
def test_hostile_replies(reply: str) -> None:
    assert not any(i.is_followed(reply) for i in INSTRUCTIONS if i.rule == "JSON")


def test_only_so_much_of_a_reply_is_looked_at() -> None:
    whole = Instruction(rule="", prompt="", holds=lambda text: len(text) == MAX_REPLY_CHARS)
    assert whole.is_followed("x" * 10**6)


def test_nats_are_the_models_own() -> None:
    model, tokenizer = tiny_llama(), byte_tokenizer()
    text = "The ferry leaves."
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        expected = float(model(ids, labels=ids).loss)
    assert text_nats(HFPolicy(model, tokenizer), [text]) == [pytest.approx(expected, abs=1e-4)]
    # A passage that is longer than the window is cut there.
    [cut] = text_nats(HFPolicy(model, tokenizer), ["x" * 600])
    assert cut == pytest.approx(text_nats(HFPolicy(model, tokenizer), ["x" * 512])[0], abs=1e-4)


@pytest.fixture(scope="module")
def ruined(walker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder whose model says one token, whatever it is asked."""
    model = AutoModelForCausalLM.from_pretrained(walker_folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(30.0)
    run = tmp_path_factory.mktemp("run")
    model.save_pretrained(run / "model")
    AutoTokenizer.from_pretrained(walker_folder).save_pretrained(run / "model")
    return run


def test_the_table(
    walker_folder: Path, ruined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ForgettingConfig(
        before=str(walker_folder),
        after=str(ruined),
        baseline=str(walker_folder),
        output=tmp_path / "tables" / "forgetting.json",
        episodes=6,
        max_new_tokens=2,
    )
    table = forgetting(config, QUIET)
    save(config, table)
    assert [row["measure"] for row in table["rows"]] == [
        TEXT, "sums", "lake", "instructions"
    ]  # fmt: skip
    text = table["rows"][0]
    assert text["before"]["n"] == len(HELD_OUT.read_text(encoding="utf-8").split("\n\n"))
    # The ruined model is far worse at text, and the baseline, the model itself, is just as good.
    assert text["after_against_before"]["ci_low"] > 0
    assert text["after_against_before"]["p_value"] < 0.05
    assert text["baseline_against_before"]["difference"] == 0
    for row in table["rows"]:
        for role in ("before", "after", "baseline"):
            assert row[role]["ci_low"] <= row[role]["mean"] <= row[role]["ci_high"]
        assert row["before"] == row["baseline"]
        change = row["after_against_baseline"]
        assert change == row["after_against_before"]
        assert change["difference"] == pytest.approx(row["after"]["mean"] - row["before"]["mean"])
    assert json.loads((tmp_path / "tables" / "forgetting.json").read_text()) == table
    print_table(table)
    assert "difference" in capsys.readouterr().out


def test_without_a_baseline(walker_folder: Path, ruined: Path) -> None:
    table = forgetting(LITTLE(before=str(walker_folder), after=str(ruined)), QUIET)
    assert all("after_against_baseline" not in row for row in table["rows"])
    print_table(table, Console(quiet=True))


def test_what_cannot_be_written_is_seen(
    walker_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    models = ["--before", str(walker_folder), "--after", str(walker_folder)]
    little = ["--tasks", "lake", "--episodes", "2", "--max-new-tokens", "1"]
    output = ["--output", str(tmp_path / "file" / "table.json")]
    with patch.object(sys, "argv", ["forgetting", *models, *little, *output]):
        assert main() == 2
    said = capsys.readouterr()
    assert "what else it can do" in said.out
    assert "error: " in said.err


def test_a_runs_report_shows_what_its_model_has_forgotten(
    walker_folder: Path, lake: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compared with the model that the run began with, in the run's folder, if nothing else is asked for."""
    run = shutil.copytree(lake, tmp_path / "run")
    before = json.loads((run / "forgetting.json").read_text())
    assert before["models"] == {"before": str(walker_folder), "after": str(lake)}
    assert [row["measure"] for row in before["rows"]] == [TEXT, "lake", "instructions"]
    for file in ("forgetting.json", "report.html"):
        (run / file).unlink()
    command = ["forgetting", "--after", str(run), "--tasks", "lake", "--episodes", "2"]
    with patch.object(sys, "argv", [*command, "--max-new-tokens", "1"]):
        assert main() == 0
    # In processes of their own the same is found.
    again = json.loads((run / "forgetting.json").read_text())
    assert again["rows"][0]["after"]["mean"] == pytest.approx(before["rows"][0]["after"]["mean"], abs=1e-6)
    assert again["rows"][1:] == before["rows"][1:]
    assert "What else it can do" in (run / "report.html").read_text()
    assert str(run / "report.html") in "".join(capsys.readouterr().err.split("\n"))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_episodes_of_a_task_are_no_copies_of_one(task: Task) -> None:
    env = make_text_env(task.env, task.env_kwargs)
    replies = [*env.words.actions, "0"][-2:] * 8
    episodes = set()
    for seed in range(8):
        said = [env.reset(seed=seed)[0]]
        for reply in replies:
            observation, _, terminated, truncated, _ = env.step(reply)
            said.append(observation)
            if terminated or truncated:
                break
        episodes.add(tuple(said))
    assert len(episodes) > 4


def test_a_missing_task_is_said_before_any_model_is_loaded(walker_folder: Path) -> None:
    with (
        patch("evals.forgetting.make_text_env", side_effect=EnvError("sums need opcd-gym[math]")),
        patch("evals.forgetting.ask", side_effect=AssertionError),
        pytest.raises(EnvError, match="opcd-gym"),
    ):
        forgetting(LITTLE(after=str(walker_folder)), QUIET)


def test_a_run_stands_for_its_model(ruined: Path) -> None:
    assert model_folder(str(ruined)) == model_folder(str(ruined / "model")) == str(ruined / "model")
    assert model_folder("smollm2") == "smollm2"


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"episodes": 0}, "episodes must be at least 1, not 0"),
        ({"episodes": 1_000_001}, "episodes must be at most 1000000, not 1000001"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
    ]
    for values, said in wrong:
        with pytest.raises(EvalError, match=said):
            ForgettingConfig(after="x", **values)
    with patch.object(sys, "argv", ["forgetting", "--before", "nowhere", "--after", "nowhere"]):
        assert main() == 2
    assert "no model 'nowhere'" in capsys.readouterr().err
