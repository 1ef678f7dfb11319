"""A writer behind an OpenAI-compatible endpoint.

The key comes from the environment (``OPENAI_API_KEY``) and is kept by the client alone.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from experience import ExperienceError
from experience.bounded_http import UnboundedAnswerError, bounded_client, in_time, leads_to
from experience.masking import keep_secrets_of, masked
from experience.writer import MAX_REPLY_CHARS, WritingTask

PARALLEL = 8
"""Requests at a time."""
TIMEOUT = 120.0
"""Seconds for one request."""
MAX_PAUSE = 10.0
"""Seconds that the client waits before it tries again, and some."""
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
            raise ExperienceError(f"{masked(url)} is no endpoint: http://host:port/v1 is meant")
        keep_secrets_of(url)
        self.name = model
        self._url = url
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._client = openai.OpenAI(
            base_url=url,
            api_key=os.environ.get(KEY) or "none",
            timeout=timeout,
            max_retries=retries,
            http_client=bounded_client(timeout),
        )
        self._seconds = (timeout + MAX_PAUSE) * (retries + 1)
        self._errors = openai

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
            answer = in_time(lambda: self._create(task, seed), self._seconds)
            text = answer.choices[0].message.content
        except self._errors.APIStatusError as error:
            raise ExperienceError(self._say(f"{type(error).__name__}: {error}{leads_to(error)}")) from None
        except self._errors.OpenAIError as error:
            cause = error.__cause__ if isinstance(error.__cause__, UnboundedAnswerError) else error
            raise ExperienceError(self._say(f"{type(error).__name__}: {cause}")) from None
        except TimeoutError:
            raise ExperienceError(self._say(f"Timeout: no whole answer in {self._seconds:g} s")) from None
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise ExperienceError(self._say(f"its answer is no chat completion ({error})")) from None
        return masked(text)[:MAX_REPLY_CHARS] if isinstance(text, str) else ""

    def _create(self, task: WritingTask, seed: int) -> Any:
        return self._client.chat.completions.create(
            model=self.name,
            messages=[
                {"role": "system", "content": task.system},
                {"role": "user", "content": task.user},
            ],
            max_tokens=self._max_tokens,
            temperature=self._temperature,
            seed=seed % 2**31,
        )

    def _say(self, reason: str) -> str:
        return (
            f"the endpoint {masked(self._url)} gave no insights: {masked(reason)[:300]}. The traces are "
            f"kept: see that it runs, and that {KEY} is set if it wants a key, then resume the run"
        )
