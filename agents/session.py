"""One run in progress: what it holds, how it plays, learns from its traces, and judges what it learned.

Everything happens in *phases*. What a phase produces goes to the store and the run folder, and its name says
whether it is there already. So a resumed run goes through the same loop again, finds what is done, and goes
on with the rest. Everything that is drawn follows from the run's seed and the phase's name, and every phase
begins with an empty memo, so a repeated phase gives the same result bit for bit.
"""

import copy
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import PreTrainedModel

from agents.config import SelfImproveConfig
from agents.hf_policy import HFPolicy
from agents.models import LoadedModel, compute_dtype, load_model
from agents.policy import Sampling
from agents.rollout import Retriever, no_experience, rollout, vector_env
from agents.run_folder import RunFolder, clear_errors
from distill.lora import LoRA
from distill.parallel import Ranks
from distill.teacher import check_same_tokens
from envs.text_env import make_text_env
from evals.result import Comparison, EvalResult
from experience.context import retrieve
from experience.insight import Insight
from experience.outcomes import outcome_insights
from experience.split import SeedRange, Split
from experience.store import ExperienceStore

SIGNIFICANT = 0.05
"""The gate's level: a context must beat none with a smaller p-value."""
COMMIT_EVERY = 64
"""Episodes per transaction."""
FREE_TEXT_TOKENS = 64
"""The longest reply where it is text, unless the config says otherwise."""


class Session:
    """The agent, its teacher, its env, its experience and its run folder.

    Where several processes share a run, each plays its part of the seeds, and the main one alone has the
    store and the folder.
    """

    def __init__(self, config: SelfImproveConfig, path: Path, *, console: Console, ranks: Ranks) -> None:
        """Load everything, and only then touch the folder, so that bad input leaves nothing behind.

        Args:
            config: With ``resume`` set, that run's.
            path: The run's folder.
            console: Where to report progress.
            ranks: This process among those of the run.

        Raises:
            DistillError: Teacher or adapters do not fit the model.
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
        self.ranks = ranks
        loaded = self._load(config.model)
        self.config = config = replace(
            config,
            compute_dtype=ranks.from_main(lambda: compute_dtype(config.compute_dtype, loaded.model)),
        )
        self.lora: LoRA | None = None
        if config.lora_rank:
            self.lora = LoRA(
                loaded.model,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                targets=config.lora_targets,
                seed=config.seed,
            )
            self.base = self._policy(loaded, self.lora)
            self.student = self._policy(loaded)
        else:
            self.student = self._policy(replace(loaded, model=copy.deepcopy(loaded.model)))
            self.base = self._policy(loaded)
        self.teacher = self._make_teacher(loaded)
        """What is imitated, as a policy; ``Consolidation`` lets it follow the student where it has to."""
        self.max_tokens = config.max_new_tokens or self._default_max_tokens()
        self._folder: RunFolder | None = None
        self._store: ExperienceStore | None = None
        if ranks.is_main:
            self._folder = (
                RunFolder.open(path) if config.resume else RunFolder.create(path, _jsonable(config))
            )
            self._store = ExperienceStore(path / "experience.db")
        self.student_step = 0
        """After which optimiser step the student's weights are."""
        self.played: list[str] = []
        """Finished train phases, in order: where insights come from."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.ranks.is_main:
            self.store.close()
            self.folder.close()
        self.envs.close()

    @property
    def folder(self) -> RunFolder:
        """The main process's."""
        assert self._folder is not None
        return self._folder

    @property
    def store(self) -> ExperienceStore:
        """The main process's."""
        assert self._store is not None
        return self._store

    def log(self, key: str, **values: Any) -> None:
        """Log a metric, once; see ``RunFolder.log``."""
        if self.ranks.is_main:
            self.folder.log(key, **values)

    def _default_max_tokens(self) -> int:
        if not self.words.actions:
            return FREE_TEXT_TOKENS
        return self.base.longest_action(self.words.reply_prefix, self.words.actions)

    def _load(self, name: str) -> LoadedModel:
        config = self.config
        self.console.print(f"loading {name}", markup=False)
        return load_model(
            name,
            device=str(self.ranks.device or config.device),
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
        )

    def _policy(self, loaded: LoadedModel, lora: LoRA | None = None) -> HFPolicy:
        """The model as a policy; with ``lora`` its adapters are off."""
        return HFPolicy(
            loaded.model,
            loaded.tokenizer,
            compute_dtype=self._autocast(loaded.model),
            within=nullcontext if lora is None else lora.off,
        )

    def _autocast(self, model: PreTrainedModel) -> torch.dtype | None:
        """What the model's matrix products are narrowed to, if they are."""
        dtype: torch.dtype = getattr(torch, self.config.compute_dtype)
        return dtype if dtype.itemsize < model.dtype.itemsize else None

    def _make_teacher(self, loaded: LoadedModel) -> HFPolicy:
        config = self.config
        if config.teacher_model is not None:
            other = self._load(config.teacher_model)
            check_same_tokens(loaded.tokenizer, other.tokenizer)
            return self._policy(other)
        if config.teacher == "base":
            return self.base
        if config.teacher == "self":
            return self.student
        return self._policy(replace(loaded, model=copy.deepcopy(self.student.lm.model)))

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
        if not self._is_finished(phase):
            policy.clear()
            show: Retriever = no_experience
            if insights:
                k = self.config.insights_per_prompt
                show = lru_cache(maxsize=None)(lambda observation: retrieve(insights, observation, k))
            traces = rollout(
                self.envs,
                self.words,
                policy,
                seeds.part(self.ranks.rank, self.ranks.size),
                sampling=Sampling(temperature=temperature, max_tokens=self.max_tokens),
                phase=phase,
                policy_id=self._policy_id(policy),
                env_id=self.config.env,
                retrieve=show,
                context_id=context_id,
            )
            successes = done = 0
            with self.progress(phase, len(seeds)) as bar:
                while done < len(seeds):
                    batch = self.ranks.gather(list(islice(traces, COMMIT_EVERY)))
                    if self.ranks.is_main:
                        self.store.add_traces(batch)
                    successes += sum(trace.success for trace in batch)
                    done += len(batch)
                    bar.update(bar.task_ids[0], completed=done, note=f"success {successes / done:.1%}")
            if self.ranks.is_main:
                self.store.finish_phase(phase)
        traces_frame = self.ranks.from_main(lambda: self.store.traces(phase=phase))
        self.log(
            phase,
            kind="play",
            success_rate=float(traces_frame["success"].mean()),
            episodes=len(traces_frame),
            turns=int(traces_frame["num_turns"].sum()),
        )
        return traces_frame

    def _is_finished(self, phase: str) -> bool:
        return self.ranks.from_main(lambda: self.store.is_finished(phase))

    def _policy_id(self, policy: HFPolicy) -> str:
        if policy is self.base:
            return "base"
        return f"step{self.student_step}" if policy is self.student else "teacher"

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
            if wave > 0 and not self._is_finished(phase):
                insights = self.draw_insights(phase, explore=True)
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
                self.log(
                    f"round{round_number}/start",
                    kind="round",
                    round=round_number,
                    step=self.student_step,
                    **EvalResult.from_traces(traces).as_dict(),
                )
        return self.draw_insights(f"round{round_number}", explore=False)

    def draw_insights(self, phase: str, *, explore: bool) -> list[Insight]:
        """What the traces played so far teach, kept in the store as what is shown in ``phase``."""

        def draw() -> list[Insight]:
            if self.words.advise is None:
                return []
            turns = self.store.turns(phases=self.played)
            return outcome_insights(turns, self.words.actions, self.words.advise, explore=explore)

        insights = self.ranks.from_main(draw)
        self.keep_insights(insights, phase)
        return insights

    def keep_insights(self, insights: Sequence[Insight], phase: str) -> None:
        """Write into the store what is shown in ``phase``."""
        if self.ranks.is_main:
            self.store.set_insights(insights, phase)

    def gate(self, round_number: int, insights: Sequence[Insight]) -> bool:
        """Whether the insights help the teacher on validation; without that nothing is trained.

        The teacher plays the same seeds with and without them, at its temperature; McNemar's exact test
        decides.
        """
        if not insights:
            self.console.print(f"round {round_number}: no insights, since there was no action to learn from")
            return False
        temperature = self.config.teacher_temperature
        seeds = self.validation_seeds
        moves = self.config.teacher != "base"
        # ``round`` is about to become what the student is now.
        teacher = self.student if self.config.teacher == "round" else self.teacher
        phase = f"round{round_number}/gate"
        without = self.play(f"{phase}-none" if moves else "gate/none", teacher, seeds, temperature)
        with_insights = self.play(
            phase, teacher, seeds, temperature, insights, f"round{round_number}/insights"
        )
        comparison = Comparison.of(with_insights, without)
        admitted = comparison.difference > 0 and comparison.p_value < SIGNIFICANT
        self.log(
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
        """The student and its tokenizer as a plain Hugging Face folder, ``model/``, adapters merged in."""
        if not self.ranks.is_main:
            return
        model = self.student.lm.model if self.lora is None else self.lora.merged()
        tmp, target = self.folder.path / "model.tmp", self.folder.path / "model"
        shutil.rmtree(tmp, ignore_errors=True)
        with clear_errors(target):
            try:
                model.save_pretrained(tmp)
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
