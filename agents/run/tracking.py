"""A run's curves in the user's own experiment tracker, by accelerate's adapters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from agents.config import ConfigError, TrackerName


def check_available(name: TrackerName) -> None:
    """Make sure that the tracker can be used.

    Raises:
        ConfigError: Its package is missing.
    """
    if name not in [kind.value for kind in get_available_trackers()]:
        raise ConfigError(f"tracker {name} needs its package: pip install {name}")


class Tracker:
    """Sends each training step and validation to a tracker; ``metrics.jsonl`` remains the record."""

    def __init__(self, name: TrackerName, run: Path, config: Mapping[str, Any]) -> None:
        """Begin, or go on with, the run of this folder, into which TensorBoard's files go."""
        tracker_class = LOGGER_TYPE_TO_CLASS[name]
        where = {"logging_dir": str(run)} if tracker_class.requires_logging_directory else {}
        self._tracker: GeneralTracker = tracker_class(name if where else run.name, **where)
        self._tracker.start()
        plain = (str, int, float, bool)
        self._tracker.store_init_configuration(
            {key: value if isinstance(value, plain) else str(value) for key, value in config.items()}
        )

    def log(self, values: Mapping[str, Any]) -> None:
        """The numbers of a line of ``metrics.jsonl``, if it belongs to an optimiser step."""
        kind, step = values.get("kind"), values.get("step")
        if kind not in ("train", "validation") or step is None:
            return
        numbers = {
            f"{kind}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and name not in ("step", "round")
        }
        self._tracker.log(numbers, step=step)

    def close(self) -> None:
        """Send what is left."""
        self._tracker.finish()
