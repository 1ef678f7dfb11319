"""Sequences that grow by a token at a time, with keys, values and states as the model itself keeps them.

Prompts of one length are read together, so that nothing is padded: recurrent layers would take padding for
text. Then all grow side by side. Keys and values of shorter ones are padded on the left, where the mask hides
them; recurrent states have no length.
Shape letters: N sequences, T tokens, D hidden size.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from distill.lm.language_model import cache_argument, decoder_of
from distill.lm.span import Prefix


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
        self._decoder = decoder_of(model)
        self._device = model.device
        self._compute_dtype = compute_dtype
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
        self._cache = _joined(caches)
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
            extra[cache_argument(self._decoder)] = cache
            lengths = torch.tensor(self.lengths, device=self._device)
            if "position_ids" in self._arguments:
                extra["position_ids"] = lengths[:, None]
            if min(self.lengths) < self._width and "attention_mask" in self._arguments:
                columns = torch.arange(self._width + 1, device=self._device)
                extra["attention_mask"] = (columns >= (self._width - lengths)[:, None]).long()
        autocast = torch.autocast(
            self._device.type, dtype=self._compute_dtype, enabled=self._compute_dtype is not None
        )
        with autocast:
            output = self._decoder(
                input_ids=torch.tensor([list(row) for row in tokens], device=self._device),
                use_cache=True,
                **extra,
            )
        return output[cache_argument(self._decoder)], output.last_hidden_state[:, -1]


def _joined(caches: Sequence[Any]) -> Any:
    """One cache with the rows of all, in order: of transformers' own cache classes, layer by layer."""
    first = caches[0]
    if len(caches) > 1:
        for layers in zip(*(cache.layers for cache in caches), strict=True):
            for name, value in vars(layers[0]).items():
                setattr(layers[0], name, _joined_values(name, [vars(layer)[name] for layer in layers], value))
    return first


def _joined_values(name: str, values: list[Any], first: Any) -> Any:
    if isinstance(first, torch.Tensor) and first.dim() > 1:
        if "keys" in name or "values" in name:  # [N, heads, T, width], or [N, T, width] of an indexer
            longest = max(value.shape[-2] for value in values)
            values = [
                torch.nn.functional.pad(value, (0, 0, longest - value.shape[-2], 0)) for value in values
            ]
        return torch.cat(values)
    if isinstance(first, list):
        return [_joined_values(name, list(items), items[0]) for items in zip(*values, strict=True)]
    if isinstance(first, int) and not isinstance(first, bool):  # how many tokens there were
        return max(values)
    return first
