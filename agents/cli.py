"""What all commands have in common: which errors are the user's to mend, and how a command ends."""

import signal
from collections.abc import Callable

import torch
import transformers
from rich.console import Console

from agents.config import ConfigError
from agents.policies.vllm.policy import VLLMError
from agents.run.folder import RunFolderError, is_disk_full
from distill.lm.load import ModelError
from distill.opcd import DistillError
from distill.parallel import is_lost_connection
from envs.words import EnvError
from experience import ExperienceError

USER_ERRORS = (
    ConfigError,
    DistillError,
    EnvError,
    ExperienceError,
    ModelError,
    RunFolderError,
    VLLMError,
)
"""What can go wrong without a bug of ours: one clear line, no stack trace."""


def run_command(
    work: Callable[[Console], None],
    how_to_go_on: Callable[[], str] = lambda: "Nothing finished is lost: the same command goes on",
) -> int:
    """Do a command's work; returns its exit code.

    Args:
        work: The work, which gets a console for its progress.
        how_to_go_on: What to advise when it was stopped, by the user or by the machine; may be nothing.
    """
    console = Console(stderr=True)
    # A cluster's stop is as good as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    transformers.utils.logging.disable_progress_bar()
    can_go_on = True
    try:
        work(console)
        return 0
    except KeyboardInterrupt:
        message, code = "\ninterrupted", 130
    except USER_ERRORS as error:
        message, code = f"error: {error}", 2
        can_go_on = is_disk_full(error)  # others would end it in the same way
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        message, code = f"error: out of memory (training takes less with a lower --max-nodes)\n{reason}", 2
    except Exception as error:
        if is_lost_connection(error):
            message, code = "error: another process of this run has died", 3
        elif is_disk_full(error):
            message, code = "error: the disk is full", 2
        else:
            raise
    console.print(
        message, style="bold red" if code != 130 else "bold", markup=False, highlight=False, soft_wrap=True
    )
    if can_go_on and (advice := how_to_go_on()):
        console.print(advice, markup=False, highlight=False, soft_wrap=True)
    return code
