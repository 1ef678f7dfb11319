"""How a context did."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextScore:
    """How one context did on validation, paired with no context on the same seeds."""

    phase: str
    """Where it was scored, such as ``round1/gate``."""
    context_id: str
    insight_ids: tuple[str, ...]
    policy_id: str
    """Which weights played."""
    seeds: tuple[int, ...]
    """The validation seeds that both were played on."""
    successes: int
    successes_without: int
    p_value: float
    """Exact, paired."""
    verdict: str
    """What became of it and why."""
