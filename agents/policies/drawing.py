"""How tokens are drawn from logits: by where a number in [0, 1) falls in the cumulative distribution.

The number is the request's own, so a token depends on its prompt, the sampling and the seed, and on nobody
beside it. Where equal prefixes are drawn from again and again, as in replies of a few tokens, a table of the
distribution is kept; elsewhere tokens are drawn where the logits are.
Shape letters: N rows, V vocabulary, B tokens of a block.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from agents.policies.policy import Sampling
from distill.lm.load import ModelError

BLOCK = 1024
"""Tokens whose probabilities are summed before the running sum: it is looked at inside one block only."""
KEPT_BLOCKS = 4
"""Whose running sums a table keeps."""


@dataclass(frozen=True, slots=True)
class DrawTable:
    """All that drawing the token after one prefix takes, on the CPU."""

    logits_V: npt.NDArray[np.float32]
    norm: float
    """The log of the sum of all their exponentials, at temperature 1."""
    greedy: int
    until_M: npt.NDArray[np.float64] | None
    """Running sum of the blocks' weights; ``None`` when greedy."""
    temperature: float
    inside: dict[int, npt.NDArray[np.float64]] = field(default_factory=dict)
    """Running sums within the first few blocks that were drawn from: most draws are from one or two."""

    @property
    def bytes(self) -> int:
        """What it takes at most."""
        return self.logits_V.nbytes + 8 * min(len(self.logits_V), KEPT_BLOCKS * BLOCK)

    @classmethod
    def of(cls, logits_V: torch.Tensor, sampling: Sampling) -> "DrawTable":
        """The table of one row of logits.

        Raises:
            ModelError: They are no numbers.
        """
        logits_V = logits_V.detach().float().cpu().clone()  # of its own: a row would keep its whole matrix
        most = logits_V.amax()
        _check_numbers(most)
        norm, until_M = float(logits_V.logsumexp(-1)), None
        if sampling.temperature > 0:
            weight_1V = logits_V[None].sub(most).div_(sampling.temperature).exp_()
            until_M = _until(weight_1V)[0].numpy()
        return cls(logits_V.numpy(), norm, int(logits_V.argmax()), until_M, sampling.temperature)

    def draw(self, uniform: float) -> tuple[int, float]:
        """The token at ``uniform`` in [0, 1) of the distribution; its log-probability at temperature 1."""
        token = self.greedy
        if self.until_M is not None:
            wanted = uniform * self.until_M[-1]
            block = _first_above(self.until_M, wanted)
            before = self.until_M[block - 1] if block else 0.0
            until_B = self._inside(block)
            exact = until_B[-1] / (self.until_M[block] - before)  # 1, but for rounding
            token = block * BLOCK + _first_above(until_B, (wanted - before) * exact)
        return token, float(self.logits_V[token]) - self.norm

    def _inside(self, block: int) -> npt.NDArray[np.float64]:
        """[B]: the running sum of the block's weights."""
        until_B = self.inside.get(block)
        if until_B is None:
            inside_B = self.logits_V[block * BLOCK :][:BLOCK] - self.logits_V[self.greedy]
            until_B = np.exp(inside_B / np.float32(self.temperature)).cumsum(dtype=np.float64)
            if len(self.inside) < KEPT_BLOCKS:
                self.inside[block] = until_B
        return until_B


def _first_above(until_K: npt.NDArray[np.float64], wanted: float) -> int:
    """Where a running sum first exceeds what is wanted, at the latest where it ends to grow."""
    if wanted < until_K[-1]:
        return bisect.bisect_right(until_K, wanted)  # of one number twice as fast as numpy's
    return bisect.bisect_left(until_K, until_K[-1])


def draw(
    logits_NV: torch.Tensor, sampling: Sampling, uniforms: Sequence[float]
) -> tuple[list[int], list[float]]:
    """A token for each row, drawn on the device of the logits.

    Args:
        logits_NV: In fp32; used up.
        sampling: The temperature.
        uniforms: A number in [0, 1) for each row.

    Returns:
        The tokens, and their log-probabilities at temperature 1.

    Raises:
        ModelError: Logits are no numbers.
    """
    most_N1, token_N1 = logits_NV.max(-1, keepdim=True)
    _check_numbers(most_N1)
    if sampling.temperature == 0:
        norm_N1 = logits_NV.logsumexp(-1, keepdim=True)
        return token_N1[:, 0].tolist(), (logits_NV.gather(-1, token_N1) - norm_N1)[:, 0].tolist()
    weight_NV = logits_NV.sub(most_N1).div_(sampling.temperature).exp_()
    uniform_N = torch.tensor(uniforms, dtype=torch.float64, device=logits_NV.device)
    token_N1, sum_N1 = _at(weight_NV, uniform_N)
    if sampling.temperature == 1:  # then the sum of the weights is known
        norm_N1 = most_N1 + sum_N1.log().to(most_N1.dtype)
    else:
        norm_N1 = logits_NV.logsumexp(-1, keepdim=True)
    return token_N1[:, 0].tolist(), (logits_NV.gather(-1, token_N1) - norm_N1)[:, 0].tolist()


def _check_numbers(most: torch.Tensor) -> None:
    """Of the largest logit of each row, which is not finite where any is not a number or infinite."""
    if not most.isfinite().all():
        raise ModelError(
            "the model's logits are not finite: its weights are damaged, or its numbers too large for their "
            "precision (--precision float32)"
        )


def _until(weight_NV: torch.Tensor) -> torch.Tensor:
    """[N, M] in fp64: running sums of the weights, block by block; summed in fp64, all would be copied."""
    whole = weight_NV.shape[1] // BLOCK * BLOCK
    sums = weight_NV[:, :whole].unflatten(-1, (-1, BLOCK)).sum(-1), weight_NV[:, whole:].sum(-1, keepdim=True)
    return torch.cat(sums, -1).double().cumsum(-1)


def _at(weight_NV: torch.Tensor, uniform_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The token at ``uniform`` of each running sum, which is taken over blocks, then within one.

    Returns:
        [N, 1] each: the tokens, and what the weights sum up to.
    """
    tokens, until_NM = weight_NV.shape[1], _until(weight_NV)
    wanted_N1 = uniform_N[:, None] * until_NM[:, -1:]
    block_N1 = _place(until_NM, wanted_N1)
    before_N1 = torch.nn.functional.pad(until_NM, (1, 0)).gather(-1, block_N1)
    places_NB = block_N1 * BLOCK + torch.arange(BLOCK, device=weight_NV.device)
    block_NB = weight_NV.gather(-1, places_NB.clamp(max=tokens - 1)).masked_fill_(places_NB >= tokens, 0.0)
    within_NB = block_NB.double().cumsum(-1)
    exact_N1 = within_NB[:, -1:] / (until_NM.gather(-1, block_N1) - before_N1)  # 1, but for rounding
    inside_N1 = _place(within_NB, (wanted_N1 - before_N1) * exact_N1)
    return block_N1 * BLOCK + inside_N1, until_NM[:, -1:]


def _place(until_NK: torch.Tensor, wanted_N1: torch.Tensor) -> torch.Tensor:
    """[N, 1]: where the running sum first exceeds what is wanted, at the latest where it ends to grow."""
    last_N1 = torch.searchsorted(until_NK, until_NK[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(until_NK, wanted_N1, right=True), last_N1)
