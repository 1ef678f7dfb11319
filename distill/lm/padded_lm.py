"""A ``LanguageModel`` that computes plain batches, padded on the right, as the model's own forward pass does.

What comes after a position never changes it, in any causal model, recurrent ones too: so right padding is
exact, and needs no mask.
Shape letters: N prefixes, B sequences, T tokens, D hidden size.
"""

import inspect
import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from distill.lm.autocast import products_in
from distill.lm.decoding import kind_of_length
from distill.lm.head import decoder_of
from distill.lm.language_model import LanguageModel, rope_switch
from distill.lm.prefix_cache import PrefixCache
from distill.lm.prefix_tree import chains
from distill.lm.shards import run
from distill.lm.span import Prefix, Span
from distill.lm.spare_columns import spare
from distill.lm.transfer import sent
from distill.lm.ways import growth_of, state_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedPass:
    """A ``ForwardPass`` over spans, each beside the others.

    One that another begins with is computed with it.
    """

    batches: tuple[tuple[Prefix, ...], ...]
    """The longest ones, in batches: a second one where some are beyond a rope's switch."""
    places: tuple[int, ...]
    """Where each prefix ends in the batches, which are padded and laid end to end; span after span."""

    @staticmethod
    def pack(model: PreTrainedModel, sequences: Sequence[Prefix], max_tokens: int) -> list[list[int]]:
        """See ``ForwardPass``: like lengths together."""
        by_length = sorted(chains(sequences), key=lambda chain: len(sequences[chain[-1]]))
        groups: list[list[int]] = []
        count = 0
        for chain in by_length:
            count += 1
            if not groups or count * len(sequences[chain[-1]]) > max_tokens:
                groups.append([])
                count = 1
            groups[-1] += chain
        return groups

    @classmethod
    def of(cls, model: PreTrainedModel, spans: Sequence[Span]) -> Self:
        """A pass over the spans."""
        switch = rope_switch(model) or max(len(span.tokens) for span in spans)
        pieces = [piece for span in spans for piece in _pieces(span, switch)]
        batches: list[tuple[Prefix, ...]] = []
        places = [range(0)] * len(pieces)
        laid = 0
        for is_beyond in (False, True):
            side = [index for index, span in enumerate(pieces) if (len(span.tokens) > switch) == is_beyond]
            found = chains([pieces[index].tokens for index in side])
            if not found:
                continue
            rows = tuple(pieces[side[chain[-1]]].tokens for chain in found)
            width = max(map(len, rows))
            for row, chain in enumerate(found):
                first = laid + row * width - 1
                for member in chain:
                    span = pieces[side[member]]
                    places[side[member]] = range(first + span.start, first + len(span.tokens) + 1)
            batches.append(rows)
            laid += len(rows) * width
        return cls(batches=tuple(batches), places=tuple(itertools.chain.from_iterable(places)))

    @property
    def tokens(self) -> int:
        """What goes through the model, padding included."""
        return sum(len(rows) * max(map(len, rows)) for rows in self.batches)

    def hidden(self, model: PreTrainedModel, compute_dtype: torch.dtype | None) -> torch.Tensor:
        """See ``ForwardPass``."""
        states = [padded_hidden(model, rows, compute_dtype=compute_dtype) for rows in self.batches]
        hidden_ND = torch.cat([hidden_BTD.flatten(0, 1) for hidden_BTD in states])
        return hidden_ND[sent(self.places, hidden_ND.device)]


def _pieces(span: Span, switch: int) -> list[Span]:
    """The span; in two, where the model reads its longer prefixes otherwise than its shorter ones."""
    if span.start <= switch < len(span.tokens):
        return [Span(span.tokens[:switch], span.start), Span(span.tokens, switch + 1)]
    return [span]


class PaddedLM(LanguageModel):
    """``model`` behind a memo; see the module."""

    way = "padded"

    forward_pass = PaddedPass

    def _drop_keys(self) -> None:
        self._prefix_cache = PrefixCache(
            self.model, max_tokens=self.max_nodes, max_bytes=self.max_bytes, compute_dtype=self.compute_dtype
        )

    def _computed(self, prefixes: Sequence[Prefix], grow: bool) -> dict[Prefix, torch.Tensor]:
        known: dict[Prefix, torch.Tensor] = {}
        if grow and growth_of(self.model) != "none":
            known = self._grown(prefixes)
            prefixes = [prefix for prefix in prefixes if prefix not in known]
        for group in PaddedPass.pack(self.model, prefixes, self.max_nodes):
            wanted = [prefixes[index] for index in group]
            batch = PaddedPass.of(self.model, [Span.of(prefix) for prefix in wanted])
            known |= zip(wanted, batch.hidden(self.model, self.compute_dtype).unbind(), strict=True)
            self.computed_tokens += batch.tokens
        return known

    def _grown(self, prefixes: Sequence[Prefix]) -> dict[Prefix, torch.Tensor]:
        """Those that continue an earlier one, and those that may be continued: none inside another."""
        known: dict[Prefix, torch.Tensor] = {}
        alone = {prefixes[chain[0]] for chain in chains(prefixes) if len(chain) == 1}
        together: dict[Hashable, list[Prefix]] = {}
        for prefix, parent in zip(prefixes, self._prefix_cache.parents(prefixes), strict=True):
            if parent or prefix in alone:
                together.setdefault(kind_of_length(self.model, len(prefix)), []).append(prefix)
        for grown in itertools.chain.from_iterable(map(self._fitting, together.values())):
            decoding, computed = self._prefix_cache.read(grown)
            self.computed_tokens += computed
            known |= zip(grown, decoding.hidden.unbind(), strict=True)
            self._prefix_cache.hold(decoding, {prefix: row for row, prefix in enumerate(grown)})
        return known

    def _fitting(self, prefixes: Sequence[Prefix]) -> Iterator[Sequence[Prefix]]:
        """Parts of the prefixes whose keys, values and states there is room for."""
        longest = max(map(len, prefixes))
        of_one = (longest + spare(longest)) * self.token_bytes + state_bytes(self.model)
        size = max(1, self.max_bytes // of_one)
        yield from (prefixes[start : start + size] for start in range(0, len(prefixes), size))


def padded_hidden(
    model: PreTrainedModel, sequences: Sequence[Prefix], *, compute_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """One forward pass over a batch, up to what goes into the head; see ``LanguageModel`` for its type.

    The sequences are not empty. What stands behind the end of one is of no meaning.

    Returns:
        [B, T, D] in the model's dtype, or what autocast makes of it.
    """
    width = max(map(len, sequences))
    device, decoder = model.device, decoder_of(model)
    ids_BT = sent([[*sequence, *[0] * (width - len(sequence))] for sequence in sequences], device)
    arguments: dict[str, Any] = {"input_ids": ids_BT, "use_cache": False}
    if "attention_mask" in inspect.signature(type(decoder).forward).parameters:
        arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])  # some models cannot do without
    with products_in(model, compute_dtype):
        output: Any = run(model, partial(decoder, **arguments))
    hidden_BTD: torch.Tensor = output.last_hidden_state
    return hidden_BTD
