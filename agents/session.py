"""One run in progress: what it holds, how it plays, learns from its traces, and judges what it learned.

Everything happens in *phases*. What a phase produces goes to the store and the run folder, and its name says
whether it is there already. So a resumed run goes through the same loop again, finds what is done, and goes
on with the rest. Everything that is drawn follows from the run's seed and the phase's name, and every phase
begins with an empty memo, so a repeated phase gives the same result bit for bit.
"""

import copy
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agents.config import SelfImproveConfig
from agents.hf_policy import HFPolicy
from agents.models import load_model
from agents.policy import Sampling
from agents.rollout import Retriever, no_experience, rollout, vector_env
from agents.run_folder import RunFolder, clear_errors
from envs.text_env import make_text_env
from evals.result import Comparison, EvalResult
from experience.insight import Insight, retrieve
from experience.outcomes import outcome_insights
from experience.split import SeedRange, Split
from experience.store import ExperienceStore

SIGNIFICANT = 0.05
"""The gate's level: a context must beat none with a smaller p-value."""
COMMIT_EVERY = 64
"""Episodes per transaction."""


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
        self.words = make().words
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
        self.max_tokens = config.max_new_tokens or self.base.longest_action(
            self.words.reply_prefix, self.words.actions
        )
        self.folder = RunFolder.open(path) if config.resume else RunFolder.create(path, _jsonable(config))
        self.store = ExperienceStore(path / "experience.db")
        self.student_step = 0
        """After which optimiser step the student's weights are."""
        self.played: list[str] = []
        """Finished train phases, in order: where insights come from."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()
        self.folder.close()
        self.envs.close()

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
                k = self.config.insights_per_prompt
                show = lru_cache(maxsize=None)(lambda observation: retrieve(insights, observation, k))
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
                insights = self.draw_insights(explore=True)
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
                    step=self.student_step,
                    **EvalResult.from_traces(traces).as_dict(),
                )
        insights = self.draw_insights(explore=False)
        self.store.set_insights(insights, f"round{round_number}")
        return insights

    def draw_insights(self, *, explore: bool) -> list[Insight]:
        """What the traces played so far teach."""
        turns = self.store.turns(phases=self.played)
        return outcome_insights(turns, self.words.actions, self.words.advise, explore=explore)

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

    def save_model(self) -> None:
        """The student and its tokenizer as a plain Hugging Face folder, ``model/``."""
        tmp, target = self.folder.path / "model.tmp", self.folder.path / "model"
        shutil.rmtree(tmp, ignore_errors=True)
        with clear_errors(target):
            try:
                self.student.lm.model.save_pretrained(tmp)
                self.student.tokenizer.save_pretrained(tmp)
                shutil.rmtree(target, ignore_errors=True)
                tmp.rename(target)
            finally:
                shutil.rmtree(tmp, ignore_errors=True)

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


def _jsonable(config: SelfImproveConfig) -> dict[str, Any]:
    values = asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
