"""Insights from outcomes: a tabular model of the traces, solved by value iteration.

For small discrete envs this writes better insights than a small model can. It counts
(observation, action) -> (next observation, reward, end) over all train traces, so it learns the env's
dynamics from play alone, and it knows nothing that the agent did not see. The agent is a part of these
dynamics: advice is worth what is done when it is shown.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import csr_array, diags_array, eye_array
from scipy.special import bdtr

from experience import ExperienceError
from experience.insight import Insight
from experience.seeds import Split
from experience.trace import FAULTS

DISCOUNT = 0.99
EXPLORATION_BONUS = 0.05
"""Times the best return, over the square root of the tries: how much better an action may be."""
TOLERANCE = 1e-9
TIE = 1e-6
"""Values closer than this are equal."""
MAX_SWEEPS = 20_000
IN_VAIN = 0.05
"""Who explores gives advice up where one who follows it half of the time would follow it so seldom with a
smaller probability: two slips of the dice say little, and what is given up is not found out."""

Advise = Callable[[str, str], str]
"""(observation, action) -> the text of an insight."""

Float = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeModel:
    """Empirical dynamics; S observations, A actions, a row of ``*_SA`` arrays per observation."""

    observations: tuple[str, ...]
    actions: tuple[str, ...]
    counts_SA: npt.NDArray[np.int64]
    """How often each action was taken at each observation."""
    rewards_SA: Float
    """Mean immediate reward; 0 where untried."""
    transitions: csr_array
    """[S * A, S]: the share of tries that led to each observation *and went on from there*."""
    done: csr_array
    """[S * A, S * A]: where an action is advised, how many of the readable replies do each."""
    best_return: float
    """The largest return of any trace."""


def outcome_model(turns: pd.DataFrame, actions: Sequence[str], advise: Advise) -> OutcomeModel:
    """Count what followed what.

    ``turns`` are ``ExperienceStore.turns()`` of train traces, shown what ``advise`` makes, if anything;
    unreadable replies count for nothing.

    Raises:
        ExperienceError: A turn comes from another split than train.
    """
    if not (turns["split"] == Split.TRAIN).all():
        raise ExperienceError("insights may be drawn from train traces only")
    taken = turns[turns["action"].isin(list(actions))]
    observations = tuple(sorted(set(taken["observation"]) | set(taken["next_observation"])))
    state_of = {observation: state for state, observation in enumerate(observations)}
    action_of = {action: index for index, action in enumerate(actions)}
    S, A = len(observations), len(actions)

    acts = np.asarray(taken["action"].map(action_of), np.int64)
    pair = taken["observation"].map(state_of).to_numpy(np.int64) * A + acts
    following = taken["next_observation"].map(state_of).to_numpy(np.int64)
    goes_on = ~taken["terminated"].to_numpy(bool)
    counts = np.bincount(pair, minlength=S * A)
    tries = np.maximum(counts, 1)
    rewards = np.bincount(pair, weights=taken["reward"].to_numpy(np.float64), minlength=S * A) / tries
    entries = (1.0 / tries[pair[goes_on]], (pair[goes_on], following[goes_on]))
    transitions = csr_array(entries, shape=(S * A, S))
    returns = taken.groupby("trace_id")["reward"].sum()
    advice = [
        Insight(text=advise(observation, action), observation=observation, score=0.0, support=0).id
        for observation in observations
        for action in actions
    ]
    pair_of = {insight_id: pair for pair, insight_id in enumerate(advice)}
    # What is most relevant stands first.
    told = np.asarray(taken["insight_ids"].map(lambda ids: pair_of.get(ids[0], -1) if ids else -1), np.int64)
    is_about = told // A == pair // A
    return OutcomeModel(
        observations=observations,
        actions=tuple(actions),
        counts_SA=counts.reshape(S, A),
        rewards_SA=rewards.reshape(S, A),
        transitions=transitions,
        done=csr_array(
            (np.ones(is_about.sum(), int), (told[is_about], pair[is_about])), shape=(S * A, S * A)
        ),
        best_return=float(returns.max()) if len(returns) else 0.0,
    )


def _followed(model: OutcomeModel, *, explore: bool) -> csr_array:
    """[S * A, S * A]: where an action is advised, the share of the replies that is expected to do each.

    It is what is done where that is so at least every other time, or may be by ``explore``: then a slip of
    the dice, which no greedy agent has, costs nothing. One reply more counts as if it followed the advice.
    """
    followed, replies = model.done.diagonal(), model.done.sum(axis=1)
    enough = bdtr(followed, replies, 0.5) >= IN_VAIN if explore else 2 * followed + 1 >= replies
    ones = eye_array(len(replies), dtype=np.int64)
    shares = diags_array(~enough / (replies + 1)) @ (model.done + ones)
    return csr_array(diags_array(enough * 1.0) + shares)


def action_values(model: OutcomeModel, *, explore: bool) -> Float:
    """Value iteration: the discounted value of advising each action, [S, A].

    Args:
        model: The counts.
        explore: Be optimistic. An untried action is as good as the best return ever seen (at least 1),
            and a tried one gets a bonus that shrinks with the square root of its tries (MBIE-EB, Strehl and
            Littman 2008). Otherwise only what was seen counts, and untried actions are worth ``-inf``.
    """
    S, A = model.counts_SA.shape
    tried_SA = model.counts_SA > 0
    best = max(1.0, model.best_return)
    bonus_SA = EXPLORATION_BONUS * best / np.sqrt(np.maximum(model.counts_SA, 1)) * explore
    followed = _followed(model, explore=explore)
    values_S = np.zeros(S)
    for _ in range(MAX_SWEEPS):
        following_SA = (model.transitions @ values_S).reshape(S, A)
        values_SA = model.rewards_SA + DISCOUNT * following_SA + bonus_SA
        if explore:
            values_SA = np.where(tried_SA, np.minimum(values_SA, best), best)
        values_SA = (followed @ values_SA.ravel()).reshape(S, A)
        if not explore:
            values_SA = np.where(tried_SA, values_SA, -np.inf)
        best_S = values_SA.max(axis=1, initial=-np.inf)
        best_S = np.where(np.isfinite(best_S), best_S, 0.0)
        if np.abs(best_S - values_S).max(initial=0.0) < TOLERANCE:
            break
        values_S = best_S
    return values_SA


def outcome_insights(
    turns: pd.DataFrame, actions: Sequence[str], advise: Advise, *, explore: bool
) -> list[Insight]:
    """The best action in every situation that was acted in, as an insight.

    Args:
        turns: As for ``outcome_model``; what is to be counted as one has one observation, such as a bucket.
        actions: The env's action words.
        advise: How they are told.
        explore: Advise what is worth finding out, see ``action_values``: what is untried, the most promising
            first, then the best of the rest, an insight each. Otherwise what is known to be best.

    Returns:
        Insights linked to every trace in which the advised action was taken there: for it where the episode
        succeeded, against it where it did not, neither where the env ended it by a fault of its own.
    """
    model = outcome_model(turns, actions, advise)
    values_SA = action_values(model, explore=explore)
    known = turns[~turns["stop_reason"].isin(FAULTS)]
    won, lost = (
        known[known["success"].astype(bool) == success]
        .groupby(["observation", "action"])["trace_id"]
        .unique()
        for success in (True, False)
    )
    insights = []
    for state in np.flatnonzero(model.counts_SA.sum(axis=1)):
        observation, counts_A, values_A = model.observations[state], model.counts_SA[state], values_SA[state]
        tried_A = counts_A > 0
        # Among equals, what was tried least is worth finding out, and what was tried most is known best.
        best = values_A[tried_A].max()
        equals = np.flatnonzero(tried_A & (values_A >= best - TIE))
        advised = [int(equals[counts_A[equals].argmin() if explore else counts_A[equals].argmax()])]
        if explore:
            # What is not done when it is advised comes last, or not at all.
            promising = np.flatnonzero(~tried_A & (values_A >= best - TIE))
            advised = [*promising[np.argsort(-values_A[promising], kind="stable")].tolist(), *advised]
        for index in advised:
            action = model.actions[index]
            insights.append(
                Insight(
                    text=advise(observation, action),
                    observation=observation,
                    score=float(values_A[index]),
                    support=int(counts_A[index]),
                    evidence=tuple(won.get((observation, action), ())),
                    against=tuple(lost.get((observation, action), ())),
                    reason="worth finding out" if explore else "the highest value in the traces",
                )
            )
    return insights


def share_followed(turns: pd.DataFrame, insights: Sequence[Insight], advise: Advise) -> float | None:
    """Of the decisions on which there is advice, the share that followed it; ``None`` without such decisions.

    Args:
        turns: As for ``outcome_model``, but of any split, and played with the insights in the prompt. What
            could not be read followed nothing.
        insights: At most one about each observation.
        advise: As for ``outcome_insights``.
    """
    texts = {insight.observation: insight.text for insight in insights}
    decisions = turns[turns["observation"].isin(list(texts))]
    followed = [
        isinstance(action, str) and advise(seen, action) == texts[seen]
        for seen, action in zip(decisions["observation"], decisions["action"], strict=True)
    ]
    return sum(followed) / len(followed) if followed else None
