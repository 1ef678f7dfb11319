"""Where an agent has stood while it played, and what a context says there: what it can be taught."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agents.agent import Agent
from agents.examples import Pair
from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt
from agents.prompts import Layout, build_prompt, exchange
from agents.run.run import Run
from distill.examples import TokenIds
from envs.words import EnvWords
from experience.context import Context


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Where an agent stood in a train episode, and what the context says there."""

    observation: str
    advice: tuple[str, ...]
    episode: Sequence[Message] = ()
    """All its turns as they are remembered, two messages each."""
    remembered: range = range(0)
    """Which of the turns stand in the prompt."""

    def prompts(self, words: EnvWords, layout: Layout) -> Pair:
        """Bare, and with the context."""
        past = self.episode[2 * self.remembered.start : 2 * self.remembered.stop]
        return (
            build_prompt(words, self.observation, past=past),
            build_prompt(words, self.observation, self.advice, layout, past),
        )

    def prompts_for(self, agent: Agent, words: EnvWords, layout: Layout) -> Pair:
        """The same, with the latest of what is remembered there: as much as both models can read."""
        moment = self
        while True:
            pair = moment.prompts(words, layout)
            if not moment.remembered or fits(agent, pair):
                return pair
            moment = replace(moment, remembered=moment.remembered[1:])


def fits(agent: Agent, pair: Pair) -> bool:
    """Whether the student can read the bare prompt, and the teacher the other, and there is room to reply."""

    def can_read(policy: HFPolicy, prompt: Prompt, window: int) -> bool:
        return len(policy.encode(prompt)) + agent.max_tokens <= window

    bare, informed = pair
    return can_read(agent.student, bare, agent.student.window) and can_read(
        agent.teacher, informed, agent.teacher_window
    )


Moments = Mapping[str, Sequence[Moment]]
"""By the action that the context advises there, or under "" where advice is no action."""


def find_moments(run: Run, context: Context) -> Moments:
    """Every train observation so far that the context speaks to; where the agent remembers, every turn."""
    found: dict[str, list[Moment]] = {}
    for moment, seen in run.ranks.from_main(lambda: _remembered(run) if run.memory.turns else _observed(run)):
        if shown := context.show(moment.observation, situation=seen):
            advice = tuple(insight.text for insight in shown)
            action = run.words.advised(seen, advice[0])
            found.setdefault(action or "", []).append(replace(moment, advice=advice))
    return found


def _observed(run: Run) -> list[tuple[Moment, str]]:
    """Each observation once, and its situation."""
    return [
        (Moment(observation=observation, advice=()), run.words.situation(observation))
        for observation in run.store.observations(phases=run.played)
    ]


def _remembered(run: Run) -> list[tuple[Moment, str]]:
    """Each turn behind what its agent remembered, and what it had seen; equal ones once."""
    turns = run.store.turns(phases=run.played, tokens=True)
    turns["seen"] = run.memory.situations(turns, run.words)["observation"]
    numbers: dict[tuple[str, TokenIds], int] = {}  # of distinct turns
    found: dict[tuple[tuple[int, ...], str], tuple[Moment, str]] = {}
    for _, rows in turns.groupby("trace_id", sort=False):
        episode: list[Any] = list(rows.itertuples())
        said = [message for turn in episode for message in exchange(run.words, turn)]
        alike = tuple(
            numbers.setdefault((turn.observation, tuple(turn.token_ids)), len(numbers)) for turn in episode
        )
        for number, turn in enumerate(episode):
            first = run.memory.reach(number) + turn.left_out
            moment = Moment(
                observation=turn.observation, advice=(), episode=said, remembered=range(first, number)
            )
            found.setdefault((alike[first:number], turn.observation), (moment, turn.seen))
    return list(found.values())
