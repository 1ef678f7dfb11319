"""Finished runs, shared: folders in place of the hub, a hub that fails, and what stands on the card."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from rich.console import Console
from transformers import AutoModelForCausalLM

from agents import self_improve as module
from agents.run.resume import saved_config
from agents.self_improve import SelfImproveConfig, main, self_improve
from agents.sharing import SharingError, check_target, command_of, model_card, share
from experience.exchange import import_run
from experience.insight import Insight
from experience.store import ExperienceStore, open_run
from tests.conftest import run_main

QUIET = Console(quiet=True)
SECRET = "hf_verysecrettoken"
command = partial(run_main, main)


@pytest.fixture(scope="module")
def run(walker_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, in which something secret was said before it was known to be."""
    path = tmp_path_factory.mktemp("runs") / "lake"
    self_improve(
        SelfImproveConfig(
            model=str(walker_folder),
            output=path,
            rounds=1,
            episodes=16,
            waves=1,
            steps=0,
            validation_episodes=8,
            test_episodes=8,
            precision="float32",
        ),
        QUIET,
    )
    with open_run(path) as store:
        hostile = f"Say `x`.\n```\n<script>alert(1)</script> {SECRET}"
        store.set_insights([Insight(text=hostile, observation=None, score=1.0, support=1)], "late")
    return path


class FakeHub:
    """What ``HfApi`` is asked to do; the folders that it is given are kept."""

    def __init__(self, kept: Path, fail: str = "") -> None:
        self.kept, self.fail, self.created = kept, fail, list[dict[str, Any]]()

    def __call__(self, **_: Any) -> "FakeHub":
        return self

    def create_repo(self, name: str, **more: Any) -> Any:
        self.created.append({"name": name, **more})
        if self.fail == more["repo_type"]:
            raise ConnectionError("no route to huggingface.co")

        class Repo(str):
            repo_id = name

        return Repo(f"https://huggingface.co/{name}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> None:
        shutil.copytree(folder_path, self.kept / repo_id)


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_folder_in_place_of_the_hub(
    run: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    target = form.format(tmp_path / "shared")
    code, output = command(capsys, "--resume", str(run), "--push-to-hub", target)
    assert code == 0
    assert "success on test episodes" in output
    assert f"shared: {tmp_path / 'shared'}" in output
    AutoModelForCausalLM.from_pretrained(tmp_path / "shared" / "model")
    card = (tmp_path / "shared" / "model" / "README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["tags"] == ["opcd-gym", "context-distillation"]
    assert "base_model" not in head  # a folder of this machine
    results = json.loads((run / "results.json").read_text())
    assert f"n = {results['comparison']['n']}" in card
    assert "| before, with experience |" in card
    assert "````text\nSay `x`." in card  # the fence is longer than any in it
    assert str(run.parent) not in card
    assert "python -m agents.self_improve --env FrozenLake-v1 --model" in card
    import_run(tmp_path / "shared" / "experience", str(tmp_path / "again.db"))
    with ExperienceStore(tmp_path / "again.db") as copy, open_run(run) as store:
        assert len(copy.traces()) == len(store.traces()) > 0
    files = [file for file in (tmp_path / "shared").rglob("*") if file.suffix != ".safetensors"]
    assert all(SECRET not in file.read_text() for file in files if file.is_file())
    assert not any(file.is_symlink() for file in files)
    code, output = command(capsys, "--resume", str(run), "--push-to-hub", target)
    assert code == 2
    assert "is there already" in output


def test_the_hub(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    hub = FakeHub(tmp_path)
    with patch("huggingface_hub.HfApi", hub):
        share(run, "me/lake", QUIET, again="")
    assert [(repo["name"], repo["repo_type"]) for repo in hub.created] == [
        ("me/lake", "model"),
        ("me/lake-experience", "dataset"),
    ]
    assert all(repo["private"] and repo["exist_ok"] for repo in hub.created)
    assert {"README.md", "config.json", "model.safetensors"} <= {
        f.name for f in (tmp_path / "me/lake").iterdir()
    }
    traces = datasets.load_dataset(
        str(tmp_path / "me/lake-experience"), "traces", cache_dir=tmp_path / "cache"
    )
    assert len(traces["train"]) > 0


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_push_that_fails_loses_nothing_and_says_what_to_do(
    run: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    before = sorted(file.name for file in run.iterdir())
    with patch("huggingface_hub.HfApi", FakeHub(tmp_path, fail=kind)):
        code, output = command(capsys, "--resume", str(run), "--push-to-hub", "me/lake")
    assert code == 2
    assert "success on test episodes" in output
    assert "could not be shared with me/lake: ConnectionError: no route to huggingface.co" in output
    again = f"{sys.executable} -m agents.self_improve --resume {run} --push-to-hub me/lake"
    assert f"share it with: {again}" in output
    assert "Traceback" not in output
    assert sorted(file.name for file in run.iterdir()) == before


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("me/my model", "is neither the name of a repository"),
        ("a/b/c", "is neither the name of a repository"),
        ("", "is neither the name of a repository"),
        ("https://huggingface.co/me/x", "is neither the name of a repository"),
        ("me/lake", "log in: run hf auth login, or set HF_TOKEN"),
        ("{folder}", "is there already"),
    ],
)
def test_a_bad_target_is_said_before_anything_is_done(
    target: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        patch("huggingface_hub.get_token", return_value=None),
        patch.object(module, "self_improve", side_effect=AssertionError),
    ):
        code, output = command(capsys, "--push-to-hub", target.replace("{folder}", str(tmp_path)))
    assert code == 2
    assert says in output


def test_a_run_that_cannot_be_shared(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SharingError, match="is not the folder of a finished run"):
        share(tmp_path, str(tmp_path / "shared"), QUIET, again="")
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    outside = tmp_path / "secret.txt"
    outside.write_text(SECRET)
    (copied / "model" / "secret.txt").symlink_to(outside)  # a folder of somebody else's
    share(copied, str(tmp_path / "shared"), QUIET, again="")
    assert not (tmp_path / "shared" / "model" / "secret.txt").exists()
    shutil.rmtree(copied / "model")
    with pytest.raises(SharingError, match="has no model to share"):
        share(copied, str(tmp_path / "other"), QUIET, again="")
    assert not (tmp_path / "other").exists()
    with pytest.raises(SharingError, match=r"could not be shared with .*: .* is lost; share it with: again"):
        share(run, str(run / "config.json" / "x"), QUIET, again="again")
    check_target("file:///nowhere/yet")


def test_a_card_without_success(run: Path) -> None:
    mean = {"mean": 0.25, "ci_low": 0.125, "ci_high": 0.5, "n": 12}
    results = {
        "kl": {"before": mean, "after": mean, "change": mean},
        "command": "python -m agents.x",
    }
    config = SelfImproveConfig(model="smollm2", env="Logs-v0")
    card = model_card("rules", config, results, {}, ["one"] * 101)
    assert "# What it had in its prompt" in card
    assert "# What it had in its prompt" not in model_card("rules", config, results, {}, [])
    trained = model_card("rules", config, results | {"best_step": 5}, {}, ["one"])
    assert "# What was trained in" in trained
    assert "| 12 held-out prompts | KL to the teacher, nats per token |" in card
    assert "| after | 0.2500 [0.1250, 0.5000] |" in card
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in card
    assert "and 1 more, in the data set `rules-experience`" in card
    assert "python -m agents.x" in card


def test_the_command_names_no_place_of_this_machine(run: Path, tmp_path: Path) -> None:
    (tmp_path / "advice.txt").write_text("x")
    config = SelfImproveConfig(
        context_file=tmp_path / "advice.txt",
        env_kwargs={"file": str(tmp_path / "q.jsonl"), "is_slippery": False},
        policy="http://gpu7.lan:8000",
        eval_temperature=(0.0,),
        device="cuda:3",
        steps=4,
    )
    assert command_of(config) == (
        "python -m agents.self_improve --env FrozenLake-v1 --env-kwargs "
        """'{"file": "q.jsonl", "is_slippery": false}' --model smollm2 """
        "--context-file advice.txt --steps 4 --eval-temperature 0"
    )
    assert saved_config(run).model not in command_of(saved_config(run))
