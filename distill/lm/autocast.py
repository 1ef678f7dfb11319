"""Matrix products in a narrower type than the weights', by torch's autocast.

Autocast narrows the weights anew in every pass. Where no gradients flow, on a CPU, what it makes of them is
kept until they change: a token of a few replies then takes half the time (docs/speed.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from distill.lm.head import decoder_of
from distill.lm.shards import Shards


@contextmanager
def products_in(model: PreTrainedModel, dtype: torch.dtype | None) -> Iterator[None]:
    """Within it the model's products run in ``dtype``; ``None`` leaves them as they are."""
    device = model.device.type
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        if dtype is None or device != "cpu" or torch.is_grad_enabled() or Shards.of(model) is not None:
            yield
            return
        kept = _KEPT.get(model)
        if kept is None or kept.dtype != dtype:
            kept = _KEPT[model] = _Narrowed(model, dtype)
        with kept.in_place():
            yield


def narrow_for_good(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Keep the weights of products, of a model that nobody trains, as autocast would make them each time."""
    if dtype is not None:
        for place in _places(model):
            place.parameters[place.name] = place.narrowed(dtype)


class _Narrowed:
    """What autocast makes of the weights of a model's linear layers."""

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._places = _places(model)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it they stand in the place of the weights."""
        weights = [place.parameters[place.name] for place in self._places]
        narrowed = [place.narrowed(self.dtype) for place in self._places]
        try:
            for place, narrow in zip(self._places, narrowed, strict=True):
                place.parameters[place.name] = narrow
            yield
        finally:
            for place, weight in zip(self._places, weights, strict=True):
                place.parameters[place.name] = weight


@dataclass(slots=True)
class _Place:
    """Where a layer has a weight, or may have one."""

    parameters: dict[str, torch.nn.Parameter | None]
    name: str
    weight: torch.nn.Parameter | None = None
    """Of which ``kept`` was made, when it was ``seen`` in this version, there."""
    seen: tuple[int, int] | None = None
    kept: torch.nn.Parameter | None = None

    def narrowed(self, dtype: torch.dtype) -> torch.nn.Parameter | None:
        weight = self.parameters[self.name]
        if weight is None or weight.dtype != torch.float32:
            return weight
        seen = weight._version, weight.data_ptr()
        if self.weight is not weight or self.seen != seen:
            self.weight, self.seen = weight, seen
            self.kept = torch.nn.Parameter(weight.detach().to(dtype), requires_grad=False)
        return self.kept


def _places(model: PreTrainedModel) -> list[_Place]:
    """Those of linear layers, but for the head, which is multiplied outside of the model's passes."""
    layers = [module for module in decoder_of(model).modules() if type(module) is torch.nn.Linear]
    return [_Place(layer._parameters, name) for layer in layers for name in layer._parameters]


_KEPT: WeakKeyDictionary[torch.nn.Module, _Narrowed] = WeakKeyDictionary()
