"""A model's weights under the names that its checkpoint has, which are not always the model's own.

Transformers renames what it loads, and puts a layer's experts into one tensor; others, such as vLLM, read
checkpoints as they are published.
"""

from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion


def as_stored(
    model: PreTrainedModel, weights: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights as ``save_pretrained`` would write them: one after the other where no name changes."""
    if getattr(model, "_weight_conversions", None):  # which loading leaves there
        yield from revert_weight_conversion(model, dict(weights)).items()
    else:
        yield from weights
