"""One round's training: OPCD on the agent's student, validated and checkpointed.

A checkpoint holds all that the next step depends on, so training goes on exactly where it was, whichever
step that was.
"""

import copy
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Self, TypeVar

import torch

from agents.policies.local import HFPolicy
from agents.policies.policy import FinishReason, Message, Policy, Prompt, Sampling
from agents.policies.vllm.policy import VLLMPolicy
from agents.prompts import Layout, build_prompt, exchange
from agents.rollout import turn_seed
from agents.run.folder import TRAIN_AGAIN, RunFolderError
from agents.run.interrupt import deferred_interrupt
from agents.run.run import BEST, CHECKPOINT, Run
from distill.collapse import collapse
from distill.examples import Data, DistillError, DistillExample, TokenIds
from distill.loss import Direction
from distill.opcd import OPCD, StepStats
from distill.teacher import FollowingTeacher, FrozenTeacher, ScoringTeacher, Teacher
from envs.words import EnvWords
from evals.result import success_rate
from experience.context import Context
from experience.phase import Phase

Item = TypeVar("Item")
Moments = Mapping[str, Sequence["Moment"]]
"""By the action that the context advises."""
Pair = tuple[Prompt, Prompt]
"""The bare prompt x, and the same with its context, c + x."""

EMA_DECAY = 0.95
"""What a teacher that is a running mean keeps of itself per optimiser step."""
WRITING_SHARE = 0.05
"""Of the time that training takes, what writing its files may take: a checkpoint that is due waits for it."""
GAP_EXAMPLES = 8
"""Of so many completions of a step the log-probabilities of vLLM and of the trainer are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What an example is to be made of."""

    prompts: Pair
    seed: int
    """Of the answer."""


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


class Training:
    """The training of one run, over all its rounds.

    Within it an interrupt leaves a checkpoint, so that no optimiser step is done twice.
    """

    def __init__(self, run: Run, score: Callable[["Training"], float] | None = None) -> None:
        """Begin, or go on from the checkpoint in the run's folder.

        Args:
            run: One whose folder is open.
            score: By what the best weights are chosen, the more the better, where it is not the success on
                validation episodes.

        Raises:
            DistillError: Student and teacher do not fit each other, or the checkpoint is of another model.
            RunFolderError: The checkpoint is damaged.
        """
        self.run, self.agent = run, run.agent
        self._score = score
        config, student = run.config, run.agent.student
        self.teacher = self._make_teacher()
        sharded = run.ranks.size > 1 and config.engine == "fsdp"
        self.opcd = OPCD(
            copy.deepcopy(student.lm.model) if sharded else student.lm.model,
            self.teacher,
            lr=config.lr,
            temperature=config.temperature,
            teacher_temperature=config.teacher_temperature,
            k=config.top_k,
            mode=config.loss,
            direction=config.direction,
            vocabulary=len(student.tokenizer) if config.teacher_model or config.teacher_urls else None,
            decay_steps=config.rounds * config.steps if config.lr_schedule == "linear" else None,
            max_nodes=config.max_nodes,
            compute_dtype=student.lm.compute_dtype,
            gradient_checkpointing=config.gradient_checkpointing,
            ranks=run.ranks,
            engine=config.engine,
            compute=student.lm.way,
        )
        self._best_score = -math.inf
        """On validation, of the best weights so far."""
        self._best_step = -1
        """The optimiser step after which they were saved."""
        self._round = 0
        """The last round that was trained."""
        self._round_start = 0
        """Optimiser steps before it."""
        self._is_stopped = False
        """Whether it was ended early."""
        self._first: StepStats | None = None
        """The figures by which a collapse is known: those of the first step on the present kind of data."""
        self._last: StepStats | None = None
        self._moments: Moments = {}
        """Of the train episodes so far."""
        self._is_saved = True
        """Whether the checkpoint is of now."""
        self._training = self._writing = self._last_writing = 0.0
        """Seconds so far: of training, of writing files, and of the last file."""
        self._load_checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Several processes may be at different places, and a checkpoint takes all of them.
        if kind is KeyboardInterrupt and self.run.ranks.size == 1:
            self._save_checkpoint()

    # --- the steps of a round ------------------------------------------------------------------------

    def steps(self, number: int, context: Context) -> Iterator[int]:
        """The optimiser steps of a round that are still to be done, by their number in the run.

        Before the first, the weights are validated as they are.

        Args:
            number: The round's.
            context: What the teacher reads.
        """
        run, config = self.run, self.run.config
        if number < self._round:
            return  # done before the run was resumed
        if number > self._round:
            self._begin_round(number)
        self._moments = self._find_moments(context)
        with run.progress(f"round{number}/distil", config.steps) as bar:
            if self._goes_on:
                self._let_teacher_remember()
            if self.is_validation_due:  # after a resume too: it may have been cut off in there
                self.validate()
            while self._goes_on:
                started = time.monotonic()
                yield self.opcd.step_count + 1
                self._training += time.monotonic() - started
                speed = bar.tasks[0].speed or 0.0  # of the last half minute
                kl = 0.0 if self._last is None else self._last.kl
                bar.update(bar.task_ids[0], completed=self._done, note=f"KL {kl:.4f}, {speed:.2f} steps/s")

    @property
    def _done(self) -> int:
        """Optimiser steps of this round."""
        return self.opcd.step_count - self._round_start

    @property
    def _goes_on(self) -> bool:
        return self._done < self.run.config.steps and not self._is_stopped

    @property
    def _is_off_policy(self) -> bool:
        return self._done < self.run.config.off_policy_steps

    @property
    def _data(self) -> Data:
        """Who answers next."""
        return "teacher" if self._is_off_policy else self.run.config.data

    @property
    def _direction(self) -> Direction:
        return "forward" if self._is_off_policy else self.run.config.direction

    def draw(self, step: int) -> list[Question]:
        """This process's share of what a step asks, drawn by the step's number alone.

        As much for each action that is advised, by default: a student that is nearly always advised the same
        learns to do that everywhere, and a reverse KL hardly lets it go again (docs/tried.md).

        Args:
            step: The optimiser step's number.
        """
        config, moments = self.run.config, self._moments
        order = random.Random(turn_seed(config.seed, "order", step, 0))
        weights = [len(group) ** config.action_power for group in moments.values()]
        batch = [
            (action, index)
            for action, share in zip(moments, shares(weights, config.batch_size, order), strict=True)
            for index in spread_evenly(range(len(moments[action])), share, order)
        ]
        seeds = [turn_seed(config.seed, "distil", step, i) for i in range(config.batch_size)]
        # Equal prompts side by side, so that one process computes them.
        mine = self.run.ranks.share(sorted(zip(batch, seeds, strict=True)))
        return [
            Question(prompts=self._prompts(moments[action][index]), seed=seed)
            for (action, index), seed in mine
        ]

    def answer(self, questions: Sequence[Question]) -> list[DistillExample]:
        """Let the student answer the bare prompts, or off-policy the teacher those with the context.

        The teacher's are drawn from its sharpened distribution, so they are what a data set that it wrote
        beforehand would hold.

        Raises:
            DistillError: A prompt and its answer do not fit the context window.
        """
        config, data, policy = self.run.config, self._data, self._answering
        policy.clear()
        return sample_examples(
            policy,
            self.agent.student.encode,
            [question.prompts for question in questions],
            Sampling(
                temperature=config.temperature if data == "student" else config.teacher_temperature,
                max_tokens=self.agent.max_tokens,
            ),
            [question.seed for question in questions],
            data=data,
            teacher_encode=self.agent.teacher.encode,
        )

    def update(self, examples: Sequence[DistillExample]) -> None:
        """One optimiser step: the student, on these very tokens, towards the teacher.

        An interrupt waits for its end. When it shows a collapse the round is over.

        Raises:
            DistillError: There is nothing to train on, or loss or gradient is not finite.
        """
        run, config, done = self.run, self.run.config, self._done
        extra = self._rollout_gap(examples)
        self._answering.clear()  # its memo is of no use to the update, which needs the room
        with deferred_interrupt():
            stats = self._last = self.opcd.step(examples, self._direction)
            self._is_saved = False
            if self.agent.scorer is not None:
                extra |= self.agent.scorer.cost()
            step = self.opcd.step_count
            self.agent.adopt(self.opcd, step)
            if isinstance(self.teacher, FollowingTeacher) and config.teacher_kind == "ema":
                self.teacher.follow(self.opcd.trained(), EMA_DECAY)
            if self._first is None or (config.off_policy_steps and done in (0, config.off_policy_steps)):
                self._first = stats
            run.log(
                Phase(kind="step", index=step),
                kind="train",
                step=step,
                round=self._round,
                **stats.as_dict(),
                **extra,
            )
            if reason := collapse(stats, self._first):
                self._stop(reason)

    @property
    def is_validation_due(self) -> bool:
        """Whether these weights are to be validated, and have not been at the end of another round."""
        config, done = self.run.config, self._done
        if self._is_stopped or (done % config.eval_every != 0 and done != config.steps):
            return False
        return not done == 0 < self._round_start

    def validate(self) -> None:
        """Play the bare student on validation; keep its weights if they are the best so far.

        Raises:
            RunFolderError: The weights cannot be written.
        """
        run, step = self.run, self.opcd.step_count
        score = self._success(step) if self._score is None else self._score(self)
        if score > self._best_score:
            self._write(BEST, self.opcd.weights(), {"step": step, "score": score})
            self._best_score, self._best_step = score, step
            self._is_saved = False
        run.log(
            Phase.validation(step),
            kind="validation",
            step=step,
            round=self._round,
            **{"success_rate" if self._score is None else "score": score},
            best=self._best_step == step,
        )
        if self._is_writing_worth_it:
            self._save_checkpoint()

    def load_best(self) -> None:
        """Put the best weights into the student; without any, it is as it was at first."""
        self._save_checkpoint()  # the last there is to train: what is measured from here on is not it
        tensors, about = self._load_best()
        if about is not None:
            self.opcd.load_weights(tensors)
            self.agent.adopt(self.opcd, about["step"])

    # --- how -----------------------------------------------------------------------------------------

    @property
    def _answering(self) -> HFPolicy:
        return self.agent.student if self._data == "student" else self.agent.teacher

    def _make_teacher(self) -> Teacher | ScoringTeacher:
        agent, kind = self.agent, self.run.config.teacher_kind
        if agent.scorer is not None:
            return agent.scorer
        if kind in ("round", "ema"):
            return FollowingTeacher(agent.teacher.lm)
        if kind == "self":
            return agent.student.lm
        # Of its own: a policy's memo is for playing.
        return FrozenTeacher(agent.teacher.lm.fresh())

    def _begin_round(self, number: int) -> None:
        with deferred_interrupt():
            self._round, self._round_start = number, self.opcd.step_count
            self._is_stopped = False
            if isinstance(self.teacher, FollowingTeacher) and (
                self.run.config.teacher_kind == "round" or self.opcd.step_count == 0
            ):
                self.teacher.follow(self.opcd.trained())

    def _find_moments(self, context: Context) -> Moments:
        """Every train observation that the context speaks to; where the agent remembers, every turn.

        By the action that is advised there, or under "" where advice is no action.
        """
        run = self.run
        found: dict[str, list[Moment]] = {}
        for moment, seen in run.ranks.from_main(self._remembered if run.memory.turns else self._observed):
            if shown := context.show(moment.observation, situation=seen):
                advice = tuple(insight.text for insight in shown)
                action = run.words.advised(seen, advice[0])
                found.setdefault(action or "", []).append(replace(moment, advice=advice))
        return found

    def _observed(self) -> list[tuple[Moment, str]]:
        """Each observation once, and its situation."""
        run = self.run
        return [
            (Moment(observation=observation, advice=()), run.words.situation(observation))
            for observation in run.store.observations(phases=run.played)
        ]

    def _remembered(self) -> list[tuple[Moment, str]]:
        """Each turn behind what its agent remembered, and what it had seen; equal ones once."""
        run = self.run
        turns = run.store.turns(phases=run.played, tokens=True)
        turns["seen"] = run.memory.situations(turns, run.words)["observation"]
        numbers: dict[tuple[str, TokenIds], int] = {}  # of distinct turns
        found: dict[tuple[tuple[int, ...], str], tuple[Moment, str]] = {}
        for _, rows in turns.groupby("trace_id", sort=False):
            episode: list[Any] = list(rows.itertuples())
            said = [message for turn in episode for message in exchange(run.words, turn)]
            alike = tuple(
                numbers.setdefault((turn.observation, tuple(turn.token_ids)), len(numbers))
                for turn in episode
            )
            for number, turn in enumerate(episode):
                first = run.memory.reach(number) + turn.left_out
                moment = Moment(
                    observation=turn.observation, advice=(), episode=said, remembered=range(first, number)
                )
                found.setdefault((alike[first:number], turn.observation), (moment, turn.seen))
        return list(found.values())

    def _prompts(self, moment: Moment) -> Pair:
        """Of what is remembered there, what fits beside the context too."""
        run, agent = self.run, self.agent
        while True:
            bare, informed = pair = moment.prompts(run.words, run.config.layout)
            if not moment.remembered or (
                len(agent.student.encode(bare)) + agent.max_tokens <= agent.student.window
                and len(agent.teacher.encode(informed)) + agent.max_tokens <= agent.teacher.window
            ):
                return pair
            moment = replace(moment, remembered=moment.remembered[1:])

    def _let_teacher_remember(self) -> None:
        """Where replies have one token, a teacher that stays is asked after the same few prompts only.

        Whether it is worth it must not depend on the steps done: a resumed run is to compute the same.
        """
        config = self.run.config
        moments = [moment for group in self._moments.values() for moment in group]
        if (
            self.agent.max_tokens == 1
            and len(moments) <= config.steps * config.batch_size
            and config.teacher_kind != "ema"
            and isinstance(self.teacher, FrozenTeacher)
        ):
            self.teacher.remember([self.agent.teacher.encode(self._prompts(m)[1]) for m in moments])

    def _rollout_gap(self, examples: Sequence[DistillExample]) -> dict[str, float]:
        """How far what drew the completions is from the weights that are trained, for the log."""
        policy = self._answering
        if not isinstance(policy, VLLMPolicy):
            return {}
        gap = policy.gap(
            (
                e.student_prompt_ids if self._data == "student" else e.teacher_prompt_ids,
                e.completion_ids,
                e.logprobs,
            )
            for e in examples[:: max(1, len(examples) // GAP_EXAMPLES)]
        )
        return {"rollout_gap": gap.mean, "rollout_gap_max": gap.max}

    def _success(self, step: int) -> float:
        """On validation, the mean over the evaluation temperatures."""
        run = self.run
        frames = [
            run.play(
                Phase.validation(step, temperature), self.agent.student, run.validation_seeds, temperature
            )
            for temperature in run.config.eval_temperature
        ]
        return sum(map(success_rate, frames)) / len(frames)

    def _stop(self, reason: str) -> None:
        """End the round early, with the best weights; all of it or nothing."""
        run, step = self.run, self.opcd.step_count
        run.log(Phase(kind="stop", index=step), kind="stop", step=step, round=self._round, reason=reason)
        run.console.print(
            f"round {self._round}: training stops after step {step}: {reason}. "
            f"The weights of step {self._best_step} are taken",
            soft_wrap=True,
        )
        tensors, _ = self._load_best()
        with deferred_interrupt():
            self.opcd.load_weights(tensors)
            self.agent.adopt(self.opcd, self._best_step)
            self._is_stopped, self._is_saved = True, False
            self._save_checkpoint()

    # --- checkpoints ---------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        """Write down all that the next step depends on, unless that is done."""
        if self._is_saved:
            return
        about = {
            "best_score": self._best_score,
            "best_step": self._best_step,
            "round": self._round,
            "round_start": self._round_start,
            "is_stopped": self._is_stopped,
            "first": None if self._first is None else self._first.as_dict(),
        }
        tensors = self.opcd.state()
        if isinstance(self.teacher, FollowingTeacher):
            tensors |= self.teacher.state(self.opcd.parameters)
        self._write(CHECKPOINT, tensors, about)
        self._is_saved = True

    @property
    def _is_writing_worth_it(self) -> bool:
        """Whether a checkpoint now, at the price of the last file, leaves enough time to training.

        When it is written says nothing about what is computed: from any of them a run ends the same.
        """
        spent = self._writing + self._last_writing
        return self.run.ranks.from_main(lambda: spent <= WRITING_SHARE * self._training)

    def _write(self, name: str, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> None:
        if self.run.ranks.is_main:
            started = time.monotonic()
            self.run.folder.save_tensors(name, tensors, about)
            self._last_writing = time.monotonic() - started
            self._writing += self._last_writing

    def _load_checkpoint(self) -> None:
        tensors, about = self._load(CHECKPOINT)
        if about is None:
            return
        self.opcd.load_state(tensors)
        if isinstance(self.teacher, FollowingTeacher):
            self.teacher.load_state(tensors, self.run.ranks)
        self._best_score, self._best_step = about["best_score"], about["best_step"]
        self._round, self._round_start = about["round"], about["round_start"]
        self._is_stopped = about["is_stopped"]
        self.agent.adopt(self.opcd, self._best_step if self._is_stopped else self.opcd.step_count)
        self._first = None if about["first"] is None else StepStats(**about["first"])

    def _load_best(self) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        """The best weights, those of ``best_step``, and what is said of them; none if none were kept."""
        if self._best_step < 0:  # what is there was left by a kill before any checkpoint knew of it
            return {}, None
        tensors, about = self._load(BEST)
        if about is None or self._best_step != about["step"]:
            raise RunFolderError(
                f"{BEST} is not the one of step {self._best_step}, which was the best. {TRAIN_AGAIN}"
            )
        return tensors, about

    def _load(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        """A file of the run's folder: its tensors on the main process, and what it says about them on all."""
        loaded = self.run.folder.load_tensors(name) if self.run.ranks.is_main else None
        tensors, about = loaded or ({}, None)
        return tensors, self.run.ranks.broadcast(about)


def sample_examples(
    policy: Policy,
    encode: Callable[[Prompt], TokenIds],
    pairs: Sequence[tuple[Prompt, Prompt]],
    sampling: Sampling,
    seeds: Sequence[int],
    *,
    data: Data = "student",
    teacher_encode: Callable[[Prompt], TokenIds] | None = None,
) -> list[DistillExample]:
    """Let the policy answer.

    Args:
        policy: The student, which answers the bare prompts, or the teacher, which answers those with context.
        encode: A prompt's token ids, in the student's chat template.
        pairs: (bare prompt, prompt with context).
        sampling: How it samples.
        seeds: One per pair.
        data: Who ``policy`` is: ``student`` makes the data on-policy, ``teacher`` off-policy.
        teacher_encode: The same in the teacher's template, where it has another.

    Returns:
        One example per non-empty completion.

    Raises:
        DistillError: A prompt and its completion do not fit the policy's context window.
    """
    teacher_encode = teacher_encode or encode
    asked = [bare if data == "student" else with_context for bare, with_context in pairs]
    examples = []
    for (bare, with_context), completion in zip(pairs, policy.generate(asked, sampling, seeds), strict=True):
        if completion.finish_reason == FinishReason.OVERFLOW:
            raise DistillError(
                f"a prompt of {completion.prompt_tokens} tokens and {sampling.max_tokens} new ones do not "
                "fit the model's context window: shorten the prompt or its context, or allow fewer new tokens"
            )
        if completion.token_ids:
            examples.append(
                DistillExample(
                    student_prompt_ids=encode(bare),
                    teacher_prompt_ids=teacher_encode(with_context),
                    completion_ids=completion.token_ids,
                    is_cut_off=completion.finish_reason == FinishReason.LENGTH,
                    logprobs=completion.logprobs,
                )
            )
    return examples


def shares(weights: Sequence[float], size: int, generator: random.Random) -> list[int]:
    """``size`` in proportion to the weights, each share rounded down or up; on average they are exact."""
    start, total = generator.random(), sum(weights)
    ends = [int(start + size * part / total) for part in accumulate(weights)]
    ends[-1] = size  # whatever was rounded on the way
    return [end - before for before, end in pairwise([0, *ends])]


def spread_evenly(items: Sequence[Item], size: int, generator: random.Random) -> list[Item]:
    """``size`` items, each as often as any other or once more."""
    rounds, rest = divmod(size, len(items))
    return [*list(items) * rounds, *generator.sample(list(items), rest)]
