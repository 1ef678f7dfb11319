"""What a run is made from is the same when it goes on, and for those that share its beginning."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from agents.config import ConfigError, SelfImproveConfig
from agents.run import inputs as module
from agents.run.branch import branch
from agents.run.folder import RunFolder
from agents.run.inputs import check_inputs, fingerprint, inputs
from agents.run.resume import begun
from agents.self_improve import self_improve
from tests.agents.test_self_improve import KEPT, QUIET, open_gate


@pytest.fixture
def config(tmp_path: Path) -> SelfImproveConfig:
    """Of a run that names a file or a folder wherever it can."""
    (tmp_path / "model").mkdir()
    for name in ("model/config.json", "questions.jsonl", "context.txt", "prompts.toml"):
        (tmp_path / name).write_text(f"{name} as it was\n")
    return SelfImproveConfig(
        env="Math-v0",
        env_kwargs={"file": str(tmp_path / "questions.jsonl"), "question": "question", "odd": "\0"},
        model=str(tmp_path / "model"),
        context_file=tmp_path / "context.txt",
        insights=str(tmp_path / "prompts.toml"),
        output=tmp_path / "run",
    )


def begin(config: SelfImproveConfig) -> Path:
    assert config.output is not None
    RunFolder.create(config.output, json_of(config), None, inputs(config)).close()
    return config.output


def json_of(config: SelfImproveConfig) -> dict[str, object]:
    values = {n: str(v) if isinstance(v, Path) else v for n, v in asdict(config).items()}
    return {name: value for name, value in values.items() if name not in ("output", "resume")}


def grown(file: Path) -> None:
    file.write_text(file.read_text() + "and more\n")


@pytest.mark.parametrize("name", ["model/config.json", "questions.jsonl", "context.txt", "prompts.toml"])
def test_what_has_changed_is_not_gone_on_with(config: SelfImproveConfig, tmp_path: Path, name: str) -> None:
    path = begin(config)
    check_inputs(config, path)
    grown(tmp_path / name)
    with pytest.raises(ConfigError, match=r"is not what .* was begun with"):
        begun(config, path)
    if name == "context.txt":  # the run has its text
        check_inputs(config, path, kept=("context_file",))


def test_a_models_folder_may_hold_the_run(config: SelfImproveConfig, tmp_path: Path) -> None:
    inside = replace(config, output=tmp_path / "model" / "run")
    path = begin(inside)
    (tmp_path / "model" / "nohup.out").write_text("step 1\n")
    check_inputs(inside, path)


def test_runs_of_before_have_no_fingerprints(config: SelfImproveConfig) -> None:
    assert config.output is not None
    RunFolder.create(config.output, json_of(config)).close()
    check_inputs(config, config.output)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "b").write_bytes(b"1" * 100),  # in the middle of a long file, as long as before
        lambda path: (path / "b").write_bytes(b"0" * 99),
        lambda path: (path / "b").rename(path / "c"),
        lambda path: (path / "c").write_bytes(b""),
    ],
)
@pytest.mark.parametrize("is_long", [False, True])
def test_fingerprints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], is_long: bool
) -> None:
    if is_long:
        monkeypatch.setattr(module, "WHOLE", 50)
        monkeypatch.setattr(module, "PIECE", 1)
    (tmp_path / "b").write_bytes(b"0" * 100)
    before = fingerprint(tmp_path, sorted(tmp_path.iterdir()))
    assert fingerprint(tmp_path, sorted(tmp_path.iterdir())) == before
    change(tmp_path)
    assert fingerprint(tmp_path, sorted(tmp_path.iterdir())) != before


def test_a_beginning_is_shared_by_those_of_the_same_files(
    walker_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agents.run.folder._git_revision", lambda: "abc")
    text = tmp_path / "context.txt"
    text.write_text("Move down before you move right.\n")
    config = SelfImproveConfig(model=str(walker_folder), **(KEPT | {"rounds": 1, "context_file": text}))
    with open_gate():
        self_improve(replace(config, output=tmp_path / "opcd"), QUIET)
    other = replace(config, data="teacher", output=tmp_path / "other")
    grown(text)
    assert not branch(other, tmp_path / "other", [tmp_path / "opcd"])
    text.write_text("Move down before you move right.\n")
    assert branch(other, tmp_path / "other", [tmp_path / "opcd"])
