"""LoRA adapters (peft) in a student, and the student without them."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from distill.examples import DistillError
from distill.lm.head import LMHead


class LoRA:
    """Adapters of rank r beside the linear layers of a model; everything else is frozen.

    The model stays the object that it was, with layers replaced in place.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        rank: int,
        alpha: int,
        seed: int = 0,
    ) -> None:
        """Put adapters into ``model``; at first they change nothing.

        Args:
            model: The student.
            rank: Of the adapters.
            alpha: The adapters' outputs are scaled by alpha / rank.
            seed: Of the adapters' first weights: the same on every process, and in a resumed run.

        Raises:
            DistillError: The model has a linear layer that cannot be adapted.
        """
        # Weights need no names of their own in a checkpoint, so the base's path on a hub is not looked up.
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", bias="none")
        try:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self._peft: Any = get_peft_model(model, config)
            LMHead.of(model)
        except (TypeError, ValueError) as error:
            raise DistillError(f"LoRA cannot be put on the model: {str(error).splitlines()[0]}") from error

    def off(self) -> AbstractContextManager[Any]:
        """Within it the model is what it was without adapters."""
        context: AbstractContextManager[Any] = self._peft.disable_adapter()
        return context

    def merged(self) -> PreTrainedModel:
        """A copy with the adapters multiplied into its weights: a plain model, in fp32.

        In 16 bits most of what the adapters learned would be rounded away.
        """
        merged: PreTrainedModel = copy.deepcopy(self._peft).float().merge_and_unload()
        return merged

    @torch.no_grad()
    def weights(self, *, merged: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """The plain model's weights by name, one after the other, with the adapters in them or without."""
        model: PreTrainedModel = self._peft.get_base_model()
        layers = dict(model.named_modules())
        for name, tensor in model.state_dict().items():
            layer_name, is_adapted, rest = name.partition(".base_layer.")
            if "lora_" in name:
                continue
            if merged and is_adapted and rest == "weight":
                delta = layers[layer_name].get_delta_weight("default")
                tensor = (tensor.float() + delta.float()).to(tensor.dtype)
            yield name.replace(".base_layer.", "."), tensor
