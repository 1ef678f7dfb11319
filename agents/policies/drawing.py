"""How tokens are drawn from logits: by where a number in [0, 1) falls in the cumulative distribution.

The number is the request's own, so a token depends on its prompt, the sampling and the seed, and on nobody
beside it. Where replies have a few tokens, equal prefixes are drawn from again and again: then a table of the
distribution is kept. Where they are long, no prefix comes twice, and tokens are drawn where the logits are.
Shape letters: N rows, V vocabulary, B tokens of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from agents.policies.policy import Sampling

BLOCK = 1024
"""Tokens whose probabilities are summed before the running sum: it is looked at inside one block only."""


@dataclass(frozen=True, slots=True)
class DrawTable:
    """All that drawing the token after one prefix takes, on the CPU."""

    logits_V: npt.NDArray[np.float32]
    """What top-p cuts off is -inf."""
    norm: float
    """The log of the sum of all their exponentials, at temperature 1."""
    greedy: int
    until_M: npt.NDArray[np.float64] | None
    """Running sum of the blocks' weights; ``None`` when greedy."""
    temperature: float

    @classmethod
    def of(cls, logits_V: torch.Tensor, sampling: Sampling) -> "DrawTable":
        """The table of one row of logits."""
        logits_V = logits_V.detach().float().cpu().clone()  # of its own: a row would keep its whole matrix
        norm, until_M = float(logits_V.logsumexp(-1)), None
        if sampling.temperature > 0:
            if sampling.top_p < 1:
                logits_V[sampling_distribution(logits_V, sampling) == 0] = -torch.inf
            weight_1V = _weights(logits_V[None], sampling.temperature)
            until_M = _blocks(weight_1V).sum(-1, dtype=torch.float64).cumsum(-1)[0].numpy()
        return cls(logits_V.numpy(), norm, int(logits_V.argmax()), until_M, sampling.temperature)

    def draw(self, uniform: float) -> tuple[int, float]:
        """The token at ``uniform`` in [0, 1) of the distribution; its log-probability at temperature 1."""
        token = self.greedy
        if self.until_M is not None:
            wanted = uniform * self.until_M[-1]
            block = _first_above(self.until_M, wanted)
            before = self.until_M[block - 1] if block else 0.0
            inside_B = self.logits_V[block * BLOCK :][:BLOCK] - self.logits_V[self.greedy]
            until_B = np.exp(inside_B / np.float32(self.temperature)).cumsum(dtype=np.float64)
            token = block * BLOCK + _first_above(until_B, wanted - before)
        return token, float(self.logits_V[token]) - self.norm


def _first_above(until_K: npt.NDArray[np.float64], wanted: float) -> int:
    """Where a running sum first exceeds what is wanted, at the latest where it ends to grow."""
    last = np.searchsorted(until_K, until_K[-1])
    return int(min(np.searchsorted(until_K, wanted, side="right"), last))


def draw(
    logits_NV: torch.Tensor, sampling: Sampling, uniforms: Sequence[float]
) -> tuple[list[int], list[float]]:
    """A token for each row, drawn on the device of the logits.

    Args:
        logits_NV: In fp32; used up.
        sampling: Temperature and top-p.
        uniforms: A number in [0, 1) for each row.

    Returns:
        The tokens, and their log-probabilities at temperature 1.
    """
    norm_N1 = logits_NV.logsumexp(-1, keepdim=True)
    if sampling.temperature == 0:
        token_N1 = logits_NV.argmax(-1, keepdim=True)
        return token_N1[:, 0].tolist(), (logits_NV.gather(-1, token_N1) - norm_N1)[:, 0].tolist()
    if sampling.top_p < 1:
        for logits_V in logits_NV:
            logits_V[sampling_distribution(logits_V, sampling) == 0] = -torch.inf
    weight_NV = _weights(logits_NV, sampling.temperature)
    token_N1 = _at(weight_NV, torch.tensor(uniforms, dtype=torch.float64, device=logits_NV.device))[:, None]
    return token_N1[:, 0].tolist(), (logits_NV.gather(-1, token_N1) - norm_N1)[:, 0].tolist()


def _weights(logits_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """[N, V]: probabilities times what their row has in common."""
    return logits_NV.sub(logits_NV.amax(-1, keepdim=True)).div_(temperature).exp_()


def _blocks(weight_NV: torch.Tensor) -> torch.Tensor:
    """[N, M, BLOCK], the last block filled up with zeros."""
    padding = -weight_NV.shape[1] % BLOCK
    return torch.nn.functional.pad(weight_NV, (0, padding)).view(len(weight_NV), -1, BLOCK)


def _at(weight_NV: torch.Tensor, uniform_N: torch.Tensor) -> torch.Tensor:
    """[N]: the token at ``uniform`` of each running sum, which is taken over blocks, then within one."""
    weight_NMB = _blocks(weight_NV)
    until_NM = weight_NMB.sum(-1, dtype=torch.float64).cumsum(-1)
    wanted_N1 = (uniform_N * until_NM[:, -1])[:, None]
    block_N1 = _place(until_NM, wanted_N1)
    before_NM = torch.nn.functional.pad(until_NM, (1, 0))
    index_N1B = block_N1[:, :, None].expand(-1, -1, BLOCK)
    within_NB = weight_NMB.gather(1, index_N1B)[:, 0].double().cumsum(-1)
    inside_N1 = _place(within_NB, wanted_N1 - before_NM.gather(-1, block_N1))
    return (block_N1 * BLOCK + inside_N1)[:, 0]


def _place(until_NK: torch.Tensor, wanted_N1: torch.Tensor) -> torch.Tensor:
    """[N, 1]: where the running sum first exceeds what is wanted, at the latest where it ends to grow."""
    last_N1 = torch.searchsorted(until_NK, until_NK[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(until_NK, wanted_N1, right=True), last_N1)


def sampling_distribution(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The probabilities that tokens are drawn with, [V] in fp64, not normalised when top-p cuts some off.

    Args:
        logits_V: The model's.
        sampling: Temperature (above 0) and top-p. Of the tokens by falling probability, the first
            that reaches ``top_p`` in sum is the last one kept (Holtzman et al. 2020).
    """
    probs_V = (logits_V.double() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        sorted_V, order_V = probs_V.sort(descending=True, stable=True)
        before_V = sorted_V.cumsum(-1) - sorted_V
        probs_V = probs_V.index_fill(0, order_V[before_V >= sampling.top_p], 0.0)
    return probs_V
