"""What a language model makes of the product of a hidden state and its head.

Shape letters: N positions, V vocabulary.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitMap:
    """From the product u of hidden state and head: logits = softcap(scale (u + bias)) / temperature."""

    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    """Of Granite, Cohere and Falcon-H1, say, it is not 1."""
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
