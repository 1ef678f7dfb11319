"""A writer behind an OpenAI-compatible endpoint.

The key comes from the environment (``OPENAI_API_KEY``) and is kept by the client alone.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit, urlunsplit

from experience import ExperienceError
from experience.writer import MAX_REPLY_CHARS, WritingTask

PARALLEL = 8
"""Requests at a time."""
TIMEOUT = 120.0
"""Seconds for one request."""
RETRIES = 5
"""With the client's back-off, of connection errors, time-outs, rate limits and server errors."""
KEY = "OPENAI_API_KEY"


class Endpoint:
    """A ``Writer`` that asks a server."""

    begins_replies = False

    def __init__(
        self,
        url: str,
        model: str,
        *,
        max_tokens: int,
        temperature: float,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
    ) -> None:
        """Make a client; nothing is asked yet.

        Args:
            url: The API's base, such as ``http://localhost:8000/v1``.
            model: The model's name there.
            max_tokens: The longest reply.
            temperature: At which the server samples.
            timeout: Seconds for one request.
            retries: Of a request that failed for a reason that may pass.

        Raises:
            ExperienceError: The client's package is missing, or the URL is none.
        """
        try:
            import openai
        except ImportError as error:
            raise ExperienceError("an endpoint needs a client: pip install 'opcd-gym[endpoint]'") from error
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ExperienceError(f"{_without_secrets(url)} is no endpoint: http://host:port/v1 is meant")
        self.name = model
        self._url = url
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._client = openai.OpenAI(
            base_url=url, api_key=os.environ.get(KEY) or "none", timeout=timeout, max_retries=retries
        )
        self._error = openai.OpenAIError

    def __call__(self, tasks: Sequence[WritingTask], seeds: Sequence[int]) -> list[str]:
        """One reply per task; see ``Writer``.

        Raises:
            ExperienceError: A request failed for good. What was played stays in the store.
        """
        with ThreadPoolExecutor(PARALLEL) as pool:
            futures = [pool.submit(self._ask, task, seed) for task, seed in zip(tasks, seeds, strict=True)]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _ask(self, task: WritingTask, seed: int) -> str:
        try:
            answer = self._client.chat.completions.create(
                model=self.name,
                messages=[
                    {"role": "system", "content": task.system},
                    {"role": "user", "content": task.user},
                ],
                max_tokens=self._max_tokens,
                temperature=self._temperature,
                seed=seed % 2**31,
            )
            text = answer.choices[0].message.content
        except self._error as error:
            raise ExperienceError(self._say(f"{type(error).__name__}: {error}")) from None
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise ExperienceError(self._say(f"its answer is no chat completion ({error})")) from None
        return text[:MAX_REPLY_CHARS] if isinstance(text, str) else ""

    def _say(self, reason: str) -> str:
        key = os.environ.get(KEY)
        reason = reason.replace(key, "***") if key else reason
        return (
            f"the endpoint {_without_secrets(self._url)} gave no insights: {reason[:300]}. The traces are "
            f"kept: see that it runs, and that {KEY} is set if it wants a key, then resume the run"
        )


def _without_secrets(url: str) -> str:
    """Without user, password and query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
