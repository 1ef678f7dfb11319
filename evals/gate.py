"""Which context is worth training in, if any: successive halving, then an exact paired test.

Many candidates play few validation episodes, the best of them more (Jamieson and Talwalkar 2016). The winner
plays all, and must beat no context on the episodes by which it was *not* chosen: on the others the best of
many is lucky.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from evals.stats import exact_paired_test
from experience.context import NO_CONTEXT, Context, ContextScore
from experience.insight import Insight, InsightState
from experience.seeds import SeedRange

SIGNIFICANT = 0.05
"""A context must beat none with a smaller p-value."""
RUNG = 6
"""What a rung plays in all, in multiples of the episodes that choose, which are half of those there are: each
has half of the candidates of the one before it, and twice the episodes."""

Outcomes = Mapping[int, bool]
"""Seed -> success; without the episodes that could not be judged."""
Play = Callable[[Sequence[Context], SeedRange], Sequence[Outcomes]]
"""Plays each context on the seeds; returns the outcomes in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate found."""

    context: Context
    """The best candidate."""
    admitted: bool
    success_rate: float
    """Of the best candidate, on the episodes that decide: on those that chose it it was lucky too."""
    success_rate_without: float
    wins: int
    """Of the episodes that decide: those won with the context only."""
    losses: int
    """And those won without it only."""
    n: int
    """Episodes that decide."""
    p_value: float
    """McNemar's exact test on these, two-sided."""
    episodes: int
    """Played in all, those without context included."""
    episodes_full: int
    """What scoring every candidate on all validation episodes would have taken."""
    scores: tuple[ContextScore, ...]
    outcomes: Mapping[str, Outcomes]
    """By context id, ``none`` included."""


def can_admit(deciding: int) -> bool:
    """Whether so few episodes can decide for a context at all: where it wins every one, and none is lost."""
    return exact_paired_test(deciding, 0) < SIGNIFICANT


def by_promise(
    insights: Iterable[Insight], judged: Mapping[str, tuple[int, float]] | None = None
) -> list[Insight]:
    """The order in which insights are to be tried, where not all can be.

    The best of those that were judged before, which is to be beaten; then what is new; then the others, which
    had their chance. Among each, what merely quotes its problem is last, and then what has retired.

    Args:
        insights: New and old ones.
        judged: Id of an old one -> the episodes played with it, and their success rate. What lasted longer
            was better when it was decided; a rate of few episodes is luck.
    """
    judged = judged or {}

    def promise(insight: Insight) -> tuple[float, ...]:
        episodes, rate = judged.get(insight.id, (0, 0.0))
        retired = insight.state != InsightState.ACTIVE
        return retired, insight.is_instance_specific, -episodes, -rate, -insight.score, -insight.support

    ranked = sorted(insights, key=promise)
    old = [insight for insight in ranked if insight.id in judged]
    return old[:1] + [insight for insight in ranked if insight.id not in judged] + old[1:]


def _rate(outcomes: Outcomes) -> float:
    return sum(outcomes.values()) / len(outcomes) if outcomes else 0.0


def _apart(first: Outcomes, second: Outcomes, seeds: Iterable[int]) -> tuple[int, int]:
    """How many of the seeds only the first won, and only the second."""
    pairs = [(first[seed], second[seed]) for seed in seeds]
    return sum(one and not two for one, two in pairs), sum(two and not one for one, two in pairs)


def judge(
    candidates: Sequence[Context],
    seeds: SeedRange,
    play: Play,
    *,
    phase: str,
    policy_id: str,
    question: Callable[[int], Hashable] = lambda seed: seed,
) -> Verdict:
    """Find the best of the candidates, at least one, on validation seeds, and decide whether it helps.

    An episode that poses the ``question`` of another before it, which is asked for once ``play`` has played
    the seeds, would come to what that came to: it decides nothing.
    """
    [without] = play([NO_CONTEXT], seeds)
    alive = list(candidates)
    outcomes: dict[str, dict[int, bool]] = {context.id: {} for context in alive}
    verdicts: dict[str, str] = {}
    half = max(1, len(seeds) // 2)
    size = len(seeds) if len(alive) == 1 else max(1, min(half, RUNG * half // len(alive)))
    chosen_on = played = 0
    episodes = len(seeds)
    while True:
        fresh = replace(seeds, start=seeds.start + played, size=size - played)
        for context, result in zip(alive, play(alive, fresh), strict=True):
            outcomes[context.id] |= result
        played = size
        episodes += len(alive) * len(fresh)
        if len(alive) > 1:
            # Stable: among equals the earlier candidate.
            ranked = sorted(alive, key=lambda context: -_rate(outcomes[context.id]))
            alive = ranked[: 1 if played >= half else max(1, len(alive) // 2)]
            for context in ranked[len(alive) :]:
                verdicts[context.id] = f"dropped after {played} episodes: others did better"
            chosen_on = played
        if played == len(seeds):
            break
        size = len(seeds) if len(alive) == 1 else min(2 * size, half)
    [best] = alive
    both = outcomes[best.id].keys() & without.keys()
    chose, rest = list(seeds)[:chosen_on], list(seeds)[chosen_on:]
    first = {question(seed): seed for seed in reversed([*chose, *(seed for seed in rest if seed in both)])}
    deciding = [seed for seed in rest or chose if seed in both and first[question(seed)] == seed]
    wins, losses = _apart(outcomes[best.id], without, deciding)
    p_value = exact_paired_test(wins, losses)
    admitted = wins > losses and p_value < SIGNIFICANT
    verdicts[best.id] = (
        f"the best; {'admitted' if admitted else 'refused'}: on {len(deciding)} fresh episodes "
        f"{wins} are won with it only, {losses} without it only"
    )

    def score(context: Context) -> ContextScore:
        known = {seed: won for seed, won in outcomes[context.id].items() if seed in without}
        return ContextScore(
            phase=phase,
            context_id=context.id,
            insight_ids=tuple(insight.id for insight in context.insights),
            policy_id=policy_id,
            seeds=tuple(known),
            successes=sum(known.values()),
            successes_without=sum(without[seed] for seed in known),
            p_value=exact_paired_test(*_apart(known, without, known)),
            admitted=admitted and context is best,
            verdict=verdicts[context.id],
        )

    return Verdict(
        context=best,
        admitted=admitted,
        success_rate=_rate({seed: outcomes[best.id][seed] for seed in deciding}),
        success_rate_without=_rate({seed: without[seed] for seed in deciding}),
        wins=wins,
        losses=losses,
        n=len(deciding),
        p_value=p_value,
        episodes=episodes,
        episodes_full=(len(candidates) + 1) * len(seeds),
        scores=tuple(map(score, candidates)),
        outcomes={**outcomes, NO_CONTEXT.id: without},
    )
