"""LoRA adapters (peft) in a student, and the student without them."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from distill.examples import DistillError
from distill.lm.head import output_layer
from distill.lm.reason import reason
from distill.lm.sealed import seal_folder
from distill.lm.shards import weights_of, whole

PREFIX = "base_model.model."
"""What peft puts before the names of a model's parameters."""


class LoRA:
    """Adapters of rank r beside the linear layers of a model; everything else is frozen.

    The model stays the object that it was, with layers replaced in place.
    """

    def __init__(self, model: PreTrainedModel, *, rank: int, alpha: int, seed: int = 0) -> None:
        """Put adapters into ``model``; at first they change nothing.

        Their outputs are scaled by alpha / rank. Their first weights follow from the seed: they are the same
        on every process, and in a resumed run.

        Raises:
            DistillError: The model has a linear layer that cannot be adapted, or has adapters already.
        """
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise DistillError("the model has adapters already: merge them into it first")
        # Weights need no names of their own in a checkpoint, so the base's path on a hub is not looked up.
        config = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules="all-linear",
            exclude_modules=_routers(model),
            bias="none",
        )
        try:
            with torch.random.fork_rng(), warnings.catch_warnings():
                torch.manual_seed(seed)
                # The ranks of fused experts do take effect; peft looks for them among modules only.
                warnings.filterwarnings("ignore", "The following .*_pattern keys")
                self._peft: Any = get_peft_model(model, config)
            output_layer(model)
        except (TypeError, ValueError) as error:
            raise DistillError(f"LoRA cannot be put on the model: {reason(error)}") from error

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it the model is what it was without adapters."""
        # Not peft's own: it says of the adapters meanwhile that they are not trained, and shards believe it.
        layers = [m for m in self._peft.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters]
        try:
            for layer in layers:
                layer._disable_adapters = True
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False

    def save(self, folder: Path, adapters: Iterable[tuple[str, torch.Tensor]], *, base: str) -> None:
        """Write the adapters, named as among the model's parameters, as peft reads them for ``base``."""
        state = {f"{PREFIX}{name}": tensor.cpu() for name, tensor in adapters}
        self._peft.peft_config["default"].base_model_name_or_path = base
        self._peft.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
        (folder / "README.md").unlink()  # a form to be filled in
        seal_folder(folder)

    @torch.no_grad()
    def weights(
        self, *, merged: bool, dtype: torch.dtype | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The plain model's weights by name, whole, one after the other.

        Args:
            merged: Whether the adapters are in them. In 16 bits most of what they learned is rounded away.
            dtype: Of the weights that are numbers with a point; by default each its own.
        """
        model: PreTrainedModel = self._peft.get_base_model()
        layers = dict(model.named_modules())
        for name, tensor in weights_of(model):
            if "lora_" in name:
                continue
            plain = tensor.to(dtype or tensor.dtype) if tensor.is_floating_point() else tensor
            place, is_adapted, _ = name.partition(".base_layer.")
            plain_name = name.replace("base_layer.", "")
            layer: Any = layers[place] if merged and is_adapted else None
            # A mixture's experts are several parameters of one module: peft wraps it once for each.
            while hasattr(layer, "base_layer"):
                if plain_name == f"{place}.{getattr(layer, 'parameter_name', 'weight')}":
                    delta = whole(layer.get_delta_weight("default"))
                    plain = (tensor.float() + delta.float()).to(plain.dtype)
                layer = layer.base_layer
            yield plain_name, plain


def _routers(model: PreTrainedModel) -> list[str]:
    """The linear layers that choose experts too: what they return is no tensor, to which one could be added.

    Only these: other kinds of linear layer return one, as Falcon's.
    """
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and type(module).__name__.endswith("Router")
    ]
