"""Where in a sequence something is asked for."""

from typing import NamedTuple

Prefix = tuple[int, ...]
"""Token ids from the beginning of a sequence on."""


class Span(NamedTuple):
    """The prefixes of a sequence that have ``start`` tokens and more, up to all of it."""

    tokens: Prefix
    start: int
    """At least 1."""

    @property
    def size(self) -> int:
        """How many prefixes there are."""
        return len(self.tokens) - self.start + 1

    @classmethod
    def of(cls, prefix: Prefix) -> "Span":
        """One prefix alone."""
        return cls(prefix, len(prefix))
