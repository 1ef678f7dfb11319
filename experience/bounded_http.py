"""Answers of servers that may be anything: bounded in time and in size, and of the host that was asked."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

MAX_BYTES = 64 << 20
"""Of one answer, unpacked."""
Job = TypeVar("Job")
Result = TypeVar("Result")


class UnboundedAnswerError(RuntimeError):
    """An answer that takes too long, or too much room."""


def bounded_client(seconds: float, max_bytes: int = MAX_BYTES) -> Any:
    """An ``httpx`` client for ``openai.OpenAI``, which follows no redirect.

    The seconds are for the whole of an answer's body; a client's own time-out is for each piece of it.
    """
    import openai

    def read(response: Any) -> None:
        until, content = time.monotonic() + seconds, bytearray()
        for piece in response.iter_bytes():
            content += piece
            if len(content) > max_bytes:
                raise UnboundedAnswerError(f"its answer has more than {max_bytes:,} bytes")
            if time.monotonic() > until:
                raise UnboundedAnswerError(f"its answer had not ended after {seconds:g} s")
        response._content = bytes(content)  # where ``read`` leaves it

    return openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"response": [read]})


def in_time(call: Callable[[], Result], seconds: float) -> Result:
    """What ``call`` returns; it goes on in the background, and is forgotten, when it takes longer.

    Raises:
        TimeoutError: It takes longer.
        Exception: What it raises.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()  # which does not keep the process from ending
    return future.result(seconds)


def in_parallel(work: Callable[[Job], Result], jobs: Sequence[Job], threads: int) -> list[Result]:
    """What ``work`` makes of each job, in parallel; whatever ends it, it does not wait for the others.

    Raises:
        Exception: What one of the jobs raises; those that nobody has begun are left.
    """
    todo: SimpleQueue[tuple[Future[Result], Job]] = SimpleQueue()
    futures: list[Future[Result]] = [Future() for _ in jobs]
    for pair in zip(futures, jobs, strict=True):
        todo.put(pair)

    def serve() -> None:
        with suppress(Empty):
            while True:
                future, job = todo.get_nowait()
                try:
                    future.set_result(work(job))
                except BaseException as error:
                    future.set_exception(error)

    try:
        for _ in range(min(threads, len(jobs))):
            Thread(target=serve, daemon=True).start()
        return [future.result() for future in futures]
    except BaseException:
        with suppress(Empty):
            while True:
                todo.get_nowait()
        raise


def is_server(url: str) -> bool:
    """Whether it is the URL of a host, and of a port if it names one."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of brackets without an end, or a port that is not a number
        return False


def leads_to(error: Any) -> str:
    """For a message about a status error: where a redirect leads, which is not followed."""
    target = error.response.headers.get("location") if 300 <= error.status_code < 400 else None
    return f": it redirects to {target[:200]}, which is not followed" if target else ""
