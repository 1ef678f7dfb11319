"""Files and folders that are there whole, or not at all."""

import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from glob import escape
from pathlib import Path

DAY = 24 * 3600.0
"""Seconds after which nobody on another machine is still writing what he has not touched."""
_UNFINISHED = re.compile(r"\.([0-9a-f]{8})\.(\d{1,9})\.[0-9a-f]{8}\.opcd\.tmp$")
"""What ends the name of what is being written: where, by which process, at random."""


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Where to write a file or a folder, which then is at ``target``, in place of a file that was there.

    Until then it has a name of its own, also where others write the same. What killed processes left is
    removed.
    """
    for other in target.parent.glob(f".{escape(target.name)}.*.opcd.tmp"):
        with suppress(OSError):  # somebody else removes it, or may
            if _is_left(other):
                _remove(other)
    own = f"{_here()}.{os.getpid()}.{secrets.token_hex(4)}"
    tmp = target.with_name(f".{target.name}.{own}.opcd.tmp")
    try:
        yield tmp
        os.replace(tmp, target)
    finally:
        _remove(tmp)


def _is_left(path: Path) -> bool:
    """Whether nobody writes there any more. Of a process elsewhere its number says nothing."""
    if (found := _UNFINISHED.search(path.name)) is None:
        return False
    if found[1] != _here():
        return time.time() - path.lstat().st_mtime > DAY
    try:
        os.kill(int(found[2]), 0)
    except ProcessLookupError:
        return True
    return False


@cache
def _here() -> str:
    """Where a process's number is its own: this machine since it was started, and the container in it."""
    try:
        names = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        names = platform.node()
    return hashlib.sha256(names.encode()).hexdigest()[:8]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
