"""Addresses of stores: where one leads, from any folder, and whether to another machine."""

import ipaddress
import json
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from experience import ExperienceError

_WHERE = {"host", "hostaddr", "service", "servicefile", "server", "dsn", "proxy"}
"""Options of a database's URL that name a machine in place of the one before the path."""


def absolute(location: str) -> str:
    """The same store from whichever folder: the path of a SQLite file, alone or in a URL, made absolute."""
    scheme, is_url, rest = location.partition("://")
    if not is_url:
        return location if location in ("", ":memory:") else str(Path(location).absolute())
    path, mark, options = rest.removeprefix("/").partition("?")
    is_relative = rest.startswith("/") and path and not path.startswith(("/", ":", "file:"))
    if scheme.partition("+")[0] != "sqlite" or not is_relative:
        return location
    return f"{scheme}:///{Path(path).absolute()}{mark}{options}"


def is_elsewhere(location: str) -> bool:
    """Whether a URL leads, or may lead, to another machine; a file's path never does."""
    scheme, is_url, _ = location.partition("://")
    if not is_url or scheme.partition("+")[0] == "sqlite":
        return False
    try:
        parts = urlsplit(location)
        host, options = parts.hostname, {name.lower() for name, _ in parse_qsl(parts.query)}
    except ValueError:
        return True
    if options & _WHERE:
        return True
    if not host:  # a database's socket, or the server that the user's own settings name
        return scheme in ("http", "https")
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True


def store_of(where: str | Path, given: str | None = None) -> tuple[str, str | None]:
    """The path or URL of a database, and the run's name in it, where a run's folder says it.

    Args:
        where: A run's folder, the path of a database, or its URL.
        given: The database, where a folder does not say it or keeps its password to itself.

    Raises:
        ExperienceError: A folder is no run's, or keeps its experience on another machine.
    """
    folder = Path(where)
    if "://" in str(where) or not folder.is_dir():
        return given or str(where), None
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        location, run_id = (
            None if value is None else str(value)
            for value in (about["config"].get("store"), about.get("run_id"))
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        location = run_id = None  # a folder with a database alone will do
    if not location and not (folder / "experience.db").exists():
        raise ExperienceError(
            f"{folder} is not a run's folder: it has no experience.db, nor a config.json with a store"
        )
    if given:
        return given, run_id
    if location and is_elsewhere(location):
        raise ExperienceError(
            f"the run in {folder} has its experience on another machine: if you trust the folder, give "
            f"--store {location}, or where there is none, that in place of the folder and --run {run_id}"
        )
    return location or str(folder / "experience.db"), run_id
