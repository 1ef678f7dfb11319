"""How small things get from the host to a device without anyone waiting."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def sent(values: Sequence[Any] | np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """The values as a tensor on the device.

    A GPU may be at work on what came before: from pinned memory they are copied when it comes to them, and
    the host goes on at once. From other memory it would first wait for all that work.
    """
    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
