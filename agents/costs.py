"""What parts of a run take, by what was measured of a few calls of its policy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

ALL_NEW = 0.9
"""Where there are more prompts than this for each decision, they are taken never to come again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a policy."""

    decisions: int
    """Prompts answered."""
    new: int
    """Distinct prompts that the policy had not answered in this rehearsal."""
    seconds: float
    """That it took."""
    between: float
    """Seconds that the envs, and the bookkeeping, took since the call before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episodes:
    """How episodes of one kind go: bare or informed, greedy or not."""

    turns: float
    """Decisions of an episode, on average."""
    episodes: int
    """That were seen, to their end or not."""
    decisions: int
    """In them."""
    prompts: int
    """Distinct ones among these."""
    once: int
    """How many prompts came up in one episode alone, and in two: from them Chao's estimator knows how many
    there are. Episodes are counted, since a prompt that an episode is stuck at says nothing of others."""
    twice: int
    is_open: bool = False
    """Whether there is no end of prompts, since they tell what was said before."""
    has_ended: bool = True
    """Whether any episode came to its end; else ``turns`` are as many as there may be."""
    states: float = math.inf
    """How many observations there are, and so prompts, where the env counts them."""

    def distinct(self, episodes: float) -> float:
        """How many prompts this many episodes are about.

        Where nearly every decision is about another, there is no end of them but the env's. Where prompts
        tell what was said before it is Heaps' law, with Good's and Turing's rate at which new ones come. Else
        it is the extrapolation of Chao and others (2014), which ends at the number of prompts that there are
        by Chao2.
        """
        return min(self.states, self._distinct(episodes))

    def _distinct(self, episodes: float) -> float:
        more, decisions = episodes - self.episodes, episodes * self.turns
        if more <= 0:
            return min(decisions, float(self.prompts))
        if self.prompts > ALL_NEW * self.decisions:
            return decisions * self.prompts / self.decisions
        if self.is_open:
            return float(self.prompts * (episodes / self.episodes) ** (self.once / self.prompts))
        others = (self.episodes - 1) / self.episodes
        unseen = others * self.once * (self.once - 1) / (2 * (self.twice + 1))
        if not unseen:
            return float(self.prompts)
        chance = self.once / (self.episodes * unseen + self.once)
        return self.prompts + unseen * (1.0 - float((1.0 - chance) ** more))


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What was measured; all times in seconds."""

    bare: Episodes
    greedy: Episodes
    """Bare ones, at temperature 0."""
    exploring: Episodes
    """With the insights so far."""
    informed: Episodes
    """With those that are taken in the end."""
    train: Episodes
    """All that may be trained on; their prompts without the insights."""
    per_call: float
    """Of a call that has new prompts, by itself."""
    per_prompt: float
    """Of each new prompt in it."""
    per_decision: float
    """Of each decision, the env's step included."""
    step: float
    """Of an optimiser step; 0 where that could not be measured."""
    remember: float
    """Of each prompt that a teacher computes before the first step, for all of them; 0 where it does not."""
    env_step: float
    """Of the bare env, as the random policy acts in it."""
    random_turns: float
    """Of its episodes."""
    seconds: float
    """That the rehearsal took."""

    def play(self, kind: Episodes, episodes: float, width: int) -> float:
        """What a phase of this many episodes of a kind takes, ``width`` of them side by side."""
        decisions = episodes * kind.turns
        prompts = kind.distinct(episodes)
        calls = min(prompts, decisions / max(1.0, min(width, episodes)))
        return calls * self.per_call + prompts * self.per_prompt + decisions * self.per_decision


def fit(calls: Sequence[Call]) -> tuple[float, float, float]:
    """Seconds per call that computes, per new prompt in it, and per decision, by least squares.

    What a decision takes is seen in the quickest call without new prompts, if there is any: elsewhere it is
    little beside what else takes a moment, and a run has hundreds of thousands of them.
    """
    decided = min((call.seconds / call.decisions for call in calls if not call.new), default=0.0)
    rows = np.array(
        [[call.new > 0, call.new, 0 if decided else call.decisions] for call in calls], dtype=float
    )
    seconds = np.array([max(0.0, call.seconds - decided * call.decisions) for call in calls])
    per_call, per_prompt, per_decision = nnls(rows, seconds)[0].tolist()
    between = float(np.median([call.between / call.decisions for call in calls]))
    return per_call, per_prompt, decided + per_decision + between
