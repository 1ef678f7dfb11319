"""Going on with a run: in which folder, with which settings, and what may differ."""

import dataclasses
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.config import MACHINE, SERVED, ConfigError, SelfImproveConfig
from agents.run.folder import RunFolderError, read_config
from distill.parallel import is_main_process
from evals.report import write_report


def default_output(env_id: str) -> Path:
    """``runs/<env>-<time>``."""
    name = env_id.replace("/", "-").replace(":", "-")
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def saved_config(path: Path) -> SelfImproveConfig:
    """The configuration of the run in ``path``.

    Raises:
        RunFolderError: There is none, or another version's.
    """
    try:
        return SelfImproveConfig(**{**read_config(path), "output": None, "resume": path})
    except TypeError as error:
        raise RunFolderError(f"{path} was made by another version of opcd-gym: {error}") from error


def resumed(config: SelfImproveConfig, path: Path, *, explicit: bool = False) -> SelfImproveConfig:
    """The saved configuration, for going on with the run in ``path``.

    Args:
        config: What was asked for now. The machine's settings are taken from it.
        path: The run's folder.
        explicit: Whether every value of ``config`` is meant; otherwise those that are defaults are not.

    Raises:
        ConfigError: It contradicts the run.
    """
    saved, defaults = saved_config(path), SelfImproveConfig.for_env(config.env)
    changes = {}
    for name, was, now in differences(saved, config):
        if not explicit and now == getattr(defaults, name):
            continue
        if not may_differ(name, was, now):
            raise ConfigError(
                f"--{name.replace('_', '-')} {now} differs from the run in {path}, "
                f"which has {was}: resume without it, or start another run"
            )
        changes[name] = now
    return dataclasses.replace(saved, **changes)


def may_differ(name: str, was: Any, now: Any) -> bool:
    """Whether what is computed stays the same when this setting changes: the machine's, or other servers."""
    return name in MACHINE or (name in SERVED and "://" in was and "://" in now)


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
    asked = ("compute_dtype", "policy")
    settled = {name: getattr(saved, name) for name in asked if getattr(config, name) == "auto"}
    config = dataclasses.replace(config, **settled)
    for name, was, now in differences(saved, config):
        if not may_differ(name, was, now):
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
