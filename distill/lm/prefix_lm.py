"""A ``LanguageModel`` that computes what is missing as a tree (``distill/lm/prefix_tree.py``).

A new prefix continues from the keys and values of the longest prefix that it shares with an earlier one.
Shape letters: N prefixes, Q queries, K keys, D hidden size, H key/value heads, W head width.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from distill.lm import tree_attention
from distill.lm.autocast import products_in
from distill.lm.head import decoder_of
from distill.lm.language_model import LanguageModel, cache_argument
from distill.lm.prefix_tree import PrefixTree, pack
from distill.lm.shards import run
from distill.lm.span import Prefix, Span
from distill.lm.transfer import sent


@dataclass(frozen=True, slots=True, kw_only=True)
class TreePass:
    """A ``ForwardPass`` over spans as one tree."""

    tree: PrefixTree
    ends: list[int]
    """The node of each prefix, span after span."""

    @staticmethod
    def pack(model: PreTrainedModel, sequences: Sequence[Prefix], max_tokens: int) -> list[list[int]]:
        """See ``ForwardPass``."""
        return pack(sequences, max_tokens)

    @classmethod
    def of(cls, model: PreTrainedModel, spans: Sequence[Span]) -> Self:
        """A pass over the spans."""
        tree = PrefixTree()
        ends = [node for span in spans for node in tree.add(span.tokens)[span.start - 1 :]]
        return cls(tree=tree, ends=ends)

    @property
    def tokens(self) -> int:
        """What goes through the model."""
        return len(self.tree)

    def hidden(self, model: PreTrainedModel, compute_dtype: torch.dtype | None) -> torch.Tensor:
        """See ``ForwardPass``."""
        nodes = range(len(self.tree))
        hidden_QD = tree_hidden(model, self.tree, nodes, compute_dtype=compute_dtype)
        return hidden_QD[sent(self.ends, hidden_QD.device)]


class PrefixLM(LanguageModel):
    """``model`` behind a memo; see the module."""

    way = "tree"
    forward_pass = TreePass

    def _drop_keys(self) -> None:
        self._tree = PrefixTree()
        self._cache = NodeCache(self.compute_dtype, self.capacity)

    def _computed(self, prefixes: Sequence[Prefix], grow: bool) -> dict[Prefix, torch.Tensor]:
        known: dict[Prefix, torch.Tensor] = {}
        for group in pack(prefixes, self.max_nodes):
            wanted = [prefixes[index] for index in group]
            known |= zip(wanted, self._forward(wanted).unbind(), strict=True)
        return known

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
        hidden_QD = tree_hidden(
            self.model, self._tree, queries, cache=self._cache, compute_dtype=self.compute_dtype
        )
        self.computed_tokens += len(queries)
        return hidden_QD[sent([row[end] for end in ends], hidden_QD.device)]


class NodeCache(DynamicCache):
    """Keys and values of a tree's nodes, a row for each, from which attention gathers what it needs."""

    def __init__(self, products: torch.dtype | None = None, most: int = sys.maxsize) -> None:
        """Begin with none. What autocast makes narrow for each of the ``products`` is held so.

        There is no room to spare for more than ``most`` nodes.
        """
        super().__init__()
        self._products = products
        self._most = most
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
        fresh = [states[0].transpose(0, 1).to(self._products) for states in (key_states, value_states)]
        if layer_idx == len(self._rows):
            self._rows.append((fresh[0][:0], fresh[1][:0]))
        keys, values = (_grown(held, self._size, self._most) for held in self._rows[layer_idx])
        self._rows[layer_idx] = keys, values
        for held, rows in zip((keys, values), fresh, strict=True):
            held[self._queries] = rows
        return keys[None].transpose(1, 2), values[None].transpose(1, 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Of no use here: positions are given."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Of no use here: positions are given."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Of no use here: masks are made from blocks."""
        return query_length, 0


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
    decoder = decoder_of(model)
    if decoder.config._attn_implementation != tree_attention.NAME:
        decoder.config._attn_implementation = tree_attention.NAME
    if cache is None:
        blocks = tree.blocks(queries, queries)
    else:
        keys = tree.with_ancestors(queries)
        blocks = tree.blocks(queries, keys)
        blocks = replace(blocks, keys_BP=np.array(keys)[blocks.keys_BP])
        cache.expect(sent(list(queries), device), len(tree))
    tree_blocks = tree_attention.TreeBlocks(blocks, device)
    with products_in(model, compute_dtype), tree_blocks.making_masks():
        forward = partial(
            decoder,
            input_ids=sent([[tree.tokens[node] for node in queries]], device),
            position_ids=sent([[tree.depths[node] for node in queries]], device),
            # Its being there tells the model that depths that begin anew are no packed sequences.
            attention_mask=torch.ones((1, len(queries)), dtype=torch.bool, device=device),
            tree_blocks=tree_blocks,
            **({} if cache is None else {cache_argument(decoder): cache}),
            use_cache=cache is not None,
        )
        output: Any = run(model, forward)
    hidden_QD: torch.Tensor = output.last_hidden_state[0]
    return hidden_QD


def _grown(tensor_NHW: torch.Tensor, nodes: int, most: int) -> torch.Tensor:
    """The tensor with room for ``nodes`` nodes; doubled up to ``most``, so that growing is linear in all."""
    have = tensor_NHW.shape[0]
    if nodes <= have:
        return tensor_NHW
    grown = tensor_NHW.new_zeros((max(nodes, min(2 * have, most)), *tensor_NHW.shape[1:]))
    grown[:have] = tensor_NHW
    return grown
