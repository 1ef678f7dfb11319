"""One round's training: OPCD on the agent's student, validated and checkpointed.

A checkpoint holds all that the next step depends on, so training goes on exactly where it was, whichever
step that was.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

from agents.dealing import deal, steps_for
from agents.examples import Pair, Question, answers, rollout_gap
from agents.moments import Moment, Moments, find_moments
from agents.policies.local import HFPolicy
from agents.run.checkpoints import Checkpoints, Progress
from agents.run.interrupt import deferred_interrupt
from agents.run.run import Run
from distill.collapse import collapse
from distill.examples import Data, DistillExample
from distill.loss import Direction
from distill.opcd import OPCD, StepStats
from distill.parallel import Ranks
from distill.teacher import FollowingTeacher, FrozenTeacher
from evals.result import success_rate
from experience.context import Context
from experience.phase import Phase
from experience.terminal import tell

WARMUP_STEPS = 3
"""AdamW knows little of the gradients' sizes yet. Then the learning rate falls to 0 at the run's end."""
EMA_DECAY = 0.95
"""What a teacher that is a running mean keeps of itself per optimiser step."""


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
        self.opcd = make_opcd(run)
        self.teacher = self.opcd.teacher
        self._checkpoints = Checkpoints(run)
        self._progress = Progress()
        self._last: StepStats | None = None
        self._steps = 0
        """Of the present round."""
        self._moments: Moments = {}
        """Of the train episodes so far."""
        self._is_saved = True
        """Whether the checkpoint is of now."""
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
        """
        run, config = self.run, self.run.config
        if number < self._progress.round:
            return  # done before the run was resumed
        if number > self._progress.round:
            self._begin_round(number)
        self._moments = find_moments(run, context)
        self._steps = steps_for(len(context.insights), config.steps)
        rounds_left = config.rounds - number + 1
        self.opcd.decay_until(self._progress.round_start + rounds_left * self._steps)
        with run.progress(f"round{number}/distil", self._steps) as bar:
            if self._goes_on:
                self._let_teacher_remember()
            if self.is_validation_due:  # after a resume too: it may have been cut off in there
                self.validate()
            while self._goes_on:
                with self._checkpoints.training():
                    yield self.opcd.step_count + 1
                if self._checkpoints.is_due:
                    self._save_checkpoint()
                speed = bar.tasks[0].speed or 0.0  # of the last half minute
                kl = 0.0 if self._last is None else self._last.kl
                pace = f"{speed:.1f} steps/s" if speed > 1 else f"{1 / speed:.1f} s/step" if speed else ""
                bar.update(bar.task_ids[0], completed=self._done, note=f"KL {kl:.4f}, {pace}".rstrip(", "))

    @property
    def _done(self) -> int:
        """Optimiser steps of this round."""
        return self.opcd.step_count - self._progress.round_start

    @property
    def _goes_on(self) -> bool:
        return self._done < self._steps and not self._progress.is_stopped

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
        """This process's share of what a step asks, by its number and how far the student was last seen."""
        config, distances = self.run.config, self._progress.distances
        dealt = deal(self._moments, distances, step, size=config.batch_size, seed=config.seed)
        # Equal prompts are side by side, so that one process computes them.
        return [
            Question(prompts=self._prompts(d.moment), seed=d.seed, moment=d.name)
            for d in self.run.ranks.share(dealt)
        ]

    def answer(self, questions: Sequence[Question]) -> list[DistillExample]:
        """Let the student answer the bare prompts, or off-policy the teacher those with the context.

        Raises:
            DistillError: A prompt and its answer do not fit the context window.
        """
        self._answering.clear()
        self._answering.prepare()
        return answers(self.agent, self._answering, questions, self._data)

    def update(self, examples: Sequence[DistillExample]) -> None:
        """One optimiser step: the student, on these very tokens, towards the teacher.

        An interrupt waits for its end. When it shows a collapse the round is over.

        Raises:
            DistillError: There is nothing to train on, or loss or gradient is not finite.
        """
        run, config, done = self.run, self.run.config, self._done
        extra = rollout_gap(self._answering, examples, self._data)
        self._answering.clear()  # its memo is of no use to the update, which needs the room
        with deferred_interrupt():
            stats = self._last = self.opcd.step(examples, self._direction)
            self._is_saved = False
            if self.agent.scorer is not None:
                extra |= self.agent.scorer.cost()
            step = self.opcd.step_count
            self.agent.adopt(step)
            if isinstance(self.teacher, FollowingTeacher) and config.teacher_kind == "ema":
                self.teacher.follow(self.opcd.parameters.items(), EMA_DECAY)
            first = self._progress.first
            self._note(distances={**self._progress.distances, **self._seen(examples, stats)})
            if first is None or (config.off_policy_steps and done in (0, config.off_policy_steps)):
                first = stats
                self._note(first=first)
            run.log(
                Phase(kind="step", index=step),
                kind="train",
                step=step,
                round=self._progress.round,
                **stats.as_dict(),
                **extra,
            )
            if reason := collapse(stats, first):
                self._stop(reason)

    @property
    def is_validation_due(self) -> bool:
        """Whether these weights are to be validated, and have not been at the end of another round."""
        config, done = self.run.config, self._done
        if self._progress.is_stopped or (done % config.eval_every != 0 and done != self._steps):
            return False
        return not done == 0 < self._progress.round_start

    def validate(self) -> None:
        """Score the bare student on validation; keep its weights if they are the best so far.

        Raises:
            RunFolderError: The weights cannot be written.
        """
        run, step = self.run, self.opcd.step_count
        score = self._success(step) if self._score is None else self._score(self)
        if score > self._progress.best_score:
            self._checkpoints.save_best(self.opcd.weights(), step, score)
            self._note(best_score=score, best_step=step, best_round=self._progress.round if step else 0)
        run.log(
            Phase.validation(step),
            kind="validation",
            step=step,
            round=self._progress.round,
            **{"success_rate" if self._score is None else "score": score},
            best=self._progress.best_step == step,
        )

    def load_best(self) -> int:
        """Put the best weights into the student; returns their round, 0 if it is as it was at first."""
        self._save_checkpoint()  # the last there is to train: what is measured from here on is not it
        if self._progress.best_step >= 0:
            self._take_best()
        return self._progress.best_round

    # --- how -----------------------------------------------------------------------------------------

    def _success(self, step: int) -> float:
        """Of the bare student on validation episodes, the mean over the evaluation temperatures."""
        run = self.run
        seeds, temperatures = run.seeds.validation, run.config.eval_temperature
        frames = [
            run.play(Phase.validation(step, temperature), self.agent.student, seeds, temperature)
            for temperature in temperatures
        ]
        return sum(map(success_rate, frames)) / len(frames)

    @property
    def _answering(self) -> HFPolicy:
        return self.agent.student if self._data == "student" else self.agent.writer

    def _seen(self, examples: Sequence[DistillExample], stats: StepStats) -> dict[str, float]:
        """How far the student was from its teacher, by moment; the last of a moment's completions counts."""
        names = [example.source for example in examples]
        # Rounded: how the processes share a step must not show in what is dealt next.
        kls = [round(kl, 3) for kl in stats.kls]
        return dict(self.run.ranks.gather(list(zip(names, kls, strict=True))))

    def _begin_round(self, number: int) -> None:
        with deferred_interrupt():
            self._note(round=number, round_start=self.opcd.step_count, is_stopped=False, distances={})
            if isinstance(self.teacher, FollowingTeacher) and (
                self.run.config.teacher_kind == "round" or self.opcd.step_count == 0
            ):
                self.teacher.follow(self.opcd.parameters.items())

    def _prompts(self, moment: Moment) -> Pair:
        return moment.prompts_for(self.agent, self.run.words, self.run.config.layout)

    def _let_teacher_remember(self) -> None:
        """Where replies have one token, a teacher that stays is asked after the same few prompts only.

        Whether it is worth it must not depend on the steps done: a resumed run is to compute the same.
        """
        moments = [moment for group in self._moments.values() for moment in group]
        if len(moments) <= self._steps * self.run.config.batch_size and (
            teacher := remembering(self.run, self.opcd)
        ):
            teacher.remember([self.agent.teacher.encode(self._prompts(m)[1]) for m in moments])

    def _stop(self, reason: str) -> None:
        """End the round early, with the best weights; all of it or nothing."""
        run, step, number = self.run, self.opcd.step_count, self._progress.round
        run.log(Phase(kind="stop", index=step), kind="stop", step=step, round=number, reason=reason)
        taken = f"The weights of step {self._progress.best_step} are taken"
        tell(run.console, f"round {number}: training stops after step {step}: {reason}. {taken}")
        with deferred_interrupt():
            self._take_best()
            self._note(is_stopped=True)
            self._save_checkpoint()

    def _take_best(self) -> None:
        step = self._progress.best_step
        self.opcd.load_weights(self._checkpoints.load_best(step))
        self.agent.adopt(step)

    def _note(self, **changes: Any) -> None:
        """Something that the next checkpoint has to say."""
        self._progress = replace(self._progress, **changes)
        self._is_saved = False

    def _save_checkpoint(self) -> None:
        """Write down all that the next step depends on, unless that is done."""
        if self._is_saved:
            return
        tensors = self.opcd.state()
        if tensors and isinstance(self.teacher, FollowingTeacher):
            tensors |= self.teacher.state(self.opcd.parameters)
        self._checkpoints.save(tensors, self._progress)
        self._is_saved = True

    def _load_checkpoint(self) -> None:
        tensors, progress = self._checkpoints.load()
        if progress is None:
            return
        self._progress = progress
        self.opcd.load_state(tensors)
        if isinstance(self.teacher, FollowingTeacher):
            self.teacher.load_state(tensors)
        step = progress.best_step if progress.is_stopped else self.opcd.step_count
        self.agent.adopt(step)


def remembering(run: Run, opcd: OPCD) -> FrozenTeacher | None:
    """The teacher of a run, where it stays as it is and is asked after prompts only."""
    teacher, stays = opcd.teacher, run.config.teacher_kind != "ema"
    return teacher if isinstance(teacher, FrozenTeacher) and stays and run.agent.max_tokens == 1 else None


def make_opcd(run: Run, ranks: Ranks | None = None) -> OPCD:
    """The update of a run's student, which the run's processes share, or other ``ranks``.

    Raises:
        DistillError: Student and teacher do not fit each other.
    """
    config, student, ranks = run.config, run.agent.student, ranks or run.ranks
    vocabulary = None
    if config.teacher_model or config.teacher_urls:
        # Not len(tokenizer): that counts tokens, and some tokenizers leave ids out.
        vocabulary = max(student.tokenizer.get_vocab().values()) + 1
    return OPCD(
        student.lm.model,
        run.agent.imitated(),
        lr=config.lr,
        temperature=config.temperature,
        teacher_temperature=config.teacher_temperature,
        k=config.top_k,
        mode=config.loss,
        direction=config.direction,
        vocabulary=vocabulary,
        optimizer=config.optimizer,
        warmup_steps=WARMUP_STEPS,
        max_nodes=config.max_nodes,
        compute_dtype=student.lm.compute_dtype,
        gradient_checkpointing=config.gradient_checkpointing,
        ranks=ranks,
        engine=config.engine,
    )
