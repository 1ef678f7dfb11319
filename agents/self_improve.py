"""The whole method, from an untrained agent to a report.

python -m agents.self_improve --env FrozenLake-v1
"""

import argparse
import dataclasses
import json
import secrets
import sys
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from agents.cli import run_command
from agents.config import MACHINE, ConfigError, SelfImproveConfig
from agents.measurement import measure
from agents.reflection import Learning
from agents.run.folder import RunFolderError, check_free, read_config
from agents.run.run import Session
from agents.training import Consolidation
from distill.parallel import Ranks, is_main_process
from evals.report import print_summary, write_report
from experience.addresses import is_elsewhere
from experience.context import NO_CONTEXT, Context
from experience.masking import MASK, masked
from experience.terminal import Terminal

__all__ = ["SelfImproveConfig", "self_improve"]

URLS = ("vllm_url", "teacher_url")
"""Settings that a command line adds to."""
REACHING = (*URLS, "insight_url", "store", "tracker", "env")
"""Settings by which a run reaches other machines, or other people's code."""


def self_improve(config: SelfImproveConfig, console: Console | None = None) -> dict[str, Any]:
    """Run the method; returns what ``results.json`` holds.

    Args:
        config: What to do.
        console: Where to report progress; by default standard error.

    Raises:
        Exception: One of ``agents.cli.USER_ERRORS``, with a message for the user.
    """
    ranks = Ranks.connect(config.device)
    path = config.resume or config.output or default_output(config.env)
    if config.resume is not None:
        config = resumed(config, path)
    elif ranks.is_main:
        check_free(path)
    console = (console or Terminal(stderr=True)) if ranks.is_main else Console(quiet=True)
    trained: Context | None = None
    session = Session(config, path, console=console, ranks=ranks)
    learning = Learning(session)  # after this, what is given can be used: now it may leave a folder
    with session:
        consolidation = Consolidation(session)
        for round_number in range(1, config.rounds + 1):
            learning.collect(round_number)  # play
            candidates = learning.reflect(round_number)  # draw insights from the traces
            context = learning.gate(round_number, candidates)  # which of them help on held-out episodes?
            if context is not None:
                consolidation.distil(round_number, context)  # then train them into the weights
                trained = context
        consolidation.use_best()
        session.save_model()
        learning.settle_on(trained)
        results = measure(session, trained or (candidates or [NO_CONTEXT])[0])  # before and after, on test
    if ranks.is_main:
        write_report(path, config.store)
    return results


def default_output(env_id: str) -> Path:
    """``runs/<env>-<time>-<four letters>``: runs that start in one second have folders of their own."""
    name = env_id.replace("/", "-").replace(":", "-")
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def saved_config(path: Path) -> SelfImproveConfig:
    """The configuration of the run in ``path``.

    Raises:
        RunFolderError: There is none, or another version's.
    """
    saved = read_config(path)
    try:
        tuples = {"eval_temperature": tuple(saved["eval_temperature"])}
        tuples |= {name: tuple(saved.get(name, ())) for name in URLS}
        names = ("insight_prompts", "context_file", "vllm_weights")
        paths = {name: saved.get(name) and Path(saved[name]) for name in names}
        # Whether code that comes with a model may run is for the one to say who opens the folder now.
        own = {"output": None, "resume": path, "trust_remote_code": False}
        return SelfImproveConfig(**{**saved, **tuples, **paths, **own})
    except (TypeError, KeyError) as error:
        raise RunFolderError(f"{path} was made by another version of opcd-gym: {error}") from error


def resumed(config: SelfImproveConfig, path: Path, *, explicit: bool = False) -> SelfImproveConfig:
    """The saved configuration, for going on with the run in ``path``.

    Args:
        config: What was asked for now. The machine's settings are taken from it.
        path: The run's folder.
        explicit: Whether every value of ``config`` is meant but for ``REACHING``'s defaults; otherwise no
            default is.

    Raises:
        ConfigError: It contradicts the run.
    """
    saved = saved_config(path)
    defaults = SelfImproveConfig() if explicit else SelfImproveConfig.for_env(config.env)
    changes = {}
    for name, was, now in differences(saved, config):
        if (not explicit or name in REACHING) and now == getattr(defaults, name):
            continue
        if name not in MACHINE and was != masked(now):
            raise ConfigError(
                f"--{name.replace('_', '-')} {now} differs from the run in {path}, "
                f"which has {was}: resume without it, or start another run"
            )
        if name == "teacher_url" and not was:
            raise ConfigError(f"the run in {path} has its teacher in its own process: start another run")
        changes[name] = now
    settled = dataclasses.replace(saved, **changes)
    asked = {name for name in REACHING if getattr(config, name) == getattr(settled, name)}
    check_reach(settled, path, asked)
    return settled


def check_reach(config: SelfImproveConfig, path: Path, asked: Collection[str] = ()) -> None:
    """Make sure that no folder by its own word sends a key elsewhere, or has a module imported.

    Args:
        config: As it would be used.
        path: The folder that it comes from, which may be anybody's.
        asked: Those of ``REACHING`` that the user has named now.

    Raises:
        ConfigError: A setting reaches further than this machine, or to code, and was not asked for.
    """
    for name, value in reach(config):
        is_code = name == "env"
        # Code that this process runs already was asked for.
        is_known = is_code and (config.trust_remote_code or value.partition(":")[0] in sys.modules)
        if name in asked or is_known:
            continue
        flag = f"--{name.replace('_', '-')} {value}"
        raise ConfigError(
            f"the run in {path} {'imports code' if is_code else 'reaches other machines'} by {flag}: if you "
            f"trust the folder, give {'--trust-remote-code' if is_code else flag + ' again'}"
        )


def reach(config: SelfImproveConfig) -> Iterator[tuple[str, str]]:
    """Name and value of each setting by which a run reaches other machines, or other people's code."""
    for name in ("vllm_url", "teacher_url", "insight_url", "store"):
        value = getattr(config, name) or ()
        for url in [value] if isinstance(value, str) else value:
            if is_elsewhere(url) or MASK in url:  # its secret is not in the folder
                yield name, url
    if config.tracker in ("wandb", "trackio"):
        yield "tracker", config.tracker
    if ":" in config.env:
        yield "env", config.env


def differences(saved: SelfImproveConfig, asked: SelfImproveConfig) -> Iterator[tuple[str, Any, Any]]:
    """Name, saved and asked value of every setting that differs, but for the folder."""
    for field in dataclasses.fields(SelfImproveConfig):
        was, now = getattr(saved, field.name), getattr(asked, field.name)
        if was != now and field.name not in ("output", "resume"):
            yield field.name, was, now


def begun(config: SelfImproveConfig, path: Path) -> SelfImproveConfig:
    """The run of an experiment, or the rest of it if it was begun in ``path``, on the machine of now.

    Raises:
        ConfigError: What is there was begun with other settings.
        RunFolderError: It was begun by another version.
    """
    if not (path / "config.json").exists():
        return config
    saved = saved_config(path)
    settled = {name: getattr(saved, name) for name in ("compute_dtype", "policy")}  # what ``auto`` is
    config = dataclasses.replace(config, **settled)
    for name, was, now in differences(saved, config):
        if name not in MACHINE and was != masked(now):
            raise ConfigError(f"{path} was begun with {name} {was}, not {now}: take another --output")
    return resumed(config, path)


def finish(config: SelfImproveConfig, path: Path, run: Callable[[SelfImproveConfig], object]) -> None:
    """Run one run of an experiment in ``path``: from its beginning, from where it stopped, or not again.

    Args:
        config: What to run.
        path: Its folder.
        run: How, such as ``self_improve``.

    Raises:
        ConfigError: See ``begun``, or what ``run`` raises.
    """
    to_run = begun(config, path)
    if not (path / "results.json").exists():
        run(to_run if to_run.resume else dataclasses.replace(to_run, output=path))
    elif is_main_process() and not (path / "report.html").exists():  # a kill between the two
        write_report(path, config.store)


def parse_args(args: list[str] | None = None) -> SelfImproveConfig:
    """The command line as a configuration; with ``--resume``, the saved one.

    Raises:
        RunFolderError: ``--resume`` names no run.
        ConfigError: A flag contradicts the run to be resumed, or has no sense.
    """
    env = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    env.add_argument("--env", default=SelfImproveConfig().env)
    defaults = SelfImproveConfig.for_env(env.parse_known_args(args)[0].env)
    config = tyro.cli(SelfImproveConfig, args=args, default=defaults, prog="python -m agents.self_improve")
    if config.resume is None:
        return config
    # Parsed again over the saved values, so that only flags that were really given can differ from them.
    # Servers that are given replace the saved ones and are not added to them.
    saved = saved_config(config.resume)
    without = dataclasses.replace(saved, **{name: getattr(SelfImproveConfig(), name) for name in REACHING})
    given = tyro.cli(SelfImproveConfig, args=args, default=without)
    return resumed(given, config.resume, explicit=True)


def main() -> int:
    """The command; returns its exit code."""
    path: Path | None = None

    def work(console: Console) -> None:
        nonlocal path
        config = parse_args()
        path = config.resume or config.output or default_output(config.env)
        results = self_improve(config if config.resume else dataclasses.replace(config, output=path), console)
        if is_main_process() and config.json:
            print(json.dumps(masked({"run": str(path), **results})))
        elif is_main_process():
            print_summary(results, path)

    def how_to_go_on() -> str:
        if path is None or not (path / "config.json").exists():
            return ""
        again = "".join(f" --{name.replace('_', '-')} {value}" for name, value in reach(saved_config(path)))
        return f"Nothing finished is lost. Go on with: python -m agents.self_improve --resume {path}{again}"

    return run_command(work, how_to_go_on)


if __name__ == "__main__":
    sys.exit(main())
