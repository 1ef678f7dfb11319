"""AdamW, with moments in 32 bits or, by bitsandbytes' kernels, in 8."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

from distill.examples import DistillError
from distill.lm.shards import part

OptimizerKind = Literal["adamw", "adamw-8bit"]
BLOCK = 256
"""Numbers of 8 bits that share one scale; the kernels' own."""
SMALLEST = 4096
"""Numbers of a weight below which 32 bits cost nothing."""
PLAIN = ["step", "exp_avg", "exp_avg_sq"]
MOMENTS = [*PLAIN, "exp_avg_scale", "exp_avg_sq_scale"]
"""What is kept per weight, the scales where it is in 8 bits."""


def check_available(kind: OptimizerKind) -> None:
    """Make sure that the optimizer can be had.

    Raises:
        DistillError: The package that has it is not installed.
    """
    if kind == "adamw-8bit":
        _kernels()


def make_optimizer(
    kind: OptimizerKind, parameters: Iterable[torch.nn.Parameter], *, lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.999), for parameters that are whole or in shards along their first dimension.

    Raises:
        DistillError: The package that has it is not installed.
    """
    if kind == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    return AdamW8bit(parameters, lr=lr, weight_decay=weight_decay)


class AdamW8bit(torch.optim.AdamW):
    """AdamW with a byte for each moment, where the rows of a weight are whole blocks; elsewhere as it is.

    No block goes beyond a row, and scales are laid out by rows. So weights that are cut along their first
    dimension have the same blocks however many parts there are, and what is computed, and the checkpoint put
    together, do not depend on that.
    """

    def __init__(
        self, parameters: Iterable[torch.nn.Parameter], *, lr: float, weight_decay: float = 0.0
    ) -> None:
        """See ``make_optimizer``."""
        functional = _kernels()
        self._update: Callable[..., None] = functional.optimizer_update_8bit_blockwise
        self._make_codes: Callable[..., torch.Tensor] = functional.create_dynamic_map
        self._codes: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; gradients of weights whose moments are in 8 bits are gone after it."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and _has_8bit(weight):
                    self._step(weight, group)
                    weight.grad = None  # so that the others alone are left
        return super().step()

    def _step(self, weight: torch.nn.Parameter, group: dict[str, Any]) -> None:
        mine = part(weight.detach())
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(mine, dtype=torch.uint8)
                state[f"{name}_scale"] = mine.new_zeros((mine.shape[0], weight.shape[1:].numel() // BLOCK))
        state["step"] = state["step"].cpu() + 1
        if not mine.numel():  # there are fewer rows than processes
            return
        signed, unsigned = self._codes_on(mine.device)
        self._update(
            "adam",
            part(weight.grad).contiguous(),  # type: ignore[arg-type]
            mine,
            *(part(state[name]) for name in ("exp_avg", "exp_avg_sq")),
            *group["betas"],
            *(0.0, 0.0),  # of optimizers with a third moment
            group["eps"],
            int(state["step"]),
            group["lr"],
            *(signed, unsigned),
            *(part(state[name]).view(-1) for name in ("exp_avg_scale", "exp_avg_sq_scale")),
            group["weight_decay"],
        )

    def _codes_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """What the bytes mean, of a number that may be negative, and of one that is not."""
        if device not in self._codes:
            self._codes[device] = (
                self._make_codes(signed=True).to(device),
                self._make_codes(signed=False).to(device),
            )
        return self._codes[device]


def _kernels() -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise DistillError(
            f"--optimizer adamw-8bit needs bitsandbytes ({error}): pip install 'opcd-gym[8bit]'"
        ) from error
    return functional


def moments_of(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> list[str]:
    """Which of ``MOMENTS`` the optimizer keeps of a weight."""
    return MOMENTS if isinstance(optimizer, AdamW8bit) and _has_8bit(weight) else PLAIN


def fits(
    moment: torch.Tensor, kind: str, optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter
) -> bool:
    """Whether a tensor may be one of ``MOMENTS`` of a weight; kernels look at neither shape nor dtype."""
    shape, dtype = weight.shape, weight.dtype
    if kind == "step":
        shape, dtype = torch.Size([]), torch.float32
    elif kind.endswith("_scale"):
        shape = torch.Size([weight.shape[0], weight.shape[1:].numel() // BLOCK])
    elif moments_of(optimizer, weight) == MOMENTS:
        dtype = torch.uint8
    return moment.shape == shape and moment.dtype == dtype


def _has_8bit(weight: torch.nn.Parameter) -> bool:
    return weight.dim() > 1 and weight.numel() >= SMALLEST and weight.shape[1:].numel() % BLOCK == 0
