"""One lesson, with what supports it, and which lessons belong to an observation."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum


class InsightState(StrEnum):
    """Whether an insight is in use. Insights are never deleted."""

    ACTIVE = "active"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """One lesson."""

    text: str
    observation: str | None
    """The observation it is about; ``None`` if it is about none in particular."""
    score: float
    """What following it is expected to be worth, in discounted return."""
    support: int
    """How many decisions in the traces bear on it; 0 for a guess that is worth trying."""
    evidence: tuple[str, ...] = field(default=(), repr=False)
    """Ids of the traces behind it."""
    state: InsightState = InsightState.ACTIVE
    reason: str = ""
    """Why it has that state."""

    @property
    def id(self) -> str:
        """The same text is the same insight, in every round."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


def retrieve(insights: Iterable[Insight], observation: str, k: int) -> tuple[Insight, ...]:
    """The at most ``k`` insights to show at ``observation``, the most valuable first.

    Those about this very observation come before those about none in particular. One about *another*
    observation misleads a small model (DESIGN section 6), so it is only shown when all are asked for.

    Args:
        insights: Where to choose from.
        observation: What the agent reads now.
        k: How many at most; 0 for every insight, the most relevant first.
    """
    ranked = sorted(
        insights, key=lambda i: (i.observation != observation, i.observation is not None, -i.score, i.id)
    )
    if k == 0:
        return tuple(ranked)
    return tuple(i for i in ranked if i.observation in (observation, None))[:k]
