"""One lesson, with what supports it."""

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter, ValidationError

from experience import damaged_store
from experience.text import storable


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
    """What following it is expected to be worth: discounted return, or the least success on validation
    that its episodes there are likely with (Wilson 1927, 95%)."""
    support: int
    """How often it was drawn: decisions in the traces that bear on it, or traces from which it was written
    independently; 0 for a guess that is worth trying."""
    evidence: tuple[str, ...] = field(default=(), repr=False)
    """Ids of the traces that speak for it."""
    against: tuple[str, ...] = field(default=(), repr=False)
    """Ids of the traces that speak against it."""
    source: str = "outcomes"
    """What drew it: ``outcomes``, ``llm``, ``raw`` or ``fixed``."""
    writer: str = ""
    """The model that wrote it, such as ``step30`` or an endpoint's model; empty if none did."""
    prompt_version: str = ""
    """Which prompts it was written with; empty if with none."""
    is_instance_specific: bool = False
    """Whether it merely quotes the problem that it came from."""
    state: InsightState = InsightState.ACTIVE
    reason: str = ""
    """Why it has that state."""

    @property
    def id(self) -> str:
        """The same text about the same observation is the same insight, in every round."""
        about = "" if self.observation is None else f"\n{self.observation}"
        return hashlib.sha256(storable(self.text + about).encode()).hexdigest()[:12]


_INSIGHTS = TypeAdapter(list[Insight])


def insights_of(values: Any) -> list[Insight]:
    """Insights from a list of their ``asdict``, as JSON gives it back.

    Raises:
        ExperienceError: It is none.
    """
    try:
        return _INSIGHTS.validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise damaged_store(f"no insights: {at} {first['msg']}") from error
