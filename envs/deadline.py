"""A limit on how long somebody else's code may take."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def deadline(seconds: float) -> Iterator[Callable[[], object]]:
    """Interrupt what runs inside after so many seconds; 0 is no limit. What it gives starts them anew.

    It works by SIGALRM, which costs microseconds and no thread: in a process's main thread on Unix, between
    Python instructions and in waiting system calls. Elsewhere there is no limit. A timer that was set
    before goes on afterwards.

    Raises:
        TimeoutError: The time is over.
    """
    if (
        seconds <= 0
        or not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield lambda: None
        return

    def give_up(*_: object) -> NoReturn:
        raise TimeoutError(f"took longer than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    started = time.monotonic()
    remaining, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield lambda: signal.setitimer(signal.ITIMER_REAL, seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if remaining:
            elapsed = time.monotonic() - started
            signal.setitimer(signal.ITIMER_REAL, max(remaining - elapsed, 1e-6), interval)
