"""Somebody else's code: how long a call of it may take (``--env-timeout``), and whatever comes out of it."""

import importlib
import math
import os
import random
import signal
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from envs.any_text import clean

MAX_SECONDS = 86_400.0
"""The longest limit that can be set."""
HANGS_AFTER, HANGS_TIMES = 30.0, 10.0
"""By the clock nothing ends before these seconds, nor before this multiple of its limit of processor time."""
CLEANUP_SECONDS = 0.1
"""How long what was interrupted may clean up before it is interrupted again."""
INSIST_SECONDS = (1e-6, 3e-4)
"""From then on, drawn from so much to so much: what catches everything is soon met where it has just done so,
outside of its ``try``."""
MAX_ERROR_CHARS = 500
_OURS = ("agents", "distill", "envs", "evals", "experience")
_LIBRARIES = (
    *(str(Path(__file__).parents[1] / name) + os.sep for name in _OURS),
    *map(sysconfig.get_path, ("stdlib", "platlib", "purelib")),
)
"""Where code is that is no env's author's."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimit:
    """How long one call may take; 0 is no limit."""

    processor: float = 0.0
    """Seconds of this process's own processor time: they do not depend on what else the machine does."""
    clock: float = 0.0
    """Seconds by the clock, for what only waits; generous, since they do depend on it."""

    def __post_init__(self) -> None:
        if not all(0 <= seconds < math.inf for seconds in (self.processor, self.clock)):
            raise ValueError(f"a limit takes seconds from 0 up, not {self.processor} and {self.clock}")

    @classmethod
    def of(cls, seconds: float, share: float = 1.0) -> Self:
        """So much processor time, and a multiple of it by the clock; 0 is no limit.

        ``share`` is which part of a processor there is for it, where more processes run than there are.
        """
        clock = max(HANGS_AFTER, HANGS_TIMES * seconds) / min(share, 1.0)
        return cls(processor=seconds, clock=clock) if seconds else cls()


NO_LIMIT = TimeLimit()
CLEANUP = TimeLimit(processor=5.0, clock=10.0)
"""For what is of no interest any more, such as closing an env."""


class Closable(Protocol):
    """Such as an env."""

    def close(self) -> object:
        """Be closed."""


class EnvFault(Exception):  # noqa: N818  (the env's, not an error of ours)
    """What an env's code has raised, or that it took too long: one bounded line."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        """Say what went wrong, and whether it was the time."""
        super().__init__(message)
        self.timed_out = timed_out


class _TooLong(BaseException):
    """No ``Exception``: code that catches those does not catch it."""


def guarded(call: Callable[[], Result], limit: TimeLimit = NO_LIMIT) -> Result:
    """Call somebody else's code: whatever comes out of it but Ctrl-C, ``SystemExit`` included, is a fault.

    Where it changes the working directory, that is its own, which it finds again at the next call.

    Raises:
        EnvFault: It raised, or took longer than ``limit``; what it raised is the cause.
    """

    def described() -> Result:
        try:
            return call()
        except (KeyboardInterrupt, _TooLong):
            raise
        except BaseException as error:
            raise EnvFault(_line(error)) from error

    global _theirs
    ours = _directory()
    _go(_theirs)
    try:
        return _limited(described, limit)
    except _TooLong as error:
        raise EnvFault(str(error), timed_out=True) from None
    finally:
        found = _directory()
        _theirs = None if found == ours else found
        if found != ours:
            _go(ours)


_theirs: str | None = None
"""The working directory of somebody else's code, where it is not ours."""


def close_quietly(env: Closable) -> None:
    """Close what is of no interest any more, nor is what it does then."""
    with suppress(EnvFault):
        guarded(env.close, CLEANUP)


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # somebody has removed it
        return None


def _go(directory: str | None) -> None:
    if directory is not None:
        with suppress(OSError):
            os.chdir(directory)


def _line(error: BaseException) -> str:
    try:
        text = str(error)
    except (KeyboardInterrupt, _TooLong):
        raise
    except BaseException:  # its own code too
        text = ""
    line = " ".join(clean(f"{type(error).__name__}: {text}"[: 2 * MAX_ERROR_CHARS]).split())
    place = _place(error)
    return line.removesuffix(":")[: MAX_ERROR_CHARS - len(place)] + place


def _place(error: BaseException) -> str:
    """Where in its author's own code it was raised, such as " (my_env.py:12)"; nothing if in none."""
    frames = [*traceback.walk_tb(error.__traceback__)]
    for frame, line in reversed(frames):
        file = frame.f_code.co_filename
        if not file.startswith((*_LIBRARIES, "<")):
            return clean(f" ({Path(file).name[-100:]}:{line})")
    return ""


class _Watch:
    """One call and its time."""

    def __init__(self, limit: TimeLimit) -> None:
        self.limit = limit
        self.is_over = False
        self.reason = ""

    def interrupt(self, number: int) -> None:
        """Raise in the call, now and again until it ends."""
        if self.is_over:
            return
        pause = CLEANUP_SECONDS
        if self.reason:
            pause = math.exp(_DRAW.uniform(*map(math.log, INSIST_SECONDS)))
        elif number == signal.SIGPROF:
            self.reason = f"took longer than {self.limit.processor:g} s of processor time"
        else:
            self.reason = f"took longer than {self.limit.clock:g} s"
        signal.setitimer(signal.ITIMER_REAL, pause)
        raise _TooLong(self.reason)


_DRAW = random.Random(0)
_watch: _Watch | None = None
"""Of the innermost call under a limit."""


def _on_signal(number: int, _: Any) -> None:
    if _watch is not None:
        _watch.interrupt(number)


def _limited(call: Callable[[], Result], limit: TimeLimit) -> Result:
    """Interrupt ``call`` when its time is over, again and again until it ends.

    It works by signals, which cost microseconds and no thread: in a process's main thread on Unix, between
    Python instructions and in waiting system calls. Elsewhere, and in a loop inside C code, there is no
    limit. Timers that were set before go on afterwards.

    Raises:
        _TooLong: The time is over.
    """
    global _watch
    if (
        limit == NO_LIMIT
        or not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        return call()
    watch, outer = _Watch(limit), _watch
    handlers = [(number, _take_over(number)) for number in (signal.SIGALRM, signal.SIGPROF)]
    _watch = watch
    started, started_cpu = time.monotonic(), time.process_time()
    real, real_interval, cpu, cpu_interval = 0.0, 0.0, 0.0, 0.0
    try:
        real, real_interval = signal.setitimer(signal.ITIMER_REAL, limit.clock)
        cpu, cpu_interval = signal.setitimer(signal.ITIMER_PROF, limit.processor)
        return call()
    finally:
        watch.is_over = True  # the first instruction here: no interrupt comes before it
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _watch = outer
        for number, handler in handlers:
            if handler is not None:
                signal.signal(number, handler)
        if real:
            left = real - (time.monotonic() - started)
            signal.setitimer(signal.ITIMER_REAL, max(left, 1e-6), real_interval)
        if cpu:
            left = cpu - (time.process_time() - started_cpu)
            signal.setitimer(signal.ITIMER_PROF, max(left, 1e-6), cpu_interval)


_getsignal: Callable[[int], Any] = importlib.import_module("_signal").getsignal
"""Without ``signal``'s search for an enum's member: it is asked for at every step."""


def _take_over(number: int) -> Callable[[int, Any], object] | None:
    """Let a signal come here; returns whose it was, if anybody's. Taking it costs more than all the rest."""
    previous = _getsignal(number)
    if previous is _on_signal:
        return None
    signal.signal(number, _on_signal)
    return previous if callable(previous) else None
