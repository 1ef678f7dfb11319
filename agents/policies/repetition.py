"""How often a token is drawn where it was drawn before.

An agent that thinks the same few thoughts over and over, as one in a small env does, need not compute them
again; one that says something new each time should not keep what it will not need.
"""

from collections.abc import Hashable, Sequence

ENOUGH = 256
"""Tokens that say whether replies repeat."""
MOST = 1 << 20
"""Places remembered at most."""


class Repetition:
    """Counts tokens of replies, and those at places that came up before.

    A place is a prompt and the tokens after it, known by its hash.
    """

    def __init__(self) -> None:
        self.is_common = True
        """Whether of the last ``ENOUGH`` tokens at least half were known. At first it is guessed."""
        self._seen: set[int] = set()
        self._tokens = self._known = 0

    def guess(self, prompts: Sequence[Hashable]) -> None:
        """Before there are tokens to go by: where most prompts come once, what follows will."""
        if not self._seen:
            self.is_common = 2 * len({*prompts}) <= len(prompts)

    def note(self, place: int, token: int) -> int:
        """Count a token drawn at a place; returns the place after it."""
        place = hash((place, token))
        self._known += place in self._seen
        self._seen.add(place)
        self._tokens += 1
        if self._tokens == ENOUGH:
            self.is_common = 2 * self._known >= ENOUGH
            self._tokens = self._known = 0
        if len(self._seen) > MOST:
            self._seen.clear()
        return place
