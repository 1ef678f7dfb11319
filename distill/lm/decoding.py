"""Sequences that grow by a token at a time, with keys, values and states as the model itself keeps them.

Prompts of one length are read together, so that nothing is padded: recurrent layers would take padding for
text. Then all grow side by side. Keys and values of shorter ones are padded on the left, where the mask hides
them; recurrent states have no length.
Shape letters: N sequences, T tokens, D hidden size.
"""

import copy
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from distill.lm.compiled import as_they_are, compiled_layers
from distill.lm.language_model import cache_argument, decoder_of
from distill.lm.shards import run
from distill.lm.span import Prefix

STEADY = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention that is not planned anew for each length: cuDNN's is, and doubles a token's time on an H100."""
Growth = Literal["joined", "alike", "none"]
"""Which sequences of a model can grow side by side: all, those of one length, or none, so that all is
computed anew for each token. Some tell positions by the number of tokens, or have states of their own."""


def growth_of(model: PreTrainedModel) -> Growth:
    """What ``set_growth`` said of the model, or of the one that it is a copy of; else ``joined``."""
    growth: Growth = getattr(model, "_growth", "joined")
    return growth


def set_growth(model: PreTrainedModel, growth: Growth) -> None:
    """Say how the model's sequences grow."""
    model._growth = growth  # type: ignore[assignment]


class Decoding:
    """A batch of growing sequences. No gradients flow."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Prefix],
        *,
        max_tokens: int = 2048,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """Read the prompts.

        Args:
            model: The language model.
            prompts: Non-empty; equal ones are read as often as they stand there.
            max_tokens: Read in one forward pass.
            compute_dtype: See ``LanguageModel``.
        """
        self._model, self._decoder = model, decoder_of(model)
        self._compiled = compiled_layers(self._decoder)
        self._device = model.device
        self._compute_dtype = compute_dtype
        self._cache_name = cache_argument(self._decoder)
        self._arguments = inspect.signature(type(self._decoder).forward).parameters
        self.lengths = [len(prompt) for prompt in prompts]
        """Of the sequences, in tokens."""
        by_length = sorted(range(len(prompts)), key=self.lengths.__getitem__)
        caches, hidden = [], []
        first = 0
        while first < len(by_length):
            length = self.lengths[by_length[first]]
            most = first + max(1, max_tokens // length)
            rows = [row for row in by_length[first:most] if self.lengths[row] == length]
            cache, hidden_ND = self._forward([prompts[row] for row in rows], None)
            caches.append(cache)
            hidden.append(hidden_ND)
            first += len(rows)
        self._cache = _joined("", caches)
        self.hidden = torch.cat(hidden)
        """[N, D]: what goes into the head after each sequence."""
        places = sorted(range(len(by_length)), key=by_length.__getitem__)
        self._width = max(self.lengths)
        self.lengths = [self.lengths[row] for row in by_length]
        self.keep(places)

    def __len__(self) -> int:
        return len(self.lengths)

    @torch.no_grad()
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the sequences, in the given order, each as often as it stands there."""
        if list(rows) == list(range(len(self))):
            return
        index = torch.tensor(list(rows), device=self._device)
        self._cache.reorder_cache(index)
        self.hidden = self.hidden[index]
        self.lengths = [self.lengths[row] for row in rows]

    def part(self, rows: Sequence[int]) -> "Decoding":
        """A copy with some of the sequences."""
        part = copy.copy(self)
        part._cache = copy.deepcopy(self._cache)
        part.keep(rows)
        return part

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Add a token to each sequence.

        Returns:
            [N, D]: what goes into the head after each.
        """
        self._cache, self.hidden = self._forward([(token,) for token in tokens], self._cache)
        self.lengths = [length + 1 for length in self.lengths]
        self._width += 1
        return self.hidden

    @torch.no_grad()
    def _forward(self, tokens: Sequence[Sequence[int]], cache: Any) -> tuple[Any, torch.Tensor]:
        extra: dict[str, Any] = {}
        if cache is not None:
            extra[self._cache_name] = cache
            lengths = torch.tensor(self.lengths, device=self._device)
            if "position_ids" in self._arguments:
                extra["position_ids"] = lengths[:, None]
            columns = torch.arange(self._width + 1, device=self._device)
            mask_NT = (columns >= (self._width - lengths)[:, None]).long()
        else:
            mask_NT = torch.ones((len(tokens), len(tokens[0])), dtype=torch.long, device=self._device)
        if "attention_mask" in self._arguments:
            extra["attention_mask"] = mask_NT
        autocast = torch.autocast(
            self._device.type, dtype=self._compute_dtype, enabled=self._compute_dtype is not None
        )
        with autocast, as_they_are(self._compiled), sdpa_kernel(STEADY):
            forward = partial(
                self._decoder,
                input_ids=torch.tensor([list(row) for row in tokens], device=self._device),
                use_cache=True,
                **extra,
            )
            output: Any = run(self._model, forward)
        return output[self._cache_name], output.last_hidden_state[:, -1]


def _joined(name: str, values: Sequence[Any]) -> Any:
    """One of transformers' caches, or a part of one, with the rows of all, in order; the first is used up."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, torch.Tensor) and first.dim() > 1:
        # Keys are [N, heads, T, width], or [N, T, width] of an indexer; a convolution's past is [N, D, T].
        padded = -1 if name.startswith("conv") else -2 if "key" in name or "value" in name else None
        return torch.cat([*values] if padded is None else _padded(values, padded))
    if isinstance(first, list | tuple):
        return type(first)(_joined(name, items) for items in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: _joined(name, [value[key] for value in values]) for key in first}
    if isinstance(first, Cache | CacheLayerMixin | LinearAttentionCacheLayerMixin):
        for part in vars(first):
            setattr(first, part, _joined(part, [vars(value)[part] for value in values]))
    elif type(first) is int:  # how many tokens there were
        return max(values)
    return first


def _padded(values: Sequence[torch.Tensor], dim: int) -> list[torch.Tensor]:
    """The tensors, made as long as the longest by zeros before them."""
    longest = max(value.shape[dim] for value in values)
    behind = [0, 0] * (-1 - dim)
    return [torch.nn.functional.pad(v, (*behind, longest - v.shape[dim], 0)) for v in values]
