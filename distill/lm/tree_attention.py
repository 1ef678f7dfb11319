"""Attention in a prefix tree, as an attention function of transformers.

A node attends to its ancestors, which lie on one path. So the nodes are cut into blocks that lie on one
path each, and every block attends to its own path alone: what is computed grows with the sum of the paths,
not with the square of the tree. What a layer's mask says beside that, such as a sliding window or a chunk,
is asked of the model's own mask functions, with depths for positions: each layer gets its mask.
Shape letters: Q queries, K keys, B blocks, L queries of a block, P keys of a block, H heads, G key/value
heads, W head width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from distill.lm.prefix_tree import Blocks
from distill.lm.transfer import sent

NAME = "prefix_tree"
EVERYTHING: Any = causal_mask_function
"""Of a layer in which every token sees all before it."""
_MASKED: ContextVar["TreeBlocks | None"] = ContextVar("blocks whose masks a forward pass makes", default=None)


class TreeBlocks:
    """``Blocks`` as tensors on a device, as they go through a model's forward pass."""

    def __init__(self, blocks: Blocks, device: torch.device) -> None:
        self.shape = blocks.queries_BL.shape
        self.queries = sent(blocks.queries_BL.reshape(-1), device)
        self.keys = sent(blocks.keys_BP.reshape(-1), device)
        self._mask_B1LP = sent(blocks.mask_BLP, device)[:, None]
        self._query_depths_B1L1 = sent(blocks.query_depths_BL, device)[:, None, :, None]
        self._key_depths_B11P = sent(blocks.key_depths_BP, device)[:, None, None]
        self.places_Q = sent(blocks.places_Q, device)
        count, queries, keys = blocks.mask_BLP.shape
        self._is_path = count == 1 and queries == keys and bool(blocks.mask_BLP[0, -1].all())
        """Whether it is one sequence from its beginning on, and no tree."""

    def mask(self, function: Callable[..., torch.Tensor]) -> torch.Tensor:
        """[B, 1, L, P]: what the queries attend to in the layers whose mask ``function`` gives.

        Args:
            function: Of batch, head, query's position and key's position, as transformers has them.
        """
        if self._is_path and function is EVERYTHING:
            return self._mask_B1LP
        zero_1111 = self._query_depths_B1L1.new_zeros((1, 1, 1, 1))
        return self._mask_B1LP & function(
            zero_1111, zero_1111, self._query_depths_B1L1, self._key_depths_B11P
        )

    @contextmanager
    def making_masks(self) -> Iterator[None]:
        """Within it a model's masks are those of these blocks."""
        token = _MASKED.set(self)
        try:
            yield
        finally:
            _MASKED.reset(token)

    def attend(
        self,
        module: torch.nn.Module,
        query_1HQW: torch.Tensor,
        key_1GKW: torch.Tensor,
        value_1GKW: torch.Tensor,
        mask_B1LP: torch.Tensor | None,
        **settings: Any,
    ) -> torch.Tensor:
        """[1, Q, H, W]: every block on its own path.

        Raises:
            ValueError: The mask is not one that ``mask`` gave.
        """
        if mask_B1LP is None or mask_B1LP.shape != self._mask_B1LP.shape:
            raise ValueError("its layers make their masks themselves")
        output_BLHW = _attend(
            module,
            self._rows(query_1HQW, self.queries),
            self._rows(key_1GKW, self.keys),
            self._rows(value_1GKW, self.keys),
            None if self._is_path and mask_B1LP is self._mask_B1LP else mask_B1LP,  # which SDPA does faster
            **settings,
        )
        return output_BLHW.flatten(0, 1).index_select(0, self.places_Q)[None]

    def _rows(self, states_1HNW: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """[B, H, L or P, W]: the states of each block's nodes."""
        rows = states_1HNW[0].transpose(0, 1).flatten(1).index_select(0, index)
        heads, width = states_1HNW.shape[1], states_1HNW.shape[3]
        return rows.view(self.shape[0], -1, heads, width).transpose(1, 2)


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    tree_blocks: TreeBlocks | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function: in blocks if there are any, else as ``sdpa``."""
    if tree_blocks is None:
        return _attend(module, query, key, value, attention_mask, **settings), None
    return tree_blocks.attend(module, query, key, value, attention_mask, **settings), None


def tree_mask(*, mask_function: Callable[..., torch.Tensor], **settings: Any) -> torch.Tensor | None:
    """The mask function: of the blocks that are computed at the moment if there are any, else as ``sdpa``."""
    blocks = _MASKED.get()
    if blocks is None:
        mask: torch.Tensor | None = sdpa_mask(mask_function=mask_function, **settings)
        return mask
    return blocks.mask(mask_function)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **settings: Any,
) -> torch.Tensor:
    """[batch, queries, heads, width]."""
    softcap, sinks_H = settings.get("softcap"), settings.get("s_aux")
    if softcap is None and sinks_H is None:
        output: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, **settings)[0]
        return output
    # What SDPA cannot compute: capped scores (Gemma 2) and sinks (gpt-oss).
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    if softcap is None:
        scores = query @ key.transpose(2, 3) * scale
    else:
        scores = softcap * (query @ key.transpose(2, 3) * (scale / softcap)).tanh()
    if mask is None:
        queries, keys = scores.shape[-2:]  # the last ones
        mask = torch.ones((queries, keys), dtype=torch.bool, device=scores.device).tril(keys - queries)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    if sinks_H is not None:  # a key without a value
        sinks = sinks_H.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], -1)
    weights = scores.float().softmax(-1).to(value.dtype)[..., : key.shape[2]]
    return torch.matmul(weights, value).transpose(1, 2)


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, tree_mask)
