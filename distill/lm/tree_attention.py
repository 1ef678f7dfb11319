"""Attention in a prefix tree, as an attention function of transformers.

A node attends to its ancestors, which lie on one path. So the nodes are cut into blocks that lie on one
path each, and every block attends to its own path alone: what is computed grows with the sum of the paths,
not with the square of the tree.
Shape letters: Q queries, K keys, B blocks, L queries of a block, P keys of a block, H heads, G key/value
heads, W head width.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from distill.lm.prefix_tree import Blocks

NAME = "prefix_tree"


class TreeBlocks:
    """``Blocks`` as tensors on a device, as they go through a model's forward pass."""

    def __init__(self, blocks: Blocks, device: torch.device) -> None:
        self.shape = blocks.queries_BL.shape
        self.queries = torch.from_numpy(blocks.queries_BL.reshape(-1)).to(device)
        self.keys = torch.from_numpy(blocks.keys_BP.reshape(-1)).to(device)
        self.mask_B1LP = torch.from_numpy(blocks.mask_BLP).to(device)[:, None]
        self.places_Q = torch.from_numpy(blocks.places_Q).to(device)

    def attend(
        self,
        module: torch.nn.Module,
        query_1HQW: torch.Tensor,
        key_1GKW: torch.Tensor,
        value_1GKW: torch.Tensor,
        **settings: Any,
    ) -> torch.Tensor:
        """[1, Q, H, W]: every block on its own path."""
        output_BLHW = _attend(
            module,
            self._rows(query_1HQW, self.queries),
            self._rows(key_1GKW, self.keys),
            self._rows(value_1GKW, self.keys),
            self.mask_B1LP,
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
    return tree_blocks.attend(module, query, key, value, **settings), None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **settings: Any,
) -> torch.Tensor:
    """[batch, queries, heads, width]."""
    softcap = settings.get("softcap")
    if softcap is None:
        output: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, **settings)[0]
        return output
    # Gemma 2, which SDPA cannot compute.
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    scores = softcap * (query @ key.transpose(2, 3) * (scale / softcap)).tanh()
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.float().softmax(-1).to(value.dtype)
    return torch.matmul(weights, value).transpose(1, 2)


AttentionInterface.register(NAME, tree_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
