"""The files that a run is made from, by what is in them: a name may stand for another text tomorrow."""

import hashlib
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from agents.config import ConfigError, SelfImproveConfig
from agents.run.folder import read_begun

WHOLE = 2**26
"""Of longer files, which are weights mostly, pieces are read: training leaves none of them as it was."""
PIECES, PIECE = 64, 2**16
"""At most this many files, of this many bytes together."""

MODEL_FILES = (".safetensors", ".gguf", ".json", ".jinja", ".txt", ".model", ".py")
"""What a model's folder holds of it; a run may write there too, or somebody else."""


def inputs(config: SelfImproveConfig) -> dict[str, str]:
    """The fingerprint of each file or model's folder that a setting names, by the setting.

    Raises:
        ConfigError: One cannot be read.
    """
    found = {}
    for name, path in _paths(config):
        try:
            if files := _files(name, path):
                found[name] = fingerprint(path, files)
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    return found


def check_inputs(config: SelfImproveConfig, path: Path, kept: Collection[str] = ()) -> None:
    """Make sure that the run in ``path`` goes on with what it was begun with.

    A user's own code may have been mended since, so it may differ.

    Args:
        config: The run's.
        path: Its folder.
        kept: Settings whose files are in the folder, so that they are not read again.

    Raises:
        ConfigError: A file has changed.
    """
    was, now, paths = read_begun(path).inputs, inputs(config), dict(_paths(config))
    for name in now.keys() - {"env", *kept}:
        if was.get(name, now[name]) != now[name]:
            raise ConfigError(
                f"{paths[name]} is not what {path} was begun with: put it back, or begin another run"
            )


def fingerprint(path: Path, files: Iterable[Path]) -> str:
    """A digest of files and of their names in ``path``."""
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()} {size}\n".encode())
        with file.open("rb") as stream:
            for number in range(PIECES if size > WHOLE else 1):
                stream.seek(number * (size - PIECE) // (PIECES - 1) if size > WHOLE else 0)
                digest.update(stream.read(PIECE if size > WHOLE else -1))
    return digest.hexdigest()


def _files(name: str, path: Path) -> list[Path]:
    """What a setting means by a path: a file, a folder of a model or of conversations; else it means none."""
    if path.is_file():
        return [path]
    if name == "env_kwargs file":
        return sorted(file for file in path.rglob("[!.]*") if file.is_file())
    is_model = name in ("model", "teacher", "insight_model")
    return sorted(file for file in path.glob("*") if file.suffix in MODEL_FILES) if is_model else []


def _paths(config: SelfImproveConfig) -> Iterator[tuple[str, Path]]:
    """What may be a file or a folder, by the setting."""
    named: Mapping[str, object] = {
        **{name: getattr(config, name) for name in ("model", "insight_model", "context_file")},
        "teacher": config.teacher_model,
        "insights": config.insight_prompts,
        "env": getattr(sys.modules.get(config.env.rpartition(":")[0]), "__file__", None),
        **{f"env_kwargs {name}": value for name, value in config.env_kwargs.items()},
    }
    for name, value in named.items():
        # Longer texts are no names of files.
        if isinstance(value, str | Path) and len(str(value)) < 1024 and "\0" not in str(value):
            yield name, Path(value)
