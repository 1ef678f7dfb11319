"""Episodes: a policy plays many at once, side by side."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial

from agents.memory import Memory
from agents.policies.policy import Completion, FinishReason, Message, Policy, Prompt, Sampling
from agents.prompts import Layout, build_prompt, exchange
from envs.deadline import EnvFault, guarded
from envs.place import Outcome, Place, Places
from envs.words import EnvError, EnvWords
from experience.context import Context
from experience.insight import Insight
from experience.seeds import SeedRange, Split
from experience.trace import StopReason, Trace, Turn

FEW_OBSERVATIONS = 64
"""With more, an episode meets few of them."""


@dataclass(slots=True)
class _Episode:
    """An episode on its way."""

    phase: str
    context_id: str
    is_exploring: bool
    """See ``Context``."""
    show: Callable[[str, int, str | None], tuple[Insight, ...]]
    """See ``Context.show``."""
    memory: Memory
    seed: int
    observation: str = ""
    turns: list[Turn] = field(default_factory=list)
    said: list[Message] = field(default_factory=list)
    """The turns as they are remembered, two messages each."""
    forgotten: int = 0
    """How many of the first turns do not fit the context window."""
    seen: str = ""
    """The observation, behind what it remembers if that is anything; see ``Memory.seen``."""
    acted: Counter[str] = field(default_factory=Counter)
    """How often after each that was seen; unreadable replies are no acts."""

    @property
    def times(self) -> int:
        """How often it has acted here, where that makes a difference: what is shown is looked up by it."""
        return self.acted[self.seen] if self.is_exploring else 0

    @property
    def left_out(self) -> int:
        """See ``Turn.left_out``."""
        return max(0, self.forgotten - self.memory.reach(len(self.turns)))

    @property
    def past(self) -> Sequence[Turn]:
        """What it remembers."""
        return self.memory.of(self.turns, self.left_out)

    def forget(self) -> bool:
        """Leave out the oldest turn that is remembered, if there is one."""
        first = len(self.turns) - len(self.past)
        self.forgotten = min(first + 1, len(self.turns))
        return first < len(self.turns)

    def take(self, turn: Turn, words: EnvWords, observation: str) -> None:
        """Go on from what a turn came to."""
        self.turns.append(turn)
        if self.memory.turns:
            self.said += exchange(words, turn)
        self.acted[self.seen] += turn.action is not None
        self.observation = observation


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What the policy said, and what it was shown."""

    insights: tuple[Insight, ...]
    completion: Completion

    @property
    def is_overflow(self) -> bool:
        """Whether it said nothing, as the prompt does not fit."""
        return self.completion.finish_reason == FinishReason.OVERFLOW

    @property
    def is_cut(self) -> bool:
        """Whether it would have said more."""
        return self.completion.finish_reason == FinishReason.LENGTH


class _Asking:
    """A policy that is asked for the next reply of many episodes at once."""

    def __init__(
        self, policy: Policy, words: EnvWords, layout: Layout | None, sampling: Sampling, run_seed: int
    ) -> None:
        self._policy = policy
        self._words = words
        self._layout = layout
        self._sampling = sampling
        self._run_seed = run_seed
        self._alone = lru_cache(maxsize=4096)(partial(build_prompt, words, layout=layout))

    def ask(self, episodes: Sequence[_Episode]) -> list[_Answer]:
        """The answer of each, having forgotten what does not fit the window."""
        answers: dict[int, _Answer] = {}
        waiting = list(range(len(episodes)))
        while waiting:
            asked = [episodes[index] for index in waiting]
            shown = [self._show(episode) for episode in asked]
            completions = self._policy.generate(
                [self._prompt(episode, insights) for episode, insights in zip(asked, shown, strict=True)],
                self._sampling,
                [turn_seed(self._run_seed, e.phase, e.seed, len(e.turns)) for e in asked],
            )
            for index, insights, completion in zip(waiting, shown, completions, strict=True):
                answers[index] = _Answer(insights=insights, completion=completion)
            waiting = [i for i in waiting if answers[i].is_overflow and episodes[i].forget()]
        return [answers[index] for index in range(len(episodes))]

    def _show(self, episode: _Episode) -> tuple[Insight, ...]:
        situation = None
        if past := [(turn.observation, turn.action) for turn in episode.past]:
            situation = episode.memory.seen(self._words, past, episode.observation)
        episode.seen = situation or episode.observation
        most = len(self._words.actions)  # nobody has more advice than that
        return episode.show(episode.observation, min(episode.times, most), situation)

    def _prompt(self, episode: _Episode, insights: Sequence[Insight]) -> Prompt:
        texts = tuple(insight.text for insight in insights)
        if not (past := episode.past):
            return self._alone(episode.observation, texts)
        said = episode.said[-2 * len(past) :]
        return build_prompt(self._words, episode.observation, texts, self._layout, said)


def rollout(
    envs: Places,
    words: EnvWords,
    policy: Policy,
    phases: Mapping[str, Context],
    seeds: SeedRange,
    *,
    sampling: Sampling,
    policy_id: str,
    env_id: str,
    layout: Layout | None = None,
    memory: Memory | None = None,
) -> Iterator[Trace]:
    """Play the episodes, as many at once as ``envs`` has places, and yield each when it ends.

    ``phases`` has by the name of each, which is part of its traces' ids, what is shown in it; each plays all
    the seeds. What happens in an episode depends on its seed, its phase's name and context, and the policy,
    not on how many places there are and not on the other episodes. The two ids are for the record.

    The memory says which turns before the present one stand in the prompt, by default none; those that do
    not fit the context window are left out, the oldest first.
    """
    asking = _Asking(policy, words, layout, sampling, seeds.run_seed)
    trace = partial(_trace, words, split=seeds.split, policy_id=policy_id, env_id=env_id)
    queue = _episodes(phases, seeds, memory or Memory())
    free = list(envs.places)
    playing: list[tuple[Place, _Episode]] = []
    while True:
        starting = list(zip(free, queue, strict=False))
        free = []
        for place, episode in starting:
            place.begin(episode.seed)
        for place, episode in starting:
            begun = place.outcome()
            if begun.fault is None:
                episode.observation = begun.observation
                playing.append((place, episode))
            else:
                yield trace(episode, begun)
                free.append(place)
        if free:
            continue
        if not playing:
            return

        answers = asking.ask([episode for _, episode in playing])
        turns = list(zip(playing, answers, strict=True))
        playing = []
        for (place, _), answer in turns:
            if not answer.is_overflow:
                place.act(words.reply_prefix + answer.completion.text)
        for (place, episode), answer in turns:
            outcome = None if answer.is_overflow else place.outcome()
            if outcome is not None and outcome.fault is None:
                # Cut off without an action it was still thinking, in whatever way.
                is_thinking = words.thinks and answer.is_cut and outcome.action is None
                outcome = replace(outcome, cut_off=outcome.cut_off or is_thinking)
                episode.take(_turn(words, episode, answer, outcome), words, outcome.observation)
                if not (outcome.terminated or outcome.truncated):
                    playing.append((place, episode))
                    continue
            yield trace(episode, outcome)
            free.append(place)


def _turn(words: EnvWords, episode: _Episode, answer: _Answer, outcome: Outcome) -> Turn:
    """One turn of an episode that has not taken it yet."""
    return Turn(
        observation=episode.observation,
        insight_ids=tuple(insight.id for insight in answer.insights),
        prompt_tokens=answer.completion.prompt_tokens,
        reply=words.reply_prefix + answer.completion.text,
        token_ids=answer.completion.token_ids,
        logprobs=answer.completion.logprobs,
        action=outcome.action,
        reward=outcome.reward,
        left_out=episode.left_out,
    )


def _trace(
    words: EnvWords, episode: _Episode, outcome: Outcome | None, *, split: Split, policy_id: str, env_id: str
) -> Trace:
    """An episode that is over with this outcome; ``None`` where the prompt did not fit the window."""
    stop, success, error = _ending(outcome), False, None if outcome is None else outcome.fault
    if outcome is not None and error is None:
        total_reward = sum(turn.reward for turn in episode.turns)
        declared = {"is_success": outcome.is_success}
        try:
            success = guarded(lambda: words.success.of(declared, total_reward, outcome.terminated))
        except EnvFault as fault:
            stop, error = StopReason.ERROR, str(fault)
    return Trace(
        phase=episode.phase,
        split=split,
        seed=episode.seed,
        env_id=env_id,
        policy_id=policy_id,
        context_id=episode.context_id,
        turns=tuple(episode.turns),
        final_observation=episode.observation,
        stop_reason=stop,
        success=success,
        error=error,
    )


def _ending(outcome: Outcome | None) -> StopReason:
    """Why an episode is over."""
    if outcome is None:
        return StopReason.OUT_OF_TOKENS
    if outcome.fault is not None:
        return StopReason.TIMED_OUT if outcome.timed_out else StopReason.ERROR
    if outcome.not_judged:
        return StopReason.NOT_JUDGED
    if outcome.cut_off:
        return StopReason.CUT_OFF
    if outcome.too_many_invalid:
        return StopReason.INVALID_REPLIES
    return StopReason.TERMINATED if outcome.terminated else StopReason.TRUNCATED


def _episodes(phases: Mapping[str, Context], seeds: SeedRange, memory: Memory) -> Iterator[_Episode]:
    for phase, context in phases.items():
        show = lru_cache(maxsize=4096)(context.show)
        begin = partial(_Episode, phase, context.id, context.is_exploring, show, memory)
        yield from map(begin, seeds)


def expected_prompts(
    words: EnvWords, observations: Sequence[str], contexts: Sequence[Context], layout: Layout
) -> list[Prompt]:
    """What will be asked in an env of few observations, of which these were seen, to be computed together.

    Where it has many, or where they never come again, nobody knows: then it is nothing.
    """
    if len(observations) > FEW_OBSERVATIONS:
        return []
    prompts: dict[Prompt, None] = {}
    for context in contexts:
        for observation in observations:
            for times in range(len(words.actions) if context.is_exploring else 1):
                shown = [insight.text for insight in context.show(observation, times)]
                prompts[build_prompt(words, observation, shown, layout)] = None
    return list(prompts)


def turn_seed(run_seed: int, phase: str, seed: int, turn: int) -> int:
    """The sampling seed of one reply, a 64-bit hash of where it stands."""
    place = f"{run_seed}/{phase}/{seed}/{turn}".encode()
    return int.from_bytes(hashlib.blake2b(place, digest_size=8).digest())


def check_played(traces: Sequence[Trace]) -> None:
    """Make sure that something was played: a figure over nothing but the env's faults would look like one.

    Raises:
        EnvError: Every episode ended by a fault of the env.
    """
    if traces and all(trace.is_fault for trace in traces):
        first = traces[0]
        reason = first.error or first.stop_reason.replace("_", " ")
        raise EnvError(
            f"{first.env_id} failed in each of {len(traces)} episodes of {first.phase}, the first (seed "
            f"{first.seed}) with: {reason}. Mend the env first: envs.check.check_text_env(its id) says where"
        )
