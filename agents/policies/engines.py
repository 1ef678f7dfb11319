"""The engines in this process that may draw for the agent. A new one is a line here and a file of its own."""

import re
from collections.abc import Mapping
from typing import Protocol

import torch
from transformers import PreTrainedModel

from agents.policies.vllm.engine import LocalEngine
from agents.policies.vllm.policy import Engine
from distill.parallel import Ranks


class Start(Protocol):
    """How an engine begins; it is handed weights before it draws."""

    def __call__(
        self, model: PreTrainedModel, *, dtype: torch.dtype, window: int, ranks: Ranks, together: int
    ) -> Engine:
        """Make one for a model.

        Args:
            model: Of this architecture.
            dtype: What it computes in.
            window: The longest prompt and completion together, in tokens, unless the model's is shorter.
            ranks: The processes of the run, which all begin one.
            together: How many neighbouring processes share one; it divides their number.
        """
        ...


ENGINES: Mapping[str, Start] = {"vllm": LocalEngine}
"""By their names in ``--policy``."""
POLICIES = ("auto", "hf", *ENGINES)
"""What ``--policy`` may be but for servers' URLs and ``NAME:N``; with ``hf`` the agent draws by itself."""


def engine_of(policy: str) -> tuple[str, int] | None:
    """The name of an engine and how many processes share one, if ``--policy`` is ``NAME`` or ``NAME:N``."""
    named = re.fullmatch(rf"({'|'.join(ENGINES)})(?::([1-9]\d{{0,5}}))?", policy)
    return named and (named[1], int(named[2] or 1))
