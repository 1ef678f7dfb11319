"""Insights into weights: OPCD on the session's student, validated and checkpointed.

A checkpoint holds all that the next step depends on, so training goes on exactly where it was, whichever
step that was.
"""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import pandas as pd
import torch

from agents.policies.local import HFPolicy
from agents.policies.policy import FinishReason, Policy, Prompt, Sampling
from agents.policies.vllm.policy import VLLMPolicy
from agents.prompts import build_prompt
from agents.rollout import turn_seed
from agents.run.interrupt import deferred_interrupt
from agents.run.run import Session
from distill.collapse import collapse
from distill.examples import Data, DistillError, DistillExample, TokenIds
from distill.opcd import OPCD, StepStats
from distill.teacher import FollowingTeacher, FrozenTeacher, ScoringTeacher, Teacher
from evals.result import Comparison
from experience.context import Context

Item = TypeVar("Item")

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
WORSE = 0.01
"""Validation has fallen when it is below its best with a smaller p-value: small, as the best was lucky."""
GAP_EXAMPLES = 8
"""Of so many completions of a step the log-probabilities of vLLM and of the trainer are compared."""


class Consolidation:
    """The training of one run, over all its rounds."""

    def __init__(self, session: Session) -> None:
        """Begin, or go on from the checkpoint in the session's run folder."""
        self.session = session
        config, student = session.config, session.student
        self.teacher = self._make_teacher()
        sharded = session.ranks.size > 1 and config.engine == "fsdp"
        self.trainer = OPCD(
            copy.deepcopy(student.lm.model) if sharded else student.lm.model,
            self.teacher,
            lr=config.lr,
            temperature=config.temperature,
            teacher_temperature=config.teacher_temperature,
            k=config.top_k,
            mode=config.loss,
            direction=config.direction,
            average=config.average,
            trust_region=config.trust_region,
            base=FrozenTeacher(session.base.lm.fresh()) if config.trust_region else None,
            vocabulary=len(student.tokenizer) if config.teacher_model or config.teacher_url else None,
            weight_decay=config.weight_decay,
            warmup_steps=config.warmup_steps,
            decay_steps=config.rounds * config.steps if config.lr_schedule == "linear" else None,
            max_nodes=config.max_nodes,
            compute_dtype=student.lm.compute_dtype,
            gradient_checkpointing=config.gradient_checkpointing,
            ranks=session.ranks,
            engine=config.engine,
            compute=student.lm.way,
        )
        self.best_score = -1.0
        """Validation success of the best weights so far."""
        self.best_step = -1
        """The optimiser step after which they were saved."""
        self.round = 0
        """The last round that was trained."""
        self.round_start = 0
        """Optimiser steps before it."""
        self.is_stopped = False
        """Whether it was ended early."""
        self.first: StepStats | None = None
        """The figures by which a collapse is known: those of the first step on the present kind of data."""
        self._load_checkpoint()

    def distil(self, round_number: int, context: Context) -> None:
        """Train the student to do with the bare prompt what the teacher does with the context."""
        session, config = self.session, self.session.config
        if round_number < self.round:
            return  # done before the run was resumed
        if round_number > self.round:
            self._begin_round(round_number)
        pairs = self._prompt_pairs(context)
        done = self.trainer.step_count - self.round_start
        with session.progress(f"round{round_number}/distil", config.steps) as bar:
            if done < config.steps and not self.is_stopped:
                self._let_teacher_remember(pairs)
            try:
                self._validate_if_due(done)  # after a resume too: it may have been cut off in there
                while done < config.steps and not self.is_stopped:
                    with deferred_interrupt():
                        stats = self._step(pairs)
                        if config.stop_on_collapse and (reason := collapse(stats, self.first or stats)):
                            self._stop(reason)
                    done += 1
                    speed = bar.tasks[0].speed or 0.0  # of the last half minute
                    note = f"KL {stats.kl:.4f}, {speed:.2f} steps/s"
                    bar.update(bar.task_ids[0], completed=done, note=note)
                    self._validate_if_due(done)
            except KeyboardInterrupt:
                if session.ranks.size == 1:  # others may be elsewhere, and a checkpoint takes all of them
                    self._save_checkpoint()
                raise

    def use_best(self) -> None:
        """Put the best weights into the student; without any, it is as it was at first."""
        tensors, about = self._load(BEST)
        if about is not None:
            self.trainer.load_weights(tensors)
            self._refresh_student()
            self.session.student_step = about["step"]

    def _make_teacher(self) -> Teacher | ScoringTeacher:
        session = self.session
        if session.scorer is not None:
            return session.scorer
        if session.config.teacher in ("round", "ema"):
            return FollowingTeacher(session.teacher.lm)
        if session.config.teacher == "self":
            return session.student.lm
        # Of its own: a policy's memo is for playing.
        return FrozenTeacher(session.teacher.lm.fresh())

    def _begin_round(self, round_number: int) -> None:
        self.round, self.round_start = round_number, self.trainer.step_count
        self.is_stopped = False
        if isinstance(self.teacher, FollowingTeacher) and (
            self.session.config.teacher == "round" or self.trainer.step_count == 0
        ):
            self.teacher.follow(self.trainer.trained())

    def _prompt_pairs(self, context: Context) -> dict[str, list[tuple[Prompt, Prompt]]]:
        """(bare prompt, prompt with experience) for every train observation that the context speaks to.

        By the action that is advised there, or under "" where advice is no action.
        """
        session, layout = self.session, self.session.config.layout
        observations: list[str] = session.ranks.from_main(
            lambda: session.store.observations(phases=session.played)
        )
        pairs: dict[str, list[tuple[Prompt, Prompt]]] = {}
        for observation in observations:
            if shown := context.show(observation):
                texts = [insight.text for insight in shown]
                action = session.words.advised(session.words.situation(observation), texts[0])
                pairs.setdefault(action or "", []).append(
                    (
                        build_prompt(session.words, observation),
                        build_prompt(session.words, observation, texts, layout),
                    )
                )
        return pairs

    def _let_teacher_remember(self, pairs: Mapping[str, Sequence[tuple[Prompt, Prompt]]]) -> None:
        """Where replies have one token, a teacher that stays is asked after the same few prompts only.

        Whether it is worth it must not depend on the steps done: a resumed run is to compute the same.
        """
        config = self.session.config
        prompts = [with_context for group in pairs.values() for _, with_context in group]
        if (
            self.session.max_tokens == 1
            and len(prompts) <= config.steps * config.batch_size
            and config.teacher != "ema"
            and isinstance(self.teacher, FrozenTeacher)
        ):
            self.teacher.remember([self.session.teacher.encode(prompt) for prompt in prompts])

    def _step(self, pairs: Mapping[str, Sequence[tuple[Prompt, Prompt]]]) -> StepStats:
        """One optimiser step on fresh answers, drawn by the step's number alone.

        As many for each action that is advised, by default: a student that is nearly always advised the same
        learns to do that everywhere, and a reverse KL hardly lets it go again (docs/tried.md).

        The teacher's own (off-policy) are drawn from its sharpened distribution, so they are what a data set
        that it wrote beforehand would hold.
        """
        session, config = self.session, self.session.config
        step = self.trainer.step_count + 1
        order = random.Random(turn_seed(config.seed, "order", step, 0))
        weights = [len(group) ** config.action_power for group in pairs.values()]
        batch = [
            (action, index)
            for action, share in zip(pairs, shares(weights, config.batch_size, order), strict=True)
            for index in spread_evenly(range(len(pairs[action])), share, order)
        ]
        seeds = [turn_seed(config.seed, "distil", step, i) for i in range(config.batch_size)]
        # Equal prompts side by side, so that one process computes them.
        mine = session.ranks.share(sorted(zip(batch, seeds, strict=True)))
        data, self.trainer.direction = config.data, config.direction
        done = self.trainer.step_count - self.round_start
        if done < config.off_policy_steps:
            data, self.trainer.direction = "teacher", "forward"
        policy = session.student if data == "student" else session.teacher
        temperature = config.temperature if data == "student" else config.teacher_temperature
        policy.clear()
        examples = sample_examples(
            policy,
            session.student.encode,
            [pairs[action][index] for (action, index), _ in mine],
            Sampling(temperature=temperature, max_tokens=session.max_tokens),
            [seed for _, seed in mine],
            data=data,
            teacher_encode=session.teacher.encode,
        )
        extra = self._rollout_gap(policy, data, examples)
        policy.clear()  # its memo is of no use to the update, which needs the room
        stats = self.trainer.step(examples)
        if session.scorer is not None:
            extra |= session.scorer.cost()
        self._refresh_student()
        if isinstance(self.teacher, FollowingTeacher) and config.teacher == "ema":
            self.teacher.follow(self.trainer.trained(), config.ema_decay)
        if self.first is None or (config.off_policy_steps and done in (0, config.off_policy_steps)):
            self.first = stats
        session.student_step = step
        session.log(f"step{step}", kind="train", step=step, round=self.round, **stats.as_dict(), **extra)
        return stats

    def _rollout_gap(
        self, policy: HFPolicy, data: Data, examples: Sequence[DistillExample]
    ) -> dict[str, float]:
        """How far what drew the completions is from the weights that are trained, for the log."""
        if not isinstance(policy, VLLMPolicy):
            return {}
        gap = policy.gap(
            (
                e.student_prompt_ids if data == "student" else e.teacher_prompt_ids,
                e.completion_ids,
                e.logprobs,
            )
            for e in examples[:: max(1, len(examples) // GAP_EXAMPLES)]
        )
        return {"rollout_gap": gap.mean, "rollout_gap_max": gap.max}

    def _refresh_student(self) -> None:
        """Where the trained model is sharded, the policy plays with a whole copy of it."""
        if self.trainer.student is not self.session.student.lm.model:
            self.trainer.copy_to(self.session.student.lm.model)

    def _validate_if_due(self, done: int) -> None:
        config = self.session.config
        if self.is_stopped or (done % config.eval_every != 0 and done != config.steps):
            return
        if done == 0 < self.round_start:
            return  # these weights are the last round's, which it has judged
        if reason := self._validate():
            self._stop(reason)
        elif done > 0:
            self._save_checkpoint()

    def _validate(self) -> str | None:
        """Play the bare student on validation; keep its weights if they are the best so far.

        Returns:
            Why training should stop, if it should.
        """
        session, step = self.session, self.trainer.step_count
        frames = self._validation_traces(step)
        score = sum(float(frame["success"].mean()) for frame in frames) / len(frames)
        if score > self.best_score:
            weights = self.trainer.weights()
            if session.ranks.is_main:
                session.folder.save_tensors(BEST, weights, {"step": step, "score": score})
            self.best_score, self.best_step = score, step
        session.log(
            f"validation{step}",
            kind="validation",
            step=step,
            round=self.round,
            success_rate=score,
            best=self.best_step == step,
        )
        if session.config.stop_when_worse and self.best_step != step:
            # At one temperature: the same seed at another is no second witness.
            comparison = Comparison.of(frames[0], self._validation_traces(self.best_step)[0])
            if comparison.difference < 0 and comparison.p_value < WORSE:
                fall = f"from {self.best_score:.1%} to {score:.1%}"
                return f"validation fell {fall} (p = {comparison.p_value:.2g})"
        return None

    def _validation_traces(self, step: int) -> list[pd.DataFrame]:
        """One frame per evaluation temperature."""
        session = self.session
        return [
            session.play(
                f"validation{step}@{temperature:g}", session.student, session.validation_seeds, temperature
            )
            for temperature in session.config.eval_temperature
        ]

    def _stop(self, reason: str) -> None:
        """End the round early, with the best weights; all of it or nothing."""
        session, step = self.session, self.trainer.step_count
        session.log(f"stop{step}", kind="stop", step=step, round=self.round, reason=reason)
        session.console.print(
            f"round {self.round}: training stops after step {step}: {reason}. "
            f"The weights of step {self.best_step} are taken",
            soft_wrap=True,
        )
        tensors, _ = self._load(BEST)
        with deferred_interrupt():
            self.trainer.load_weights(tensors)
            self._refresh_student()
            self.is_stopped = True
            session.student_step = self.best_step
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        about = {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "round": self.round,
            "round_start": self.round_start,
            "is_stopped": self.is_stopped,
            "first": None if self.first is None else self.first.as_dict(),
        }
        tensors = self.trainer.state()
        if isinstance(self.teacher, FollowingTeacher):
            tensors |= self.teacher.state(self.trainer.parameters)
        if self.session.ranks.is_main:
            self.session.folder.save_tensors(CHECKPOINT, tensors, about)

    def _load_checkpoint(self) -> None:
        tensors, about = self._load(CHECKPOINT)
        if about is None:
            return
        self.trainer.load_state(tensors)
        self._refresh_student()
        if isinstance(self.teacher, FollowingTeacher):
            self.teacher.load_state(tensors, self.session.ranks)
        self.best_score, self.best_step = about["best_score"], about["best_step"]
        self.round, self.round_start = about["round"], about["round_start"]
        self.is_stopped = about["is_stopped"]
        self.session.student_step = self.best_step if self.is_stopped else self.trainer.step_count
        self.first = None if about["first"] is None else StepStats(**about["first"])

    def _load(self, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
        """A file of the run's folder: its tensors on the main process, and what it says about them on all."""
        loaded = self.session.folder.load_tensors(name) if self.session.ranks.is_main else None
        tensors, about = loaded or ({}, None)
        return tensors, self.session.ranks.broadcast(about)


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
