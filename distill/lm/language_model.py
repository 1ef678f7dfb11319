"""A causal language model as a function from token prefixes to hidden states and logits, memoised.

The memo holds while the weights do; torch's version counters tell when they change. Equal prefixes are
computed once. There are two ways to compute the rest: ``prefix_lm.py`` and ``padded_lm.py`` beside this file.
Both are exact: nothing is approximated, only not repeated.
Shape letters: N prefixes, V vocabulary, D hidden size.
"""

import inspect
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Protocol, Self

import torch
from transformers import PreTrainedModel

from distill.lm.head import LMHead
from distill.lm.shards import head_of
from distill.lm.span import Prefix, Span
from distill.lm.ways import Way

SCORED_TOGETHER = 256
"""Tokens whose logits are there at a time."""


class ForwardPass(Protocol):
    """One forward pass over spans, from which gradients flow."""

    @staticmethod
    def pack(model: PreTrainedModel, sequences: Sequence[Prefix], max_tokens: int) -> list[list[int]]:
        """Indices of the sequences, each once, in groups of which each is a pass of its own."""
        ...

    @classmethod
    def of(cls, model: PreTrainedModel, spans: Sequence[Span]) -> Self:
        """A pass over the spans."""
        ...

    @property
    def tokens(self) -> int:
        """What goes through the model, padding included."""
        ...

    def hidden(self, model: PreTrainedModel, compute_dtype: torch.dtype | None) -> torch.Tensor:
        """[N, D]: what goes into the head after each prefix of the spans, end to end."""
        ...


class LanguageModel(ABC):
    """``model`` behind a memo; see the module. Gradients are not kept."""

    way: ClassVar[Way]
    """How it computes."""
    forward_pass: ClassVar[type[ForwardPass]]
    """How what is missing is computed."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_bytes: int = 512 << 20,
        max_nodes: int = 2048,
        compute_dtype: torch.dtype | None = None,
        within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """Wrap ``model``, which is put into eval mode.

        Args:
            model: A transformers causal LM.
            max_bytes: What keys and values may take, and again what hidden states may take. When they
                would exceed it, the old ones go. The work of one forward pass is kept whatever it takes.
            max_nodes: Tokens computed in one forward pass.
            compute_dtype: What matrix products run in, by torch's autocast; by default the weights' own.
            within: Where the model's forward passes run, such as with its adapters switched off.

        Raises:
            UnsupportedModelError: This way does not compute it exactly.
        """
        from distill.lm.support import supported  # here, since it tries the ways themselves

        model.eval()
        supported(model, self.way)
        self.model = model
        self._weights: tuple[torch.Tensor, ...] = ()
        self._adapters = -1
        """How many sets of adapters (peft) are among the weights."""
        self.max_bytes = max_bytes
        self.max_nodes = max_nodes
        self.compute_dtype = compute_dtype
        self.window = context_window(model)
        self.within = within
        self.computed_tokens = 0
        """Tokens that went through the model so far."""
        self.clear()

    def fresh(self) -> Self:
        """The same function with a memo of its own."""
        return type(self)(
            self.model,
            max_bytes=self.max_bytes,
            max_nodes=self.max_nodes,
            compute_dtype=self.compute_dtype,
            within=self.within,
        )

    @property
    def weights_version(self) -> int:
        """Grows with every in-place change of any weight, also of adapters that were put in since."""
        adapters = len(vars(self.model).get("peft_config", ()))
        if adapters != self._adapters:  # to look all up each time takes longer than to remember a reply
            self._weights, self._adapters = tuple(self.model.parameters()), adapters
        return sum(weight._version for weight in self._weights)

    def clear(self) -> None:
        """Forget everything, as when the weights have changed."""
        self._version = self.weights_version
        self._hidden: OrderedDict[Prefix, torch.Tensor] = OrderedDict()
        self._held = 0  # bytes of these, and of their prefixes
        self._drop_keys()

    @property
    def token_bytes(self) -> int:
        """What the keys and values of one token take; see ``bytes_per_token``."""
        return bytes_per_token(self.model, self.compute_dtype or self.model.dtype)

    @property
    def capacity(self) -> int:
        """Tokens whose keys and values fit in ``max_bytes``. Work on more at once is done over and over."""
        return self.max_bytes // self.token_bytes

    @property
    def head(self) -> LMHead:
        """What turns hidden states into logits; see ``head_of``."""
        return head_of(self.model)

    def logits(self, prefixes: Sequence[Prefix]) -> torch.Tensor:
        """The model's next-token logits after each prefix; the product with the head is not remembered.

        Keys and values are kept: prefixes that are a token longer than earlier ones take little.

        Args:
            prefixes: Non-empty token sequences, each with the whole prompt.

        Returns:
            [N, V], fp32, on the model's device.
        """
        return self.head.logits(self._memoised(prefixes, grow=True)).float()

    def hidden(self, prefixes: Sequence[Prefix]) -> torch.Tensor:
        """What goes into the head after each prefix, of which each is as for ``logits``.

        Returns:
            [N, D] in the model's dtype, on its device.
        """
        return self._memoised(prefixes, grow=False)

    @torch.no_grad()
    def along(self, spans: Sequence[Span]) -> torch.Tensor:
        """What goes into the head after each prefix of the spans; nothing is looked up, nothing remembered.

        Its time grows with the spans' tokens: of a long sequence this is the way to ask for every prefix.

        Returns:
            [N, D], the spans' prefixes end to end, in the model's dtype, on its device.
        """
        found: dict[int, torch.Tensor] = {}
        for group in self.forward_pass.pack(self.model, [span.tokens for span in spans], self.max_nodes):
            asked = [spans[index] for index in group]
            forward_pass = self.forward_pass.of(self.model, asked)
            with self.within():
                hidden_ND = forward_pass.hidden(self.model, self.compute_dtype)
            found |= zip(group, hidden_ND.split([span.size for span in asked]), strict=True)
            self.computed_tokens += forward_pass.tokens
        return torch.cat([found[index] for index in range(len(spans))])

    @torch.no_grad()
    def logprobs(self, tokens: Prefix, start: int) -> torch.Tensor:
        """Of a sequence's tokens from ``start`` on, which is at least 1, each after all that stand before it.

        Nothing is looked up, nothing remembered, and of the logits a part is there at a time.

        Returns:
            [N], in nats, fp32, on the CPU.
        """
        hidden_ND = self.along([Span(tokens[:-1], start)])
        next_N = torch.tensor(tokens[start:], device=hidden_ND.device)
        blocks = (whole.split(SCORED_TOGETHER) for whole in (hidden_ND, next_N))
        parts = []
        for hidden_CD, next_C in zip(*blocks, strict=True):
            logits_CV = self.head.logits(hidden_CD).float()
            parts.append(logits_CV.gather(-1, next_C[:, None])[:, 0] - logits_CV.logsumexp(-1))
        return torch.cat(parts).cpu()

    def _memoised(self, prefixes: Sequence[Prefix], *, grow: bool) -> torch.Tensor:
        if self.weights_version != self._version:
            self.clear()
        # Held here as well, so that making room cannot take away what this call returns.
        known = {p: self._hidden[p] for p in set(prefixes) if p in self._hidden}
        missing = sorted(set(prefixes) - known.keys())
        try:
            with torch.no_grad(), self.within():
                known |= self._computed(missing, grow)
        except BaseException:  # an interrupt, say: keys and values may be half there
            self.clear()
            raise
        for prefix in missing:
            self._hidden[prefix] = known[prefix]
            self._held += _bytes_of(prefix, known[prefix])
        while len(self._hidden) > 1 and self._held > self.max_bytes:
            self._held -= _bytes_of(*self._hidden.popitem(last=False))
        return torch.stack([known[prefix] for prefix in prefixes])

    @abstractmethod
    def _computed(self, prefixes: Sequence[Prefix], grow: bool) -> dict[Prefix, torch.Tensor]:
        """[D] for each of the prefixes, which are distinct, sorted, and not in the memo.

        Args:
            prefixes: See above.
            grow: Whether longer ones may be asked for next.
        """

    @abstractmethod
    def _drop_keys(self) -> None:
        """Forget keys and values."""


def _bytes_of(prefix: Prefix, hidden_D: torch.Tensor) -> int:
    return sys.getsizeof(prefix) + hidden_D.numel() * hidden_D.element_size()


def cache_argument(decoder: torch.nn.Module) -> str:
    """What the model calls its cache; later transformers renamed it."""
    names = inspect.signature(type(decoder).forward).parameters
    return next((name for name in ("cache", "cache_params") if name in names), "past_key_values")


def context_window(model: PreTrainedModel) -> int:
    """The longest sequence, in tokens.

    With dynamic rope it is the one that the model was trained for: beyond it every further token would change
    what the tokens before it mean, and no two lengths could share a pass.
    """
    config = model.config.get_text_config()
    limits = [
        getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "n_positions")
    ]
    for rope in rope_settings(model):
        if "dynamic" in str(rope.get("rope_type")):
            limits.append(rope.get("original_max_position_embeddings"))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=1 << 30)


def rope_switch(model: PreTrainedModel) -> int | None:
    """The longest sequence of those that a model with longrope reads with its first set of frequencies."""
    switches = [
        int(rope["original_max_position_embeddings"])
        for rope in rope_settings(model)
        if rope.get("rope_type") == "longrope" and rope.get("original_max_position_embeddings")
    ]
    return min(switches, default=None)


def rope_settings(model: PreTrainedModel) -> list[dict[str, Any]]:
    """The model's rope parameters: one set, or one for each type of layer."""
    settings = getattr(model.config.get_text_config(), "rope_parameters", None)
    if not isinstance(settings, dict):
        return []
    nested = [value for value in settings.values() if isinstance(value, dict)]
    return nested or [settings]


def bytes_per_token(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """What the keys and values of one token take, at most; recurrent layers take nothing per token."""
    config = model.config.get_text_config()
    own = getattr(config, "per_layer_config", None)  # of models whose layers differ
    layers = range(config.num_hidden_layers)
    return sum(_numbers_per_token(config if own is None else own[layer]) for layer in layers) * dtype.itemsize


def _numbers_per_token(layer: Any) -> int:
    """Of a layer's keys and values, from its configuration."""
    all_heads = getattr(layer, "num_attention_heads", None) or 1
    heads = getattr(layer, "num_key_value_heads", None) or all_heads
    width = getattr(layer, "head_dim", None) or layer.hidden_size // all_heads
    return 2 * int(heads) * int(width)
