"""A causal language model as a function from token prefixes to next-token logits, memoised.

The memo holds while the weights do; torch's version counters tell when they change. Equal prefixes are
computed once; a new prefix continues from the keys and values of the longest prefix that it shares with an
earlier one; and all that one call misses is computed as a tree (``agents/prefix_tree.py``). Results are
exact: nothing is approximated, only not repeated.
Shape letters: N prefixes, Q queries, K keys, V vocabulary, H key/value heads, D head width.
"""

import inspect
from collections import OrderedDict
from collections.abc import Sequence

import torch
from transformers import DynamicCache, PreTrainedModel

from agents.prefix_tree import PrefixTree, pack

Prefix = tuple[int, ...]


class UnsupportedModelError(ValueError):
    """A model whose logits are not a function of a token's ancestors alone, as a prefix tree needs it."""


class PrefixLM:
    """``model`` behind a memo; see the module. Gradients are not kept."""

    def __init__(self, model: PreTrainedModel, *, max_bytes: int = 256 << 20, max_nodes: int = 2048) -> None:
        """Wrap ``model``, which is put into eval mode.

        Args:
            model: Any transformers causal LM with full attention and SDPA.
            max_bytes: What keys and values may take, and again what logits may take. When they
                would exceed it, the old ones go. The work of one forward pass is kept whatever it takes.
            max_nodes: Tokens computed in one forward pass.
        """
        self.model = model
        model.eval()
        self.max_bytes = max_bytes
        self.max_nodes = max_nodes
        self.computed_tokens = 0
        """Tokens that went through the model so far."""
        self.clear()

    @property
    def weights_version(self) -> int:
        """Grows with every in-place change of any weight."""
        return sum(parameter._version for parameter in self.model.parameters())

    def clear(self) -> None:
        """Forget everything, as when the weights have changed."""
        self._version = self.weights_version
        self._logits: OrderedDict[Prefix, torch.Tensor] = OrderedDict()
        self._drop_keys()

    def _drop_keys(self) -> None:
        self._tree = PrefixTree()
        self._keys: list[torch.Tensor] = []  # per layer [H, nodes, D], and the same for values
        self._values: list[torch.Tensor] = []

    def logits(self, prefixes: Sequence[Prefix]) -> torch.Tensor:
        """The model's next-token logits after each prefix.

        Args:
            prefixes: Non-empty token sequences, each with the whole prompt.

        Returns:
            [N, V], fp32, on the model's device.
        """
        if self.weights_version != self._version:
            self.clear()
        # Held here as well, so that making room cannot take away what this call returns.
        known = {p: self._logits[p] for p in set(prefixes) if p in self._logits}
        missing = sorted(set(prefixes) - known.keys())
        for group in pack(missing, self.max_nodes):
            wanted = [missing[index] for index in group]
            known |= zip(wanted, self._forward(wanted).unbind(), strict=True)
        for prefix in missing:
            self._logits[prefix] = known[prefix]
        self._make_room_for_logits()
        return torch.stack([known[prefix] for prefix in prefixes])

    def _make_room_for_logits(self) -> None:
        if not self._logits:
            return
        one = next(iter(self._logits.values()))
        while len(self._logits) > max(1, self.max_bytes // (one.numel() * one.element_size())):
            self._logits.popitem(last=False)

    @torch.no_grad()
    def _forward(self, prefixes: Sequence[Prefix]) -> torch.Tensor:
        """[N, V]: compute prefixes whose logits are not known, and keep their keys and values."""
        needed = len(self._tree) + sum(map(len, prefixes))
        if self._keys and self._bytes_per_node() * needed > self.max_bytes:
            self._drop_keys()
        first_new = len(self._tree)
        ends = [self._tree.add(prefix)[-1] for prefix in prefixes]
        # A prefix inside an earlier one has keys but no logits: its last token goes through again.
        queries = sorted({*range(first_new, len(self._tree)), *ends})
        past = sorted({above for node in queries for above in self._tree.ancestors(node)} - set(queries))
        device = self.model.device
        cache = DynamicCache()
        past_index = torch.tensor(past, device=device)
        if past:
            for layer, (keys_HND, values_HND) in enumerate(zip(self._keys, self._values, strict=True)):
                cache.update(keys_HND[None, :, past_index], values_HND[None, :, past_index], layer)
        row = {node: index for index, node in enumerate(queries)}
        try:
            logits_NV = tree_logits(
                self.model, self._tree, queries, past, read=[row[end] for end in ends], cache=cache
            )
            self._keep(cache, queries, len(past))
        except BaseException:  # an interrupt, say: the tree has nodes without keys now
            self.clear()
            raise
        self.computed_tokens += len(queries)
        return logits_NV.float()

    def _bytes_per_node(self) -> int:
        return sum(2 * keys.shape[0] * keys.shape[2] * keys.element_size() for keys in self._keys)

    def _keep(self, cache: DynamicCache, queries: Sequence[int], skip: int) -> None:
        """Copy the queries' keys and values out of ``cache``, behind its first ``skip`` entries."""
        index = torch.tensor(queries, device=self.model.device)
        for layer, computed in enumerate(cache.layers):
            for held, name in ((self._keys, "keys"), (self._values, "values")):
                fresh_HND: torch.Tensor = getattr(computed, name)[0, :, skip:]
                if layer == len(held):
                    held.append(fresh_HND[:, :0])
                held[layer] = _grown(held[layer], len(self._tree))
                held[layer][:, index] = fresh_HND


def tree_logits(
    model: PreTrainedModel,
    tree: PrefixTree,
    queries: Sequence[int],
    past: Sequence[int],
    *,
    read: Sequence[int],
    cache: DynamicCache | None = None,
) -> torch.Tensor:
    """One forward pass over nodes of a tree.

    Args:
        model: The language model.
        tree: Where the nodes are.
        queries: Nodes to compute, ascending.
        past: The nodes whose keys and values are in ``cache``, in its order.
        read: Which queries' logits are wanted, as indices into ``queries``.
        cache: Keys and values of ``past``; extended by those of the queries. ``None`` keeps none.

    Returns:
        [len(read), V] in the model's dtype.
    """
    device = model.device
    mask_QK = torch.from_numpy(tree.attention_mask(queries, [*past, *queries])).to(device)
    output = model(
        input_ids=torch.tensor([[tree.tokens[node] for node in queries]], device=device),
        position_ids=torch.tensor([[tree.depths[node] for node in queries]], device=device),
        attention_mask=mask_QK[None, None],
        **({} if cache is None else {_cache_argument(model): cache}),
        use_cache=cache is not None,
        logits_to_keep=torch.tensor(read, device=device),
    )
    logits: torch.Tensor = output.logits[0]
    return logits


@torch.no_grad()
def check_supported(model: PreTrainedModel) -> None:
    """Make sure that trees give what plain forward passes give.

    Raises:
        UnsupportedModelError: A probe shows other logits: recurrent layers, for instance, see their
            neighbours whatever the attention mask says.
    """
    probes = [(3, 4, 5, 6), (3, 4, 7), (8, 9)]
    plain = torch.stack([model(torch.tensor([p], device=model.device)).logits[0, -1] for p in probes]).float()
    trees = PrefixLM(model).logits(probes)
    if not torch.allclose(plain, trees, atol=0.02 * float(plain.abs().max())):
        raise UnsupportedModelError(
            f"its logits in a prefix tree are off by {float((plain - trees).abs().max()):.3g}, "
            "so its layers do more than attend"
        )


def context_window(model: PreTrainedModel) -> int:
    """The longest sequence that a tree computes exactly: no longer than a sliding window or a chunk."""
    config = model.config.get_text_config()
    limits = ("max_position_embeddings", "sliding_window", "attention_chunk_size")
    return min((limit for name in limits if (limit := getattr(config, name, None))), default=1 << 30)


def _cache_argument(model: PreTrainedModel) -> str:
    """What the model calls its cache; later transformers renamed it."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def _grown(tensor_HND: torch.Tensor, nodes: int) -> torch.Tensor:
    """The tensor with room for ``nodes`` nodes; doubled, so that growing is linear in all."""
    have = tensor_HND.shape[1]
    if nodes <= have:
        return tensor_HND
    grown = tensor_HND.new_zeros((tensor_HND.shape[0], max(nodes, 2 * have), tensor_HND.shape[2]))
    grown[:, :have] = tensor_HND
    return grown
