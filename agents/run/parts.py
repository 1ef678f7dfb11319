"""Tensors of a run that several processes write, each its rows of them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

MOST_PARTS = 1 << 16
"""Of one file."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The files of tensors in shards: the main process's, which says that they belong together, and others'.

    Its name alone stays the same, and it is written last: a kill leaves the one before with its parts.
    """

    main: Path
    token: str = ""
    """In the names of the others."""
    size: int = 1
    """How many files there are."""

    @classmethod
    def of(cls, about: Mapping[str, Any] | None, main: Path) -> Self:
        """Those of which the main file says ``about``, as ``as_dict`` has it.

        Raises:
            ValueError: It makes no sense.
        """
        if about is None:
            return cls(main)
        token, size = about["token"], about["size"]
        if not re.fullmatch("[0-9a-f]{8}", token) or not 1 < int(size) <= MOST_PARTS:
            raise ValueError(f"no parts of a file: {about}")
        return cls(main, token, int(size))

    def as_dict(self) -> dict[str, Any]:
        """For the main file."""
        return {"token": self.token, "size": self.size}

    def file(self, rank: int) -> Path:
        """That of a process other than the main one."""
        return self.main.with_name(f"{self.main.stem}-{self.token}-{rank}{self.main.suffix}")

    @property
    def others(self) -> list[Path]:
        """All but the main one."""
        return [self.file(rank) for rank in range(1, self.size)]

    def remove_others(self) -> None:
        """Remove parts of main files that were here before."""
        mine = self.others
        for left in self.main.parent.glob(f"{self.main.stem}-*-*{self.main.suffix}"):
            if left not in mine:
                left.unlink(missing_ok=True)


class Joined(Mapping[str, torch.Tensor]):
    """Tensors whose rows are in several mappings, put together when they are looked up."""

    def __init__(self, parts: Sequence[Mapping[str, torch.Tensor]]) -> None:
        self._parts = parts

    def __getitem__(self, name: str) -> torch.Tensor:
        first, *others = [part[name] for part in self._parts]
        return torch.cat([first, *others]) if others and first.dim() else first

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts[0])

    def __len__(self) -> int:
        return len(self._parts[0])
