"""One run in progress: what it holds, and how it plays.

Everything happens in *phases*. What a phase produces goes to the store and the run folder, and its name says
whether it is there already. So a resumed run goes through the same loop again, finds what is done, and goes
on with the rest. Everything that is drawn follows from the run's seed and the phase's name, and every phase
begins with an empty memo, so a repeated phase gives the same result bit for bit.
"""

import copy
import importlib.util
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import make_url
from transformers import PreTrainedModel

from agents.config import ConfigError, PolicyKind, SelfImproveConfig
from agents.policies.local import HFPolicy
from agents.policies.policy import Sampling
from agents.policies.vllm.engine import LocalEngine
from agents.policies.vllm.policy import Engine, VLLMPolicy
from agents.policies.vllm.servers import Servers
from agents.policies.vllm.teacher import ServedTeacher
from agents.prompts import build_prompt
from agents.rollout import Phase, rollout, vector_env
from agents.run.folder import RunFolder, clear_errors
from agents.run.tracking import Tracker, check_available
from distill.lm.load import Dtype, LoadedModel, compute_dtype, load_model
from distill.lora import LoRA
from distill.parallel import Ranks
from distill.teacher import check_same_tokens
from envs.deadline import deadline
from envs.text_env import TextEnv, make_text_env
from envs.words import EnvError, EnvWords
from evals.forgetting import check_tasks
from experience.context import NO_CONTEXT, Context
from experience.database import Database
from experience.seeds import SeedRange, Split
from experience.store import ExperienceStore

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
        """Load everything, and touch no run folder yet, so that bad input leaves nothing behind.

        Args:
            config: With ``resume`` set, that run's.
            path: The run's folder.
            console: Where to report progress.
            ranks: This process among those of the run.

        Raises:
            ConfigError: The tracker is missing, or the context file does not fit the model's window.
            DistillError: Teacher or adapters do not fit the model.
            EnvError: The env cannot be made or put into words, or has nothing to play in one of the splits.
            ExperienceError: The database cannot be used.
            ModelError: The model cannot be had.
            VLLMError: vLLM cannot be used.
        """
        self.config = config
        self.console = console
        if config.tracker is not None:
            check_available(config.tracker)
        if config.forgetting:
            check_tasks()
        make = partial(
            make_text_env,
            config.env,
            config.env_kwargs,
            max_invalid_replies=config.max_invalid_replies,
            history=config.turns_of_history,
        )
        env = make()
        self.words = env.words
        self._check_splits(env)
        self.envs = vector_env(
            make, config.num_envs, vectorization=config.vectorization, timeout=config.env_timeout
        )
        self.ranks = ranks
        loaded = self._load(config.model)
        self.config = config = replace(
            config,
            compute_dtype=ranks.from_main(lambda: compute_dtype(config.compute_dtype, loaded.model)),
            policy=ranks.from_main(lambda: self._policy_kind(loaded.model)),
        )
        self.engine = self._make_engine(loaded, path) if config.policy == "vllm" else None
        """Who draws for the agent, where it does not do so itself."""
        self.lora: LoRA | None = None
        if config.lora_rank:
            self.lora = LoRA(
                loaded.model,
                rank=config.lora_rank,
                alpha=config.lora_alpha,
                targets=config.lora_targets,
                seed=config.seed,
            )
            self.base = self._agent(loaded, self.lora)
            self.student = self._agent(loaded)
        else:
            self.student = self._agent(replace(loaded, model=copy.deepcopy(loaded.model)))
            self.base = self._agent(loaded)
        if config.vllm_url and config.resume is None and isinstance(self.base, VLLMPolicy):
            self.base.adopt()  # before anything is sent to servers that may be somebody else's
        self.scorer: ServedTeacher | None = None
        """What is imitated, where it is on a server; ``teacher`` then plays in its place."""
        if config.teacher_url:
            self.scorer = ServedTeacher(config.teacher_url, loaded.tokenizer, config.teacher_temperature)
        self.teacher = self._make_teacher(loaded)
        """What is imitated, as a policy; ``Consolidation`` lets it follow the student where it has to."""
        self.max_tokens = reply_tokens(config, self.base, self.words)
        if config.context_file is not None and config.resume is None:
            self._check_fits(config.context_file)
        self._path = path
        self._folder: RunFolder | None = None
        self._store: ExperienceStore | None = None
        self._tracker: Tracker | None = None
        self._opened = ExitStack()
        if config.store is not None and ranks.is_main:
            Database(config.store).close()  # last, since it makes one that is not there
        self.student_step = 0
        """After which optimiser step the student's weights are."""
        self.played: list[str] = []
        """Finished train phases, in order: where insights come from."""

    def __enter__(self) -> Self:
        """Open the run's folder, its store and its tracker.

        Raises:
            ConfigError: The store is not the run's.
            RunFolderError: The folder cannot be used.
            ExperienceError: The store cannot be used.
        """
        config, path = self.config, self._path
        with ExitStack() as opened:
            opened.callback(self.envs.close)
            if self.ranks.is_main:
                self._folder = opened.enter_context(
                    RunFolder.open(path) if config.resume else RunFolder.create(path, _jsonable(config))
                )
                location = config.store or path / "experience.db"
                self._store = opened.enter_context(ExperienceStore(location, self.folder.run_id))
                for left in path.glob("served-weights-*"):  # by a kill
                    shutil.rmtree(left, ignore_errors=True)
                first = "round1/play0"
                if self.folder.has_logged(first) and not self.store.is_finished(first):
                    raise ConfigError(
                        f"the store has nothing of the run in {path}: name its own with --store"
                    )
                if config.tracker is not None:
                    self._tracker = Tracker(config.tracker, path, _jsonable(config))
                    opened.callback(self._tracker.close)
                if config.context_file is not None and not self.store.is_finished("context"):
                    self.store.finish_phase(
                        "context", config.context_file.read_text(encoding="utf-8").strip()
                    )
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

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
        if self.ranks.is_main and self.folder.log(key, **values) and self._tracker is not None:
            self._tracker.log(values)

    def _check_splits(self, env: TextEnv) -> None:
        """Each split must have something to play; any other error of a reset is that episode's."""
        sizes = getattr(env.unwrapped, "part_sizes", None)
        self._problems: dict[Split, int] = dict(zip(Split, sizes, strict=True)) if sizes else {}
        for split in Split:
            [seed] = SeedRange(split=split, run_seed=self.config.seed, start=0, size=1)
            try:
                with deadline(self.config.env_timeout):
                    env.reset(seed=seed)
            except EnvError:
                raise
            except Exception:
                continue
        env.close()
        for seeds in (self.validation_seeds, self.test_seeds):
            if len(seeds) == self._problems.get(seeds.split):
                self.console.print(f"{seeds.split}: each of {len(seeds)} problems once")

    def _check_fits(self, context_file: Path) -> None:
        prompt = build_prompt(
            self.words, "", [context_file.read_text(encoding="utf-8").strip()], self.config.layout
        )
        tokens, window = len(self.teacher.encode(prompt)), self.teacher.lm.window
        if tokens + self.max_tokens > window:
            raise ConfigError(
                f"{context_file} makes a prompt of {tokens} tokens; with {self.max_tokens} of a reply they "
                f"do not fit the model's window of {window}: shorten it"
            )

    def _load(self, name: str) -> LoadedModel:
        config = self.config
        self.console.print(f"loading {name}", markup=False)
        loaded = load_model(
            name,
            device=str(self.ranks.device or config.device),
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
            compute=config.compute,
        )
        for note in (*loaded.notes, f"computed {loaded.support}"):
            self.console.print(note, markup=False)
        return loaded

    def load_policy(self, name: str) -> HFPolicy:
        """Another model, to be used as it is."""
        return self._policy(self._load(name))

    def _policy_kind(self, model: PreTrainedModel) -> PolicyKind:
        """What ``auto`` is: where replies are a few words, remembering them beats computing them fast."""
        if self.config.policy != "auto":
            return self.config.policy
        has_vllm = importlib.util.find_spec("vllm") is not None
        suits = model.device.type == "cuda" and not self.words.actions and self.ranks.size == 1
        return "vllm" if has_vllm and suits else "hf"

    def _make_engine(self, loaded: LoadedModel, path: Path) -> Engine:
        config, model = self.config, loaded.model
        if self.ranks.size > 1:
            raise ConfigError("policy vllm is for a run in one process: take policy hf")
        if config.vllm_url:
            return Servers(config.vllm_url, loaded.tokenizer, weights=config.vllm_weights or path)
        self.console.print("starting vLLM")
        return LocalEngine(
            model,
            dtype=autocast(model, config.compute_dtype) or model.dtype,
            window=config.vllm_window,
            memory=config.vllm_memory,
        )

    def _agent(self, loaded: LoadedModel, lora: LoRA | None = None) -> HFPolicy:
        """The agent's own model as a policy; with ``lora`` its adapters are off."""
        if self.engine is None:
            return self._policy(loaded, lora)
        return VLLMPolicy(
            loaded.model,
            loaded.tokenizer,
            engine=self.engine,
            weights=None if self.lora is None else partial(self.lora.weights, merged=lora is None),
            compute_dtype=autocast(loaded.model, self.config.compute_dtype),
            within=nullcontext if lora is None else lora.off,
            compute=loaded.support.way,
        )

    def _policy(self, loaded: LoadedModel, lora: LoRA | None = None) -> HFPolicy:
        """The model as a policy; with ``lora`` its adapters are off."""
        return as_policy(loaded, self.config.compute_dtype, within=nullcontext if lora is None else lora.off)

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
        name: str,
        policy: HFPolicy,
        seeds: SeedRange,
        temperature: float,
        context: Context = NO_CONTEXT,
    ) -> pd.DataFrame:
        """Play one phase, unless it is in the store already; returns its traces."""
        phase = Phase(name=name, seeds=seeds, context=context)
        return self.play_all(name, [phase], policy, temperature)[0]

    def play_all(
        self, title: str, phases: Sequence[Phase], policy: HFPolicy, temperature: float
    ) -> list[pd.DataFrame]:
        """Play the phases side by side, but for those in the store already; returns the traces of each."""
        missing = [phase for phase in phases if not self.is_finished(phase.name)]
        if missing:
            policy.clear()
            ranks = self.ranks
            traces = rollout(
                self.envs,
                self.words,
                policy,
                [replace(phase, seeds=phase.seeds.part(ranks.rank, ranks.size)) for phase in missing],
                sampling=Sampling(temperature=temperature, max_tokens=self.max_tokens),
                policy_id=self.policy_id(policy),
                env_id=self.config.env,
                layout=self.config.layout,
            )
            total = sum(len(phase.seeds) for phase in missing)
            successes = turns = done = 0
            started = time.monotonic()
            with self.progress(title, total) as bar:
                while done < total:
                    batch = ranks.gather(list(islice(traces, COMMIT_EVERY)))
                    if ranks.is_main:
                        self.store.add_traces(batch)
                    successes += sum(trace.success for trace in batch)
                    turns += sum(len(trace.turns) for trace in batch)
                    done += len(batch)
                    speed = turns / (time.monotonic() - started)
                    note = f"success {successes / done:.1%}, {speed:,.0f} steps/s"
                    # Drawn at once: under another bar a short phase would be over before the next redraw.
                    bar.update(bar.task_ids[0], completed=done, note=note, refresh=True)
            policy.clear()  # what comes next may need the room
            if ranks.is_main:
                for phase in missing:
                    self.store.finish_phase(phase.name)
        frames = self.ranks.from_main(lambda: [self.store.traces(phase=phase.name) for phase in phases])
        for phase, frame in zip(phases, frames, strict=True):
            self.log(
                phase.name,
                kind="play",
                success_rate=float(frame["success"].mean()),
                episodes=len(frame),
                turns=int(frame["num_turns"].sum()),
            )
        return frames

    def is_finished(self, phase: str) -> bool:
        """Whether the phase is in the store."""
        return self.ranks.from_main(lambda: self.store.is_finished(phase))

    def policy_id(self, policy: HFPolicy) -> str:
        """Which weights these are, for the record."""
        if policy is self.base:
            return "base"
        return f"step{self.student_step}" if policy is self.student else "teacher"

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
        return self._seeds(Split.VALIDATION, self.config.validation_episodes)

    @property
    def test_seeds(self) -> SeedRange:
        """Used once, at the end."""
        return self._seeds(Split.TEST, self.config.test_episodes)

    def _seeds(self, split: Split, size: int) -> SeedRange:
        """Where problems can be counted, none twice: intervals are for episodes that differ."""
        size = min(size, self._problems.get(split, size))
        return SeedRange(split=split, run_seed=self.config.seed, start=0, size=size)

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


def as_policy(
    loaded: LoadedModel,
    dtype: Dtype,
    *,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> HFPolicy:
    """A model as a policy.

    Args:
        loaded: The model.
        dtype: What its matrix products are narrowed to, if its weights are wider; see ``compute_dtype``.
        within: See ``LanguageModel``.
    """
    return HFPolicy(
        loaded.model,
        loaded.tokenizer,
        compute_dtype=autocast(loaded.model, dtype),
        within=within,
        compute=loaded.support.way,
    )


def autocast(model: PreTrainedModel, dtype: Dtype) -> torch.dtype | None:
    """What the model's matrix products are narrowed to, if its weights are wider; see ``compute_dtype``."""
    compute: torch.dtype = getattr(torch, compute_dtype(dtype, model))
    return compute if compute.itemsize < model.dtype.itemsize else None


def reply_tokens(config: SelfImproveConfig, policy: HFPolicy, words: EnvWords) -> int:
    """The longest reply, in tokens: as configured, or what the longest action takes."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if not words.actions:
        return FREE_TEXT_TOKENS
    return policy.longest_action(words.reply_prefix, words.actions)


def _jsonable(config: SelfImproveConfig) -> dict[str, Any]:
    values = asdict(config)
    if config.store is not None and "://" in config.store:
        # Passwords are not written down: a resumed run takes them from --store again, or the server's client.
        values["store"] = make_url(config.store).render_as_string(hide_password=True)
    return {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
