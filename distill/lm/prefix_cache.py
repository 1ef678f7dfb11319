"""Sequences whose keys, values and states are kept, so that what begins with one costs its new tokens only.

Prompts with as many new tokens are read together, so that nothing is padded while it is read; what many begin
with is read once.
"""

import itertools
import sys
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from distill.lm.decoding import Decoding, is_beyond_switch, kind_of_length
from distill.lm.prefix_tree import shared_length
from distill.lm.span import Prefix
from distill.lm.ways import leaps

CPU_PASS, GPU_PASS = 128, 1024
"""A further pass takes about as long as this many more tokens in one that is there anyway."""


class PrefixCache:
    """Of one model, as long as its weights do not change."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_tokens: int = 2048,
        max_bytes: int = 512 << 20,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        """Begin empty. Of more than ``max_bytes`` the oldest go first, and the last batch stays."""
        self._model = model
        self._max_tokens = max_tokens
        self.max_bytes = max_bytes
        self._compute_dtype = compute_dtype
        self._pass_tokens = GPU_PASS if model.device.type == "cuda" else CPU_PASS
        self.clear()

    def clear(self) -> None:
        """Forget all."""
        self._held: dict[Decoding, int] = {}  # bytes; the oldest first
        self._rows: dict[Prefix, tuple[Decoding, int]] = {}

    def parents(self, prefixes: Sequence[Prefix]) -> list[Prefix]:
        """For each the longest beginning from which it can be gone on with; of no tokens if there is none."""
        lengths = sorted({len(prefix) for prefix in self._rows}, reverse=True)
        any_length = leaps(self._model)
        beyond = {length for length in lengths if is_beyond_switch(self._model, length)}

        def parent(prefix: Prefix) -> Prefix:
            is_beyond = is_beyond_switch(self._model, len(prefix))
            for length in lengths:
                fits = length < len(prefix) if any_length else length == len(prefix) - 1
                # On the other side of a rope's switch what was computed means something else.
                if fits and (length in beyond) == is_beyond and prefix[:length] in self._rows:
                    return prefix[:length]
            return ()

        return [parent(prefix) for prefix in prefixes]

    def read(self, prefixes: Sequence[Prefix]) -> tuple[Decoding, int]:
        """Go on with what is kept to all of the prefixes, which can grow side by side.

        What they begin with is not kept any longer: it is a part of them now.

        Args:
            prefixes: Non-empty; equal ones are read as often as they stand there.

        Returns:
            A batch of them, in order, and how many tokens were computed.
        """
        computed = self._read_shared(prefixes)
        parents = self.parents(prefixes)
        used = Counter(self._rows[parent][0] for parent in parents if parent)
        new = [len(prefix) - len(parent) for prefix, parent in zip(prefixes, parents, strict=True)]

        def batches() -> Iterator[tuple[list[int], Decoding]]:
            groups = self._groups(prefixes, parents)
            for group in sorted(groups, key=lambda group: -max(len(prefixes[index]) for index in group)):
                batch = self._taken([parents[index] for index in group], used)
                batch.step([prefixes[index][len(parents[index]) :] for index in group])
                yield group, batch

        try:
            whole = Decoding.gathered(len(prefixes), batches())
            self._release(used.keys(), set(parents))
        except BaseException:  # an interrupt, say: some may have grown already
            self.clear()
            raise
        return whole, computed + sum(new)

    def _read_shared(self, prefixes: Sequence[Prefix]) -> int:
        """Keep what several of the prefixes begin with, but for what is kept; returns the tokens computed."""
        if not leaps(self._model):
            return 0
        is_beyond = is_beyond_switch(self._model, len(prefixes[0]))
        new = [prefix for prefix, parent in zip(prefixes, self.parents(prefixes), strict=True) if not parent]
        found = shared_prefixes(new, self._pass_tokens)
        shared = [prefix for prefix in found if is_beyond_switch(self._model, len(prefix)) == is_beyond]
        if not shared:
            return 0
        batch, computed = self.read(shared)
        self.hold(batch, {prefix: row for row, prefix in enumerate(shared)})
        return computed

    def hold(self, decoding: Decoding, rows: Mapping[Prefix, int]) -> None:
        """Keep sequences of a batch; if it is all of them, in order, the batch must not be gone on with."""
        new = {prefix: row for prefix, row in rows.items() if prefix not in self._rows}
        if not new:
            return
        if list(new.values()) != list(range(len(decoding))):
            decoding = decoding.part(list(new.values()))
        self._held[decoding] = decoding.bytes
        self._rows |= {prefix: (decoding, row) for row, prefix in enumerate(new)}
        while len(self._held) > 1 and sum(self._held.values()) > self.max_bytes:
            self._release({next(iter(self._held))}, set(self._rows))

    def _groups(self, prefixes: Sequence[Prefix], parents: Sequence[Prefix]) -> Iterator[list[int]]:
        """Indices, each once, of those that are read in one pass; those of one batch beside each other."""
        age = {decoding: index for index, decoding in enumerate(self._held)}
        alike: dict[tuple[int, Hashable], list[tuple[int, int, int]]] = {}
        for index, (prefix, parent) in enumerate(zip(prefixes, parents, strict=True)):
            decoding, row = self._rows[parent] if parent else (None, 0)
            kind = kind_of_length(self._model, len(parent)) if parent else None
            place = (age[decoding] if decoding else -1, row, index)
            alike.setdefault((len(prefix) - len(parent), kind), []).append(place)
        for (new, _), places in alike.items():
            size = max(1, self._max_tokens // new)
            indices = [index for *_, index in sorted(places)]
            yield from (indices[start : start + size] for start in range(0, len(indices), size))

    def _taken(self, parents: Sequence[Prefix], used: Counter[Decoding]) -> Decoding:
        """A batch of them, in order, that can be gone on with."""
        if not parents[0]:  # then all are empty
            return Decoding(self._model, len(parents), compute_dtype=self._compute_dtype)
        places = enumerate(self._rows[parent] for parent in parents)
        pieces: list[tuple[Decoding, list[int], list[int]]] = []
        for decoding, of_it in itertools.groupby(places, key=lambda place: place[1][0]):
            into, rows = zip(*((index, row) for index, (_, row) in of_it), strict=True)
            pieces.append((decoding, [*into], [*rows]))
        pieces.sort(key=lambda piece: -max(piece[0].lengths[row] for row in piece[2]))

        def taken(decoding: Decoding, rows: list[int]) -> Decoding:
            is_all = used[decoding] == len(rows) and rows == list(range(len(decoding)))
            return decoding if is_all else decoding.part(rows)

        parts = ((into, taken(decoding, rows)) for decoding, into, rows in pieces)
        return Decoding.gathered(len(parents), parts)

    def _release(self, decodings: Set[Decoding], prefixes: Set[Prefix]) -> None:
        """Keep these prefixes of the batches no longer; what else is in them is as old as before."""
        held: dict[Decoding, int] = {}
        for decoding, size in self._held.items():
            if decoding in decodings:
                rows = {prefix: row for prefix, (holder, row) in self._rows.items() if holder is decoding}
                for prefix in rows:
                    del self._rows[prefix]
                left = [prefix for prefix in rows if prefix not in prefixes]
                if not left:
                    continue
                decoding = decoding.part([rows[prefix] for prefix in left])
                size = decoding.bytes
                self._rows |= {prefix: (decoding, row) for row, prefix in enumerate(left)}
            held[decoding] = size
        self._held = held


def shared_prefixes(prefixes: Sequence[Prefix], price: int) -> list[Prefix]:
    """What to read first, each for the price of this many more tokens, so that reading all costs least.

    Each prefix goes on, by a token at least, from the longest of them that it begins with.
    """
    ordered = sorted({*prefixes})
    alike = [*itertools.starmap(shared_length, itertools.pairwise(ordered)), -1]  # with the next one
    path: list[_Branch] = []  # of the tree, down to where the next one leaves it
    done = _Branch(())
    for prefix, length in zip(ordered, alike, strict=False):
        done = _Branch(prefix, tokens=len(prefix), count=1, shortest=len(prefix), cost=len(prefix))
        while path and len(path[-1].begun) > length:
            done = path.pop().joined(done).settled(price)
        if length >= 0:
            if not path or len(path[-1].begun) < length:
                path.append(_Branch(prefix[:length]))
            path[-1].joined(done)
    return [*dict.fromkeys(done.shared)]


@dataclass(slots=True)
class _Branch:
    """Prefixes that begin alike."""

    begun: Prefix
    tokens: int = 0
    """In all of them."""
    count: int = 0
    shortest: int = sys.maxsize
    cost: int = 0
    """What reading them takes, in tokens."""
    shared: list[Prefix] = field(default_factory=list)
    """What is read first for that."""

    def joined(self, other: "_Branch") -> "_Branch":
        self.tokens += other.tokens
        self.count += other.count
        self.shortest = min(self.shortest, other.shortest)
        self.cost += other.cost
        self.shared += other.shared
        return self

    def settled(self, price: int) -> "_Branch":
        """With what all of them begin with read first, if that costs less."""
        length = min(len(self.begun), self.shortest - 1)
        together = price + length + self.tokens - self.count * length
        if together < self.cost:
            self.cost, self.shared = together, [self.begun[:length]]
        return self
