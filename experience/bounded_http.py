"""Answers of servers that may be anything: bounded in time and in size, and of the host that was asked."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from experience import ExperienceError
from experience.masking import masked, masked_beginning

MAX_PAUSE = 10.0
"""Seconds that a client waits before it tries again, and some."""
MAX_REASON = 300
"""Characters of what is said of a failure."""
MAY_PASS = (408, 409, 429)
"""What a client tries again, beside what is a server's own fault."""
MAX_BYTES = 64 << 20
"""Of one answer, unpacked."""
Job = TypeVar("Job")
Result = TypeVar("Result")


class UnboundedAnswerError(RuntimeError):
    """An answer that takes too long, or too much room."""


class RequestError(RuntimeError):
    """A request that came to nothing; the message is one line, masked."""

    def __init__(self, kind: str, reason: Any, status: int | None = None) -> None:
        super().__init__(": ".join(filter(None, (kind, str(status or ""), one_line(reason)))))
        self.kind = kind
        """What the client calls it, or what kept it from the server."""
        self.reason = str(reason)
        """All that was said, as it was."""
        self.status = status
        """What the server answered, if it did."""

    @property
    def may_pass(self) -> bool:
        """Whether the same request may come to something later, or elsewhere."""
        return self.status is None or self.status >= 500 or self.status in MAY_PASS


class Client:
    """An ``openai.OpenAI`` for one server, which follows no redirect."""

    def __init__(
        self, url: str, key: str, *, seconds: float, retries: int, max_bytes: int = MAX_BYTES
    ) -> None:
        """Make one; nothing is asked yet.

        Args:
            url: The API's base. What follows a question mark there goes with every request.
            key: The variable of the environment that holds the server's key, if it wants one.
            seconds: For the whole of an answer's body; a client's own time-out is for each piece of it.
            retries: Of a request that failed for a reason that may pass.
            max_bytes: Of one answer, unpacked.

        Raises:
            ExperienceError: The client's package is missing, or what it is given, by the environment too,
                is none.
        """
        try:
            import openai
        except ImportError as error:
            raise ExperienceError("servers need a client: pip install 'opcd-gym[endpoint]'") from error

        def read(response: Any) -> None:
            until, content = time.monotonic() + seconds, bytearray()
            for piece in response.iter_bytes():
                content += piece
                if len(content) > max_bytes:
                    raise UnboundedAnswerError(f"its answer has more than {max_bytes:,} bytes")
                if time.monotonic() > until:
                    raise UnboundedAnswerError(f"its answer had not ended after {seconds:g} s")
            response._content = bytes(content)  # where ``read`` leaves it
            response.encoding = "utf-8"  # as JSON is, whatever it says: to Python zlib is an encoding too

        secret = os.environ.get(key, "").strip()
        if not (secret.isascii() and secret.isprintable()):
            raise ExperienceError(f"{key} holds characters that no key has: see that it was copied as it is")
        self._errors = openai
        self._seconds = seconds
        self._in_all = (seconds + MAX_PAUSE) * (retries + 1)
        try:
            parts = urlsplit(url)
            self._api = openai.OpenAI(
                base_url=parts._replace(query="", fragment="").geturl(),
                default_query=dict(parse_qsl(parts.query, keep_blank_values=True)),
                api_key=secret or "none",
                timeout=seconds,
                max_retries=retries,
                http_client=openai.DefaultHttpxClient(
                    follow_redirects=False, event_hooks={"response": [read]}
                ),
            )
        except Exception as error:  # its own have no name in any version
            raise ExperienceError(
                f"{masked(url)} cannot be asked, with the proxies and certificates of the environment: "
                f"{one_line(error)}"
            ) from error

    def ask(self, call: Callable[[Any], Result], *, seconds: float | None = None) -> Result:
        """What ``call`` gets of the ``openai.OpenAI``.

        Args:
            call: Asks once, in ``seconds`` at most; by default in what the client's requests take.
            seconds: For all of it.

        Raises:
            RequestError: It gets nothing.
            Exception: What it makes of an answer that is none.
        """
        try:
            return in_time(lambda: call(self._api), seconds or self._in_all)
        except (TimeoutError, self._errors.APITimeoutError):
            raise RequestError("Timeout", f"no whole answer in {seconds or self._seconds:g} s") from None
        except self._errors.APIStatusError as error:
            kind, target = type(error).__name__, error.response.headers.get("location")
            if 300 <= error.status_code < 400 and target:
                reason = f"it redirects to {target[:MAX_REASON]}, which is not followed"
            else:
                reason = _said(error)
            raise RequestError(kind, reason, error.status_code) from None
        except (self._errors.OpenAIError, UnboundedAnswerError) as error:
            cause = error.__cause__ or error
            raise RequestError(type(cause).__name__, cause) from None


def _said(error: Any) -> str:
    """What a server says about a request that it refuses."""
    body = error.body
    if isinstance(body, Mapping) and isinstance(body.get("error"), Mapping):
        body = body["error"]
    message = body.get("message") if isinstance(body, Mapping) else None
    return str(message or body or "")


def one_line(reason: Any) -> str:
    """What a server says of a failure, or a client about it, which may be long and hold secrets."""
    return " ".join(masked_beginning(str(reason), MAX_REASON).split())


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
        is_host = bool(parts.hostname and parts.hostname.encode("idna"))
        return parts.scheme in ("http", "https") and is_host and parts.port != 0
    except ValueError:  # of brackets without an end, a port that is not a number, dots with nothing between
        return False


def base_of(url: str) -> str:
    """A server's URL without what may be left out of it."""
    return url.rstrip("/").removesuffix("/v1")
