"""One run in progress: its folder, its store and its log, and how it plays.

Everything happens in *phases*. What a phase produces goes to the store and the run folder, and ``once`` finds
it there when the run is resumed. So a resumed run goes through the same loop again, finds what is done, and
goes on with the rest. Everything that is drawn follows from the run's seed and the phase, and every phase
begins with an empty memo, so a repeated phase gives the same result bit for bit.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Self

import pandas as pd
from rich.console import Console
from rich.progress import Progress

from agents import rollout
from agents.agent import Agent
from agents.config import ARGUMENTS, ConfigError, SelfImproveConfig
from agents.policies.local import HFPolicy
from agents.policies.policy import Sampling
from agents.prompts import build_prompt
from agents.run.folder import BEST, CHECKPOINT, RunFolder, RunFolderError, check_free, read_results
from agents.run.inputs import check_inputs, inputs
from agents.run.progress import Bars
from agents.run.resume import default_output, resumed
from agents.run.seeds import RunSeeds
from agents.run.tracking import Tracker, check_available
from distill.parallel import Ranks
from envs.place import vector_env
from envs.questions.question_env import QuestionEnv
from envs.text_env import make_text_env
from evals.finished_run import check_traces
from evals.page import duration
from evals.report import write_report
from evals.result import EvalResult, judged, success_rate
from experience.context import NO_CONTEXT, Context
from experience.database import Database
from experience.masking import masked
from experience.phase import Phase
from experience.seeds import SeedRange, Split
from experience.store import ExperienceStore
from experience.terminal import Terminal, tell
from experience.trace import StopReason, Trace

COMMIT_EVERY = 64
"""Episodes per transaction."""
CONTEXT = Phase(kind="context")
"""Which has come to the text of the context file, as it was when the run began."""


class Run:
    """The agent, its env, its experience and its folder.

    Where several processes share a run, each plays its part of the seeds, and the main one alone has the
    store and the folder.
    """

    def __init__(self, config: SelfImproveConfig, path: Path, *, console: Console, ranks: Ranks) -> None:
        """Load everything, and touch no run folder yet, so that bad input leaves nothing behind.

        Raises:
            ConfigError: The tracker is missing, or the context file does not fit the model's window.
            EnvError: The env cannot be made or put into words, or has nothing to play in one of the splits.
            ExperienceError: The database cannot be used.
            Exception: See ``Agent``.
        """
        self.path, self.console, self.ranks = path, console, ranks
        if config.tracker is not None:
            check_available(config.tracker)
        make = partial(make_text_env, config.env, config.env_kwargs, replies=config.replies)
        env = make()
        self.memory = config.remembered
        self.words = self.memory.words(env.words)
        self.poses_questions = isinstance(env.unwrapped, QuestionEnv)
        seeds = RunSeeds.of(env, config)
        for line in seeds.told():
            console.print(line)
        self.make_env = make
        self.envs = vector_env(
            make, config.num_envs, vectorization=config.vectorization, timeout=config.env_timeout
        )
        self.agent = Agent(config, env.words, path, console=console, ranks=ranks)
        self.config = config = self.agent.config
        """With what ``auto`` has turned out to be."""
        self.seeds = replace(seeds, config=config)
        if config.context_file is not None and config.resume is None:
            self._check_fits(config)
        self._bars = Bars(console, self._so_far)
        self._expected: Mapping[str, float] | None = None
        self._folder: RunFolder | None = None
        self._store: ExperienceStore | None = None
        self._tracker: Tracker | None = None
        self._opened = ExitStack()
        self._played: list[Phase] = []
        if config.store is not None and ranks.is_main:
            # Last, since it makes one that is not there.
            Database(config.store, create=config.resume is None).close()

    @classmethod
    def open(
        cls, config: SelfImproveConfig, console: Console | None = None, *, is_settled: bool = False
    ) -> Self:
        """A new run, or with ``config.resume`` the rest of that one, among all of its processes.

        A begun run's config may be settled: all that is to be, as ``resumed`` gives it. Otherwise its
        defaults mean nothing. Progress is told on standard error, unless there is another console.

        Raises:
            RunFolderError: The folder cannot be used.
            Exception: See ``Run``.
        """
        ranks = Ranks.connect(config.device)
        # Each process would call a new folder otherwise; of shards all write there.
        path = ranks.broadcast(config.resume or config.output or default_output(config.env))
        if config.resume is not None:
            config = config if is_settled else resumed(config, path)
            ranks.from_main(partial(check_inputs, config, path, kept=("context_file",)))
        else:
            ranks.from_main(partial(check_free, path))
        console = (console or Terminal(stderr=True)) if ranks.is_main else Console(quiet=True)
        how = f"{ranks.size} processes ({config.engine})" if ranks.size > 1 else "1 process"
        tell(console, f"{path} on {how}")
        return cls(config, path, console=console, ranks=ranks)

    def settle(self, config: SelfImproveConfig, expected: Mapping[str, float]) -> None:
        """Take the settings of a plan, and the seconds that the run's parts are expected to take."""
        self.config, self._expected = config, expected
        self.seeds = replace(self.seeds, config=config)

    def __enter__(self) -> Self:
        """Open the run's folder, its store and its tracker.

        Raises:
            ConfigError: The store is not the run's.
            RunFolderError: The folder cannot be used.
            ExperienceError: The store cannot be used.
        """
        config, path = self.config, self.path
        with ExitStack() as opened:
            opened.callback(self.envs.close)
            if self.ranks.is_main:
                self._folder = opened.enter_context(
                    RunFolder.open(path)
                    if config.resume
                    else RunFolder.create(path, _jsonable(config), self._expected, inputs(config))
                )
                location = config.store or path / "experience.db"
                is_new = not self.folder.logged
                self._store = opened.enter_context(
                    ExperienceStore(location, self.folder.run_id, create=is_new)
                )
                for left in path.glob("served-weights-*"):  # by a kill
                    shutil.rmtree(left, ignore_errors=True)
                traces = self.store.traces()
                if self.folder.logged and traces.empty:
                    raise ConfigError(
                        f"the store has nothing of the run in {path}: name its own with --store"
                    )
                check_traces(self.folder.logged, traces)
                if config.tracker is not None:
                    self._tracker = Tracker(config.tracker, path, _jsonable(config))
                    opened.callback(self._tracker.close)
            if config.engine == "fsdp":
                self._check_reached()
            if config.context_file is not None:
                self.once(CONTEXT, lambda: config.context_text)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _check_reached(self) -> None:
        """Make sure that each process finds the folder, into which it will write its part of a checkpoint.

        Raises:
            RunFolderError: One does not.
        """
        file = self.ranks.broadcast(self.path) / "config.json"  # by then it is there
        found = self.ranks.gather([file.exists()])
        if lost := [rank for rank, has in enumerate(found) if not has]:
            raise RunFolderError(
                f"rank {lost[0]} does not see the run folder {self.path}, where with --engine fsdp each "
                "process writes its part of a checkpoint: put --output on a file system that all share"
            )

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

    # --- what makes it resumable -------------------------------------------------------------------

    def once(self, phase: Phase, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, as JSON gives it back; made once in a run's life, and read from then on.

        Every process makes it; the main one's goes to the store.
        """
        return self._once([phase], lambda _: [make()])[0]

    def _once(self, phases: Sequence[Phase], make: Callable[[Sequence[Phase]], Sequence[Any]]) -> list[Any]:
        """The same for several that are made together; ``make`` is given those that are missing."""
        if missing := [phase for phase in phases if not self.has(phase)]:
            made = make(missing)
            if self.ranks.is_main:
                for phase, value in zip(missing, made, strict=True):
                    self.store.finish_phase(str(phase), value)
        return self.ranks.from_main(lambda: [self.store.result(str(phase)) for phase in phases])

    def has(self, phase: Phase) -> bool:
        """Whether the phase is in the store."""
        return self.ranks.from_main(lambda: self.store.is_finished(str(phase)))

    def log(self, phase: Phase, **values: Any) -> None:
        """Log what a phase came to, once; see ``RunFolder.log``."""
        if self.ranks.is_main and self.folder.log(str(phase), **values) and self._tracker is not None:
            self._tracker.log(values)

    @property
    def results(self) -> dict[str, Any] | None:
        """See ``read_results``."""
        return self.ranks.from_main(partial(read_results, self.path))

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Write the report, if episodes were judged, and drop what only an unfinished run needs.

        Raises:
            RunFolderError: The report cannot be written.
            ExperienceError: The experience cannot be read.
            UnfinishedRunError: A file of the run is damaged.
        """
        if self.ranks.is_main:
            if "arms" in results:
                write_report(self.path, self.config.store)
            if not self.config.keep_checkpoints:
                self.folder.remove(CHECKPOINT, BEST)
        return results

    # --- playing -----------------------------------------------------------------------------------

    def play(
        self,
        phase: Phase,
        policy: HFPolicy,
        seeds: SeedRange,
        temperature: float,
        context: Context = NO_CONTEXT,
    ) -> pd.DataFrame:
        """Play one phase, unless it is in the store already; returns its traces."""
        return self.play_all(str(phase), [(phase, context)], policy, seeds, temperature)[0]

    def play_all(
        self,
        title: str,
        phases: Sequence[tuple[Phase, Context]],
        policy: HFPolicy,
        seeds: SeedRange,
        temperature: float,
    ) -> list[pd.DataFrame]:
        """Play phases on the same seeds side by side, but for those in the store; returns each's traces."""
        contexts = dict(phases)

        def play(missing: Sequence[Phase]) -> list[None]:
            self._play(title, {phase: contexts[phase] for phase in missing}, policy, seeds, temperature)
            return [None] * len(missing)

        self._once(list(contexts), play)
        frames = self._frames(list(contexts))
        if seeds.split == Split.TRAIN:
            for phase, frame in zip(contexts, frames, strict=True):
                self._note_played(phase, frame)
        return frames

    def repeat(self, source: Phase, phase: Phase) -> pd.DataFrame:
        """A phase that would come to what another has come to, without playing it; returns its traces."""
        if self.ranks.is_main:
            self.store.copy_phase(str(source), str(phase))
        return self._frames([phase])[0]

    def _frames(self, phases: Sequence[Phase]) -> list[pd.DataFrame]:
        """The traces of finished phases, which are logged."""
        frames = self.ranks.from_main(lambda: [self.store.traces(phase=str(phase)) for phase in phases])
        for phase, frame in zip(phases, frames, strict=True):
            self.log(
                phase,
                kind="play",
                success_rate=success_rate(frame),
                episodes=len(frame),
                judged=len(judged(frame)),
                turns=int(frame["num_turns"].sum()),
            )
        return frames

    def keep(self, phase: Phase, make: Callable[[], Iterable[Trace]]) -> int:
        """Keep train episodes that somebody else has played, once; returns how many those are."""

        def add() -> int:
            traces = list(make()) if self.ranks.is_main else []
            if self.ranks.is_main:
                self.store.add_traces(traces)
            return len(traces)

        self._played.append(phase)
        return int(self.once(phase, add))

    def _play(
        self, title: str, phases: dict[Phase, Context], policy: HFPolicy, seeds: SeedRange, temperature: float
    ) -> None:
        policy.clear()
        policy.prepare()
        ranks = self.ranks
        if self.agent.max_tokens == 1 and not self.memory.turns:
            seen = ranks.from_main(lambda: self.store.observations(phases=self.played))
            policy.expect(
                rollout.expected_prompts(self.words, seen, list(phases.values()), self.config.layout)
            )
        mine = seeds.part(ranks.rank, ranks.size)
        traces = rollout.rollout(
            self.envs,
            self.words,
            policy,
            {str(phase): context for phase, context in phases.items()},
            mine,
            sampling=Sampling(temperature=temperature, max_tokens=self.agent.max_tokens),
            policy_id=self.agent.weights_of(policy),
            env_id=self.config.env,
            layout=self.config.layout,
            memory=self.memory,
        )
        total = len(seeds) * len(phases)
        successes = turns = done = unfit = 0
        is_played = False
        held: list[Trace] = []  # what does nothing but fail is not kept: it is to be played again
        started = time.monotonic()
        with self.progress(title, total) as bar:
            while done < total:
                batch = ranks.gather(list(islice(traces, COMMIT_EVERY)))
                held += batch
                is_played = is_played or not all(trace.is_fault for trace in batch)
                if is_played:
                    if ranks.is_main:
                        self.store.add_traces(held)
                    held = []
                successes += sum(trace.success for trace in batch)
                turns += sum(len(trace.turns) for trace in batch)
                done += len(batch)
                unfit += sum(trace.stop_reason == StopReason.OUT_OF_TOKENS for trace in batch)
                speed = turns / (time.monotonic() - started)
                note = f"success {successes / done:.1%}, {speed:,.0f} steps/s"
                # Drawn at once: under another bar a short phase would be over before the next redraw.
                bar.update(bar.task_ids[0], completed=done, note=note, refresh=True)
        policy.clear()  # what comes next may need the room
        rollout.check_played(held)
        if unfit:  # else they would look like episodes that were lost
            tell(
                self.console,
                f"{title}: {unfit} of {done} episodes ended early, since a prompt and "
                f"{self.agent.max_tokens} tokens of a reply do not fit the window of {policy.window}: "
                "take a model with a longer one, or shorten prompts or replies",
            )

    def _note_played(self, phase: Phase, traces: pd.DataFrame) -> None:
        self._played.append(phase)
        if phase.index == 0:  # the agent on its own
            self.log(
                Phase(kind="start", round=phase.round),
                kind="round",
                round=phase.round,
                step=self.agent.step,
                **EvalResult.from_traces(traces).as_dict(),
            )

    @property
    def played(self) -> list[str]:
        """The finished train phases, in order: where insights come from."""
        return list(map(str, self._played))

    def _check_fits(self, config: SelfImproveConfig) -> None:
        prompt = build_prompt(self.words, "", [config.context_text], self.config.layout)
        teacher, reply = self.agent.teacher, self.agent.max_tokens
        tokens, window = len(teacher.encode(prompt)), self.agent.teacher_window
        if tokens + reply > window:
            raise ConfigError(
                f"{config.context_file} makes a prompt of {tokens} tokens; with {reply} of a reply they "
                f"do not fit the model's window of {window}: shorten it"
            )

    def progress(self, name: str, total: int) -> Progress:
        """A progress bar with one task; where the output is no terminal, a line a minute."""
        return self._bars.bar(name, total)

    def _so_far(self) -> str:
        """The time that the run has taken, and is expected to take."""
        if self._folder is None:
            return ""
        expected = self._folder.expected_seconds
        return duration(self._folder.seconds) + (f" of about {duration(expected)}" if expected else "")


def _jsonable(config: SelfImproveConfig) -> dict[str, Any]:
    """Without secrets, which are not written down: a resumed run is given them again."""
    values = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(config).items()
        if name not in ARGUMENTS
    }
    return masked(values)
