"""Going on with a run: in which folder, with which settings, and what may differ."""

import dataclasses
import secrets
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.config import ARGUMENTS, MACHINE, PLANNED, SERVED, ConfigError, SelfImproveConfig, flag
from agents.policies.engines import engine_of
from agents.run.folder import RunFolderError, read_begun
from agents.run.inputs import check_inputs
from agents.run.reach import REACHING, check_reach, check_secrets
from distill.parallel import is_main_process
from evals.report import write_report
from experience.masking import masked


def default_output(env_id: str) -> Path:
    """``runs/<env>-<time>-<four letters>``: runs that start in one second have folders of their own."""
    name = env_id.replace("/", "-").replace(":", "-")
    return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def saved_config(path: Path) -> SelfImproveConfig:
    """The configuration of the run in ``path``.

    Raises:
        RunFolderError: There is none, or another version's.
    """
    # Whether code that comes with a model may run is for the one to say who opens the folder now.
    own = {"output": None, "resume": path, "trust_remote_code": False}
    try:
        return SelfImproveConfig(**{**read_begun(path).config, **own})
    except TypeError as error:
        raise RunFolderError(f"{path} was made by another version of opcd-gym: {error}") from error


def resumed(
    config: SelfImproveConfig, path: Path, *, explicit: bool = False, said: Collection[str] = ()
) -> SelfImproveConfig:
    """The saved configuration, for going on with the run in ``path``.

    Args:
        config: What was asked for now. The machine's settings are taken from it.
        path: The run's folder.
        explicit: Whether every value of ``config`` is meant but for ``REACHING``'s defaults; otherwise no
            default is: in Python nobody can tell what was given.
        said: Those of ``REACHING`` that are meant also where they are the default.

    Raises:
        ConfigError: It contradicts the run, or lacks a secret of its.
    """
    saved = saved_config(path)
    defaults = SelfImproveConfig() if explicit else SelfImproveConfig.for_env(config.env)
    changes = {}
    for name, was, now in differences(saved, config):
        if (not explicit or name in REACHING) and name not in said and now == getattr(defaults, name):
            continue
        if not may_differ(name, was, now):
            raise ConfigError(
                f"{flag(name)} {now} differs from the run in {path}, "
                f"which has {was}: resume without it, or start another run"
            )
        changes[name] = now
    whole = dataclasses.replace(saved, **changes)
    check_secrets(whole, path)
    check_reach(whole, path, {n for n in REACHING if getattr(config, n) == getattr(whole, n)})
    return whole


def may_differ(name: str, was: Any, now: Any) -> bool:
    """Whether what is computed stays the same when this setting changes: the machine's, or other servers.

    So it does where other numbers of processes share an engine. What was saved may also be the same without
    its secret.
    """
    if name == "policy" and (before := engine_of(was)) and (after := engine_of(now)):
        return before[0] == after[0]
    return name in MACHINE or (name in SERVED and "://" in was and "://" in now) or was == masked(now)


def differences(saved: SelfImproveConfig, asked: SelfImproveConfig) -> Iterator[tuple[str, Any, Any]]:
    """Name, saved and asked value of every setting that differs, but for the folder."""
    for field in dataclasses.fields(SelfImproveConfig):
        was, now = getattr(saved, field.name), getattr(asked, field.name)
        if was != now and field.name not in ARGUMENTS:
            yield field.name, was, now


def settled(config: SelfImproveConfig, saved: SelfImproveConfig) -> dict[str, Any]:
    """What ``auto`` had turned out to be in a run, for the settings that are ``auto`` now."""
    return {name: getattr(saved, name) for name in ("precision", "policy") if getattr(config, name) == "auto"}


def begun(config: SelfImproveConfig, path: Path) -> SelfImproveConfig:
    """The run of an experiment, or the rest of it if it was begun in ``path``, on the machine of now.

    Raises:
        ConfigError: What is there was begun with other settings.
        RunFolderError: It was begun by another version.
    """
    if not (path / "config.json").exists():
        return config
    saved = saved_config(path)
    of_plan = PLANNED if config.minutes is not None and config.minutes == saved.minutes else ()
    planned = {name: getattr(saved, name) for name in of_plan}
    config = dataclasses.replace(config, **settled(config, saved), **planned)
    for name, was, now in differences(saved, config):
        if not may_differ(name, was, now):
            raise ConfigError(f"{path} was begun with {name} {was}, not {now}: take another --output")
    check_inputs(config, path)
    return resumed(config, path, explicit=True)


def finish(config: SelfImproveConfig, path: Path, run: Callable[[SelfImproveConfig], object]) -> None:
    """Run one run of an experiment in ``path``: from its beginning, from where it stopped, or not again.

    ``run`` is how: ``self_improve`` with a config that is settled.

    Raises:
        ConfigError: See ``begun``, or what ``run`` raises.
    """
    to_run = begun(config, path)
    if not (path / "results.json").exists():
        run(to_run if to_run.resume else dataclasses.replace(to_run, output=path))
    elif is_main_process() and not (path / "report.html").exists():  # a kill between the two
        write_report(path, config.store)
