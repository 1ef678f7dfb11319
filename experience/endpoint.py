"""A writer behind an OpenAI-compatible endpoint.

The key comes from the environment (``OPENAI_API_KEY``) and is kept by the client alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

from experience import ExperienceError
from experience.bounded_http import Client, RequestError, in_parallel, is_server, one_line
from experience.masking import keep_secrets_of, masked, masked_beginning
from experience.writer import MAX_REPLY_CHARS, WritingTask

PARALLEL = 8
"""Requests at a time."""
TIMEOUT = 300.0
"""Seconds for one request."""
CONNECT_SECONDS = 10.0
"""How long a server may take to say anything at first."""
RETRIES = 5
"""With the client's back-off, of connection errors, time-outs, rate limits and server errors."""
REFUSED = (400, 422)
"""A task, or the settings that it comes with; others would not be."""
KEY = "OPENAI_API_KEY"
CUT_OFF = ("length", "content_filter", "abort", "error")
"""How servers call it when a reply is not whole."""
Settings = dict[str, Any]
"""What comes with a task in a request, and ``has_system``, which says in what form the task does."""


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
        said: Callable[[str], str] = str,
    ) -> None:
        """Make a client; nothing is asked yet.

        Args:
            url: The API's base, such as ``http://localhost:8000/v1``.
            model: The model's name there.
            max_tokens: The longest reply.
            temperature: At which the server samples.
            timeout: Seconds for one request.
            retries: Of a request that failed for a reason that may pass.
            said: Takes a reply without its thoughts: with nothing else in it, it is an empty one.

        Raises:
            ExperienceError: The URL is none, or there is no client for it.
        """
        if not is_server(url):
            raise ExperienceError(f"{masked(url)} is not an endpoint: give http://host:port/v1")
        keep_secrets_of(url)
        self.name = model
        self._url = url
        self._settings: Settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": 0}
        self._max_tokens = max_tokens
        self._said = said
        self._why_empty = ""
        self._client = Client(url, KEY, seconds=timeout, retries=retries)

    def reach(self) -> None:
        """Make sure that a server is there, whatever it answers.

        Raises:
            ExperienceError: Nobody answers.
        """

        def ask(api: Any) -> None:
            api.with_options(max_retries=0, timeout=CONNECT_SECONDS).models.with_raw_response.list()

        try:
            self._client.ask(ask, seconds=2 * CONNECT_SECONDS)
        except RequestError as error:
            if error.kind not in ("ConnectError", "ConnectTimeout"):
                return  # a server need not list its models, and may be busy
            raise ExperienceError(
                f"nobody answers at {masked(self._url)} ({error}): see that the server runs, and that the "
                "address is right"
            ) from None

    def __call__(self, tasks: Sequence[WritingTask], seeds: Sequence[int]) -> list[str]:
        """One reply per task; see ``Writer``. It is empty where the server refuses a task, as filters do.

        Raises:
            ExperienceError: A request failed for good, or all replies are empty. What was played stays in the
                store.
        """
        asked = list(zip(tasks, seeds, strict=True))
        replies = in_parallel(lambda one: self._ask(*one), asked, PARALLEL)
        if replies and not any(replies):
            raise ExperienceError(self._say(f"its replies are empty ({self._why_empty})"))
        return replies

    def _ask(self, task: WritingTask, seed: int) -> str:
        """The reply; empty if there is none, however it is asked for."""
        settings: Settings | None = self._settings
        while settings is not None:
            if "seed" in settings:
                settings = settings | {"seed": seed % 2**31}
            text, other = self._try(task, settings)
            if text:
                self._settings = settings  # others need not find out again
                return masked_beginning(text, MAX_REPLY_CHARS)
            settings = other
        return ""

    def _try(self, task: WritingTask, settings: Settings) -> tuple[str, Settings | None]:
        """A reply, which may be empty, and with which settings to ask again then."""
        told = dict(settings)
        messages = _chat(task, has_system=told.pop("has_system", True))
        try:
            answer: Any = self._client.ask(
                lambda api: api.chat.completions.create(model=self.name, messages=messages, **told)
            )
            choice = answer.choices[0]
            text = choice.message.content
            if isinstance(text, list):  # in parts, of which thoughts are others
                text = "".join(part["text"] for part in text if part["type"] == "text")
            if isinstance(text, str) and choice.finish_reason in CUT_OFF:
                text = text.rpartition("\n")[0]  # the last line is not whole
            if isinstance(text, str) and self._said(text[:MAX_REPLY_CHARS]):
                return text, None
            if choice.finish_reason == "length":
                self._why_empty = (
                    f"the model used up all of {self._max_tokens} tokens before it wrote any: take one that "
                    "thinks less"
                )
            else:
                refusal = getattr(choice.message, "refusal", None)
                self._why_empty = str(refusal or f"content null, finished by {choice.finish_reason}")
            return "", _other(settings, "max_tokens temperature")
        except RequestError as error:
            if error.status not in REFUSED:
                raise ExperienceError(self._say(error)) from None
            if (other := _other(settings, error.reason)) is None:
                self._why_empty = str(error)
            return "", other
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise ExperienceError(self._say(f"its answer is not a chat completion ({error})")) from None

    def _say(self, reason: Any) -> str:
        return (
            f"the endpoint {masked(self._url)} gave no insights: {one_line(reason)}. The traces are "
            "kept: see that it runs, that this is its API's base, as http://host:port/v1 is, and that "
            f"{KEY} is set if it wants a key, then resume the run"
        )


def _chat(task: WritingTask, *, has_system: bool) -> list[dict[str, str]]:
    if not has_system or not task.system:
        return [{"role": "user", "content": f"{task.system}\n\n{task.user}".strip()}]
    return [{"role": "system", "content": task.system}, {"role": "user", "content": task.user}]


def _other(settings: Settings, reason: str) -> Settings | None:
    """Other settings for a model that does not take these, by what is said; ``None`` if there are none.

    Models that think want another name for the limit, and often their own temperature. Some chat templates
    refuse a system message, or roles that do not alternate between user and assistant.
    """
    if "max_tokens" in settings and ("max_tokens" in reason or "max_completion_tokens" in reason):
        return {"max_completion_tokens" if k == "max_tokens" else k: v for k, v in settings.items()}
    for name in ("temperature", "seed"):
        if name in settings and name in reason:
            return {k: v for k, v in settings.items() if k != name}
    if "has_system" not in settings and "role" in reason.lower():
        return settings | {"has_system": False}
    return None
