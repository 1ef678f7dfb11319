"""A model's weights under the names that its checkpoint has, which are not always the model's own.

Transformers renames what it loads, and puts a layer's experts into one tensor; others, such as vLLM, read
checkpoints as they are published.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion


def as_stored(
    model: PreTrainedModel, weights: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights as ``save_pretrained`` would write them: where names change, a layer at once."""
    if getattr(model, "_weight_conversions", None):  # which loading leaves there
        for layer in by_layer(weights):
            yield from revert_weight_conversion(model, layer).items()
    else:
        yield from weights


def by_layer(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[dict[str, torch.Tensor]]:
    """Each layer's together, which is of what that is put otherwise in files is made."""
    for _, layer in groupby(weights, lambda weight: re.split(r"(\.\d+\.)", weight[0], maxsplit=1)[:2]):
        yield dict(layer)
