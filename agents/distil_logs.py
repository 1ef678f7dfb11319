"""Learning from logs: a context, trained into the weights on prompts that people really sent.

    python -m agents.distil_logs --conversations chats.jsonl --context-file rules.txt --output runs/rules

There is no environment to play in. The student answers logged prompts anew, the teacher reads the context
before them. Two thirds of the conversations are held out: some to choose the best weights by, the others to
measure how far the agent is from its teacher, before and after. Where the log has right answers, or there is
a checker, it also says how often replies are right, and nothing is trained unless the context helps. The same
command again goes on where it was stopped.
"""

import dataclasses
import importlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, cast

import tyro
from rich.console import Console
from rich.table import Table

from agents.cli import run_command
from agents.config import ConfigError, SelfImproveConfig
from agents.divergence import divergences
from agents.gate import Gate
from agents.logged import episodes, held_out
from agents.measurement import about_run, measure
from agents.moments import Moment
from agents.reflection import Reflection
from agents.run.resume import begun, default_output
from agents.run.run import CONTEXT, Run
from agents.self_improve import distil
from agents.sharing import check_target, command_line, settings_of, share
from agents.system_prompt import check_sizes, refuse_settings
from agents.training import Training
from distill.parallel import is_main_process
from envs.deadline import EnvFault, guarded
from envs.questions.log import Log, System
from envs.questions.log_env import LogEnv
from envs.questions.problems import MIN_QUESTIONS
from envs.text_env import make_text_env
from evals.result import ARM_LABELS, interval_text, rate_text, saved_text
from evals.stats import mean_interval
from experience.context import Context
from experience.insight import insights_of
from experience.phase import Phase
from experience.store import open_run
from experience.terminal import Terminal, tell

ENV = "Logs-v0"
PLAY = Phase.play(1, 0)


SOURCE = Phase(kind="context", index="source")
"""Which run's insights are the context, if it is not a file."""
NOT_HERE = ("env", "env_kwargs", "resume", "rounds", "waves", "memory", "replies", "insights", "minutes")
"""Settings of a run that have no sense here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsConfig:
    """Train a context into a model's weights on prompts from saved conversations."""

    conversations: Path
    """Saved conversations: a .jsonl, .json or .parquet file, or a folder of them or of `datasets`. OpenAI's
    `messages` or ShareGPT's `conversations`."""
    experience: Path | None = None
    """In place of --context-file: a run's folder, whose insights in use are the context."""
    answer: str = "answer"
    """Key or column of right answers to the last turn, where the log has any."""
    checker: str = "contains"
    """How a reply is held against the answer: it `contains` it, is `exact` but for case and marks, or comes
    to the same by `math`. Or `module:name` of one of your own, for `envs.register_checker`."""
    system: System = "keep"
    """Whether the conversations' own system messages belong to the prompts; `drop` where they hold what is to
    be trained in."""
    push_to_hub: str | None = None
    """Share the model, and the log's prompts, traces and insights as a data set, at the end: the name of a
    repository, such as me/rules, or a new folder, such as ./shared."""
    run: Annotated[SelfImproveConfig, tyro.conf.OmitArgPrefixes] = dataclasses.field(
        default_factory=lambda: SelfImproveConfig.for_env(ENV)
    )
    """Of the run. Not for this command are --env, --env-kwargs, --rounds, --waves, --memory, --replies,
    --insights, --minutes and --resume: the same command with its --output goes on."""

    @property
    def command(self) -> str:
        """The same without what is of the machine, for others."""
        own = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        given = {
            name: value.name if isinstance(value, Path) else value
            for name, (value, default) in own.items()
            if name not in ("push_to_hub", "run") and value != default
        }
        return command_line("distil_logs", given | settings_of(self.run))

    @property
    def settings(self) -> SelfImproveConfig:
        """Of the run.

        Raises:
            ConfigError: They make no sense.
        """
        run = self.run
        refuse_settings(run, ENV, *NOT_HERE)
        if (run.context_file is None) == (self.experience is None):
            raise ConfigError("the context comes from exactly one of --context-file and --experience")
        if min(run.validation_episodes, run.test_episodes) < MIN_QUESTIONS:
            raise ConfigError(
                f"validation_episodes and test_episodes must be at least {MIN_QUESTIONS} each, for intervals"
            )
        module, _, check = self.checker.rpartition(":")
        if module:
            try:
                guarded(partial(importlib.import_module, module))
            except EnvFault as fault:
                raise ConfigError(f"--checker {self.checker}: {fault}") from fault
        is_own_place = run.context_place != SelfImproveConfig.for_env(ENV).context_place
        return dataclasses.replace(
            run,
            env=f"{module}:{ENV}" if module else ENV,
            env_kwargs={
                "file": str(self.conversations),
                "answer": self.answer,
                "check": check,
                "system": self.system,
            },
            context_place="chat" if run.context_file is not None and not is_own_place else run.context_place,
        )


def distil_logs(config: LogsConfig, console: Console) -> dict[str, Any]:
    """Train, or go on with it, and measure; returns what ``results.json`` holds.

    Raises:
        Exception: One of ``agents.cli.USER_ERRORS``, with a message for the user.
    """
    path = config.run.output
    if path is None:
        raise ConfigError("--output is needed: the run's folder")
    settings = begun(config.settings, path)
    env = make_text_env(settings.env, settings.env_kwargs)
    bare = cast("LogEnv", env.unwrapped)
    sizes = bare.part_sizes
    assert sizes is not None
    check_sizes(
        f"{config.conversations} has {sum(sizes)} prompts of {bare.log.conversations} conversations", sizes
    )
    is_judged = min(bare.judged[1:]) >= MIN_QUESTIONS
    new = settings if settings.resume else dataclasses.replace(settings, output=path)
    run = Run.open(new, console, is_settled=True)
    if settings.resume is None:  # before there is a folder
        held_out(env, run, _context(run, _given(config)))
    with run:
        if run.results is not None and "kl" in run.results:  # it had come to its end
            return run.finish(run.results)
        reflection = Reflection(run, "fixed")
        source = run.once(SOURCE, lambda: str(config.experience))
        if source != str(config.experience):
            raise ConfigError(
                f"{path} was begun with --experience {source}, not {config.experience}: take another --output"
            )
        context = _context(run, run.once(CONTEXT, lambda: run.ranks.from_main(partial(_given, config))))
        seeds = dataclasses.replace(run.seeds.train(1, 0, 1), size=min(run.config.episodes, sizes[0]))
        kept = run.keep(PLAY, partial(episodes, env, run, seeds, context, PLAY))
        if not kept:
            raise ConfigError(
                "no prompt to train on fits the model's window beside what the context says to it: "
                "shorten it, or take one that speaks to them"
            )
        about = _about(config.conversations, bare.log, too_long=len(seeds) - kept, is_judged=is_judged)
        tell(console, _told(about))
        validation, test = held_out(env, run, context)
        with Training(run, None if is_judged else partial(_closeness, validation)) as training:
            before = run.once(_kl("before"), lambda: divergences(training, run.agent.base, test, "before"))
            is_admitted = not is_judged or Gate(run, reflection.kind).admit(1, [context]) is not None
            if is_admitted:
                distil(training, 1, context)
            training.load_best()
            run.agent.save(run.path)
            reflection.settle_on(context if is_admitted else None)
            after = run.once(_kl("after"), lambda: divergences(training, run.agent.student, test, "after"))
        results = {
            **(measure(run, context) if is_judged else about_run(run)),
            "command": config.command,
            "context": str(config.experience or run.config.context_file),
            "log": about,
            "admitted": is_admitted,
            "kl": {
                "before": _mean(before),
                "after": _mean(after),
                "change": _mean([last - first for first, last in zip(before, after, strict=True)]),
            },
            "prompt_tokens": _prompt_tokens(run, test),
        }
        if run.ranks.is_main:
            run.folder.write_json("results.json", results)
        return run.finish(results)


def _context(run: Run, given: str | Sequence[Mapping[str, Any]]) -> Context:
    """Of a text, or of the insights of another run."""
    if isinstance(given, str):
        return Context.fixed(given)
    return Context(
        insights=tuple(insights_of(given)),
        k=run.config.insights_per_prompt,
        situation=run.words.situation,
    )


def _given(config: LogsConfig) -> str | list[dict[str, Any]]:
    """The text, or the insights."""
    if config.experience is None:
        return config.run.context_text
    with open_run(config.experience) as store:
        insights = store.active_insights()
    if not insights:
        raise ConfigError(f"the run in {config.experience} has no insights in use")
    return [asdict(insight) for insight in insights]


# --- figures -------------------------------------------------------------------------------------


def _closeness(moments: Sequence[Moment], training: Training) -> float:
    """Of the student to its teacher: by what the best weights are chosen where there are no answers."""
    return -statistics.fmean(divergences(training, training.agent.student, moments, "on validation"))


def _kl(when: str) -> Phase:
    return Phase(kind="test", index=f"kl-{when}")


def _mean(values: Sequence[float]) -> dict[str, float]:
    low, high = mean_interval(values)
    return {"mean": statistics.fmean(values), "ci_low": low, "ci_high": high, "n": len(values)}


def _prompt_tokens(run: Run, moments: Sequence[Moment]) -> dict[str, float]:
    """Of a call, on average: without the context, and with it."""
    pairs = [moment.prompts(run.words, run.config.layout) for moment in moments]
    return {
        "bare": statistics.fmean(len(run.agent.student.encode(bare)) for bare, _ in pairs),
        "with_context": statistics.fmean(len(run.agent.teacher.encode(informed)) for _, informed in pairs),
    }


def _about(conversations: Path, log: Log, *, too_long: int, is_judged: bool) -> dict[str, Any]:
    """What was read, for ``results.json``."""
    train, validation, test = log.prompts.sizes
    return {
        "conversations": str(conversations),
        "taken": log.conversations,
        "is_cut": log.is_cut,
        "prompts": {"train": train, "validation": validation, "test": test},
        "too_long": too_long,
        "skipped": dict(log.skipped),
        "first_skipped": dict(log.first_skipped),
        "answered": sum(log.answered),
        "is_judged": is_judged,
    }


def _told(about: Mapping[str, Any]) -> str:
    """The same as sentences."""
    prompts, skipped = about["prompts"], about["skipped"]
    parts = [
        f"{about['conversations']}: {about['taken']} conversations, {prompts['train']} prompts to train on, "
        f"{prompts['validation']} and {prompts['test']} held out"
    ]
    if about["is_cut"]:
        parts.append("there is more, which is left out")
    parts += [
        f"{n} passed over with {reason} (the first: {about['first_skipped'][reason]})"
        for reason, n in skipped.items()
    ]
    if about["too_long"]:
        parts.append(
            f"{about['too_long']} prompts left out, too long for the model's window beside the context"
        )
    if not about["is_judged"]:
        few = "hardly any answers" if about["answered"] else "no answers"
        parts.append(f"with {few} held out: whether the context helps is for you to know")
    return "; ".join(parts)


def print_table(results: Mapping[str, Any], path: Path, console: Console | None = None) -> None:
    """Before and after, on what was held out."""
    kl, tokens, arms = results["kl"], results["prompt_tokens"], results.get("arms", {})
    rich = Table(
        title=f"{results['log']['conversations']}: {kl['before']['n']} held-out prompts (95% interval)",
        title_justify="left",
    )
    rich.add_column("", no_wrap=True)
    for column in (*(["right"] if arms else []), "KL to the teacher, nats per token", "tokens"):
        rich.add_column(column, justify="right")
    for arm, measured, cost in (
        ("before", kl["before"], tokens["bare"]),
        ("before_with_experience", None, tokens["with_context"]),
        ("after", kl["after"], tokens["bare"]),
    ):
        if measured or arm in arms:
            text = interval_text(measured, "mean", "{:.4f}") if measured else ""
            right = [rate_text(arms[arm])] if arms else []
            rich.add_row(ARM_LABELS[arm].replace("experience", "context"), *right, text, f"{cost:.0f}")
    console = console or Terminal()
    console.print(rich)
    saved = tokens["with_context"] - tokens["bare"]
    outcome = saved_text(saved)
    if not results["admitted"]:
        outcome = "the context does not help, so nothing was trained"
    elif not results["best_step"]:
        outcome = "the training does not help, so the model is as it was"
    tell(console, f"KL after - before: {interval_text(kl['change'], 'mean', '{:+.4f}')}; {outcome}")
    tell(console, f"model: {path / 'model'}")


def main() -> int:
    """The command; returns its exit code."""
    path: Path | None = None

    def work(console: Console) -> None:
        nonlocal path
        default = LogsConfig(conversations=tyro.MISSING, run=SelfImproveConfig.for_env(ENV))
        config = tyro.cli(LogsConfig, default=default, prog="python -m agents.distil_logs")
        path = config.run.output or default_output(ENV)
        if config.push_to_hub is not None:
            check_target(config.push_to_hub)
        settings = dataclasses.replace(config.run, output=path)
        results = distil_logs(dataclasses.replace(config, run=settings), console)
        if is_main_process():
            print_table(results, path)
            if config.push_to_hub is not None:
                again = f"the same command with --output {quote(str(path))}"
                share(path, config.push_to_hub, console, store=config.run.store, again=again)

    def how_to_go_on() -> str:
        if path is None or not (path / "config.json").exists():
            return ""
        return f"Nothing finished is lost: the same command with --output {quote(str(path))} goes on"

    return run_command(work, how_to_go_on)


if __name__ == "__main__":
    sys.exit(main())
