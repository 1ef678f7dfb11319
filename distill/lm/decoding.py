"""Sequences that grow side by side, with keys, values and states as the model itself keeps them.

Keys and values of shorter ones are padded on the left, where the mask hides them; recurrent states have no
length. Nothing is padded while it is read, since recurrent layers would take padding for text: so many tokens
are added to one sequence as to another.
Shape letters: N sequences, D hidden size.
"""

import copy
import inspect
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from distill.lm.autocast import products_in
from distill.lm.compiled import as_they_are, compiled_layers
from distill.lm.head import decoder_of
from distill.lm.language_model import cache_argument, rope_switch
from distill.lm.shards import run
from distill.lm.spare_columns import SpareColumns, spare_columns
from distill.lm.ways import growth_of

STEADY = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention that is not planned anew for each length: cuDNN's is, and doubles a token's time on an H100."""


def is_beyond_switch(model: PreTrainedModel, length: int) -> bool:
    """Whether a sequence is so long that the model's rope reads it otherwise than a shorter one."""
    switch = rope_switch(model)
    return switch is not None and length > switch


def kind_of_length(model: PreTrainedModel, length: int) -> Hashable:
    """Sequences can grow side by side if this is the same for their lengths."""
    return length if growth_of(model) == "alike" else is_beyond_switch(model, length)


class Decoding:
    """A batch of growing sequences. No gradients flow."""

    def __init__(
        self, model: PreTrainedModel, size: int, *, compute_dtype: torch.dtype | None = None
    ) -> None:
        """Begin with this many empty sequences."""
        self._model, self._decoder = model, decoder_of(model)
        self._compiled = compiled_layers(self._decoder)
        self._device = model.device
        self._compute_dtype = compute_dtype
        self._cache_name = cache_argument(self._decoder)
        self._arguments = inspect.signature(type(self._decoder).forward).parameters
        self._cache: Any = None
        self.lengths = [0] * size
        """Of the sequences, in tokens."""
        self.hidden = torch.empty((size, 0))
        """[N, D]: what goes into the head after each sequence."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def bytes(self) -> int:
        """What is held for the sequences."""
        storages = [tensor.untyped_storage() for tensor in _tensors(self._cache)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    @classmethod
    @torch.no_grad()
    def gathered(cls, size: int, parts: Iterable[tuple[Sequence[int], "Decoding"]]) -> "Decoding":
        """All sequences of some batches in one. Each is laid where it belongs as soon as it is there.

        So what is held is never there twice, if the batches are made one after the other.

        Args:
            size: How many there are.
            parts: The rows of a batch's sequences, and the batch; first the one with the longest sequence. If
                it has all, in order, it is what is returned.
        """
        whole: Decoding | None = None
        for rows, part in parts:
            if list(rows) == list(range(size)):
                return part
            if whole is None:
                whole = copy.copy(part)
                whole.lengths = [0] * size
                whole.hidden, whole._cache = part.hidden.new_zeros((size, part.hidden.shape[-1])), None
            whole._lay(rows, part)
        assert whole is not None
        return whole

    def _lay(self, rows: Sequence[int], part: "Decoding") -> None:
        """Let the sequences of another batch, none of which is longer, be these rows."""
        for row, length in zip(rows, part.lengths, strict=True):
            self.lengths[row] = length
        index = torch.tensor(list(rows), device=self._device)
        self.hidden.index_copy_(0, index, part.hidden)
        width = max(self.lengths)
        if self._cache is None:
            empty = partial(_empty, len(self))
            self._cache = _changed(empty, width, "", part._cache)
        self._cache = _changed(partial(_laid, index), width, "", self._cache, part._cache)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the sequences, in the given order, each as often as it stands there."""
        if list(rows) != list(range(len(self))):
            self._select(rows)

    def part(self, rows: Sequence[int]) -> "Decoding":
        """A copy with some of the sequences."""
        part = copy.copy(self)
        if self._cache is not None:
            part._cache = copy.copy(self._cache)
            part._cache.layers = [*self._cache.layers]
        part._select(rows)
        return part

    @torch.no_grad()
    def _select(self, rows: Sequence[int]) -> None:
        """Be a batch of these rows, a layer after the other: what is left out is let go at once."""
        self.lengths = [self.lengths[row] for row in rows]
        index = torch.tensor(list(rows), device=self._device)
        self.hidden = self.hidden[index]
        if self._cache is not None:
            width = max(self.lengths)
            for number, layer in enumerate(self._cache.layers):
                self._cache.layers[number] = _changed(partial(_last, width), width, "", layer)
                self._cache.layers[number].reorder_cache(index)

    @torch.no_grad()
    def step(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Add tokens to the sequences, to each as many.

        Returns:
            [N, D]: what goes into the head after each.
        """
        new, width = len(tokens[0]), max(self.lengths)
        lengths = torch.tensor(self.lengths, device=self._device)
        extra: dict[str, Any] = {}
        if self._cache is not None:
            extra[self._cache_name] = self._cache
            if "position_ids" in self._arguments:
                extra["position_ids"] = lengths[:, None] + torch.arange(new, device=self._device)
        # Who has states only, and no keys, takes a mask for one of the new tokens.
        has_keys = self._cache is None or any(isinstance(m, CacheLayerMixin) for m in self._cache.layers)
        if "attention_mask" in self._arguments and has_keys:
            columns = torch.arange(width + new, device=self._device)
            extra["attention_mask"] = (columns >= (width - lengths)[:, None]).long()
        narrow = products_in(self._model, self._compute_dtype)
        with narrow, as_they_are(self._compiled), sdpa_kernel(STEADY):
            forward = partial(
                self._decoder,
                input_ids=torch.tensor([list(row) for row in tokens], device=self._device),
                use_cache=True,
                **extra,
            )
            output: Any = run(self._model, forward)
        if self._cache is None:
            spare_columns(output[self._cache_name], self._compute_dtype)
        # A copy: what remembers a row would hold the whole pass.
        self._cache, self.hidden = output[self._cache_name], output.last_hidden_state[:, -1].clone()
        self.lengths = [length + new for length in self.lengths]
        return self.hidden


def _changed(change: Callable[..., torch.Tensor], width: int, name: str, *values: Any) -> Any:
    """One of transformers' caches, or a part of one, with what ``change`` makes of its tensors.

    It gets the dimension of their columns, if they have such, and the tensor of each of ``values``, which are
    alike. The containers are new.
    """
    first = values[0]
    if isinstance(first, torch.Tensor):
        if first.dim() < 2:
            return first
        # Keys are [N, heads, T, width], or [N, T, width] of an indexer; a convolution's past is [N, D, T].
        columns = -1 if name.startswith("conv") else -2 if "key" in name or "value" in name else None
        return change(columns, *values)
    if isinstance(first, SpareColumns):
        return SpareColumns()  # of the new tensors
    if isinstance(first, list | tuple):
        return type(first)(_changed(change, width, name, *items) for items in zip(*values, strict=True))
    if isinstance(first, dict):
        return {key: _changed(change, width, name, *(value[key] for value in values)) for key in first}
    if isinstance(first, Cache | CacheLayerMixin | LinearAttentionCacheLayerMixin):
        changed = copy.copy(first)
        for part in vars(first):
            setattr(changed, part, _changed(change, width, part, *(vars(value)[part] for value in values)))
        return changed
    return width if name == "cumulative_length" and type(first) is int else first


def _empty(size: int, _: int | None, like: torch.Tensor) -> torch.Tensor:
    """Room for so many rows."""
    return like.new_zeros((size, *like.shape[1:]))


def _laid(rows: torch.Tensor, columns: int | None, whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """``whole``, with ``part`` in its rows: in the last columns."""
    laid = whole
    if columns is not None:
        width = min(whole.shape[columns], part.shape[columns])
        laid, part = (tensor.narrow(columns, -width, width) for tensor in (whole, part))
    laid.index_copy_(0, rows, part)
    return whole


def _last(width: int, columns: int | None, tensor: torch.Tensor) -> torch.Tensor:
    """The last columns of keys or values."""
    if columns != -2:
        return tensor
    width = min(width, tensor.shape[columns])
    return tensor.narrow(columns, -width, width)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All in one of transformers' caches."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Cache | CacheLayerMixin | LinearAttentionCacheLayerMixin):
        yield from _tensors(vars(value))
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)
