"""A model's layers, compiled for whole sequences on a GPU, where that nearly halves a pass's time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from distill.lm.shards import layers_of

MOST_VERSIONS = 64
"""Compiled versions of one layer's code: with and without gradients, adapters, and fixed lengths."""


def compile_layers(model: PreTrainedModel) -> None:
    """Compile each layer, on a GPU; what cannot be compiled runs as it is (docs/speed.md has the times)."""
    if model.device.type != "cuda":
        return
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = MOST_VERSIONS
    for layer in layers_of(model):
        if layer._compiled_call_impl is None:
            layer.compile()


def compiled_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Those that are."""
    return [layer for layer in model.modules() if layer._compiled_call_impl is not None]


@contextmanager
def as_they_are(layers: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Within it these compiled layers are not: for single tokens, each of which would bring another shape."""
    calls = [layer._compiled_call_impl for layer in layers]
    for layer in layers:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, call in zip(layers, calls, strict=True):
            layer._compiled_call_impl = call
