"""What stands in the prompt beside the observation, and how it was scored."""

from collections.abc import Iterable
from dataclasses import dataclass

from experience.insight import Insight


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
