"""What all commands have in common: which errors are the user's to mend, and how a command ends."""

from collections.abc import Callable

import transformers
from rich.console import Console

from agents.config import ConfigError
from agents.models import ModelError
from agents.run_folder import RunFolderError
from agents.vllm_policy import VLLMError
from distill.opcd import DistillError
from envs.words import EnvError
from experience.endpoint import EndpointError
from experience.extract import PromptsError
from experience.relevance import RelevanceError
from experience.store import StoreError

USER_ERRORS = (
    ConfigError,
    DistillError,
    EndpointError,
    EnvError,
    ModelError,
    PromptsError,
    RelevanceError,
    RunFolderError,
    StoreError,
    VLLMError,
)
"""What can go wrong without a bug of ours: one clear line, no stack trace."""


def run_experiment(
    work: Callable[[Console], None], interrupted: str = "interrupted; the same command goes on"
) -> int:
    """The command of an experiment, such as one over several runs; returns its exit code."""
    console = Console(stderr=True)
    transformers.utils.logging.disable_progress_bar()
    try:
        work(console)
    except KeyboardInterrupt:
        console.print(f"\n{interrupted}", style="bold")
        return 130
    except USER_ERRORS as error:
        console.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        return 2
    return 0
