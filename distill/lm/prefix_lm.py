"""A causal language model as a function from token prefixes to hidden states and logits, memoised.

The memo holds while the weights do; torch's version counters tell when they change. Equal prefixes are
computed once; a new prefix continues from the keys and values of the longest prefix that it shares with an
earlier one; and all that one call misses is computed as a tree (``distill/lm/prefix_tree.py``). Results are
exact: nothing is approximated, only not repeated.
Shape letters: N prefixes, Q queries, K keys, V vocabulary, D hidden size, H key/value heads, W head width.
"""

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from distill.lm import tree_attention
from distill.lm.head import LMHead
from distill.lm.prefix_tree import PrefixTree, pack

Prefix = tuple[int, ...]


class UnsupportedModelError(ValueError):
    """A model whose logits are not a function of a token's ancestors alone, as a prefix tree needs it."""


class PrefixLM:
    """``model`` behind a memo; see the module. Gradients are not kept."""

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
            model: Any transformers causal LM with full attention and SDPA.
            max_bytes: What keys and values may take, and again what hidden states may take. When they
                would exceed it, the old ones go. The work of one forward pass is kept whatever it takes.
            max_nodes: Tokens computed in one forward pass.
            compute_dtype: See ``tree_hidden``.
            within: Where the model's forward passes run, such as with its adapters switched off.
        """
        self.model = model
        model.eval()
        self.max_bytes = max_bytes
        self.max_nodes = max_nodes
        self.compute_dtype = compute_dtype
        self.window = context_window(model)
        self._within = within
        self.computed_tokens = 0
        """Tokens that went through the model so far."""
        self.clear()

    def fresh(self) -> "PrefixLM":
        """The same function with a memo of its own."""
        return PrefixLM(
            self.model,
            max_bytes=self.max_bytes,
            max_nodes=self.max_nodes,
            compute_dtype=self.compute_dtype,
            within=self._within,
        )

    @property
    def weights_version(self) -> int:
        """Grows with every in-place change of any weight."""
        return sum(parameter._version for parameter in self.model.parameters())

    def clear(self) -> None:
        """Forget everything, as when the weights have changed."""
        self._version = self.weights_version
        self._hidden: OrderedDict[Prefix, torch.Tensor] = OrderedDict()
        self._drop_keys()

    def _drop_keys(self) -> None:
        self._tree = PrefixTree()
        self._cache = NodeCache()

    @property
    def capacity(self) -> int:
        """Tokens whose keys and values fit in ``max_bytes``. Work on more at once is done over and over."""
        config = self.model.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        itemsize = (self.compute_dtype or self.model.dtype).itemsize
        return self.max_bytes // int(2 * config.num_hidden_layers * heads * width * itemsize)

    @property
    def head(self) -> LMHead:
        """What turns hidden states into logits."""
        return LMHead.of(self.model)

    def logits(self, prefixes: Sequence[Prefix]) -> torch.Tensor:
        """The model's next-token logits after each prefix; the product with the head is not remembered.

        Args:
            prefixes: Non-empty token sequences, each with the whole prompt.

        Returns:
            [N, V], fp32, on the model's device.
        """
        return self.head.logits(self.hidden(prefixes)).float()

    def hidden(self, prefixes: Sequence[Prefix]) -> torch.Tensor:
        """What goes into the head after each prefix.

        Args:
            prefixes: Non-empty token sequences, each with the whole prompt.

        Returns:
            [N, D] in the model's dtype, on its device.
        """
        if self.weights_version != self._version:
            self.clear()
        # Held here as well, so that making room cannot take away what this call returns.
        known = {p: self._hidden[p] for p in set(prefixes) if p in self._hidden}
        missing = sorted(set(prefixes) - known.keys())
        for group in pack(missing, self.max_nodes):
            wanted = [missing[index] for index in group]
            known |= zip(wanted, self._forward(wanted).unbind(), strict=True)
        for prefix in missing:
            self._hidden[prefix] = known[prefix]
        self._make_room()
        return torch.stack([known[prefix] for prefix in prefixes])

    def _make_room(self) -> None:
        if not self._hidden:
            return
        one = next(iter(self._hidden.values()))
        while len(self._hidden) > max(1, self.max_bytes // (one.numel() * one.element_size())):
            self._hidden.popitem(last=False)

    @torch.no_grad()
    def _forward(self, prefixes: Sequence[Prefix]) -> torch.Tensor:
        """[N, D]: compute prefixes that are not known, and keep their keys and values."""
        first_new = len(self._tree)
        ends = [self._tree.add(prefix)[-1] for prefix in prefixes]
        if len(self._cache) and len(self._tree) > self.capacity:
            self._drop_keys()
            first_new = 0
            ends = [self._tree.add(prefix)[-1] for prefix in prefixes]
        # A prefix inside an earlier one has keys but no hidden state: its last token goes through again.
        queries = sorted({*range(first_new, len(self._tree)), *ends})
        row = {node: index for index, node in enumerate(queries)}
        try:
            with self._within():
                hidden_QD = tree_hidden(
                    self.model, self._tree, queries, cache=self._cache, compute_dtype=self.compute_dtype
                )
        except BaseException:  # an interrupt, say: the tree has nodes without keys now
            self.clear()
            raise
        self.computed_tokens += len(queries)
        return hidden_QD[[row[end] for end in ends]]


class NodeCache(DynamicCache):
    """Keys and values of a tree's nodes, a row for each, from which attention gathers what it needs."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[tuple[torch.Tensor, torch.Tensor]] = []  # per layer keys and values, [nodes, H, W]
        self._queries = torch.empty(0, dtype=torch.long)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def expect(self, queries_Q: torch.Tensor, size: int) -> None:
        """Say which nodes the next forward pass computes, and how many there are with them."""
        self._queries, self._size = queries_Q, size

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the queries' keys and values, [1, H, Q, W]; returns all nodes', [1, H, nodes, W], as views."""
        fresh = [states[0].transpose(0, 1) for states in (key_states, value_states)]
        if layer_idx == len(self._rows):
            self._rows.append((fresh[0][:0], fresh[1][:0]))
        keys, values = (_grown(held, self._size) for held in self._rows[layer_idx])
        self._rows[layer_idx] = keys, values
        for held, rows in zip((keys, values), fresh, strict=True):
            held[self._queries] = rows
        return keys[None].transpose(1, 2), values[None].transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Of no use here: positions are given."""
        return 0


def tree_hidden(
    model: PreTrainedModel,
    tree: PrefixTree,
    queries: Sequence[int],
    *,
    cache: NodeCache | None = None,
    compute_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """One forward pass over nodes of a tree, up to what goes into the head.

    Args:
        model: The language model.
        tree: Where the nodes are.
        queries: Nodes to compute, ascending.
        cache: Keys and values of all other ancestors of the queries; those of the queries are added. ``None``
            keeps none.
        compute_dtype: What matrix products run in, by torch's autocast; by default the weights' own.

    Returns:
        [Q, D] in the model's dtype, or what autocast makes of it.
    """
    device = model.device
    decoder: Any = model.base_model
    if decoder.config._attn_implementation != tree_attention.NAME:
        decoder.config._attn_implementation = tree_attention.NAME
    if cache is None:
        blocks = tree.blocks(queries, queries)
    else:
        keys = sorted({above for node in queries for above in tree.ancestors(node)}.union(queries))
        blocks = tree.blocks(queries, keys)
        blocks = replace(blocks, keys_BP=np.array(keys)[blocks.keys_BP])
        cache.expect(torch.tensor(queries, device=device), len(tree))
    with torch.autocast(device.type, dtype=compute_dtype, enabled=compute_dtype is not None):
        output = decoder(
            input_ids=torch.tensor([[tree.tokens[node] for node in queries]], device=device),
            position_ids=torch.tensor([[tree.depths[node] for node in queries]], device=device),
            attention_mask=torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device),  # the blocks have it
            tree_blocks=tree_attention.TreeBlocks(blocks, device),
            **({} if cache is None else {_cache_argument(decoder): cache}),
            use_cache=cache is not None,
        )
    hidden_QD: torch.Tensor = output.last_hidden_state[0]
    return hidden_QD


@torch.no_grad()
def check_supported(model: PreTrainedModel) -> None:
    """Make sure that trees and the head give what plain forward passes give.

    Raises:
        UnsupportedModelError: A probe shows other logits: recurrent layers, for instance, see their
            neighbours whatever the attention mask says; or the head does more than ``LMHead`` knows.
    """
    probes = [(3, 4, 5, 6), (3, 4, 7), (8, 9)]
    plain = torch.stack([model(torch.tensor([p], device=model.device)).logits[0, -1] for p in probes]).float()
    try:
        trees = PrefixLM(model).logits(probes)
    except (TypeError, ValueError) as error:
        raise UnsupportedModelError(str(error)) from error
    if trees.shape != plain.shape or not torch.allclose(plain, trees, atol=0.02 * float(plain.abs().max())):
        off = f"{float((plain - trees).abs().max()):.3g}" if trees.shape == plain.shape else "everything"
        raise UnsupportedModelError(
            f"its logits in a prefix tree are off by {off}, so its layers do more than attend, "
            "or its head more than multiply, scale and soft-cap"
        )


def context_window(model: PreTrainedModel) -> int:
    """The longest sequence that a tree computes exactly: no longer than a sliding window or a chunk."""
    config = model.config.get_text_config()
    limits = ("max_position_embeddings", "sliding_window", "attention_chunk_size")
    return min((limit for name in limits if (limit := getattr(config, name, None))), default=1 << 30)


def _cache_argument(decoder: torch.nn.Module) -> str:
    """What the model calls its cache; later transformers renamed it."""
    return "cache" if "cache" in inspect.signature(type(decoder).forward).parameters else "past_key_values"


def _grown(tensor_NHW: torch.Tensor, nodes: int) -> torch.Tensor:
    """The tensor with room for ``nodes`` nodes; doubled, so that growing is linear in all."""
    have = tensor_NHW.shape[0]
    if nodes <= have:
        return tensor_NHW
    grown = tensor_NHW.new_zeros((max(nodes, 2 * have), *tensor_NHW.shape[1:]))
    grown[:have] = tensor_NHW
    return grown
