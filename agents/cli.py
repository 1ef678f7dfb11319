"""The command line: how flags become settings, which errors are the user's to mend, how a command ends."""

import argparse
import dataclasses
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
import tyro
from rich.console import Console

from agents.config import (
    ConfigError,
    DistilSettings,
    ExperienceSettings,
    MeasuringSettings,
    ModelSettings,
    PlaySettings,
    RunSettings,
    SelfImproveConfig,
    flag,
)
from agents.policies.vllm.policy import VLLMError
from agents.run.folder import RunFolderError, is_disk_full
from agents.run.reach import REACHING
from agents.run.resume import resumed, saved_config
from agents.sharing import SharingError
from distill.lm.load import ModelError
from distill.lm.shards import PATIENCE
from distill.opcd import DistillError
from distill.parallel import is_lost_connection, is_main_process, lost_ranks
from envs.words import EnvError
from evals.command import EvalError
from experience import ExperienceError
from experience.terminal import Terminal, guard_standard_error, tell

USER_ERRORS = (
    ConfigError,
    DistillError,
    EnvError,
    EvalError,
    ExperienceError,
    ModelError,
    RunFolderError,
    SharingError,
    VLLMError,
)
"""What can go wrong without a bug of ours: one clear line, no stack trace."""


def run_command(
    work: Callable[[Console], None],
    how_to_go_on: Callable[[], str] = lambda: "Nothing finished is lost: the same command goes on",
) -> int:
    """Do a command's work, which gets a console for its progress; returns its exit code.

    ``how_to_go_on`` is what to advise when it was stopped, by the user or by the machine; may be nothing.
    """
    console = Terminal(stderr=True)
    guard_standard_error()
    signal.signal(signal.SIGTERM, _end)
    transformers.utils.logging.disable_progress_bar()
    can_go_on = True
    try:
        work(console if is_main_process() else Console(quiet=True))
        return 0
    except KeyboardInterrupt as interrupt:
        message, code = "\ninterrupted", 130
        if interrupt.args:
            message, code = _lost(interrupt.args), 3
    except USER_ERRORS as error:
        message, code = f"error: {error}", 2
        can_go_on = is_disk_full(error)  # others would end it in the same way
    except torch.OutOfMemoryError as error:
        reason = str(error).partition("\n")[0]
        message, code = f"error: out of memory (training takes less with a lower --max-nodes)\n{reason}", 2
    except Exception as error:
        if is_lost_connection(error):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which a launcher ends those that are left
            message, code = _lost(lost_ranks()), 3
        elif is_disk_full(error):
            message, code = "error: the disk is full", 2
        else:
            raise
    if code == 130 and not is_main_process():
        return code  # all are interrupted, and one says so
    tell(console, message, "bold red" if code != 130 else "bold")
    if can_go_on and (advice := how_to_go_on()):
        tell(console, advice)
    return code


def _end(*_: object) -> None:
    """A cluster's stop is as good as Ctrl-C; a launcher's comes where another process is gone already."""
    raise KeyboardInterrupt(*lost_ranks(0))


def _lost(ranks: Sequence[int]) -> str:
    unknown = f"unknown: it was on another machine, or has kept the others waiting for {PATIENCE}"
    which = ", ".join(map(str, ranks)) or unknown
    return f"error: another process of this run has died (rank {which})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """An agent plays, learns from its traces, and has what it learned trained into its weights.

    python -m agents.self_improve                                      Frozen Lake, in minutes on a laptop

    python -m agents.self_improve --env my_module:MyEnv-v0             any Gymnasium env

    python -m agents.self_improve --model Qwen/Qwen3-1.7B --lr 2e-6    another model

    python -m agents.self_improve --context-file advice.txt            a text of yours into the weights

    python -m agents.self_improve --resume runs/MY-RUN                 go on with a run
    """

    run: RunSettings
    play: PlaySettings
    experience: ExperienceSettings
    distil: DistilSettings
    models: ModelSettings
    measuring: MeasuringSettings
    json: bool = False
    """Print the results as one JSON object, and nothing else, on standard output."""
    push_to_hub: str | None = None
    """Share the model, and traces and insights as a data set, when the run has ended: the name of a
    repository, such as me/lake, or a new folder, such as ./shared."""

    @property
    def config(self) -> SelfImproveConfig:
        """The settings of all groups.

        Raises:
            ConfigError: They make no sense.
        """
        return SelfImproveConfig(
            **{name: value for group in GROUPS for name, value in vars(getattr(self, group)).items()}
        )

    @classmethod
    def parse(cls, args: Sequence[str] | None, default: SelfImproveConfig) -> "Command":
        """What a command line says; a flag that is left out is as in ``default``."""
        groups = {
            name: group(**{f.name: getattr(default, f.name) for f in dataclasses.fields(group)})
            for name, group in GROUPS.items()
        }
        return tyro.cli(
            cls,
            args=args,
            default=cls(**groups),
            prog="python -m agents.self_improve",
            config=(tyro.conf.OmitArgPrefixes,),
        )


GROUPS: dict[str, Any] = {
    field.name: field.type for field in dataclasses.fields(Command) if dataclasses.is_dataclass(field.type)
}
"""Name of a group of settings -> its class."""


def parse_command(args: Sequence[str] | None = None) -> tuple[SelfImproveConfig, Command]:
    """The command line as a configuration, with ``--resume`` the saved one; and as it was given.

    Raises:
        RunFolderError: ``--resume`` names no run.
        ConfigError: A flag contradicts the run to be resumed, or has no sense.
    """
    env = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    env.add_argument("--env", default=SelfImproveConfig().env)
    command = Command.parse(args, SelfImproveConfig.for_env(env.parse_known_args(args)[0].env))
    if command.run.resume is None:
        return command.config, command
    # Parsed again over the saved values, so that only flags that were really given can differ from them.
    # Servers and the like are to be given again, whatever the folder says.
    words = {word.partition("=")[0].replace("_", "-") for word in (sys.argv[1:] if args is None else args)}
    said = {name for name in REACHING if flag(name) in words}
    unsaid = {name: getattr(SelfImproveConfig(), name) for name in REACHING}
    saved = dataclasses.replace(saved_config(command.run.resume), **unsaid)
    given = Command.parse(args, saved).config
    return resumed(given, command.run.resume, explicit=True, said=said), command


def parse_args(args: Sequence[str] | None = None) -> SelfImproveConfig:
    """The settings alone; see ``parse_command``."""
    return parse_command(args)[0]
