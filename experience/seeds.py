"""Train, validation and test seeds, which cannot be mixed up."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

STRIDE = 1_000_000
"""Seeds of one split that one run may use: the runs of different run seeds share none."""


class Split(StrEnum):
    """What a seed may be used for."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedRange:
    """Env seeds of one split. A seed's remainder by 3 is its split, so no two splits share a seed."""

    split: Split
    run_seed: int
    start: int
    """The first one's number within the split and the run, from 0."""
    size: int

    def __post_init__(self) -> None:
        if self.run_seed < 0 or self.start < 0 or self.size < 0 or self.start + self.size > STRIDE:
            raise ValueError(f"a seed range needs 0 <= start, 0 <= size, start + size <= {STRIDE}: {self}")

    def __iter__(self) -> Iterator[int]:
        """The seeds, as given to ``env.reset``."""
        offset = list(Split).index(self.split)
        first = self.run_seed * STRIDE + self.start
        return (3 * number + offset for number in range(first, first + self.size))

    @classmethod
    def of_seed(cls, seed: int) -> Self:
        """The range of one seed, as given to ``env.reset``."""
        number, offset = divmod(seed, len(Split))
        run_seed, start = divmod(number, STRIDE)
        return cls(split=list(Split)[offset], run_seed=run_seed, start=start, size=1)

    def part(self, index: int, parts: int) -> "SeedRange":
        """One of ``parts`` that make up the range, in order; their sizes differ by one at most."""
        first, end = self.size * index // parts, self.size * (index + 1) // parts
        return replace(self, start=self.start + first, size=end - first)

    def __len__(self) -> int:
        return self.size
