"""Who is imitated.

===========  =============================================================================
base         the initial weights, never touched; the paper's choice and the default
round        the student's weights at the beginning of each round
ema          a running mean of the student's weights
self         the student's weights of the moment
===========  =============================================================================

A teacher may also be another model with the same vocabulary, in this process or on a server. With LoRA
``base`` is the student's own model with the adapter switched off. A plain ``LanguageModel`` over the
student's model is the teacher ``self``.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from transformers import PreTrainedTokenizerBase

from distill.examples import DistillError, TokenIds
from distill.lm.head import LMHead
from distill.lm.language_model import LanguageModel
from distill.lm.shards import part
from distill.lm.span import Span
from distill.parallel import like

TeacherKind = Literal["base", "round", "ema", "self"]


class Teacher(Protocol):
    """Anything that gives next-token distributions, as hidden states and the head that reads them."""

    @property
    def head(self) -> LMHead:
        """Of the student's vocabulary; its temperature is 1."""
        ...

    @property
    def window(self) -> int:
        """The longest sequence, in tokens."""
        ...

    def along(self, spans: Sequence[Span]) -> torch.Tensor:
        """[N, D]: what goes into the head after each prefix of the spans, end to end."""
        ...


@runtime_checkable
class ScoringTeacher(Protocol):
    """A teacher that is known only at the tokens it is asked about, such as one on a server."""

    @property
    def window(self) -> int:
        """The longest sequence, in tokens."""
        ...

    def score(
        self, spans: Sequence[Span], rows: Sequence[int], ids_TK: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Log-probabilities of chosen tokens.

        Args:
            spans: Of a batch.
            rows: Which T of their prefixes, laid end to end, are asked about.
            ids_TK: The tokens, K after each.
            temperature: Divides the logits first.

        Returns:
            [T, K].
        """
        ...

    def top(
        self, spans: Sequence[Span], rows: Sequence[int], k: int, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The k tokens that it gives the highest probability, and their log-probabilities; see ``score``.

        Returns:
            [T, K], token ids and log-probabilities.
        """
        ...


class FrozenTeacher:
    """Weights that stay; a batch that comes again is not computed again.

    Every batch is computed from nothing, so its hidden states are the same to the last bit whatever came
    before it, and a resumed run continues exactly.
    """

    def __init__(self, lm: LanguageModel, *, max_bytes: int = 256 << 20) -> None:
        """Take the teacher's model, of its own: what it remembers is dropped.

        Of more than ``max_bytes`` of remembered batches the oldest go first, and the last one stays.
        """
        self.lm = lm
        self._max_bytes = max_bytes
        self._batches: OrderedDict[tuple[Span, ...], torch.Tensor] = OrderedDict()
        self._remembered: dict[Span, torch.Tensor] = {}

    @property
    def head(self) -> LMHead:
        """See ``Teacher``."""
        return self.lm.head

    @property
    def window(self) -> int:
        """See ``Teacher``."""
        return self.lm.window

    def remember(self, prefixes: Sequence[TokenIds]) -> None:
        """Compute prefixes that will come again and again, in ever other batches, once."""
        batch = sorted({Span.of(prefix) for prefix in prefixes})
        self._remembered = dict(zip(batch, self.lm.along(batch).unbind(), strict=True))

    def along(self, spans: Sequence[Span]) -> torch.Tensor:
        """See ``Teacher``."""
        batch = tuple(sorted(set(spans) - self._remembered.keys()))
        rows = {span: self._remembered[span][None] for span in spans if span in self._remembered}
        if batch:
            rows |= zip(batch, self._batch(batch).split([span.size for span in batch]), strict=True)
        return torch.cat([rows[span] for span in spans])

    def _batch(self, batch: tuple[Span, ...]) -> torch.Tensor:
        hidden_ND = self._batches.get(batch)
        if hidden_ND is None:
            hidden_ND = self._batches[batch] = self.lm.along(batch)
            held = sum(tensor.numel() * tensor.element_size() for tensor in self._batches.values())
            while held > self._max_bytes and len(self._batches) > 1:
                _, dropped = self._batches.popitem(last=False)
                held -= dropped.numel() * dropped.element_size()
        return hidden_ND


class FollowingTeacher(FrozenTeacher):
    """A copy of the student's model that takes over its weights when it is told to: ``round`` and ``ema``."""

    @torch.no_grad()
    def follow(self, weights: Iterable[tuple[str, torch.Tensor]], decay: float = 0.0) -> None:
        """Move towards the student: teacher = decay teacher + (1 - decay) student.

        Its trained weights are whole or in the same parts as the teacher's. Decay 0 takes them over.
        """
        mine = dict(self.lm.model.named_parameters())
        for name, weight in weights:
            mine[name].lerp_(weight.detach().to(mine[name].dtype), 1.0 - decay)
        self._batches.clear()
        self._remembered.clear()

    def state(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """The named weights, for a checkpoint; of shards this process's."""
        mine = dict(self.lm.model.named_parameters())
        return {f"teacher/{name}": part(mine[name].detach()).cpu() for name in names}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from ``state``, put together.

        Raises:
            DistillError: It is another model's.
        """
        mine = dict(self.lm.model.named_parameters())
        weights = {k.removeprefix("teacher/"): w for k, w in tensors.items() if k.startswith("teacher/")}
        if any(name not in mine or weight.shape != mine[name].shape for name, weight in weights.items()):
            raise DistillError("the checkpoint's teacher is another model")
        self.follow((name, like(weight, mine[name])) for name, weight in weights.items())


def check_same_tokens(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Make sure that token ids mean the same to both.

    Raises:
        DistillError: They do not, with an example.
    """
    mine, theirs = student.get_vocab(), teacher.get_vocab()
    if mine == theirs:
        return
    token = min(token for token, _ in mine.items() ^ theirs.items())
    raise DistillError(
        f"the teacher has another tokenizer: {len(theirs)} tokens against {len(mine)}; {token!r} is "
        f"{theirs.get(token, 'unknown')} there and {mine.get(token, 'unknown')} here. "
        "Take a teacher of the student's own model family"
    )
