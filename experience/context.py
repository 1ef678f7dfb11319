"""What stands in the prompt beside the observation."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from experience.insight import Insight

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # bm25s takes jax where it is, and jax three quarters of a GPU
import bm25s


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """Insights, and how many of them are shown at an observation: all, or the most relevant."""

    insights: tuple[Insight, ...] = ()
    k: int = 0
    """How many a prompt shows at most; 0 for all."""
    situation: Callable[[str], str] = field(default=str, repr=False, compare=False)
    """What an insight's observation is compared with: the observation, or what it has in common with like
    ones, such as the bucket of a number."""
    is_exploring: bool = False
    """At the n-th time that an episode acts in a situation, show the n-th advice about it, in their
    order: what came of the first is found out by then."""

    @classmethod
    def fixed(cls, text: str) -> "Context":
        """One text, at every observation: a system prompt, say."""
        return cls(insights=(Insight(text=text, observation=None, score=0.0, support=0, source="fixed"),))

    @property
    def id(self) -> str:
        """Of what is shown, whatever its scores; ``none`` for nothing."""
        if not self.insights:
            return "none"
        ids = [insight.id for insight in self.insights]
        if not self.is_exploring:  # else they are shown in their order
            ids.sort()
        return hashlib.sha256(f"{self.k} {' '.join(ids)}".encode()).hexdigest()[:12]

    def show(self, observation: str, times: int = 0, situation: str | None = None) -> tuple[Insight, ...]:
        """The insights for this observation, the most relevant first.

        Those about this very situation come first, the most valuable before the others. Then those about none
        in particular: the most relevant, then the most valuable. One about *another* situation misleads a
        small model (docs/earlier.md): it is last, and only shown when all are asked for.

        Args:
            observation: What the agent sees.
            times: How often it has acted there in this episode.
            situation: What it is compared as; by default what ``situation`` makes of the observation.
        """
        situation = self.situation(observation) if situation is None else situation
        about = [i for i in self.insights if i.observation == situation]
        others = [i for i in self.insights if i.observation not in (None, situation)]
        general = sorted((i for i in self.insights if i.observation is None), key=_value)
        if len(general) > 1 and not 0 < self.k <= len(about):
            scores = relevance(tuple(i.text for i in general), observation)
            general = [general[i] for i in sorted(range(len(general)), key=lambda i: -scores[i])]
        about = about[min(times, len(about) - 1) :] if self.is_exploring else sorted(about, key=_value)
        ranked = about + general
        return tuple(ranked[: self.k]) if self.k else tuple(ranked + sorted(others, key=_value))


NO_CONTEXT = Context()


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
    admitted: bool
    """Whether it may go into the weights."""
    verdict: str
    """What became of it and why, to be read."""


def within_budget(
    insights: Iterable[Insight], max_tokens: int, count_tokens: Callable[[str], int]
) -> tuple[tuple[Insight, ...], tuple[Insight, ...]]:
    """The most useful insights that fit, and those that are left out: the least useful, not the oldest.

    The texts of those kept take ``max_tokens`` together at most; 0 is no limit.
    """
    kept: list[Insight] = []
    dropped: list[Insight] = []
    left = max_tokens
    for insight in sorted(insights, key=_value):
        cost = count_tokens(insight.text)
        if max_tokens and cost > left:
            dropped.append(insight)
        else:
            kept.append(insight)
            left -= cost
    return tuple(kept), tuple(dropped)


def _value(insight: Insight) -> tuple[float, int, str]:
    """Sorts the most valuable first."""
    return (-insight.score, len(insight.against) - len(insight.evidence), insight.id)


def relevance(texts: tuple[str, ...], observation: str) -> Sequence[float]:
    """How like an observation each text is in its words, by BM25 (Robertson and Zaragoza 2009)."""
    [query] = _words([observation])
    index = _index(texts)
    scores: Sequence[float] = index.get_scores(query) if query and index else [0.0] * len(texts)
    return scores


@lru_cache(maxsize=16)
def _index(texts: tuple[str, ...]) -> bm25s.BM25 | None:
    """Made once for a pool, not for every observation; ``None`` if there is no word in it."""
    words = _words(texts)
    if not any(words):
        return None
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    return index


def _words(texts: Sequence[str]) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(
        list(texts), stopwords=None, return_ids=False, show_progress=False
    )
    return words
