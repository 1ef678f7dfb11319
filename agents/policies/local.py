"""The agent as a transformers model, with memoised decoding (``distill/lm/language_model.py``)."""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agents.policies.chat_template import ChatTemplate
from agents.policies.policy import Completion, FinishReason, Prompt, Sampling
from distill.lm.language_model import Prefix, Way
from distill.lm.prefix_tree import PrefixTree
from distill.lm.support import language_model

MAX_DISTINCT = 256
"""Distinct prefixes decoded at once: bounds the logits held, [256, V]."""


@dataclass(slots=True)
class Request:
    """A completion on its way."""

    prompt_ids: Prefix
    seed: int
    draws: random.Random = field(init=False)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def __post_init__(self) -> None:
        self.draws = random.Random(self.seed)


@dataclass(frozen=True, slots=True)
class _DrawTable:
    """All that drawing the token after one prefix takes, on the CPU."""

    logprobs_V: npt.NDArray[np.float32]
    """At temperature 1."""
    greedy: int
    cumulative_V: npt.NDArray[np.float64] | None
    """Running sum of the sampling distribution; ``None`` when greedy."""

    def draw(self, uniform: float) -> int:
        """The token at ``uniform`` in [0, 1) of the cumulative distribution."""
        if self.cumulative_V is None:
            return self.greedy
        total = self.cumulative_V[-1]
        # A draw next to 1 can fall behind the last token that has any probability.
        last = np.searchsorted(self.cumulative_V, total)
        return int(min(np.searchsorted(self.cumulative_V, uniform * total, side="right"), last))


class HFPolicy:
    """A ``Policy`` over a transformers causal LM."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_bytes: int = 512 << 20,
        compute_dtype: torch.dtype | None = None,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
        compute: Way = "tree",
    ) -> None:
        """Wrap a model.

        Args:
            model: See ``LanguageModel``.
            tokenizer: Its tokenizer, with a chat template.
            max_bytes: What remembered distributions may take, and keys and values, each; the oldest go first.
                Prompts that would take more are answered one group after the other.
            compute_dtype: See ``LanguageModel``.
            within: See ``LanguageModel``.
            compute: As a prefix tree or in padded batches; see ``find_support``.
        """
        self.tokenizer = tokenizer
        self.lm = language_model(
            model, compute, max_bytes=max_bytes, compute_dtype=compute_dtype, within=within
        )
        self.max_bytes = max_bytes
        self._tables: OrderedDict[tuple[Prefix, float, float], _DrawTable] = OrderedDict()
        self._encoded: dict[Prompt, Prefix] = {}
        self._decoded: dict[Prefix, str] = {}
        self._version = self.lm.weights_version
        eos = model.generation_config.eos_token_id if model.generation_config else None
        ends = [tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])]
        self._template = ChatTemplate(tokenizer)
        self._eos_ids = self._template.end_tokens().union(end for end in ends if end is not None)

    @property
    def window(self) -> int:
        """The longest prompt and completion together, in tokens."""
        return self.lm.window

    def clear(self) -> None:
        """Forget everything, as when the weights have changed."""
        self._version = self.lm.weights_version
        self.lm.clear()
        for memo in (self._tables, self._encoded, self._decoded):
            memo.clear()

    def encode(self, prompt: Prompt) -> Prefix:
        """The prompt's token ids: the chat template's, then the reply prefix."""
        known = self._encoded.get(prompt)
        if known is None:
            text = self._template.text(prompt.messages, prompt.reply_prefix)
            known = tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            self._encoded[prompt] = known
        return known

    def longest_action(self, reply_prefix: str, actions: Sequence[str]) -> int:
        """Tokens that the longest of the action words takes after the reply prefix."""

        def count(text: str) -> int:
            return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

        return max(count(f"{reply_prefix} {action}") for action in actions) - count(reply_prefix)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """One completion per prompt; see ``Policy``."""
        requests = [Request(self.encode(prompt), seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        for request in requests:
            if len(request.prompt_ids) + sampling.max_tokens > self.window:
                request.finish_reason = FinishReason.OVERFLOW
        self._answer([request for request in requests if request.finish_reason is None], sampling)
        return [self._completion(request) for request in requests]

    def _answer(self, requests: Sequence[Request], sampling: Sampling) -> None:
        """Draw the tokens of requests that fit the window."""
        if self.lm.weights_version != self._version:
            self.clear()
        for group in self._groups(requests, sampling.max_tokens):
            self._decode(group, sampling)

    def _groups(self, requests: Sequence[Request], max_tokens: int) -> Iterator[list[Request]]:
        """Requests whose keys and values fit into memory together, like prompts side by side."""
        if sum(len(r.prompt_ids) + max_tokens for r in requests) <= self.lm.capacity:
            yield list(requests)  # whatever they share
            return
        group: list[Request] = []
        tree = PrefixTree()
        for request in sorted(requests, key=lambda request: request.prompt_ids):
            tree.add(request.prompt_ids)
            if group and len(tree) + max_tokens * (len(group) + 1) > self.lm.capacity:
                yield group
                group, tree = [], PrefixTree()
                tree.add(request.prompt_ids)
            group.append(request)
        yield group

    def _decode(self, requests: Sequence[Request], sampling: Sampling) -> None:
        for _ in range(sampling.max_tokens):
            waiting: dict[Prefix, list[Request]] = {}
            for request in requests:
                if request.finish_reason is None:
                    waiting.setdefault((*request.prompt_ids, *request.token_ids), []).append(request)
            prefixes = sorted(waiting)
            for start in range(0, len(prefixes), MAX_DISTINCT):
                chunk = prefixes[start : start + MAX_DISTINCT]
                for prefix, table in self._draw_tables(chunk, sampling).items():
                    for request in waiting[prefix]:
                        self._extend(request, table, sampling)

    def _draw_tables(self, prefixes: Sequence[Prefix], sampling: Sampling) -> dict[Prefix, _DrawTable]:
        """A table per prefix, those that are not known computed together."""
        how = (sampling.temperature, sampling.top_p)
        tables = {p: self._tables[p, *how] for p in prefixes if (p, *how) in self._tables}
        missing = [prefix for prefix in prefixes if prefix not in tables]
        if missing:
            for prefix, logits_V in zip(missing, self.lm.logits(missing), strict=True):
                tables[prefix] = self._tables[prefix, *how] = _draw_table(logits_V.cpu(), sampling)
            bytes_each = 12 * len(next(iter(tables.values())).logprobs_V)  # fp32 and fp64
            while len(self._tables) > max(1, self.max_bytes // bytes_each):
                self._tables.popitem(last=False)
        return tables

    def _extend(self, request: Request, table: _DrawTable, sampling: Sampling) -> None:
        """Draw the request's next token."""
        token = table.draw(request.draws.random())
        request.token_ids.append(token)
        request.logprobs.append(float(table.logprobs_V[token]))
        if token in self._eos_ids:
            request.finish_reason = FinishReason.STOP
        elif len(request.token_ids) == sampling.max_tokens:
            request.finish_reason = FinishReason.LENGTH

    def _completion(self, request: Request) -> Completion:
        assert request.finish_reason is not None
        token_ids = tuple(request.token_ids)
        text = self._decoded.get(token_ids)
        if text is None:
            decoded = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
            assert isinstance(decoded, str)
            text = self._decoded[token_ids] = decoded
        return Completion(
            text=text,
            token_ids=token_ids,
            logprobs=tuple(request.logprobs),
            finish_reason=request.finish_reason,
            prompt_tokens=len(request.prompt_ids),
        )


def _draw_table(logits_V: torch.Tensor, sampling: Sampling) -> _DrawTable:
    cumulative_V = None
    if sampling.temperature > 0:
        cumulative_V = sampling_distribution(logits_V, sampling).cumsum(-1).numpy()
    return _DrawTable(
        logprobs_V=logits_V.log_softmax(-1).numpy(), greedy=int(logits_V.argmax()), cumulative_V=cumulative_V
    )


def sampling_distribution(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The probabilities that tokens are drawn with, [V] in fp64, not normalised when top-p cuts some off.

    Args:
        logits_V: The model's.
        sampling: Temperature (above 0) and top-p. Of the tokens by falling probability, the first
            that reaches ``top_p`` in sum is the last one kept (Holtzman et al. 2020).
    """
    probs_V = (logits_V.double() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        sorted_V, order_V = probs_V.sort(descending=True, stable=True)
        before_V = sorted_V.cumsum(-1) - sorted_V
        probs_V = probs_V.index_fill(0, order_V[before_V >= sampling.top_p], 0.0)
    return probs_V
