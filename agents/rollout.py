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
from experience.seeds import SeedRange
from experience.trace import StopReason, Trace, Turn

FEW_OBSERVATIONS = 64
"""With more, an episode meets few of them."""


@dataclass(slots=True)
class _Episode:
    """An episode on its way."""

    phase: str
    context: Context
    show: Callable[[str, int, str | None], tuple[Insight, ...]]
    """See ``Context.show``."""
    memory: Memory
    seed: int
    observation: str = ""
    turns: list[Turn] = field(default_factory=list)
    said: list[Message] = field(default_factory=list)
    """The turns as they are remembered, two messages each."""
    forgotten: int = 0
    """So many of the first turns do not fit the context window."""
    seen: str = ""
    """The observation, behind what it remembers if that is anything; see ``Memory.seen``."""
    acted: Counter[str] = field(default_factory=Counter)
    """How often after each that was seen; unreadable replies are no acts."""

    @property
    def times(self) -> int:
        """How often it has acted here, where that makes a difference: what is shown is looked up by it."""
        return self.acted[self.seen] if self.context.is_exploring else 0

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
    memory = memory or Memory()
    queue = _episodes(phases, seeds, memory)
    free = list(envs.places)
    playing: list[tuple[Place, _Episode]] = []

    def trace(
        episode: _Episode, stop: StopReason, *, success: bool = False, error: str | None = None
    ) -> Trace:
        return Trace(
            phase=episode.phase,
            split=seeds.split,
            seed=episode.seed,
            env_id=env_id,
            policy_id=policy_id,
            context_id=episode.context.id,
            turns=tuple(episode.turns),
            final_observation=episode.observation,
            stop_reason=stop,
            success=success,
            error=error,
        )

    def failed(episode: _Episode, outcome: Outcome) -> Trace:
        stop = StopReason.TIMED_OUT if outcome.timed_out else StopReason.ERROR
        return trace(episode, stop, error=outcome.fault)

    def ended(episode: _Episode, outcome: Outcome) -> Trace:
        if outcome.not_judged:
            stop = StopReason.NOT_JUDGED
        elif outcome.cut_off:
            stop = StopReason.CUT_OFF
        elif outcome.too_many_invalid:
            stop = StopReason.INVALID_REPLIES
        else:
            stop = StopReason.TERMINATED if outcome.terminated else StopReason.TRUNCATED
        total_reward = sum(turn.reward for turn in episode.turns)
        declared = {"is_success": outcome.is_success}
        try:
            success = guarded(lambda: words.success.of(declared, total_reward, outcome.terminated))
        except EnvFault as fault:
            return trace(episode, StopReason.ERROR, error=str(fault))
        return trace(episode, stop, success=success)

    @lru_cache(maxsize=4096)
    def alone(observation: str, experience: tuple[str, ...]) -> Prompt:
        return build_prompt(words, observation, experience, layout)

    def prompt(episode: _Episode, insights: Sequence[Insight]) -> Prompt:
        texts = tuple(insight.text for insight in insights)
        if not (past := episode.past):
            return alone(episode.observation, texts)
        return build_prompt(words, episode.observation, texts, layout, episode.said[-2 * len(past) :])

    def show(episode: _Episode) -> tuple[Insight, ...]:
        situation = None
        if past := [(turn.observation, turn.action) for turn in episode.past]:
            situation = memory.seen(words, past, episode.observation)
        episode.seen = situation or episode.observation
        most = len(words.actions)  # nobody has more advice than that
        return episode.show(episode.observation, min(episode.times, most), situation)

    def ask(episodes: Sequence[_Episode]) -> list[tuple[tuple[Insight, ...], Completion]]:
        """What each is shown, and what it says, having forgotten what does not fit the window."""
        answers: dict[int, tuple[tuple[Insight, ...], Completion]] = {}
        waiting = list(range(len(episodes)))
        while waiting:
            asked = [episodes[index] for index in waiting]
            shown = [show(episode) for episode in asked]
            completions = policy.generate(
                [prompt(episode, insights) for episode, insights in zip(asked, shown, strict=True)],
                sampling,
                [turn_seed(seeds.run_seed, e.phase, e.seed, len(e.turns)) for e in asked],
            )
            answers |= zip(waiting, zip(shown, completions, strict=True), strict=True)
            waiting = [
                index
                for index, completion in zip(waiting, completions, strict=True)
                if completion.finish_reason == FinishReason.OVERFLOW and episodes[index].forget()
            ]
        return [answers[index] for index in range(len(episodes))]

    while True:
        starting = list(zip(free, queue, strict=False))
        free = []
        for place, episode in starting:
            place.begin(episode.seed)
        for place, episode in starting:
            outcome = place.outcome()
            if outcome.fault is None:
                episode.observation = outcome.observation
                playing.append((place, episode))
            else:
                yield failed(episode, outcome)
                free.append(place)
        if free:
            continue
        if not playing:
            return

        answers = ask([episode for _, episode in playing])
        turns = [(*one, *answer) for one, answer in zip(playing, answers, strict=True)]
        playing = []
        for place, _, _, completion in turns:
            if completion.finish_reason != FinishReason.OVERFLOW:
                place.act(words.reply_prefix + completion.text)
        for place, episode, insights, completion in turns:
            if completion.finish_reason == FinishReason.OVERFLOW:
                yield trace(episode, StopReason.OUT_OF_TOKENS)
                free.append(place)
                continue
            outcome = place.outcome()
            if outcome.fault is not None:
                yield failed(episode, outcome)
                free.append(place)
                continue
            is_cut = completion.finish_reason == FinishReason.LENGTH and outcome.action is None
            if words.thinks and is_cut:  # it was still thinking, in whatever way
                outcome = replace(outcome, cut_off=True)
            turn = Turn(
                observation=episode.observation,
                insight_ids=tuple(insight.id for insight in insights),
                prompt_tokens=completion.prompt_tokens,
                reply=words.reply_prefix + completion.text,
                token_ids=completion.token_ids,
                logprobs=completion.logprobs,
                action=outcome.action,
                reward=outcome.reward,
                left_out=episode.left_out,
            )
            episode.turns.append(turn)
            if memory.turns:
                episode.said += exchange(words, turn)
            episode.acted[episode.seen] += outcome.action is not None
            episode.observation = outcome.observation
            if outcome.terminated or outcome.truncated:
                yield ended(episode, outcome)
                free.append(place)
            else:
                playing.append((place, episode))


def _episodes(phases: Mapping[str, Context], seeds: SeedRange, memory: Memory) -> Iterator[_Episode]:
    for phase, context in phases.items():
        show = lru_cache(maxsize=4096)(context.show)
        yield from map(partial(_Episode, phase, context, show, memory), seeds)


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
