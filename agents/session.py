"""One run in progress: what it holds, and each part of the method as something that can be repeated.

A part is a *phase*. What a phase produces goes to the store and the run folder, and its name says whether it
is there already. So a resumed run goes through the same loop again, finds what is done, and goes on with the
rest. Everything that is drawn follows from the run's seed and the phase's name, and every phase begins with
an empty memo, so a repeated phase gives the same result bit for bit.
"""

import copy
import random
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agents.config import SelfImproveConfig
from agents.hf_policy import HFPolicy
from agents.models import load_model
from agents.policy import Prompt, Sampling
from agents.prefix_lm import PrefixLM
from agents.prompts import build_prompt
from agents.rollout import Retriever, no_experience, rollout, turn_seed, vector_env
from agents.run_folder import RunFolder, RunFolderError, is_disk_full
from distill.examples import sample_examples
from distill.opcd import OPCD, StepStats
from distill.teacher import FrozenTeacher
from envs.text_env import make_text_env
from evals.baselines import Baselines
from evals.result import Comparison, EvalResult
from experience.insight import Insight, retrieve
from experience.outcomes import outcome_insights
from experience.split import SeedRange, Split
from experience.store import ExperienceStore

Item = TypeVar("Item")

SIGNIFICANT = 0.05
"""The gate's level: a context must beat none with a smaller p-value."""
COMMIT_EVERY = 64
"""Episodes per transaction."""
MAX_BLIND_CANDIDATES = 64
"""Successful action sequences that compete for the blind arm, the shortest first."""


class Session:
    """The agent, its teacher, its env, its experience and its run folder."""

    def __init__(self, config: SelfImproveConfig, path: Path, *, console: Console) -> None:
        """Load everything, and only then touch the folder, so that bad input leaves nothing behind.

        Args:
            config: With ``resume`` set, that run's.
            path: The run's folder.
            console: Where to report progress.

        Raises:
            EnvError: The env cannot be made or put into words.
            ModelError: The model cannot be had.
            RunFolderError: The folder cannot be used.
        """
        self.config = config
        self.console = console
        make = partial(
            make_text_env, config.env, config.env_kwargs, max_invalid_replies=config.max_invalid_replies
        )
        self.env = make()
        self.words = self.env.words
        self.envs = vector_env(make, config.num_envs)
        console.print(f"loading {config.model}", markup=False)
        loaded = load_model(
            config.model,
            device=config.device,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
        )
        self.base = HFPolicy(loaded.model, loaded.tokenizer)
        self.student = HFPolicy(copy.deepcopy(loaded.model), loaded.tokenizer)
        self.trainer = OPCD(
            self.student.lm.model,
            FrozenTeacher(PrefixLM(loaded.model)),
            lr=config.lr,
            temperature=config.temperature,
            teacher_temperature=config.teacher_temperature,
            k=config.top_k,
            mode=config.loss,
            max_nodes=config.max_nodes,
        )
        self.max_tokens = config.max_new_tokens or self.base.longest_action(
            self.words.reply_prefix, self.words.actions
        )
        self.folder = RunFolder.open(path) if config.resume else RunFolder.create(path, _jsonable(config))
        self.store = ExperienceStore(path / "experience.db")
        self.student_step = 0
        """After which optimiser step the student's weights are."""
        self.played: list[str] = []
        """Finished train phases, in order: where insights come from."""
        self.best_score = -1.0
        """Validation success of the best checkpoint so far."""
        self.best_step = -1
        """The optimiser step after which it was saved."""
        self.trained_round = 0
        """The round in which the last checkpoint was made."""
        self.round_start = 0
        """Optimiser steps before that round."""
        self._load_checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()
        self.folder.close()
        self.envs.close()

    # --- playing -----------------------------------------------------------------------------

    def play(
        self,
        phase: str,
        policy: HFPolicy,
        seeds: SeedRange,
        temperature: float,
        insights: Sequence[Insight] = (),
        context_id: str = "none",
    ) -> pd.DataFrame:
        """Play one phase, unless it is in the store already; returns its traces."""
        if not self.store.is_finished(phase):
            policy.clear()
            show: Retriever = no_experience
            if insights:
                show = _retriever(insights, self.config.insights_per_prompt)
            traces = rollout(
                self.envs,
                self.words,
                policy,
                seeds,
                sampling=Sampling(temperature=temperature, max_tokens=self.max_tokens),
                phase=phase,
                policy_id="base" if policy is self.base else f"step{self.student_step}",
                env_id=self.config.env,
                retrieve=show,
                context_id=context_id,
            )
            successes = done = 0
            with self.progress(phase, len(seeds)) as bar:
                while batch := list(islice(traces, COMMIT_EVERY)):
                    self.store.add_traces(batch)
                    successes += sum(trace.success for trace in batch)
                    done += len(batch)
                    bar.update(bar.task_ids[0], completed=done, note=f"success {successes / done:.1%}")
            self.store.finish_phase(phase)
        traces_frame = self.store.traces(phase=phase)
        self.folder.log(
            phase,
            kind="play",
            success_rate=float(traces_frame["success"].mean()),
            episodes=len(traces_frame),
            turns=int(traces_frame["num_turns"].sum()),
        )
        return traces_frame

    def collect(self, round_number: int) -> list[Insight]:
        """Play a round's train episodes, with more and more experience; returns the insights from all.

        The first wave is played without experience. Each further one follows the insights so far,
        which send the agent to what it has not tried.
        """
        config = self.config
        size = config.episodes // config.waves
        for wave in range(config.waves):
            phase = f"round{round_number}/play{wave}"
            start = ((round_number - 1) * config.waves + wave) * size
            insights: list[Insight] = []
            if wave > 0 and not self.store.is_finished(phase):
                insights = self.insights(explore=True)
                self.store.set_insights(insights, phase)
            traces = self.play(
                phase,
                self.student,
                SeedRange(split=Split.TRAIN, run_seed=config.seed, start=start, size=size),
                config.temperature,
                insights,
                f"round{round_number}/insights{wave}" if insights else "none",
            )
            self.played.append(phase)
            if wave == 0:
                self.folder.log(
                    f"round{round_number}/start",
                    kind="round",
                    round=round_number,
                    step=self.trainer.step_count,
                    **EvalResult.from_traces(traces).as_dict(),
                )
        insights = self.insights(explore=False)
        self.store.set_insights(insights, f"round{round_number}")
        return insights

    def insights(self, *, explore: bool) -> list[Insight]:
        """What the traces played so far teach."""
        turns = self.store.turns(phases=self.played)
        return outcome_insights(turns, self.words.actions, self.words.advise, explore=explore)

    # --- training ----------------------------------------------------------------------------

    def gate(self, round_number: int, insights: Sequence[Insight]) -> bool:
        """Whether the insights help the teacher on validation; without that nothing is trained.

        The untrained model plays the same seeds with and without them, at the teacher's temperature;
        McNemar's exact test decides.
        """
        if not insights:
            self.console.print(f"round {round_number}: no insights, since no reply was an action")
            return False
        temperature = self.config.teacher_temperature
        seeds = self.validation_seeds
        without = self.play("gate/none", self.base, seeds, temperature)
        context_id = f"round{round_number}/insights"
        with_insights = self.play(
            f"round{round_number}/gate", self.base, seeds, temperature, insights, context_id
        )
        comparison = Comparison.of(with_insights, without)
        admitted = comparison.difference > 0 and comparison.p_value < SIGNIFICANT
        self.folder.log(
            f"round{round_number}/gate-verdict",
            kind="gate",
            round=round_number,
            admitted=admitted,
            with_insights=float(with_insights["success"].mean()),
            without=float(without["success"].mean()),
            **comparison.as_dict(),
        )
        verdict = "admitted" if admitted else "refused: nothing is trained, the agent plays on"
        self.console.print(
            f"round {round_number}: {len(insights)} insights, the teacher succeeds in "
            f"{with_insights['success'].mean():.1%} with them and {without['success'].mean():.1%} without "
            f"(p = {comparison.p_value:.2g}): {verdict}",
            soft_wrap=True,
        )
        return admitted

    def distil(self, round_number: int, insights: Sequence[Insight]) -> None:
        """Train the insights into the student: OPCD, validated and checkpointed every few steps."""
        config = self.config
        if round_number < self.trained_round:
            return
        if round_number > self.trained_round:
            self.trained_round, self.round_start = round_number, self.trainer.step_count
        pairs = self._prompt_pairs(insights)
        done = self.trainer.step_count - self.round_start
        with self.progress(f"round{round_number}/distil", config.steps) as bar:
            try:
                if done % config.eval_every == 0:
                    self._validate(round_number)
                while done < config.steps:
                    with deferred_interrupt():
                        stats = self._train_step(pairs, round_number)
                    done += 1
                    bar.update(bar.task_ids[0], completed=done, note=f"KL {stats.loss:.4f}")
                    if done % config.eval_every == 0 or done == config.steps:
                        self._validate(round_number)
                        self._save_checkpoint()
            except KeyboardInterrupt:
                self._save_checkpoint()
                raise

    def _prompt_pairs(self, insights: Sequence[Insight]) -> list[tuple[Prompt, Prompt]]:
        """(bare prompt, prompt with experience) for every observation that an insight is about."""
        pairs = []
        for observation in sorted({i.observation for i in insights if i.observation is not None}):
            shown = retrieve(insights, observation, self.config.insights_per_prompt)
            pairs.append(
                (
                    build_prompt(self.words, observation),
                    build_prompt(self.words, observation, [insight.text for insight in shown]),
                )
            )
        return pairs

    def _train_step(self, pairs: Sequence[tuple[Prompt, Prompt]], round_number: int) -> StepStats:
        config = self.config
        step = self.trainer.step_count + 1
        seeds = [turn_seed(config.seed, "distil", step, i) for i in range(config.batch_size)]
        order = random.Random(turn_seed(config.seed, "order", step, 0))
        batch = spread_evenly(pairs, config.batch_size, order)
        sampling = Sampling(temperature=config.temperature, max_tokens=self.max_tokens)
        self.student.clear()
        examples = sample_examples(self.student, self.student.encode, batch, sampling, seeds)
        stats = self.trainer.step(examples)
        self.student_step = step
        self.folder.log(f"step{step}", kind="train", step=step, round=round_number, **stats.as_dict())
        return stats

    def _validate(self, round_number: int) -> None:
        """Play the bare student on validation; keep its weights if it is the best so far."""
        step = self.trainer.step_count
        rates = []
        for temperature in self.config.eval_temperature:
            phase = f"validation{step}@{temperature:g}"
            rates.append(self.play(phase, self.student, self.validation_seeds, temperature)["success"].mean())
        score = float(sum(rates) / len(rates))
        if score > self.best_score:
            about = {"step": step, "score": score}
            self.folder.save_tensors("best.safetensors", self.trainer.weights(), about)
            self.best_score, self.best_step = score, step
        self.folder.log(
            f"validation{step}",
            kind="validation",
            step=step,
            round=round_number,
            success_rate=score,
            best=self.best_step == step,
        )

    def _save_checkpoint(self) -> None:
        about = {
            "best_score": self.best_score,
            "best_step": self.best_step,
            "trained_round": self.trained_round,
            "round_start": self.round_start,
        }
        self.folder.save_tensors("checkpoint.safetensors", self.trainer.state(), about)

    def _load_checkpoint(self) -> None:
        if (loaded := self.folder.load_tensors("checkpoint.safetensors")) is None:
            return
        tensors, about = loaded
        self.trainer.load_state(tensors)
        self.student_step = self.trainer.step_count
        self.best_score, self.best_step = about["best_score"], about["best_step"]
        self.trained_round, self.round_start = about["trained_round"], about["round_start"]

    def use_best(self) -> None:
        """Put the best checkpoint's weights into the student."""
        if (loaded := self.folder.load_tensors("best.safetensors")) is not None:
            tensors, about = loaded
            self.trainer.load_weights(tensors)
            self.student_step = about["step"]

    # --- measuring ---------------------------------------------------------------------------

    def evaluate(self, insights: Sequence[Insight]) -> dict[str, Any]:
        """Measure every arm on the test seeds, save the model, and write ``results.json``.

        Args:
            insights: The context of the arms with experience.
        """
        config = self.config
        self.use_best()
        self._save_model()
        self.store.set_insights(insights, "final")
        baselines = Baselines(config.env, config.env_kwargs)
        random_arm = baselines.random(self.test_seeds)
        blind_arm, _ = baselines.blind(self._successful_actions(), self.validation_seeds, self.test_seeds)
        optimal_arm = baselines.optimal()
        tables = []
        for temperature in config.eval_temperature:
            frames = {}
            for arm, policy in (("before", self.base), ("after", self.student)):
                for suffix, shown in (("", ()), ("_with_experience", insights)):
                    frames[arm + suffix] = self.play(
                        f"test/{arm}{suffix}@{temperature:g}",
                        policy,
                        self.test_seeds,
                        temperature,
                        shown,
                        "final" if shown else "none",
                    )
            arms = {"random": random_arm, "blind": blind_arm}
            arms |= {arm: EvalResult.from_traces(frame) for arm, frame in frames.items()}
            if optimal_arm is not None:
                arms["optimal"] = optimal_arm
            tables.append((arms, Comparison.of(frames["after"], frames["before"])))
        results = {
            "schema_version": 1,
            "env": config.env,
            "env_kwargs": config.env_kwargs,
            "model": config.model,
            "seed": config.seed,
            "eval_temperature": list(config.eval_temperature),
            "best_step": self.student_step,
            "arms": {arm: result.as_dict() for arm, result in tables[0][0].items()},
            "comparison": tables[0][1].as_dict(),
        }
        if len(tables) == 2:
            results["sampled_arms"] = {arm: result.as_dict() for arm, result in tables[1][0].items()}
            results["sampled_comparison"] = tables[1][1].as_dict()
        results["wall_seconds"] = round(self.folder.seconds, 1)
        results["peak_rss_bytes"] = peak_rss_bytes()
        self.folder.write_json("results.json", results)
        return results

    def _successful_actions(self) -> list[tuple[int, ...]]:
        """The action sequences of the train episodes that succeeded: candidates for the blind arm."""
        turns = self.store.turns(phases=self.played)
        winners = set(self.store.traces().query("success")["trace_id"])
        turns = turns[turns["trace_id"].isin(winners) & turns["action"].notna()]
        sequences = turns.groupby("trace_id")["action"].agg(tuple)
        shortest = sorted(set(sequences), key=lambda sequence: (len(sequence), sequence))[
            :MAX_BLIND_CANDIDATES
        ]
        return [tuple(self.words.actions.index(action) for action in sequence) for sequence in shortest]

    def _save_model(self) -> None:
        """The student and its tokenizer as a plain Hugging Face folder."""
        tmp, target = self.folder.path / "model.tmp", self.folder.path / "model"
        shutil.rmtree(tmp, ignore_errors=True)
        try:
            self.student.lm.model.save_pretrained(tmp)
            self.student.tokenizer.save_pretrained(tmp)
        except Exception as error:
            shutil.rmtree(tmp, ignore_errors=True)
            if is_disk_full(error):
                raise RunFolderError(f"the disk is full: {target} could not be written") from error
            raise
        shutil.rmtree(target, ignore_errors=True)
        tmp.rename(target)

    # --- odds and ends -----------------------------------------------------------------------

    @property
    def validation_seeds(self) -> SeedRange:
        """The same in every validation."""
        size = self.config.validation_episodes
        return SeedRange(split=Split.VALIDATION, run_seed=self.config.seed, start=0, size=size)

    @property
    def test_seeds(self) -> SeedRange:
        """Used once, at the end."""
        return SeedRange(split=Split.TEST, run_seed=self.config.seed, start=0, size=self.config.test_episodes)

    def progress(self, name: str, total: int) -> Progress:
        """A progress bar with one task; quiet where the output is no terminal."""
        progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        progress.add_task(name, total=total, note="")
        return progress


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block: half an optimiser step could not be saved."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals do not come here
        return
    pending: list[int] = []
    handlers = {
        number: signal.signal(number, lambda signum, frame: pending.append(signum))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if pending:
        raise KeyboardInterrupt


def spread_evenly(items: Sequence[Item], size: int, generator: random.Random) -> list[Item]:
    """``size`` items, each as often as any other or once more."""
    rounds, rest = divmod(size, len(items))
    return [*list(items) * rounds, *generator.sample(list(items), rest)]


def peak_rss_bytes() -> int:
    """The most memory that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _retriever(insights: Sequence[Insight], k: int) -> Retriever:
    """``retrieve``, with each observation's answer remembered."""
    known: dict[str, tuple[Insight, ...]] = {}

    def show(observation: str) -> tuple[Insight, ...]:
        if observation not in known:
            known[observation] = retrieve(insights, observation, k)
        return known[observation]

    return show


def _jsonable(config: SelfImproveConfig) -> dict[str, Any]:
    values = asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
