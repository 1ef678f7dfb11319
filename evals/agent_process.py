"""Questions to the agents, each in a process of its own: agents/asked.py has the answers.

A process's memory is measured by itself, and a crash takes nothing along. It ends with its asker: its
standard input is closed when the asker dies, in whatever way.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from evals.command import EvalError
from experience.text import printable

AGENTS = "agents.asked"
"""The module that answers."""

Settings = Mapping[str, Any]
"""Of a run, by name, as JSON has them."""


class AgentError(EvalError):
    """The agents could not answer; the message says why."""

    def __init__(self, problem: str, kind: str = "AgentError") -> None:
        super().__init__(problem)
        self.kind = kind
        """The name of the error's class there."""


def check(runs: Sequence[Settings]) -> list[dict[str, Any] | None]:
    """What is wrong with the settings of each run, beside a run that its ``output`` holds already.

    Returns:
        For each ``None``, or the ``setting``, if it is one, and the ``problem``.
    """
    answers: list[dict[str, Any] | None] = ask("check", runs) if runs else []
    return answers


def run(settings: Settings, finished: Sequence[str] = ()) -> None:
    """Run a run in its ``output``, or go on with it.

    Args:
        settings: The run's.
        finished: The folders of runs from which it may take what it has in common with them.

    Raises:
        AgentError: It failed.
    """
    ask("run", {"settings": dict(settings), "finished": list(finished)})


def ask(what: Literal["check", "run", "exam"], question: Any) -> Any:
    """Ask a new process a question of ``agents.asked``, which JSON can hold.

    Raises:
        AgentError: It could not answer, or died.
    """
    command = [sys.executable, "-m", AGENTS, what]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            try:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
                lines = process.stdout.read().splitlines()
            except BrokenPipeError:  # it died before it had read all
                lines = []
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()  # what interrupted this process may not have reached that one
            process.wait()
            raise
    if code == 130:
        raise KeyboardInterrupt
    if code != 0 or not lines:
        raise AgentError(f"the agents' process died with exit code {code}: was the memory enough?")
    reply = json.loads(lines[-1])
    if "error" in reply:
        raise AgentError(" ".join(printable(reply["error"]).split()), reply["kind"])
    return reply["answer"]
