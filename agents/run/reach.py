"""What a run reaches beyond this machine and this package: no folder does so by its own word."""

import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from agents.config import SERVED, ConfigError, SelfImproveConfig, flag
from envs.adapters import ADAPTERS
from experience.addresses import is_elsewhere
from experience.masking import MASK

REACHING = (*SERVED, "insight_url", "store", "tracker", "env")
"""Settings by which a run reaches other machines, or other people's code."""


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


def check_secrets(config: SelfImproveConfig, path: Path) -> None:
    """Make sure that no secret is missing, which its folder does not hold: the env would be another one.

    Raises:
        ConfigError: One is, and has to be given again.
    """
    for name in ("env_kwargs", "chat_template_kwargs"):
        if MASK in json.dumps(getattr(config, name)):
            raise ConfigError(f"{path} keeps no secrets: give {flag(name)} again, as the run was given it")


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
