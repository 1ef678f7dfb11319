"""Who is imitated."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import torch

from agents.prefix_lm import PrefixLM
from distill.examples import TokenIds


class Teacher(Protocol):
    """Anything that gives next-token logits."""

    def logits(self, prefixes: Sequence[TokenIds]) -> torch.Tensor:
        """[N, V]: the logits after each prefix, before any temperature."""
        ...


class FrozenTeacher:
    """Weights that never change; a batch that comes again is not computed again.

    Every batch is computed from nothing, so its logits are the same to the last bit whatever came before
    it, and a resumed run continues exactly.
    """

    def __init__(self, lm: PrefixLM, *, max_bytes: int = 256 << 20) -> None:
        """Take the teacher's model.

        Args:
            lm: Of its own: what it remembers is dropped.
            max_bytes: What remembered batches may take; the oldest go first, the last one stays.
        """
        self._lm = lm
        self._max_bytes = max_bytes
        self._batches: OrderedDict[tuple[TokenIds, ...], torch.Tensor] = OrderedDict()

    def logits(self, prefixes: Sequence[TokenIds]) -> torch.Tensor:
        """See ``Teacher``."""
        batch = tuple(sorted(set(prefixes)))
        logits_NV = self._batches.get(batch)
        if logits_NV is None:
            self._lm.clear()
            logits_NV = self._batches[batch] = self._lm.logits(batch)
            self._lm.clear()
            held = sum(tensor.numel() * tensor.element_size() for tensor in self._batches.values())
            while held > self._max_bytes and len(self._batches) > 1:
                _, dropped = self._batches.popitem(last=False)
                held -= dropped.numel() * dropped.element_size()
        row = {prefix: index for index, prefix in enumerate(batch)}
        return logits_NV[[row[prefix] for prefix in prefixes]]
