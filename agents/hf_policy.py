"""The agent as a transformers model, with memoised decoding (``agents/prefix_lm.py``)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agents.policy import Completion, FinishReason, Prompt, Sampling
from agents.prefix_lm import PrefixLM

MAX_DISTINCT = 256
"""Distinct prefixes decoded at once: bounds the logits held, [256, V]."""


@dataclass(slots=True)
class _Request:
    """A completion on its way."""

    prompt_ids: tuple[int, ...]
    random: random.Random
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class HFPolicy:
    """A ``Policy`` over a transformers causal LM."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.lm = PrefixLM(model)
        self._encoded: dict[Prompt, tuple[int, ...]] = {}
        self._window: int = getattr(model.config, "max_position_embeddings", 1 << 30)
        generation_eos = model.generation_config.eos_token_id if model.generation_config else None
        ends = [tokenizer.eos_token_id, *(generation_eos if isinstance(generation_eos, list) else [generation_eos])]
        self._eos_ids = frozenset(end for end in ends if end is not None)

    def clear(self) -> None:
        """Forget what was computed: to be called whenever the weights have changed."""
        self.lm.clear()
        self._encoded.clear()

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's token ids: the chat template's, then the reply prefix."""
        known = self._encoded.get(prompt)
        if known is None:
            chat = [{"role": message.role, "content": message.content} for message in prompt.messages]
            text = self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            assert isinstance(text, str)
            known = tuple(self.tokenizer(text + prompt.reply_prefix, add_special_tokens=False)["input_ids"])
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
        requests = [
            _Request(self.encode(prompt), random.Random(seed))
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        for request in requests:
            if len(request.prompt_ids) + sampling.max_tokens > self._window:
                request.finish_reason = FinishReason.OVERFLOW
        for _ in range(sampling.max_tokens):
            waiting: dict[tuple[int, ...], list[_Request]] = {}
            for request in requests:
                if request.finish_reason is None:
                    waiting.setdefault((*request.prompt_ids, *request.token_ids), []).append(request)
            prefixes = sorted(waiting)
            for start in range(0, len(prefixes), MAX_DISTINCT):
                chunk = prefixes[start : start + MAX_DISTINCT]
                for prefix, logits_V in zip(chunk, self.lm.logits(chunk), strict=True):
                    self._draw(waiting[prefix], logits_V, sampling)
        return [self._completion(request) for request in requests]

    def _draw(self, requests: Sequence[_Request], logits_V: torch.Tensor, sampling: Sampling) -> None:
        """Draw the next token of every request that stands at the same prefix."""
        if sampling.temperature == 0:
            tokens = logits_V.argmax().repeat(len(requests))
        else:
            cumulative_V = sampling_distribution(logits_V, sampling).cumsum(-1, dtype=torch.float64)
            draws = torch.tensor([r.random.random() for r in requests], dtype=torch.float64)
            tokens = torch.searchsorted(cumulative_V, draws.to(logits_V.device) * cumulative_V[-1], right=True)
            # A draw next to 1 can fall behind the last token that has any probability.
            tokens = tokens.clamp(max=int(torch.searchsorted(cumulative_V, cumulative_V[-1])))
        logprobs = (logits_V[tokens] - logits_V.logsumexp(-1)).tolist()
        for request, token, logprob in zip(requests, tokens.tolist(), logprobs, strict=True):
            request.token_ids.append(token)
            request.logprobs.append(logprob)
            if token in self._eos_ids:
                request.finish_reason = FinishReason.STOP
            elif len(request.token_ids) == sampling.max_tokens:
                request.finish_reason = FinishReason.LENGTH

    def _completion(self, request: _Request) -> Completion:
        assert request.finish_reason is not None
        text = self.tokenizer.decode(request.token_ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return Completion(
            text=text,
            token_ids=tuple(request.token_ids),
            logprobs=tuple(request.logprobs),
            finish_reason=request.finish_reason,
            prompt_tokens=len(request.prompt_ids),
        )


def sampling_distribution(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The probabilities that tokens are drawn with, [V], not normalised when top-p cuts some off.

    Args:
        logits_V: The model's.
        sampling: Temperature (above 0) and top-p. Of the tokens by falling probability, the first
            that reaches ``top_p`` in sum is the last one kept (Holtzman et al. 2020).
    """
    probs_V = (logits_V / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        sorted_V, order_V = probs_V.sort(descending=True, stable=True)
        before_V = sorted_V.cumsum(-1) - sorted_V
        probs_V = probs_V.index_fill(0, order_V[before_V >= sampling.top_p], 0.0)
    return probs_V
