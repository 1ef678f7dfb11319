"""How a process answers the program that started it: a line of JSON in, a line of JSON out.

The question is the first line of standard input, which stays open as long as the asker lives: the process
ends with it. The last line of standard output is ``{"answer": ...}``, or ``{"error": text, "kind": name of
its class}``. Whatever else is printed, by an env or a library, goes to standard error.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from experience.masking import masked
from experience.terminal import guard_standard_error, take_standard_output

GRACE_SECONDS = 60
"""What a process that was left alone may take to end in good order."""


def answer(work: Callable[[Any], Any], expected: tuple[type[Exception], ...] = ()) -> int:
    """Answer the question; returns the process's exit code.

    Args:
        work: Question -> answer, both as JSON has them.
        expected: Errors that are no bugs, and come without a stack trace.
    """
    to_asker = take_standard_output()
    guard_standard_error()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as good as Ctrl-C
    try:
        question = json.loads(sys.stdin.buffer.readline())
        threading.Thread(target=_end_with_the_asker, daemon=True).start()
        reply = {"answer": work(question)}
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not isinstance(error, expected):
            sys.excepthook(type(error), error, error.__traceback__)
        reply = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(masked(reply)), file=to_asker, flush=True)
    return 0


def _end_with_the_asker() -> None:
    """When nobody holds standard input any more, end as by Ctrl-C, and if that takes too long, at once."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(130)
