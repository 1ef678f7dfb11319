"""Keys and values with columns to spare, so that drawing a token does not copy those of all before it.

Transformers' own layers lay what they have and what is new into new tensors at every token, which takes most
of the time of long replies. Shape letters: N sequences, G key/value heads, T tokens, W head width.
"""

from functools import cache
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

LEAST = 16
"""Columns to spare."""
PART = 8
"""Or an eighth of what there is: a token costs the copying of this many, however long the sequence."""


def spare(columns: int) -> int:
    """How many more there is room for beside so many, when a token is drawn."""
    return max(LEAST, columns // PART)


class SpareColumns:
    """What keys or values lie in, with room behind them."""

    def __init__(self) -> None:
        self._whole = self._kept = torch.empty(0)
        self._end = 0

    def append(
        self, held_NGTW: torch.Tensor, new_NGTW: torch.Tensor, keep: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lay what is new behind what is held: in place, if that is what was given last.

        So what was given before stays as it is, whoever has it, and can be gone on with by others.

        Args:
            held_NGTW: What there is.
            new_NGTW: What comes behind it.
            keep: How many of the last columns will be held; by default all.

        Returns:
            All of it, and what is to be held.
        """
        held, new = held_NGTW.shape[-2], new_NGTW.shape[-2]
        if held_NGTW is not self._kept or self._end + new > self._whole.shape[-2]:
            columns = held + new + spare(held)
            self._whole = held_NGTW.new_empty((*held_NGTW.shape[:-2], columns, held_NGTW.shape[-1]))
            self._whole[..., :held, :] = held_NGTW
            self._end = held
        self._whole[..., self._end : self._end + new, :] = new_NGTW
        self._end += new
        all_NGTW = self._whole[..., self._end - held - new : self._end, :]
        self._kept = all_NGTW if keep is None else all_NGTW[..., -keep:, :]
        return all_NGTW, self._kept


class _Growing(DynamicLayer):
    """In place of ``update`` of a layer of transformers'."""

    spare: tuple[SpareColumns, SpareColumns]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values, the new ones, [N, G, T, W], among them."""
        if self.keys is not None and self.values is not None:
            key_states, value_states = key_states.to(self.keys.dtype), value_states.to(self.values.dtype)
        if self.keys is None or self.values is None or key_states.shape[-2] > 1:  # a text, read at once
            read: tuple[torch.Tensor, torch.Tensor] = super().update(
                key_states, value_states, *args, **kwargs
            )
            return read
        keep = None
        if isinstance(self, DynamicSlidingWindowLayer):
            self.cumulative_length += 1
            keep = self.sliding_window - 1
        for_keys, for_values = self.spare
        keys, self.keys = for_keys.append(self.keys, key_states, keep)
        values, self.values = for_values.append(self.values, value_states, keep)
        return keys, values


@cache
def _growing(kind: Any) -> type[_Growing]:
    """The same kind of layer that grows in place."""
    return type(f"Growing{kind.__name__}", (_Growing, kind), {"_layer_type": None})


def spare_columns(cache: Cache, products: torch.dtype | None) -> None:
    """Let the cache's layers grow in place, token by token, where they copy all that they have.

    Where autocast makes ``products`` narrower than the rest, keys that were turned are still wide, and it
    narrows all of them at every token. Here they are held as they are used.
    """
    layer: Any
    for layer in cache.layers:
        kind: Any = type(layer)
        if getattr(kind, "update", None) in (DynamicLayer.update, DynamicSlidingWindowLayer.update):
            layer.__class__ = _growing(kind)
            layer.spare = SpareColumns(), SpareColumns()
            if layer.keys is not None:
                layer.keys, layer.values = layer.keys.to(products), layer.values.to(products)
