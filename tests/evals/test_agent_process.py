"""Questions to a process of its own, which ends with its asker."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from evals import agent_process
from evals.agent_process import AgentError, ask


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_process, "AGENTS", "tests.evals.asked_worker")


def test_the_answer_is_all_that_is_read(capfd: pytest.CaptureFixture[str]) -> None:
    question = {"text": "\N{SNOWMAN}\n" * 100_000, "numbers": [1, 0.5, None]}
    assert ask("check", question) == question
    captured = capfd.readouterr()
    assert captured.err == "an env prints this\n"
    assert captured.out == ""


def test_what_went_wrong_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AgentError, match=r"^of several lines$") as error:
        ask("run", {"fail": "of\x1b[2J several\nlines\N{RIGHT-TO-LEFT OVERRIDE}"})
    assert error.value.kind == "ZeroDivisionError"
    assert "Traceback" in capfd.readouterr().err
    with pytest.raises(AgentError, match="died with exit code 9"):
        ask("run", {"die": 9})
    with pytest.raises(AgentError, match="died with exit code 0"):
        ask("run", {"die": 0})


def test_what_a_process_says_at_its_end_has_no_secret(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-hushhush")
    with pytest.raises(AgentError, match=r"^bad key \*\*\*$"):
        ask("run", {"fail": "bad key sk-hushhush\x1b[2J"})
    said = capfd.readouterr().err
    assert "ZeroDivisionError: bad key ***" in said
    assert "\x1b" not in said
    assert ask("check", {"echo": "sk-hushhush"}) == {"echo": "***"}


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 50  # the worker has 60 seconds' work
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interruption_reaches_the_run(tmp_path: Path) -> None:
    def interrupt() -> None:
        wait_for((tmp_path / "begun").exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        ask("run", {"wait": str(tmp_path)})
    assert (tmp_path / "interrupted").exists()


def test_a_run_ends_with_its_asker(tmp_path: Path) -> None:
    script = (
        "from evals import agent_process\n"
        "agent_process.AGENTS = 'tests.evals.asked_worker'\n"
        f"agent_process.ask('run', {{'wait': {str(tmp_path)!r}}})"
    )
    asker = subprocess.Popen([sys.executable, "-c", script])
    wait_for((tmp_path / "begun").exists)
    asker.kill()
    asker.wait()
    wait_for((tmp_path / "interrupted").exists)
    process = int((tmp_path / "begun").read_text())
    wait_for(lambda: not is_alive(process))


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
