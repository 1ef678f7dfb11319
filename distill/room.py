"""What a device has room for: the tokens of one pass, and the positions whose logits exist at a time."""

import torch
from transformers import PreTrainedModel

from distill.lm.shards import part

CPU_NODES, CPU_CHUNK = 768, 128
"""Tokens of a pass and positions of a chunk on a CPU: more take more memory and no less time."""
GPU_LOGITS_BYTES = 2 << 30
"""Of a chunk's logits in fp32 on a GPU, which wants large products."""
GPU_SHARE = 0.6
"""Of a GPU's free memory, less gradients and moments, that the activations of one pass may take."""
GPU_MOST_NODES = 32_768
"""Tokens of a pass beyond which a GPU gets no faster."""


def pass_tokens(model: PreTrainedModel, *, is_checkpointed: bool, is_compiled: bool) -> int:
    """How many tokens one forward and backward pass takes: on a GPU by its free memory.

    Counted per token and layer are copies of the residual stream, of queries, keys and values, and of the
    gated MLP's three widths, as measured with layers that are compiled; others take twice as much. With
    checkpointing it is one copy per layer, and one layer of all.
    """
    if model.device.type != "cuda":
        return CPU_NODES
    config = model.config.get_text_config()
    width, inner = config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    heads = getattr(config, "num_attention_heads", 1) * (getattr(config, "head_dim", None) or 0)
    layer_bytes = (2 if is_compiled else 4) * (6 * width + 6 * max(width, heads) + 4 * inner)
    layers = config.num_hidden_layers
    token_bytes = 4 * width * layers + layer_bytes if is_checkpointed else layer_bytes * layers
    trained = sum(part(p).numel() for p in model.parameters() if p.requires_grad)
    free = torch.cuda.mem_get_info(model.device)[0] - 12 * trained - 5 * GPU_LOGITS_BYTES
    return int(min(GPU_MOST_NODES, max(CPU_NODES, GPU_SHARE * free / token_bytes)))


def chunk_positions(device: torch.device, vocabulary: int) -> int:
    """How many positions' logits exist at a time."""
    return max(1, GPU_LOGITS_BYTES // (4 * vocabulary)) if device.type == "cuda" else CPU_CHUNK
