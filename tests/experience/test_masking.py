"""No secret leaves the process, and no text steers the terminal."""

import base64
import csv
import html
import io
import json
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from agents.cli import run_command
from agents.config import SelfImproveConfig
from agents.run.folder import RunFolder, RunFolderError
from agents.run.resume import resumed, saved_config
from experience.masking import MASK, keep_secrets_of, masked
from experience.store import ExperienceStore
from experience.terminal import Terminal, shown
from experience.writer import MARKER, parse_items

KEY = 'sk-"to/p+se=cr&et<7>'


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "quoted": lambda text: urllib.parse.quote(text, safe=""),
    "quoted in small letters": lambda text: urllib.parse.quote(text, safe="").replace("%2F", "%2f"),
    "quoted as a form": urllib.parse.quote_plus,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 of a header": lambda text: base64.b64encode(f"user:{text}!".encode()).decode(),
    "base64 of another": lambda text: base64.b64encode(f"Bearer {text}".encode()).decode(),
    "JSON": json.dumps,
    "HTML": html.escape,
    "hex": lambda text: text.encode().hex(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_key_that_is_said_again_is_masked(form: str) -> None:
    said = FORMS[form](KEY)
    for text in (said, f"bad key {said}.", f"x{said}x"):
        assert MASK in masked(text)
        assert said[8:-8] not in masked(text)


@given(st.text(min_size=6, max_size=40), st.binary(max_size=4), st.binary(max_size=4))
def test_any_key_is_masked_in_base64(key: str, before: bytes, after: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        key = "k" + key.replace("\x00", "0").encode(errors="ignore").decode() + "ey-12"
        patch.setenv("SOME_TOKEN", key)
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            assert MASK in masked(encode(before + key.encode() + after).decode())


@pytest.mark.parametrize(
    ("name", "value", "is_secret"),
    [
        ("VLLM_API_KEY", "vllm-key-1", True),
        ("HF_TOKEN", "hf_abcdefg", True),
        ("PGPASSWORD", "hunter22", True),
        ("MYSQL_PWD", "hunter22", True),
        ("AWS_SECRET_ACCESS_KEY", "abcDEF/123", True),
        ("my_secret", "abcdefgh", True),
        ("PWD", "/home/somebody", False),
        ("OPENAI_API_KEY", "none", False),
        ("SOME_TOKEN", "12345678", False),
        ("TOKENIZERS_PARALLELISM", "false-or-true", False),
        ("HOME", "/home/somebody", False),
    ],
)
def test_which_variables_hold_secrets(
    name: str, value: str, is_secret: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert (masked(f"it is {value}.") == f"it is {MASK}.") is is_secret


def test_a_proxys_password_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://somebody:pass%2Fword@proxy:3128")
    assert masked("407 for pass/word") == f"407 for {MASK}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pw@host/v1", "http://***@host/v1"),
        ("see https://key@host:1/v1?x=1.", "see https://***@host:1/v1?x=1."),
        ("http://host/v1?api_key=abc&x=1", "http://host/v1?api_key=***&x=1"),
        ("http://host/?x=1&access_token=a#b", "http://host/?x=1&access_token=***#b"),
        ("postgresql+psycopg://me:pw@host/x", "postgresql+psycopg://me:***@host/x"),
        ("postgresql+psycopg://me@host/x?password=pw", "postgresql+psycopg://me@host/x?password=***"),
        ("sqlite:////data/a@b.db", "sqlite:////data/a@b.db"),
        ("mail me@host", "mail me@host"),
        ("max_tokens=3", "max_tokens=3"),
        ("git+https://token@host/x", "git+https://***@host/x"),
        ("(1://a:pw@host)", "(1://a:***@host)"),
    ],
)
def test_urls(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    [
        *("a." * 100_000 + "://", "x://" * 50_000, "http://" + "a" * 200_000, "?" + "key" * 60_000 + "://"),
        *(
            "\x1bP" * 100_000,
            "\x9d" * 200_000,
            "\x1b]a\x1b" * 50_000,
            "\x1b[" + "0" * 200_000,
            "\x1b" + " " * 200_000,
        ),
    ],
)
def test_no_text_takes_long_to_show(text: str) -> None:
    assert "\x1b" not in shown(text)


def test_what_is_made_of_texts() -> None:
    value = {"key": "step1", "api_key": "x", "n": 3, "rate": 0.5, KEY: (KEY, [None, True])}
    assert masked(value) == {"key": "step1", "api_key": MASK, "n": 3, "rate": 0.5, MASK: (MASK, [None, True])}


def test_a_secret_of_a_url_is_masked_elsewhere_too() -> None:
    keep_secrets_of("http://someuser:pass%20word@host/v1?api_key=querykey")
    assert masked("no: someuser, pass word, pass%20word, querykey") == "no: ***, ***, ***, ***"


def test_files_of_a_run(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", {"insight_url": f"http://u:{KEY[4:7]}@h/v1", "x": KEY}) as folder:
        folder.log("a", reason=f"said {KEY}")
        folder.write_json("results.json", {"a": [KEY]})
        folder.write_text("x.txt", base64.b64encode(KEY.encode()).decode())
    files = [path for path in (tmp_path / "run").iterdir() if path.name != ".lock"]
    assert len(files) == 4
    for path in files:
        text = path.read_text()
        assert not any(form(KEY) in text for form in FORMS.values())
        assert MASK in text


def test_the_store(tmp_path: Path) -> None:
    with ExperienceStore(tmp_path / "x.db") as store:
        store.finish_phase("context", f"with {KEY} in it")
        assert store.result("context") == f"with {MASK} in it"
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.iterdir())


def test_an_insight() -> None:
    assert parse_items(f"{MARKER} The key of it all is {KEY.replace('<7>', '')}<7>.") == [
        f"The key of it all is {MASK}."
    ]


def test_a_run_goes_on_with_a_url_whose_secret_it_did_not_write_down(tmp_path: Path) -> None:
    config = SelfImproveConfig(insight_url="http://me:password9@localhost:1/v1", insight_model="m")
    from agents.run.run import _jsonable

    RunFolder.create(tmp_path / "run", _jsonable(config)).close()
    assert "password9" not in (tmp_path / "run" / "config.json").read_text()
    saved = saved_config(tmp_path / "run")
    assert saved.insight_url == "http://***@localhost:1/v1"
    going_on = resumed(SelfImproveConfig(insight_url=config.insight_url, insight_model="m"), tmp_path / "run")
    assert going_on.insight_url == config.insight_url


# --- the terminal --------------------------------------------------------------------------------

STEERING = {
    "clear screen": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "clipboard, ended otherwise": "\x1b]52;c;ZXZpbA==\x1b\\",
    "link": "\x1b]8;;http://evil.example.org\x1b\\",
    "8-bit CSI": "\x9b2J",
    "8-bit OSC": "\x9d0;owned\x9c",
    "device control": "\x1bP+q544e\x1b\\",
    "application": "\x1b_Gi=1\x1b\\",
    "reset": "\x1bc",
    "backspace": "\x08" * 4,
    "carriage return": "\r",
    "bell": "\x07",
    "bidi override": "\u202e",
    "bidi isolate": "\u2066",
    "arabic mark": "\u061c",
    "delete": "\x7f",
    "a cut-off sequence": "\x1b[",
    "a cut-off title": "\x1b]0;ow",
}


@pytest.mark.parametrize("kind", STEERING)
def test_no_text_steers_the_terminal(kind: str) -> None:
    file = io.StringIO()
    terminal = Terminal(file=file, width=200, force_terminal=True, color_system=None, legacy_windows=False)
    text = f"[bold]a[/x] {STEERING[kind]}b {KEY}"
    table = Table(text, title=text)
    table.add_row(text, Text(text))
    for thing in (text, Text(text, style="bold"), table):
        terminal.print(thing)
        terminal.print(thing, soft_wrap=True)
    with Progress(TextColumn("{task.description}", markup=False), console=terminal) as bar:
        bar.add_task(text)
    out = file.getvalue()
    for own in ("\x1b[?25l", "\x1b[?25h", "\x1b[1A", "\x1b[2K", "\x1b[1m", "\x1b[3m", "\x1b[0m"):
        out = out.replace(own, "")
    out = out.replace("\r", "") if kind != "carriage return" else out
    assert STEERING[kind].strip() not in out or not STEERING[kind].strip()
    assert "\x1b" not in out
    assert KEY not in out
    assert "[bold]a[/x]" in out


def test_errors_of_a_command_are_shown_safely(capsys: pytest.CaptureFixture[str]) -> None:
    def work(_: Console) -> None:
        raise RunFolderError(f"it said \x1b]0;owned\x07 {KEY}")

    assert run_command(work) == 2
    assert capsys.readouterr().err.strip() == f"error: it said  {MASK}"


def test_csv_is_written_without_secrets(tmp_path: Path) -> None:
    from evals.benchmark import _write

    _write(tmp_path, {"cells": [{"env": "x", "error": f"APIError: {KEY}"}], "methods": [], "pairs": []})
    [row] = csv.DictReader((tmp_path / "cells.csv").open())
    assert row["error"] == f"APIError: {MASK}"
    assert MASK in (tmp_path / "benchmark.json").read_text()
