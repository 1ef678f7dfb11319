"""The whole method, from an untrained agent to a report.

python -m agents.self_improve --env FrozenLake-v1
"""

import dataclasses
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import transformers
import tyro
from rich.console import Console

from agents.config import ConfigError, SelfImproveConfig
from agents.models import ModelError
from agents.run_folder import RunFolderError, check_free, is_disk_full, read_config
from agents.session import Session
from distill.opcd import DistillError
from envs.text_env import EnvError
from evals.report import print_summary, write_report
from experience.store import StoreError

__all__ = ["SelfImproveConfig", "self_improve"]

USER_ERRORS = (ConfigError, DistillError, EnvError, ModelError, RunFolderError, StoreError)
"""What can go wrong without a bug of ours: one clear line, no stack trace."""


def self_improve(config: SelfImproveConfig, console: Console | None = None) -> dict[str, Any]:
    """Run the method; returns what ``results.json`` holds.

    Args:
        config: What to do.
        console: Where to report progress; by default standard error.

    Raises:
        Exception: One of ``USER_ERRORS``, with a message for the user.
    """
    path, resume = config.resume or config.output or default_output(config.env), config.resume is not None
    if not resume:
        check_free(path)
    with Session(config, path, resume=resume, console=console or Console(stderr=True)) as session:
        for round_number in range(1, config.rounds + 1):
            insights = session.collect(round_number)  # play, and draw insights from the traces
            if session.gate(round_number, insights):  # do they help on held-out episodes?
                session.distil(round_number, insights)  # then train them into the weights
        results = session.evaluate(insights)  # before and after, on test episodes
    write_report(path)
    return results


def default_output(env_id: str) -> Path:
    """``runs/<env>-<time>``."""
    name = env_id.replace("/", "-").replace(":", "-")
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def parse_args(args: list[str] | None = None) -> SelfImproveConfig:
    """The command line as a configuration; with ``--resume``, the saved one.

    Raises:
        RunFolderError: ``--resume`` names no run.
        ConfigError: A flag contradicts the run to be resumed.
    """
    config = tyro.cli(SelfImproveConfig, args=args, prog="python -m agents.self_improve")
    if config.resume is None:
        return config
    saved = read_config(config.resume)
    try:
        saved_config = SelfImproveConfig(
            **{**saved, "eval_temperature": tuple(saved["eval_temperature"]), "output": None, "resume": None}
        )
    except (TypeError, KeyError) as error:
        raise RunFolderError(f"{config.resume} was made by another version of opcd-gym: {error}") from error
    # Parsed again over the saved values: only flags that were really given can differ from them.
    given = tyro.cli(SelfImproveConfig, args=args, default=saved_config)
    for field in dataclasses.fields(SelfImproveConfig):
        was, now = getattr(saved_config, field.name), getattr(given, field.name)
        if field.name not in ("output", "resume") and was != now:
            raise ConfigError(
                f"--{field.name.replace('_', '-')} {now} differs from the run in {config.resume}, "
                f"which has {was}: resume without it, or start another run"
            )
    return dataclasses.replace(saved_config, resume=config.resume)


def main() -> int:
    """The command; returns its exit code."""
    console = Console(stderr=True)
    # A cluster's stop is as good as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    transformers.utils.logging.disable_progress_bar()
    path: Path | None = None
    try:
        config = parse_args()
        path = config.resume or config.output or default_output(config.env)
        results = self_improve(config if config.resume else dataclasses.replace(config, output=path), console)
    except KeyboardInterrupt:
        console.print("\ninterrupted", style="bold")
        _say_how_to_resume(console, path)
        return 130
    except USER_ERRORS as error:
        console.print(f"error: {error}", style="bold red", markup=False, highlight=False)
        if isinstance(error, (DistillError, StoreError)) or "disk" in str(error):
            _say_how_to_resume(console, path)
        return 2
    except Exception as error:
        if not is_disk_full(error):
            raise
        console.print("error: the disk is full", style="bold red")
        _say_how_to_resume(console, path)
        return 2
    print_summary(results, path)
    return 0


def _say_how_to_resume(console: Console, path: Path | None) -> None:
    if path is not None and (path / "config.json").exists():
        console.print(f"Nothing finished is lost. Go on with: python -m agents.self_improve --resume {path}")


if __name__ == "__main__":
    sys.exit(main())
