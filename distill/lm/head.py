"""How a language model turns hidden states into logits.

Shape letters: N positions, V vocabulary, D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitMap:
    """From the product u of hidden state and head: logits = softcap(scale (u + bias)) / temperature."""

    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    """Granite divides by ``logits_scaling``, Cohere multiplies by ``logit_scale``."""
    softcap: float | None = None
    """Gemma 2: c tanh(x / c) keeps logits between -c and c."""
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def apply_(self, product_NV: torch.Tensor) -> torch.Tensor:
        """The logits, in place of the product."""
        if self.bias_V is not None:
            product_NV.add_(self.bias_V.detach())
        if self.softcap is not None:
            return product_NV.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)
        factor = self.scale / self.temperature
        return product_NV if factor == 1.0 else product_NV.mul_(factor)

    def slope_(self, logits_NV: torch.Tensor) -> torch.Tensor:
        """The derivative of the logits by the product, in place of the logits of a capped model."""
        assert self.softcap is not None
        logits_NV.mul_(self.temperature / self.softcap).square_().neg_().add_(1.0)
        return logits_NV.mul_(self.scale / self.temperature)


@dataclass(frozen=True, slots=True, kw_only=True)
class LMHead:
    """A model's output embedding and its logit map."""

    weight_VD: torch.Tensor
    map: LogitMap

    @classmethod
    def of(cls, model: PreTrainedModel) -> "LMHead":
        """The head of ``model`` as it is now, read from its output embedding and its configuration.

        Whether that is all there is to it, ``distill.lm.support.find_support`` finds out.

        Raises:
            TypeError: The output embedding is no plain linear layer.
        """
        module = model.get_output_embeddings()
        if type(module) is not torch.nn.Linear:
            raise TypeError(f"the model's output embedding is a {type(module).__name__}, not a linear layer")
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0
        scale /= getattr(config, "logits_scaling", None) or 1.0
        return cls(
            weight_VD=module.weight,
            map=LogitMap(
                bias_V=module.bias, scale=scale, softcap=getattr(config, "final_logit_softcapping", None)
            ),
        )

    def at(self, temperature: float) -> "LMHead":
        """The same head with its logits divided by ``temperature``."""
        return replace(self, map=replace(self.map, temperature=temperature))

    def cut(self, vocabulary: int) -> "LMHead":
        """The same head for the first ``vocabulary`` tokens."""
        if vocabulary == self.weight_VD.shape[0]:
            return self
        bias_V = self.map.bias_V
        bias_V = None if bias_V is None else bias_V[:vocabulary]
        return replace(self, weight_VD=self.weight_VD[:vocabulary], map=replace(self.map, bias_V=bias_V))

    def narrowed(self, dtype: torch.dtype | None) -> "LMHead":
        """The same head in a type that its device multiplies faster; ``None`` leaves it as it is."""
        return self if dtype is None else replace(self, weight_VD=self.weight_VD.to(dtype))

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "LMHead":
        """The same head with its tensors elsewhere; no gradients flow to where they were."""
        bias_V = None if self.map.bias_V is None else move(self.map.bias_V.detach())
        return replace(self, weight_VD=move(self.weight_VD.detach()), map=replace(self.map, bias_V=bias_V))

    @torch.no_grad()
    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """[N, V] in fp32 (fp64 for an fp64 model). No gradients flow."""
        product_NV = hidden_ND.to(self.weight_VD.dtype) @ self.weight_VD.T
        return self.map.apply_(product_NV if product_NV.dtype == torch.float64 else product_NV.float())
