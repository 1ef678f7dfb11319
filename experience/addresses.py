"""Addresses: whether one leads to another machine, and to the same place from another folder."""

import ipaddress
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

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
