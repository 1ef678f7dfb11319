"""The folder of one run: what is in it, written so that a kill at any moment leaves it whole."""

import errno
import importlib.metadata
import json
import platform
import resource
import secrets
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from agents.run.parts import Joined, Parts
from distill.lm.sealed import DamagedFileError, load_sealed, save_sealed
from evals.finished_run import DamagedMetricsError, read_metrics
from evals.run_files import Begun, check
from experience.masking import masked
from experience.whole import appearing

PACKAGES = ("opcd-gym", "gymnasium", "torch", "transformers", "numpy", "pandas", "sqlalchemy")
CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
"""All that the next step depends on, and the best weights so far."""
TRAIN_AGAIN = (
    f"To train again from the start, with the same outcome, remove {CHECKPOINT} and {BEST} from the folder "
    "and resume the run"
)


class RunFolderError(RuntimeError):
    """A folder that cannot be used; the message says why and what to do."""


class RunFolder(AbstractContextManager["RunFolder", None]):
    """``config.json``, ``metrics.jsonl``, checkpoints and results of one run.

    One process at a time holds it, by a lock that the system lets go when the process dies.
    """

    def __init__(self, path: Path) -> None:
        """Take hold of an existing folder; see ``create`` and ``open``.

        Raises:
            RunFolderError: Another process holds it, or it has links in it.
        """
        self.path = path
        self._lock = FileLock(path / ".lock")
        try:
            _check_links(path)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RunFolderError(f"another process is running in {path}") from error
        except OSError as error:
            raise RunFolderError(f"the run folder {path} cannot be used: {error.strerror}") from error
        self._logged: dict[str, dict[str, Any]] = self._read_metrics()
        self._seconds_before = max((entry["seconds"] for entry in self._logged.values()), default=0.0)
        self._started = time.monotonic()

    @classmethod
    def create(
        cls,
        path: Path,
        config: Mapping[str, Any],
        expected: Mapping[str, float] | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> Self:
        """Make a new run's folder.

        Args:
            path: Where.
            config: The settings.
            expected: What the run's parts take, in seconds, if anybody has measured.
            inputs: Fingerprints of the files that the settings name.

        Raises:
            RunFolderError: It holds another run, or cannot be made.
        """
        check_free(path)
        about = {
            "run_id": new_run_id(path),
            "config": dict(config),
            "inputs": dict(inputs or {}),
            "expected_seconds": expected,
            **provenance(),
        }
        make_folder(path)
        folder = cls(path)
        folder.write_json("config.json", about)
        return folder

    @classmethod
    def open(cls, path: Path) -> Self:
        """Go on in a run's folder.

        Raises:
            RunFolderError: It is not a run's folder.
        """
        read_begun(path)
        return cls(path)

    @property
    def run_id(self) -> str | None:
        """The run's name in a store that it shares; ``None`` in folders from before there were such."""
        return read_begun(self.path).run_id

    @property
    def expected_seconds(self) -> float | None:
        """What the whole run is expected to take, if anybody has measured."""
        expected = read_begun(self.path).expected_seconds
        return None if expected is None else sum(expected.model_dump().values())

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def seconds(self) -> float:
        """Time spent on the run, earlier sessions included."""
        return self._seconds_before + time.monotonic() - self._started

    # --- metrics -----------------------------------------------------------------------------

    def log(self, key: str, **values: Any) -> bool:
        """Append a line to ``metrics.jsonl``, unless one with this key is there; returns whether it did."""
        if key in self._logged:
            return False
        entry = {"key": key, "seconds": round(self.seconds, 3), **values}
        with clear_errors(self.path / "metrics.jsonl") as path, path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(masked(entry)) + "\n")
        self._logged[key] = entry
        return True

    @property
    def logged(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return list(self._logged.values())

    def _read_metrics(self) -> dict[str, dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return {}
        try:
            entries = read_metrics(path)
        except DamagedMetricsError as error:
            raise RunFolderError(f"{error}: remove that line") from error
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read: {error.strerror}") from error
        # Without what a kill in the middle of a write left: that is logged again.
        self.write_text("metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
        return {entry["key"]: entry for entry in entries}

    # --- files -------------------------------------------------------------------------------

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(masked(value), indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        self._write(name, lambda tmp: tmp.write_text(masked(text), "utf-8"))

    def save_tensors(self, name: str, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        """Write a safetensors file, whole or not at all, with ``about`` in its header."""
        self._write(name, lambda tmp: save_sealed(tensors, tmp, {"about": json.dumps(dict(about))}))

    def load_tensors(self, name: str) -> tuple[Mapping[str, torch.Tensor], dict[str, Any]] | None:
        """A file of ``save_tensors`` and its ``about``; ``None`` if there is none.

        Where others wrote parts of the tensors (``Parts``), they are put together, one when it is looked up.

        Raises:
            RunFolderError: It is damaged.
        """
        path = self.path / name
        if not path.exists():
            return None
        try:
            tensors, metadata = load_sealed(path)
            about = json.loads(metadata["about"])
            others = Parts.of(about.pop("parts", None), path).others
            return Joined([tensors, *(load_sealed(other)[0] for other in others)]), about
        except (DamagedFileError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = str(error) if isinstance(error, DamagedFileError) else f"{path} was not written by a run"
            raise RunFolderError(f"{reason}. {TRAIN_AGAIN}") from error

    def remove(self, *names: str) -> None:
        """Remove files, as far as they are there."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
            Parts(self.path / name).remove_others()

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        with clear_errors(self.path / name) as target, appearing(target) as tmp:
            write(tmp)


def new_run_id(path: Path) -> str:
    """A name for the run in a folder, which no other run has in a store that they share."""
    return f"{path.resolve().name}-{secrets.token_hex(4)}"


@contextmanager
def clear_errors(target: Path) -> Iterator[Path]:
    """Say what could not be written, and whether the disk is full.

    Raises:
        RunFolderError: In place of errors from files, safetensors and SQLite.
    """
    try:
        yield target
    except (OSError, SafetensorError, sqlite3.Error) as error:
        if is_disk_full(error):
            raise RunFolderError(f"the disk is full: {target} could not be written") from error
        raise RunFolderError(f"{target} could not be written: {error}") from error


def make_folder(path: Path) -> None:
    """Make a folder, and those that it stands in, where they are not there.

    Raises:
        RunFolderError: It cannot be made.
    """
    with _can_be_made(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def _can_be_made(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"{path} cannot be made: {error.strerror}: choose another --output") from error


def check_free(path: Path) -> None:
    """Make sure that a new run can be put at ``path``.

    Raises:
        RunFolderError: There is a run, or something else, or no folder can be made.
    """
    if (path / "config.json").exists():
        raise RunFolderError(
            f"{path} already holds a run: choose another --output, or go on with --resume {quote(str(path))}"
        )
    # A run that died before it had a config.json leaves a lock and half a file.
    if path.exists() and (
        not path.is_dir() or any(p.name != ".lock" and p.suffix != ".tmp" for p in path.iterdir())
    ):
        raise RunFolderError(f"{path} exists and is not empty: choose another --output")
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    # What may be written there cannot be told by its rights alone.
    with _can_be_made(path), TemporaryDirectory(prefix=".opcd-", suffix=".tmp", dir=there):
        pass


def _check_links(path: Path) -> None:
    """Make sure that what a run writes or appends in its folder, which may be anybody's, lands there."""
    for file in path.iterdir():
        if file.is_symlink() and file.suffix != ".tmp":  # which is removed before it is written
            raise RunFolderError(
                f"{file} is a link, by which a run could write elsewhere: put a copy of what it leads to in "
                "its place, or remove it"
            )


def read_results(path: Path) -> dict[str, Any] | None:
    """What ``results.json`` holds in a run's folder; ``None`` until the run has come to its end.

    Raises:
        RunFolderError: It is damaged.
    """
    file = path / "results.json"
    try:
        results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if not isinstance(results, dict | None):
            raise ValueError("it holds no results")
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{file} is damaged ({error}): put a whole copy in its place") from error
    return results


def read_begun(path: Path) -> Begun:
    """What ``config.json`` says in a run's folder.

    Raises:
        RunFolderError: It is not a run's folder.
    """
    try:
        return check(Begun, json.loads((path / "config.json").read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise RunFolderError(f"{path} is not the folder of a run: it has no config.json") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunFolderError(f"{path / 'config.json'} cannot be read: {error}") from error


def is_disk_full(error: BaseException) -> bool:
    """Whether ``error``, from a file, safetensors or SQLite, means that there is no space left."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error).lower()
    return "no space left" in text or "disk is full" in text or "os error 28" in text


def peak_rss_bytes() -> int:
    """The most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def provenance() -> dict[str, Any]:
    """What produced a run: time, git revision, versions, machine."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine(),
        "packages": versions,
    }


def machine() -> str:
    """What sums of floating-point numbers depend on: the processor and its threads, or the GPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    instructions, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    if torch.cpu._is_amx_tile_supported():
        instructions += " AMX"
    return f"{platform.machine()} {instructions}, {threads} thread{'s' * (threads != 1)}"


def _git_revision() -> str | None:
    """The toolkit's own commit, with ``+`` when there are changes on top; ``None`` outside its checkout."""
    here = Path(__file__).resolve().parents[2]

    def git(*command: str) -> str:
        arguments = ["git", "-C", str(here), *command]
        return subprocess.run(
            arguments, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here:
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None
