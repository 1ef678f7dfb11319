"""How often a token is drawn where it was drawn before.

An agent that thinks the same few thoughts over and over, as one in a small env does, need not compute them
again; one that says something new each time should not keep what it will not need.
"""

from distill.lm.span import Prefix

ENOUGH = 512
"""Tokens that say whether replies repeat."""
MOST = 1 << 20
"""Places remembered at most."""


class Repetition:
    """Counts the tokens of replies, and those at places that came up before.

    A place is a prompt and the tokens after it, known by its hash.
    """

    def __init__(self) -> None:
        self.is_common = False
        """Whether of the last tokens at least half were known. Stays what it was until that is known anew."""
        self._seen: set[int] = set()
        self._tokens = self._known = 0

    def note(self, prompt_ids: Prefix, token_ids: Prefix) -> None:
        """Count a reply."""
        place = hash(prompt_ids)
        for token in token_ids:
            place = hash((place, token))
            self._known += place in self._seen
            self._seen.add(place)
        self._tokens += len(token_ids)
        if self._tokens >= ENOUGH:
            self.is_common = 2 * self._known >= self._tokens
            self._tokens = self._known = 0
        if len(self._seen) > MOST:
            self._seen.clear()

    def forget(self) -> None:
        """The weights have changed: others will be said, though likely as often."""
        self._seen.clear()
        self._tokens = self._known = 0
