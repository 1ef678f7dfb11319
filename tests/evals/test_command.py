"""How the commands of evals end."""

import pytest
from rich.console import Console

from evals.command import EvalError, run_command


def test_an_error_shows_no_secret_and_steers_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-hushhush")

    def work(console: Console) -> None:
        console.print("the key is sk-hushhush\x1b[2J")
        raise EvalError("http://user:secret99@host refuses sk-hushhush\x1b]0;title\x07")

    assert run_command(work) == 2
    assert capsys.readouterr().err == "the key is ***\nerror: http://***@host refuses ***\n"
