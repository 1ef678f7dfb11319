"""A vLLM that the user runs (``vllm serve``): what it is asked, and what it answers, which may be anything.

Prompts and completions travel as token ids, through the OpenAI-compatible ``/v1/completions``. A key comes
from the environment (``VLLM_API_KEY``).
"""

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from agents.policies.chat_template import ChatTemplate
from agents.policies.policy import Sampling
from agents.policies.vllm.policy import MAX_SEED, PROBES, Drawn, VLLMError
from distill.lm.span import Prefix, Span
from experience import ExperienceError
from experience.bounded_http import Client, RequestError, base_of, is_server, one_line
from experience.masking import masked

KEY = "VLLM_API_KEY"
OLDEST = (0, 32)
"""The first vLLM whose endpoints take and give all that is needed."""
TIMEOUT = 600.0
"""Seconds for one request."""
MAX_IDS = 128
"""Token ids that vLLM scores in one request."""
TOKENS = range(1 << 31)
"""What can be a token's id."""
MAX_LOGPROB = 0.01
"""What rounding may add to the logarithm of 1."""
MAX_MASS = 1.05
"""What the probabilities of a position's tokens may add up to, with their roundings."""

DEV_MODE = (
    "A server takes new weights only when started with VLLM_SERVER_DEV_MODE=1, in a network that you trust"
)
Args = ParamSpec("Args")
Result = TypeVar("Result")


class ServerDownError(VLLMError):
    """A server does not answer, or fails; another one may do the work."""


def _parsed(
    ask: Callable[Concatenate["Server", Args], Result],
) -> Callable[Concatenate["Server", Args], Result]:
    """``ask``, for whatever the server answers."""

    @wraps(ask)
    def parsed(self: "Server", /, *args: Args.args, **options: Args.kwargs) -> Result:
        try:
            return ask(self, *args, **options)
        except (AttributeError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise VLLMError(
                f"the answer of {self.url} is not a completion, or not vLLM's ({one_line(error)})"
            ) from error

    return parsed


class Server:
    """A ``Drawer`` behind a URL."""

    def __init__(self, url: str, *, timeout: float = TIMEOUT) -> None:
        """Make sure that it is there and new enough.

        Args:
            url: Such as ``http://localhost:8000``.
            timeout: Seconds for one request.

        Raises:
            VLLMError: The URL is none, there is no client for it, or no usable vLLM answers there.
        """
        if not is_server(url) or any(mark in url for mark in "@?#"):
            raise VLLMError(
                f"{masked(url)} is not a server's URL: give http://host:port, and put a key in {KEY}"
            )
        self.name = self.url = base_of(url)
        self.down: str | None = None
        """Why it is not asked any more."""
        try:
            self._client = Client(self.url, KEY, seconds=timeout, retries=1)
            self._introduce()
        except ExperienceError as error:
            raise VLLMError(str(error)) from error
        except ServerDownError as error:
            raise VLLMError(f"no vLLM answers: {error}. Is `vllm serve` up there?") from error

    @_parsed
    def _introduce(self) -> None:
        """Ask who it is."""
        self.version = str(self._field(self._get("/version"), "version"))[:40]
        models = self._field(self._get("/v1/models"), "data")
        numbers = [int(number) for number in re.findall(r"\d+", self.version)[:2]]
        if tuple(numbers) < OLDEST:
            raise VLLMError(
                f"{self.url} runs vLLM {self.version}, and {OLDEST[0]}.{OLDEST[1]} is the oldest that will do"
            )
        if not models:
            raise VLLMError(f"{self.url} serves no model")
        self.model = str(self._field(models[0], "id"))
        self.window = self._field(models[0], "max_model_len")
        if type(self.window) is not int or self.window < 1:
            raise ValueError(f"its window is {self.window!r}")

    def check_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Make sure that token ids mean the same there.

        Raises:
            VLLMError: They do not.
        """
        # As prompts are, with their markup: what is made of a model may have the same words and other marks.
        template = ChatTemplate(tokenizer)
        for text in [template.text(probe.messages, probe.reply_prefix) for probe in PROBES]:
            body = {"model": self.model, "prompt": text, "add_special_tokens": False}
            theirs = self._field(self._post("/tokenize", body), "tokens")
            if theirs != tokenizer(text, add_special_tokens=False)["input_ids"]:
                raise VLLMError(
                    f"{self.url} serves {self.model[:200]!r} with another tokenizer: {text!r} has "
                    "other token ids there"
                )

    def reload(self, folder: Path) -> None:
        """Take over the weights in ``folder``.

        Raises:
            VLLMError: The server offers no way to, or still works, and then has those that it had.
        """
        self.reset()
        self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        self.reset()

    def reset(self) -> None:
        """Forget what was computed.

        Raises:
            VLLMError: The server does not take orders, or still works.
        """
        if not self._field(self._post("/reset_prefix_cache", {}), "success"):
            raise VLLMError(f"{self.url} is at work for somebody else and cannot take new weights")

    @_parsed
    def draw(
        self, prompts: Sequence[Prefix], seeds: Sequence[int], sampling: Sampling, stop_ids: Sequence[int]
    ) -> list[Drawn]:
        """See ``Engine``."""
        return [
            self._drawn(prompt, seed, sampling, stop_ids) for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _drawn(self, prompt: Prefix, seed: int, sampling: Sampling, stop_ids: Sequence[int]) -> Drawn:
        choice = self._complete(
            prompt,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=1.0,
            seed=seed % MAX_SEED,
            stop_token_ids=list(stop_ids),
            ignore_eos=True,  # the end is what the stop tokens say
            logprobs=0,  # the drawn token's
        )
        token_ids = tuple(self._field(choice, "token_ids"))
        logprobs = tuple(map(logprob, self._field(self._field(choice, "logprobs"), "token_logprobs")))
        if strange := [t for t in token_ids if type(t) is not int or t not in TOKENS]:
            raise ValueError(f"a token is {str(strange[0])[:40]}")
        if not 0 < len(token_ids) == len(logprobs) <= sampling.max_tokens:
            raise VLLMError(
                f"{self.url} gave {len(token_ids)} tokens and {len(logprobs)} log-probabilities "
                f"where at most {sampling.max_tokens} were asked for"
            )
        ends = next((n for n, token in enumerate(token_ids, 1) if token in stop_ids), sampling.max_tokens)
        if len(token_ids) > ends:
            raise VLLMError(f"{self.url} draws on behind token {token_ids[ends - 1]}, which ends a reply")
        if len(token_ids) < ends:  # others may go on where one is stopped
            raise ServerDownError(
                f"{self.url} ended a reply by itself ({str(choice.get('finish_reason'))[:40]}), after "
                f"{len(token_ids)} of {ends} tokens. If its model's generation_config.json has a "
                "max_new_tokens, start it with --generation-config vllm"
            )
        return Drawn(token_ids=token_ids, logprobs=logprobs)

    @_parsed
    def logprobs(self, sequences: Sequence[Prefix]) -> list[list[float]]:
        """See ``Engine``."""
        return [self._logprobs(ids) for ids in sequences]

    def _logprobs(self, ids: Prefix) -> list[float]:
        choice = self._complete(ids, max_tokens=1, temperature=1.0, prompt_logprobs=0)
        scores = self._field(choice, "prompt_logprobs")[1:]
        return [
            logprob(self._field(self._field(score, str(token)), "logprob"))
            for score, token in zip(scores, ids[1:], strict=True)
        ]

    @_parsed
    def score(self, prefix: Prefix, ids: Sequence[int], temperature: float) -> list[float]:
        """The log-probabilities of ``ids`` after ``prefix``; at ``temperature`` if the server applies it."""
        parts = [ids[start : start + MAX_IDS] for start in range(0, len(ids), MAX_IDS)]
        scores = [self._scores(prefix, part, temperature) for part in parts]
        together = [score for part in scores for score in part]
        _check_mass(together)
        return together

    def _scores(self, prefix: Prefix, ids: Sequence[int], temperature: float) -> list[float]:
        choice = self._complete(
            prefix,
            max_tokens=1,
            temperature=temperature,
            logprobs=len(ids),
            logprob_token_ids=list(ids),
            return_tokens_as_token_ids=True,
        )
        [given] = self._field(self._field(choice, "logprobs"), "top_logprobs")
        return [logprob(self._field(given, f"token_id:{token}")) for token in ids]

    @_parsed
    def prompt_scores(self, span: Span, ids_TK: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """The log-probabilities, at temperature 1, of T times K tokens: T after each prefix of ``span``."""
        # One token more: after the last of a prompt it scores nothing.
        prompt = [*span.tokens, span.tokens[-1]]
        settings = {
            "max_tokens": 1,
            "temperature": 0.0,
            "detokenize": False,
            "prompt_logprob_token_ids": ids_TK,
            "prompt_logprob_start": span.start - 1,  # counted from the prefix of one token
        }
        body = {"model": self.model, "token_ids": prompt, "return_token_ids": True}
        answer = self._post("/inference/v1/generate", {**body, "sampling_params": settings})
        self._check_prompt(answer, prompt)
        return scores_in(self._field(answer, "prompt_token_id_logprobs"), (len(ids_TK), len(ids_TK[0])))

    @_parsed
    def prompt_top(self, span: Span, k: int) -> list[dict[int, float]]:
        """The k most probable tokens after each prefix of ``span``, and their log-probabilities at 1."""
        prompt = (*span.tokens, span.tokens[-1])
        choice = self._complete(prompt, max_tokens=1, temperature=0.0, prompt_logprobs=k)
        rows = self._field(choice, "prompt_logprobs")[span.start :]
        if len(rows) != span.size:
            raise ValueError(f"there are {len(rows)} positions and not {span.size}")
        found = []
        for row in rows:
            scores = {int(token): logprob(self._field(score, "logprob")) for token, score in row.items()}
            # The prompt's own token is there as well.
            best = sorted(scores, key=lambda token: (-scores[token], token))[:k]
            if len(best) < k:
                raise ValueError(f"there are {len(best)} tokens and not {k}")
            if strange := [token for token in best if token not in TOKENS]:
                raise ValueError(f"a token is {str(strange[0])[:40]}")
            _check_mass(list(scores.values()))
            found.append({token: scores[token] for token in best})
        return found

    @_parsed
    def next_best(self, prefixes: Sequence[Prefix], temperature: float) -> list[dict[int, float]]:
        """A token or two after each prefix, the most probable one among them, scored as by ``score``."""
        choices = self._choices(
            list(map(list, prefixes)),
            max_tokens=1,
            temperature=temperature,
            logprobs=1,
            return_tokens_as_token_ids=True,
        )
        answers: dict[int, dict[int, float]] = {}
        for choice in choices:
            index = self._field(choice, "index")
            self._check_prompt(choice, list(prefixes[index]))
            [given] = self._field(self._field(choice, "logprobs"), "top_logprobs")
            answers[index] = {
                int(name.removeprefix("token_id:")): logprob(value) for name, value in given.items()
            }
        return [answers[index] for index in range(len(prefixes))]

    def _complete(self, prompt: Prefix, **settings: Any) -> Any:
        """The only choice of one completion."""
        [choice] = self._choices(list(prompt), **settings)
        self._check_prompt(choice, list(prompt))
        return choice

    def _check_prompt(self, answer: Any, prompt: list[int]) -> None:
        if self._field(answer, "prompt_token_ids") != prompt:
            raise VLLMError(
                f"{self.url} truncates or changes prompts: one of {len(prompt)} tokens, for instance"
            )

    def _choices(self, prompt: list[int] | list[list[int]], **settings: Any) -> Any:
        """Of a completion of one prompt, or of one of each."""
        body = {
            "model": self.model,
            "prompt": prompt,
            "return_token_ids": True,
            # The server's defaults may come from the model's folder.
            **{"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
            **{"presence_penalty": 0.0, "frequency_penalty": 0.0},
            **settings,
        }
        return self._field(self._post("/v1/completions", body), "choices")

    def _field(self, value: Any, name: str) -> Any:
        """A field of an answer, which may be anything."""
        if not isinstance(value, Mapping) or value.get(name) is None:
            raise VLLMError(
                f"the answer of {self.url} has no {name}: is it vLLM {OLDEST[0]}.{OLDEST[1]} or newer?"
            )
        return value[name]

    def _get(self, path: str) -> Any:
        return self._ask(path, lambda api: api.get(path, cast_to=object))

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._ask(path, lambda api: api.post(path, body=body, cast_to=object))

    def _ask(self, path: str, call: Callable[[Any], Any]) -> Any:
        try:
            return self._client.ask(call)
        except (RecursionError, ValueError) as error:
            raise VLLMError(f"the answer of {self.url} to {path} is not JSON ({one_line(error)})") from None
        except RequestError as error:
            if error.may_pass:
                raise ServerDownError(f"{self.url}{path}: {error}") from None
            if error.status in (404, 405):
                version = getattr(self, "version", "unknown")
                raise VLLMError(
                    f"{self.url} (vLLM {version}) has no endpoint {path}"
                    + (f". {DEV_MODE}" if path in ("/collective_rpc", "/reset_prefix_cache") else "")
                ) from None
            key = f". Its key is read from {KEY}" if error.status in (401, 403) else ""
            raise VLLMError(f"{self.url}{path}: {error}{key}") from None


def logprob(value: Any) -> float:
    """A log-probability in an answer, which may be anything.

    Raises:
        ValueError: It is none.
    """
    if type(value) not in (int, float) or not math.isfinite(value) or value > MAX_LOGPROB:
        raise ValueError(f"a log-probability is {str(value)[:40]}")
    return float(value)


def scores_in(text: Any, shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Log-probabilities in an answer, which may be anything, as numpy writes an array, in base64.

    Raises:
        ValueError: They are none, or another number of them.
    """
    data = base64.b64decode(text, validate=True)
    start = 10 + int.from_bytes(data[8:10], "little")
    # Not numpy's reader: it parses the header as Python, in which a stranger can nest without end.
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
    if data[:8] != b"\x93NUMPY\x01\x00" or data[10:start].rstrip() != header:
        raise ValueError(f"an array of another format, or not of float32 {shape}")
    scores = np.frombuffer(data[start:], dtype="<f4").reshape(shape).copy()
    if not (scores <= MAX_LOGPROB).all() or np.isinf(scores).any():
        raise ValueError("a log-probability is not a finite number of at most 0")
    _check_mass(scores)
    return scores


def _check_mass(scores: npt.ArrayLike) -> None:
    """Make sure that log-probabilities, of other tokens in each row, can be those of a distribution.

    Raises:
        ValueError: They cannot.
    """
    largest = float(np.exp(scores).sum(-1).max())
    if largest > MAX_MASS:
        raise ValueError(f"the probabilities of a position's tokens add up to {largest:.3g}")
