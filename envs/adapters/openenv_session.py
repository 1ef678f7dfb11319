"""A session with a server of OpenEnv's."""

import contextlib
import json
import threading
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from envs.adapters.json_action import JsonAction
from envs.any_text import first_line
from envs.deadline import EnvFault, TimeLimit, guarded
from envs.words import EnvError

PATIENCE = 10.0
"""Seconds for a server to say what it is, and to take a session."""
LONGEST_ANSWER = 600.0
"""Seconds for any other answer, where no deadline comes before."""
MAX_BYTES = 4_000_000
"""Of an answer."""


class Session:
    """One episode on a server, which may be at any distance and of any mind."""

    def __init__(self, url: str) -> None:
        """Nothing is connected yet to the server, whose URL is ``http`` or ``https``."""
        from openenv.core import GenericEnvClient

        self._client = GenericEnvClient(
            url,
            connect_timeout_s=PATIENCE,
            message_timeout_s=LONGEST_ANSWER,
            max_message_size_mb=MAX_BYTES / 2**20,
            mode="simulation",
        ).sync()

    def reset(self, settings: Mapping[str, Any]) -> Any:
        """Begin; returns the client's result, with an ``observation``.

        Raises:
            ConnectionError: No server is there that speaks OpenEnv; or RuntimeError, TimeoutError, or what
                else the client raises. The session is over.
        """
        return self._answer(lambda: self._client.reset(**settings))

    def step(self, action: Mapping[str, Any]) -> Any:
        """Act; returns the client's result, with ``observation``, ``reward`` and ``done``.

        Raises:
            ValueError: The server says that this is no action; the session goes on.
            ConnectionError: As for ``reset``.
        """
        return self._answer(lambda: self._client.step(dict(action)))

    def close(self) -> None:
        """End the session; a server that does not agree within a second is left to a thread."""

        def close() -> None:
            with contextlib.suppress(Exception):
                self._client.close()

        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(1.0)

    def _answer(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except BaseException as error:  # the deadline's too: a late answer would be taken for the next one
            if isinstance(error, RuntimeError) and str(error).endswith("(code: VALIDATION_ERROR)"):
                raise ValueError(first_line(error)) from error
            self.close()
            if isinstance(error, ValueError):
                raise ConnectionError(f"the server does not speak OpenEnv: {first_line(error)}") from error
            raise


def ask_for_action(url: str) -> JsonAction:
    """What a server's actions are.

    Raises:
        EnvError: None answers, or it is of another kind.
    """

    def read() -> bytes:
        with urllib.request.urlopen(f"{url}/schema", timeout=PATIENCE) as page:
            return bytes(page.read(MAX_BYTES))

    try:
        page = guarded(read, TimeLimit(clock=PATIENCE))
    except EnvFault as fault:
        raise EnvError(
            f"no OpenEnv server answers at {url}/schema: {first_line(fault.__cause__ or fault)}"
        ) from fault
    try:
        return JsonAction(json.loads(page)["action"])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise EnvError(
            f"{url} is not an OpenEnv server, which describes its actions at /schema: is it another protocol?"
        ) from error
