"""A run's folder may come from anybody: opening it runs none of its code and reaches no other machine."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from agents.cli import parse_args
from agents.config import ConfigError, SelfImproveConfig
from agents.play import PlayConfig
from agents.play import main as play_main
from agents.play import settings as play_settings
from agents.run.resume import finish
from agents.self_improve import main, self_improve
from evals.report import write_report
from experience import ExperienceError
from experience.addresses import is_elsewhere
from experience.store import ExperienceStore, open_run
from tests.agents.test_self_improve import QUIET, WHOLE, fail_at, flags
from tests.conftest import run_main


def gift(whole: Path, where: Path, **settings: Any) -> Path:
    """The run as somebody else hands it over."""
    path = shutil.copytree(whole, where / "gift")
    about = json.loads((path / "config.json").read_text())
    about["config"] |= settings
    (path / "config.json").write_text(json.dumps(about))
    return path


CODE = "from pathlib import Path\nPath({marker!r}).touch()\n"


def test_a_model_runs_no_code_because_its_folder_says_so(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, marker = gift(whole, tmp_path, trust_remote_code=True), tmp_path / "ran"
    config = json.loads((path / "model" / "config.json").read_text())
    config |= {"model_type": "gift", "auto_map": {"AutoConfig": "gift.C", "AutoModelForCausalLM": "gift.M"}}
    (path / "model" / "config.json").write_text(json.dumps(config))
    (path / "model" / "gift.py").write_text(CODE.format(marker=str(marker)))
    assert play_main(["--run", str(path)]) == 2
    assert not marker.exists()
    assert not parse_args(["--resume", str(path)]).trust_remote_code
    assert parse_args(["--resume", str(path), "--trust-remote-code"]).trust_remote_code
    seen: list[SelfImproveConfig] = []
    (path / "results.json").unlink()
    given = SelfImproveConfig(model=parse_args(["--resume", str(path)]).model, **WHOLE)
    finish(given, path, seen.append)
    assert [config.trust_remote_code for config in seen] == [False]


def test_no_module_is_imported_because_a_folder_names_it(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "ran"
    path = gift(whole, tmp_path, env="gift.evil:FrozenLake-v1")
    (path / "evil.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(str(tmp_path))  # as ``python -m`` has the current folder
    assert play_main(["--run", str(path)]) == 2
    assert "imports code" in capsys.readouterr().err
    assert play_settings(PlayConfig(run=path, env="gift.evil:FrozenLake-v1")).env == "gift.evil:FrozenLake-v1"
    with pytest.raises(ConfigError, match=r"imports code by --env gift\.evil:FrozenLake-v1"):
        parse_args(["--resume", str(path)])
    write_report(path)
    assert not marker.exists()
    asked = ["--resume", str(path), "--env", "gift.evil:FrozenLake-v1"]
    assert parse_args(asked).env == "gift.evil:FrozenLake-v1"
    assert parse_args(["--resume", str(path), "--trust-remote-code"]).env == "gift.evil:FrozenLake-v1"


def test_an_adapter_is_our_own_code_and_its_server_may_be_elsewhere(whole: Path, tmp_path: Path) -> None:
    game = gift(whole, tmp_path / "game", env="textarena:Sokoban-v0")
    here = gift(whole, tmp_path / "here", env="openenv:http://127.0.0.1:8000")
    for path in (game, here):
        assert parse_args(["--resume", str(path)]).env
    url = "openenv:http://evil.example.org"
    path = gift(whole, tmp_path / "there", env=url)
    with patch.dict(sys.modules, {"openenv": sys}):  # the client, which says nothing about the server
        with pytest.raises(ConfigError, match=r"reaches other machines by --env openenv:http://evil"):
            parse_args(["--resume", str(path)])
        assert play_main(["--run", str(path)]) == 2
    assert parse_args(["--resume", str(path), "--env", url]).env == url
    assert parse_args(["--resume", str(path), "--trust-remote-code"]).env == url


def test_a_secret_that_the_folder_does_not_hold_is_to_be_given_again(whole: Path, tmp_path: Path) -> None:
    """With *** in its place the env was another one, and nobody said so."""
    path = gift(whole, tmp_path, env_kwargs={"map_name": "4x4", "token": "***"})
    asks: tuple[Callable[[], SelfImproveConfig], ...] = (
        lambda: parse_args(["--resume", str(path)]),
        lambda: play_settings(PlayConfig(run=path)),
        lambda: play_settings(PlayConfig(run=path, env_kwargs={"map_name": "8x8", "token": "secret"})),
    )
    for ask in asks:
        with pytest.raises(ConfigError, match=r"give --env-kwargs again|leave out --env-kwargs"):
            ask()
    given = {"map_name": "4x4", "token": "secret"}
    assert parse_args(["--resume", str(path), "--env-kwargs", json.dumps(given)]).env_kwargs == given
    assert play_settings(PlayConfig(run=path, env_kwargs=given)).env_kwargs == given


def test_a_flag_that_says_the_default_is_said(whole: Path, tmp_path: Path) -> None:
    path = gift(whole, tmp_path, env="CliffWalking-v1")
    assert parse_args(["--resume", str(path)]).env == "CliffWalking-v1"
    for flag in (["--env", "FrozenLake-v1"], ["--env=FrozenLake-v1"]):
        with pytest.raises(ConfigError, match="--env FrozenLake-v1 differs from the run"):
            parse_args(["--resume", str(path), *flag])


def test_how_to_go_on_says_what_has_to_be_given_again(
    walker_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, env = tmp_path / "a run", "tests.envs.test_spaces:FrozenLake-v1"
    with fail_at(ExperienceStore, "add_traces", 1)():
        code, output = run_main(main, capsys, *flags(path, walker_folder), "--env", env)
    assert code == 130
    assert f"--resume '{path}' --env {env}" in output


STORE = "postgresql+psycopg://somebody@db.example.org/x"


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        (
            {"policy": "http://evil.example.org"},
            ["--policy", "http://evil.example.org"],
        ),
        ({"teacher": "http://evil.example.org"}, ["--teacher", "http://evil.example.org"]),
        (
            {"insight_url": "http://evil.example.org/v1", "insight_model": "m"},
            ["--insight-url", "http://evil.example.org/v1"],
        ),
        ({"store": STORE}, ["--store", STORE]),
        ({"tracker": "wandb"}, ["--tracker", "wandb"]),
    ],
)
def test_no_other_machine_is_reached_because_a_folder_names_it(
    whole: Path, tmp_path: Path, settings: dict[str, Any], given: list[str]
) -> None:
    path = gift(whole, tmp_path, **settings)
    for ask in (
        lambda: parse_args(["--resume", str(path)]),
        lambda: self_improve(SelfImproveConfig(resume=path), QUIET),
    ):
        with pytest.raises(ConfigError, match="reaches other machines by --"):
            ask()
    name = given[0].removeprefix("--").replace("-", "_")
    value = getattr(parse_args(["--resume", str(path), *given]), name)
    assert value in (given[1], (given[1],))


def test_a_store_elsewhere_is_not_asked(whole: Path, tmp_path: Path) -> None:
    path = gift(whole, tmp_path, store=STORE)
    with patch("experience.store.Database") as database:
        for read in (open_run, write_report):
            with pytest.raises(ExperienceError, match=r"you trust .*, give --store .*db\.example\.org"):
                read(path)
        assert play_main(["--run", str(path)]) == 2
    database.assert_not_called()


def test_a_secret_that_somebody_wrote_down_is_not_reported(whole: Path, tmp_path: Path) -> None:
    path = gift(whole, tmp_path, insight_url="http://somebody:secret99@localhost/v1?api_key=hushhush")
    text = write_report(path).read_text(encoding="utf-8")
    assert "http://***@localhost/v1?api_key=***" in text
    assert "secret99" not in text


@pytest.mark.parametrize(
    ("location", "elsewhere"),
    [
        ("runs/x/experience.db", False),
        ("sqlite:////data/x.db", False),
        ("sqlite+pysqlite:///x.db", False),
        ("http://localhost:8000/v1", False),
        ("http://127.0.0.2:8000", False),
        ("http://[::1]:8000", False),
        ("postgresql+psycopg:///name", False),
        ("postgresql+psycopg://u:p@localhost:5432/name", False),
        ("http://localhost.example.org", True),
        ("http://127.0.0.1@example.org/", True),
        ("http://0.0.0.0.example.org", True),
        ("http://2130706433", True),
        ("http://", True),
        ("http://[::1", True),
        ("HTTP://EXAMPLE.ORG", True),
        ("https://10.0.0.7", True),
        ("postgresql+psycopg:///name?host=example.org", True),
        ("postgresql+psycopg://localhost/name?HOSTADDR=10.0.0.1", True),
        ("postgresql://localhost/name?service=x", True),
        ("sqlitex://example.org/x", True),
    ],
)
def test_what_is_elsewhere(location: str, elsewhere: bool) -> None:
    assert is_elsewhere(location) is elsewhere


def test_no_data_set_is_fetched_for_a_report(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gift(whole, tmp_path, env="Math-v0", env_kwargs={"dataset": "somebody/huge"})
    fetched: list[object] = []
    monkeypatch.setattr("envs.questions.problems.dataset_table", lambda *given: fetched.append(given))
    assert write_report(path).exists()
    assert not fetched
