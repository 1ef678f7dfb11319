"""How a language model turns hidden states into logits.

Shape letters: N positions, V vocabulary, D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from distill.lm.logit_map import LogitMap
from distill.lm.ways import UnsupportedModelError, support_of

TINY, HUGE = 2.0**-30, 1e30
"""Products so small that no cap changes them, and so large that nothing else is left of them."""
PRODUCTS = (1.0, TINY, HUGE, *(sign * 10 ** (step / 4) for step in range(-8, 17) for sign in (1, -1)))
"""What a head is tried with."""
EXACT = 1e-5
"""How far logits may be off from what a ``LogitMap`` makes of such products, as a part of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LMHead:
    """A model's output embedding and its logit map."""

    weight_VD: torch.Tensor
    map: LogitMap

    @classmethod
    def of(cls, model: PreTrainedModel) -> "LMHead":
        """The head of ``model`` as it is now; its map is the one that was found, or else is measured now.

        Raises:
            UnsupportedModelError: See ``logit_map``.
        """
        layer, support = output_layer(model), support_of(model)
        map = logit_map(model) if support is None else support.logit_map
        return cls(weight_VD=layer.weight, map=replace(map, bias_V=layer.bias))

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


def decoder_of(model: PreTrainedModel) -> Any:
    """The part of a model that reads tokens; a multimodal one has others beside it.

    Raises:
        UnsupportedModelError: It is not apart from the head.
    """
    for decoder in (model.get_decoder(), model.base_model, getattr(model, "model", None)):
        if decoder is not None and decoder is not model and decoder is not model.get_output_embeddings():
            return decoder
    raise UnsupportedModelError("the model has no decoder beside its head")


def output_layer(model: PreTrainedModel) -> torch.nn.Linear:
    """The model's output embedding.

    Raises:
        UnsupportedModelError: It is no plain linear layer.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not torch.nn.Linear:
        raise UnsupportedModelError(
            f"the model's output embedding is a {type(layer).__name__}, not a linear layer"
        )
    return layer


@torch.no_grad()
def logit_map(model: Any) -> LogitMap:
    """The scale and cap of the model's logits, without the bias: from what it makes of products it is given.

    In its own logits, which may be small, a cap would not show.

    Raises:
        UnsupportedModelError: There is more to its head.
    """
    head = output_layer(model)
    exact = torch.float32 if model.device.type == "mps" else torch.float64
    given_V = torch.tensor(PRODUCTS, dtype=exact).repeat(head.out_features // len(PRODUCTS) + 1)
    given_V = given_V[: head.out_features].to(model.device)
    states: list[torch.Tensor] = []

    def note(_: Any, __: Any, output: Any) -> None:
        states.append(output[0].flatten())

    def give(_: Any, inputs: Any, product: torch.Tensor) -> torch.Tensor:
        states.append(inputs[0].flatten())
        return given_V.expand(product.shape)

    hooks = [decoder_of(model).register_forward_hook(note), head.register_forward_hook(give)]
    try:
        ids = torch.arange(3, device=model.device)[None]  # the state of one, such as padding, may be zero
        logits_V = model(ids, use_cache=False).logits[0, -1].to(exact)
    finally:
        for hook in hooks:
            hook.remove()
    if len(states) != 2 or logits_V.shape != given_V.shape:
        raise UnsupportedModelError("the model's logits are not those of its output embedding")
    one, tiny, huge = logits_V[:3].tolist()
    if abs(huge) > HUGE / 2 * abs(one):
        map = LogitMap(scale=one)
    else:  # seven digits, since the cap is divided by and multiplied with
        map = LogitMap(scale=float(f"{tiny / TINY:.7g}"), softcap=abs(huge) or None)
    expected_V = map.apply_(given_V.clone())
    off_V = (logits_V - expected_V).abs() / expected_V.abs()
    wrong = ~(off_V <= EXACT)  # NaN is
    if wrong.any():
        product, logit = given_V[wrong][0], logits_V[wrong][0]
        raise UnsupportedModelError(
            f"its head does more than multiply, scale and soft-cap: of {product:.3g} it makes {logit:.3g}"
        )
    factor = _factor(*states)
    if factor != 1.0 and head.bias is not None:
        raise UnsupportedModelError("the model scales what goes into its head, which has a bias")
    return replace(map, scale=map.scale * factor)


def _factor(state_N: torch.Tensor, input_N: torch.Tensor) -> float:
    """By what the model multiplies a hidden state before it goes into the head, as Inkling does."""
    if torch.equal(state_N.to(input_N.dtype), input_N):
        return 1.0
    rounding = torch.finfo(input_N.dtype).eps
    state_N, input_N = state_N.float(), input_N.float()
    factor = float(state_N @ input_N / (state_N @ state_N))
    if not (input_N - factor * state_N).abs().max() <= 4 * rounding * input_N.abs().max():  # NaN is not
        raise UnsupportedModelError("what goes into the model's head is no multiple of its hidden states")
    return factor
