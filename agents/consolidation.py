"""Insights into weights: OPCD on the session's student, validated and checkpointed.

A checkpoint holds all that the next step depends on, so training goes on exactly where it was, whichever
step that was.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

from agents.interrupt import deferred_interrupt
from agents.policy import Prompt, Sampling
from agents.prefix_lm import PrefixLM
from agents.prompts import build_prompt
from agents.rollout import turn_seed
from agents.session import Session
from distill.examples import sample_examples
from distill.opcd import OPCD, StepStats
from distill.teacher import FrozenTeacher
from experience.insight import Insight, retrieve

Item = TypeVar("Item")

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"


class Consolidation:
    """The training of one run, over all its rounds."""

    def __init__(self, session: Session) -> None:
        """Begin, or go on from the checkpoint in the session's run folder."""
        self.session = session
        config = session.config
        self.trainer = OPCD(
            session.student.lm.model,
            FrozenTeacher(PrefixLM(session.base.lm.model)),
            lr=config.lr,
            temperature=config.temperature,
            teacher_temperature=config.teacher_temperature,
            k=config.top_k,
            mode=config.loss,
            max_nodes=config.max_nodes,
        )
        self.best_score = -1.0
        """Validation success of the best weights so far."""
        self.best_step = -1
        """The optimiser step after which they were saved."""
        self.round = 0
        """The last round that was trained."""
        self.round_start = 0
        """Optimiser steps before it."""
        self._load_checkpoint()

    def distil(self, round_number: int, insights: Sequence[Insight]) -> None:
        """Train the student to do with the bare prompt what the teacher does with the insights."""
        session, config = self.session, self.session.config
        if round_number < self.round:
            return  # done before the run was resumed
        if round_number > self.round:
            self.round, self.round_start = round_number, self.trainer.step_count
        pairs = self._prompt_pairs(insights)
        done = self.trainer.step_count - self.round_start
        with session.progress(f"round{round_number}/distil", config.steps) as bar:
            try:
                if self._is_validated_after(done):
                    self._validate()
                while done < config.steps:
                    with deferred_interrupt():
                        stats = self._step(pairs)
                    done += 1
                    bar.update(bar.task_ids[0], completed=done, note=f"KL {stats.loss:.4f}")
                    if self._is_validated_after(done):
                        self._validate()
                        self._save_checkpoint()
            except KeyboardInterrupt:
                self._save_checkpoint()
                raise

    def use_best(self) -> None:
        """Put the best weights into the student; without any, it is as it was at first."""
        if (loaded := self.session.folder.load_tensors(BEST)) is not None:
            tensors, about = loaded
            self.trainer.load_weights(tensors)
            self.session.student_step = about["step"]

    def _is_validated_after(self, done: int) -> bool:
        config = self.session.config
        return done % config.eval_every == 0 or done == config.steps

    def _prompt_pairs(self, insights: Sequence[Insight]) -> list[tuple[Prompt, Prompt]]:
        """(bare prompt, prompt with experience) for every observation that an insight is about."""
        words, k = self.session.words, self.session.config.insights_per_prompt
        pairs = []
        for observation in sorted({i.observation for i in insights if i.observation is not None}):
            shown = [insight.text for insight in retrieve(insights, observation, k)]
            pairs.append((build_prompt(words, observation), build_prompt(words, observation, shown)))
        return pairs

    def _step(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> StepStats:
        """One optimiser step on the student's own answers, drawn by the step's number alone."""
        session, config = self.session, self.session.config
        step = self.trainer.step_count + 1
        order = random.Random(turn_seed(config.seed, "order", step, 0))
        batch = spread_evenly(pairs, config.batch_size, order)
        seeds = [turn_seed(config.seed, "distil", step, i) for i in range(config.batch_size)]
        sampling = Sampling(temperature=config.temperature, max_tokens=session.max_tokens)
        session.student.clear()
        examples = sample_examples(session.student, session.student.encode, batch, sampling, seeds)
        stats = self.trainer.step(examples)
        session.student_step = step
        session.folder.log(f"step{step}", kind="train", step=step, round=self.round, **stats.as_dict())
        return stats

    def _validate(self) -> None:
        """Play the bare student on validation; keep its weights if they are the best so far."""
        session, step = self.session, self.trainer.step_count
        rates = []
        for temperature in session.config.eval_temperature:
            phase = f"validation{step}@{temperature:g}"
            traces = session.play(phase, session.student, session.validation_seeds, temperature)
            rates.append(float(traces["success"].mean()))
        score = sum(rates) / len(rates)
        if score > self.best_score:
            session.folder.save_tensors(BEST, self.trainer.weights(), {"step": step, "score": score})
            self.best_score, self.best_step = score, step
        session.folder.log(
            f"validation{step}",
            kind="validation",
            step=step,
            round=self.round,
            success_rate=score,
            best=self.best_step == step,
        )

    def _save_checkpoint(self) -> None:
        about = {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "round": self.round,
            "round_start": self.round_start,
        }
        self.session.folder.save_tensors(CHECKPOINT, self.trainer.state(), about)

    def _load_checkpoint(self) -> None:
        if (loaded := self.session.folder.load_tensors(CHECKPOINT)) is None:
            return
        tensors, about = loaded
        self.trainer.load_state(tensors)
        self.session.student_step = self.trainer.step_count
        self.best_score, self.best_step = about["best_score"], about["best_step"]
        self.round, self.round_start = about["round"], about["round_start"]


def spread_evenly(items: Sequence[Item], size: int, generator: random.Random) -> list[Item]:
    """``size`` items, each as often as any other or once more."""
    rounds, rest = divmod(size, len(items))
    return [*list(items) * rounds, *generator.sample(list(items), rest)]
