"""How far a run is: a bar on a terminal, and a line a minute where there is none, as in a cluster's logs."""

import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from experience.terminal import tell

EVERY = 60.0
"""Seconds between lines."""


class Bars:
    """The bars of one run, which come one after the other."""

    def __init__(self, console: Console, so_far: Callable[[], str]) -> None:
        """Begin to count the minutes; ``so_far`` says for the lines how far the whole run is."""
        self.console, self.so_far = console, so_far
        self.due = time.monotonic() + EVERY
        """When the next line is."""

    def bar(self, name: str, total: int) -> Progress:
        """A bar with one task."""
        bar = _Bar(self)
        bar.add_task(name, total=total, note="")
        return bar


class _Bar(Progress):
    """Of ``Bars``."""

    def __init__(self, bars: Bars) -> None:
        super().__init__(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=bars.console,
            transient=True,
            disable=not bars.console.is_terminal,
        )
        self._bars = bars
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """See ``Progress``."""
        super().start()
        if self.disable and not self._bars.console.quiet:
            # Of its own: one call of a model may take longer than a minute.
            self._thread = threading.Thread(target=self._tell, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """See ``Progress``."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        super().stop()

    def _tell(self) -> None:
        bars, [task] = self._bars, self.tasks
        while not self._ended.wait(max(0.0, bars.due - time.monotonic())):
            bars.due = time.monotonic() + EVERY
            parts = [f"{task.completed:.0f} of {task.total:.0f}", task.fields["note"], bars.so_far()]
            tell(bars.console, f"{task.description}: {'; '.join(filter(None, parts))}")
