"""Files and folders that are there whole, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing(target: Path) -> Iterator[Path]:
    """Where to write a file or a folder, which then is at ``target``, in place of a file that was there.

    Until then it has a name that nobody else would give: what a killed process left of it is removed.
    """
    tmp = target.with_name(f".{target.name}.opcd.tmp")
    _remove(tmp)  # it may be a link to elsewhere
    try:
        yield tmp
        os.replace(tmp, target)
    finally:
        _remove(tmp)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
