"""How the commands of this package end."""

import signal
from collections.abc import Callable

from rich.console import Console

from envs.words import EnvError
from experience import ExperienceError
from experience.terminal import Terminal, guard_standard_error, tell


class EvalError(ValueError):
    """What its user can mend: one clear line."""


def run_command(work: Callable[[Console], bool | None], how_to_go_on: str = "") -> int:
    """Do a command's work; returns its exit code.

    The work gets a console for its progress, and returns false where it has failed. When it was stopped,
    ``how_to_go_on`` is what to advise.
    """
    console = Terminal(stderr=True)
    guard_standard_error()
    # A cluster's stop is as good as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(work(console) is False)
    except KeyboardInterrupt:
        message, code = "\ninterrupted", 130
        if how_to_go_on:
            message += f"\n{how_to_go_on}"
    except (EvalError, EnvError, ExperienceError, OSError) as error:
        message, code = f"error: {error}", 2
    tell(console, message, "bold red")
    return code
