"""The engines in this process that may draw for the agent. A new one is a line here and a file of its own."""

from collections.abc import Mapping
from typing import Protocol

import torch
from transformers import PreTrainedModel

from agents.policies.vllm.engine import LocalEngine
from agents.policies.vllm.policy import Engine


class Start(Protocol):
    """How an engine begins; it is handed weights before it draws."""

    def __call__(self, model: PreTrainedModel, *, dtype: torch.dtype, window: int) -> Engine:
        """Make one for a model.

        Args:
            model: Of this architecture.
            dtype: What it computes in.
            window: The longest prompt and completion together, in tokens, unless the model's is shorter.
        """
        ...


ENGINES: Mapping[str, Start] = {"vllm": LocalEngine}
"""By their names in ``--policy``."""
POLICIES = ("auto", "hf", *ENGINES)
"""What ``--policy`` may be but for servers' URLs; with ``hf`` the agent draws by itself."""
