"""Going on with a run: in which folder, with which settings, and what may differ."""

import dataclasses
import secrets
import sys
from collections.abc import Callable, Collection, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.config import ARGUMENTS, MACHINE, PLANNED, SERVED, ConfigError, SelfImproveConfig, flag
from agents.policies.engines import engine_of
from agents.run.folder import RunFolderError, read_config
from agents.run.inputs import check_inputs
from distill.parallel import is_main_process
from envs.adapters import ADAPTERS
from evals.report import write_report
from experience.addresses import is_elsewhere
from experience.masking import MASK, masked

REACHING = (*SERVED, "insight_url", "store", "tracker", "env")
"""Settings by which a run reaches other machines, or other people's code."""


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
        return SelfImproveConfig(**{**read_config(path), **own})
    except TypeError as error:
        raise RunFolderError(f"{path} was made by another version of opcd-gym: {error}") from error


def resumed(config: SelfImproveConfig, path: Path, *, explicit: bool = False) -> SelfImproveConfig:
    """The saved configuration, for going on with the run in ``path``.

    Args:
        config: What was asked for now. The machine's settings are taken from it.
        path: The run's folder.
        explicit: Whether every value of ``config`` is meant but for ``REACHING``'s defaults; otherwise no
            default is: in Python nobody can tell what was given.

    Raises:
        ConfigError: It contradicts the run.
    """
    saved = saved_config(path)
    defaults = SelfImproveConfig() if explicit else SelfImproveConfig.for_env(config.env)
    changes = {}
    for name, was, now in differences(saved, config):
        if (not explicit or name in REACHING) and now == getattr(defaults, name):
            continue
        if not may_differ(name, was, now):
            raise ConfigError(
                f"{flag(name)} {now} differs from the run in {path}, "
                f"which has {was}: resume without it, or start another run"
            )
        changes[name] = now
    whole = dataclasses.replace(saved, **changes)
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
        is_env, module = name == "env", value.partition(":")[0]
        is_code = is_env and module not in ADAPTERS
        # Code that this process runs already was asked for.
        is_known = is_code and module in sys.modules
        if name in asked or is_known or (is_env and config.trust_remote_code):
            continue
        does = "imports code" if is_code else "reaches other machines"
        given = f"{flag(name)} {value}"
        raise ConfigError(f"the run in {path} {does} by {given}: if you trust the folder, give {given} again")


def reach(config: SelfImproveConfig) -> Iterator[tuple[str, str]]:
    """Name and value of each setting by which a run reaches other machines, or other people's code."""
    urls = {"policy": config.policy_urls, "teacher": config.teacher_urls}
    urls |= {name: (value,) for name in ("insight_url", "store") if (value := getattr(config, name))}
    for name, given in urls.items():
        if any(is_elsewhere(url) or MASK in url for url in given):  # its secret is not in the folder
            yield name, getattr(config, name)
    if config.tracker in ("wandb", "trackio"):
        yield "tracker", config.tracker
    module, in_module, where = config.env.partition(":")
    if in_module and (module not in ADAPTERS or is_elsewhere(where)):
        yield "env", config.env


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
