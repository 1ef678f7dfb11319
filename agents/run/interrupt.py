"""Ctrl-C that waits."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block: half an optimiser step could not be saved.

    Then they come as if they came there: whoever handles them may have more to say, or ignore them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals do not come here
        return
    pending: list[int] = []
    handlers = {
        number: signal.signal(number, lambda signum, frame: pending.append(signum))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for came in pending:
        signal.raise_signal(came)
