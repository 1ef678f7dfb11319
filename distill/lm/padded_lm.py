"""A ``LanguageModel`` that computes plain batches, padded on the right, as the model's own forward pass does.

What comes after a position never changes it, in any causal model, recurrent ones too: so right padding is
exact, and needs no mask.
Shape letters: N prefixes, B sequences, T tokens, D hidden size.
"""

import inspect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from distill.lm.compiled import compile_layers
from distill.lm.decoding import Decoding, growth_of
from distill.lm.language_model import LanguageModel, decoder_of, rope_switch
from distill.lm.prefix_tree import chains
from distill.lm.shards import run
from distill.lm.span import Prefix, Span
from distill.lm.transfer import sent


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

    def __init__(self, model: PreTrainedModel, **settings: Any) -> None:
        """See ``LanguageModel``; on a GPU the model's layers are compiled."""
        super().__init__(model, **settings)
        compile_layers(model)

    _pass = PaddedPass

    def _drop_keys(self) -> None:
        self._decodings: list[Decoding] = []  # the one that was used last is last
        self._rows: dict[Prefix, tuple[Decoding, int]] = {}

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
        asked: dict[int, list[Prefix]] = {}
        beginnings: dict[int, list[Prefix]] = {}  # those that grow together
        switch = rope_switch(self.model) or max(map(len, prefixes), default=0)
        alone = {prefixes[chain[0]] for chain in chains(prefixes) if len(chain) == 1}
        for prefix in prefixes:
            parent = self._rows.get(prefix[:-1])
            if parent is not None and len(prefix) != switch + 1:
                asked.setdefault(id(parent[0]), []).append(prefix)
            elif prefix in alone:
                kind = len(prefix) > switch if growth_of(self.model) == "joined" else len(prefix)
                beginnings.setdefault(kind, []).append(prefix)
        for decoding in [decoding for decoding in self._decodings if id(decoding) in asked]:
            children = asked[id(decoding)]
            self._step(decoding, children)
            known |= zip(children, decoding.hidden.unbind(), strict=True)
        for prompts in beginnings.values():
            decoding = Decoding(
                self.model, prompts, max_tokens=self.max_nodes, compute_dtype=self.compute_dtype
            )
            self.computed_tokens += sum(decoding.lengths)
            self._hold(decoding, prompts)
            known |= zip(prompts, decoding.hidden.unbind(), strict=True)
        while len(self._decodings) > 1 and sum(sum(d.lengths) for d in self._decodings) > self.capacity:
            self._release(self._decodings[0])
        return known

    def _step(self, decoding: Decoding, children: Sequence[Prefix]) -> None:
        """Grow the sequences that have children; the others, which may have ended, stay as they are."""
        parents = [self._rows[child[:-1]][1] for child in children]
        prefixes = self._release(decoding)
        if left := sorted(set(range(len(decoding))) - set(parents)):
            self._hold(decoding.part(left), [prefixes[row] for row in left])
        decoding.keep(parents)
        decoding.step([child[-1] for child in children])
        self.computed_tokens += len(children)
        self._hold(decoding, children)

    def _hold(self, decoding: Decoding, prefixes: Iterable[Prefix]) -> None:
        self._decodings.append(decoding)
        self._rows |= {prefix: (decoding, row) for row, prefix in enumerate(prefixes)}

    def _release(self, decoding: Decoding) -> list[Prefix]:
        """Hold it no longer; returns its sequences."""
        self._decodings = [other for other in self._decodings if other is not decoding]
        rows = {row: prefix for prefix, (holder, row) in self._rows.items() if holder is decoding}
        for prefix in rows.values():
            del self._rows[prefix]
        return [rows[row] for row in sorted(rows)]


def padded_hidden(
    model: PreTrainedModel, sequences: Sequence[Prefix], *, compute_dtype: torch.dtype | None = None
) -> torch.Tensor:
    """One forward pass over a batch, up to what goes into the head.

    Args:
        model: The language model.
        sequences: Non-empty; what stands behind the end of one is of no meaning.
        compute_dtype: What matrix products run in, by torch's autocast; by default the weights' own.

    Returns:
        [B, T, D] in the model's dtype, or what autocast makes of it.
    """
    width = max(map(len, sequences))
    device, decoder = model.device, decoder_of(model)
    ids_BT = sent([[*sequence, *[0] * (width - len(sequence))] for sequence in sequences], device)
    arguments: dict[str, Any] = {"input_ids": ids_BT, "use_cache": False}
    if "attention_mask" in inspect.signature(type(decoder).forward).parameters:
        arguments["attention_mask"] = torch.ones_like(arguments["input_ids"])  # some models cannot do without
    with torch.autocast(device.type, dtype=compute_dtype, enabled=compute_dtype is not None):
        output: Any = run(model, partial(decoder, **arguments))
    hidden_BTD: torch.Tensor = output.last_hidden_state
    return hidden_BTD
