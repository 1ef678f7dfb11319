"""What a run will take, and which part of it fits into the minutes there are."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from agents.config import PLANNED, ConfigError, SelfImproveConfig, flag
from agents.costs import Costs, Episodes
from agents.dealing import steps_for
from agents.gate import Gate
from agents.reflection import MAX_CANDIDATES, Reflection, traces_read
from agents.rehearsal import Rehearsal
from agents.run.checkpoints import WRITING_SHARE
from agents.run.run import Run
from evals.baselines import expected_steps
from evals.gate import Outcomes, judge
from evals.stats import wilson_interval
from experience.context import Context
from experience.seeds import SeedRange, Split
from experience.terminal import tell

TEST, VALIDATION = 100, 64
"""Episodes below which a plan goes last: for an interval of 10 points to either side, and for a gate that
sees a difference of 20."""
LEAST_TEST, LEAST_VALIDATION = 10, 8
"""Fewer say nothing."""
LEAST_SHARE = 1 / 8
"""Of train episodes and steps: with less nothing is learned."""
FEW_STEPS = 0.5
"""Of those that were asked for: with fewer it is said that they may be too few."""
SHARES = [2 ** (-step / 8) for step in range(65)]
"""That are tried, from all on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Seconds of each part of a run; the parts are those of ``evals.finished_run.PARTS``."""

    play: float
    gate: float
    training: float
    validation: float
    test: float

    @property
    def total(self) -> float:
        """Of all of them."""
        return float(sum(asdict(self).values()))

    def __str__(self) -> str:
        """Such as "about 14 minutes: 3 to play, 8 to train, 3 to measure"."""
        size, unit = _unit(self.total)
        parts = {
            "play": self.play + self.gate,
            "train": self.training,
            "measure": self.validation + self.test,
        }
        told = ", ".join(f"{_number(seconds / size)} to {what}" for what, seconds in parts.items())
        return f"about {_number(self.total / size)} {unit}: {told}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What estimates are made of, beside the settings: what was measured, and what the run is like."""

    costs: Costs
    waves: int
    """Of a round; see ``Reflection.waves``."""
    tried: float
    """Episodes that a gate plays with contexts, in multiples of the validation episodes."""
    untried: float
    """And without."""
    written: int
    """Traces of a round that a model here writes insights about."""
    actions: int
    """Words that the agent may act by; 0 where there is no end of them."""
    insights: float
    """That are expected, if they are counted from outcomes; else 0."""
    processes: int
    validation: int
    """As many validation problems as there are, if they can be counted, or as many as were asked for."""
    test: int

    def steps(self, config: SelfImproveConfig) -> int:
        """Optimiser steps of a round."""
        return steps_for(self.insights, config.steps)

    def estimate(self, config: SelfImproveConfig) -> Estimate:
        """What a run takes if every context is admitted, and nothing ends early."""
        costs, width, steps = self.costs, config.num_envs, self.steps(config)
        validation = min(config.validation_episodes, self.validation)
        test = min(config.test_episodes, self.test)

        def play(kind: Episodes, episodes: float) -> float:
            return costs.play(kind, episodes / self.processes, width)

        wave = config.episodes / self.waves
        later = (self.waves - 1) * play(costs.exploring, wave)
        writing = play(costs.bare, self.written / costs.bare.turns)  # a trace is as good as a decision
        each = sum(play(costs.greedy if t == 0 else costs.bare, validation) for t in config.eval_temperature)
        learned = play(costs.informed, validation) * len(config.eval_temperature)
        validations = -(-steps // config.eval_every) * config.rounds
        arms = sum(
            play(costs.greedy if t == 0 else costs.bare, test)  # before
            + play(costs.bare, test) * (t > 0)  # its control
            + 3 * play(costs.informed, test)  # with experience, after, and both
            for t in config.eval_temperature
        )
        moments = min(costs.train.distinct(config.episodes), steps * config.batch_size)
        training = steps * costs.step + moments * costs.remember
        fixed = costs.env_step * expected_steps(self.actions, costs.random_turns, validation, test)
        return Estimate(
            play=config.rounds * (play(costs.bare, wave) + later + writing),
            gate=play(costs.bare, self.untried * validation)
            + config.rounds * play(costs.informed, self.tried * validation),
            training=config.rounds * training * (1 + WRITING_SHARE),
            # The first is of the agent as it was; how soon it acts as it is told is not known.
            validation=each + validations * (each + learned) / 2 if steps else 0.0,
            test=arms + fixed,
        )


def fitted(config: SelfImproveConfig, outlook: Outlook, seconds: float) -> SelfImproveConfig:
    """The largest part of a run that fits.

    What costs precision goes before what costs learning: first test and validation episodes are lowered
    together, to ``TEST`` and ``VALIDATION`` at the least; then train episodes and steps together, to
    ``LEAST_SHARE``; and at last test and validation episodes again.

    Raises:
        ConfigError: Not even the least fits.
    """
    least = config
    for least in _smaller(config, outlook.steps(config)):
        if outlook.estimate(least).total <= seconds:
            return least
    needed = outlook.estimate(least)
    raise ConfigError(
        f"minutes {config.minutes:g} are too few: the least that can be played, {flags(least)}, takes "
        f"{needed}, after {outlook.costs.seconds:.0f} seconds of measuring. Give --minutes "
        f"{math.ceil((needed.total + outlook.costs.seconds) / 60)}, or take fewer --rounds, "
        "shorter episodes, or a smaller model"
    )


def _smaller(config: SelfImproveConfig, steps: int) -> Iterator[SelfImproveConfig]:
    """Smaller and smaller runs, beginning with the whole, which has ``steps`` a round."""

    def measuring(config: SelfImproveConfig, share: float, least_test: int, least: int) -> SelfImproveConfig:
        asked_test, asked = config.test_episodes, config.validation_episodes
        return replace(
            config,
            test_episodes=max(min(asked_test, least_test), int(asked_test * share)),
            validation_episodes=max(min(asked, least), int(asked * share)),
        )

    def training(config: SelfImproveConfig, share: float) -> SelfImproveConfig:
        each = config.waves if config.episodes % config.waves == 0 else 1
        return replace(
            config,
            episodes=max(1, int(config.episodes * share) // each) * each,
            steps=min(steps, max(1, int(steps * share))),
        )

    for share in SHARES:
        yield (smaller := measuring(config, share, TEST, VALIDATION))
    for share in SHARES:
        if share >= LEAST_SHARE:
            yield (least := training(smaller, share))
    for share in SHARES:
        yield measuring(least, share, LEAST_TEST, LEAST_VALIDATION)


def plan(run: Run, reflection: Reflection, gate: Gate) -> None:
    """Measure a few episodes and a step, say what the run will take, and fit it to its minutes if it has any.

    The run has no folder yet. One that goes on keeps the plan that it has.

    Raises:
        ConfigError: The minutes are too few.
        EnvError: See ``Rehearsal.costs``.
    """
    config, is_sharded = run.config, run.ranks.size > 1 and run.config.engine == "fsdp"
    if config.resume is not None:
        return
    if is_sharded and config.minutes is not None:
        raise ConfigError("minutes need engine ddp: with fsdp what training takes is not measured")
    written = min(traces_read(config), config.episodes) if reflection.kind == "llm" else 0

    def measured() -> tuple[SelfImproveConfig, dict[str, float], list[str]]:
        costs = Rehearsal(run, reflection).costs()
        share = len(gate.seeds) / len(run.seeds.validation)
        tried, untried = _gate_of(1 + min(MAX_CANDIDATES, written), share)
        outlook = Outlook(
            costs=costs,
            insights=costs.train.distinct(config.episodes) if reflection.kind == "outcomes" else 0.0,
            waves=reflection.waves,
            tried=tried,
            untried=untried,
            written=0 if config.insight_url else written,
            actions=len(run.words.actions),
            processes=run.ranks.size,
            validation=len(run.seeds.validation),
            test=len(run.seeds.test),
        )
        asked = chosen = config
        if config.minutes is not None:
            asked = replace(config, steps=outlook.steps(config))
            chosen = fitted(asked, outlook, 60 * config.minutes - outlook.costs.seconds)
        return chosen, asdict(outlook.estimate(chosen)), list(_told(asked, chosen, outlook))

    tell(run.console, "measuring what episodes and a step take")
    chosen, expected, lines = run.ranks.from_main(measured)
    run.settle(chosen, expected)
    for line in lines:
        tell(run.console, line)


def _gate_of(candidates: int, share: float) -> tuple[float, float]:
    """``Outlook.tried`` and ``untried``: what a gate plays of them, on these validation episodes."""

    def play(contexts: Sequence[Context], seeds: SeedRange) -> list[Outcomes]:
        return [dict.fromkeys(seeds, False) for _ in contexts]

    contexts, size = [Context.fixed(str(number)) for number in range(candidates)], int(share * VALIDATION)
    seeds = SeedRange(split=Split.VALIDATION, run_seed=0, start=0, size=size)
    played = judge(contexts, seeds, play, phase="", policy_id="").episodes
    return (played - size) / VALIDATION, size / VALIDATION


def _told(config: SelfImproveConfig, chosen: SelfImproveConfig, outlook: Outlook) -> Iterator[str]:
    costs = outlook.costs
    if config.minutes is not None and flags(chosen) != flags(config):
        yield (
            f"all that was asked for ({flags(config)}) would take {outlook.estimate(config)}; "
            f"{config.minutes:g} minutes have room for: {flags(chosen)}"
        )
    if (steps := outlook.steps(chosen)) < FEW_STEPS * (wanted := outlook.steps(config)):
        minutes = math.ceil((outlook.estimate(config).total + costs.seconds) / 60)
        yield (
            f"{steps} steps of {wanted} may well be too few to learn anything, and then what follows is no "
            f"better than what was before; --minutes {minutes} has room for all"
        )
    estimate = outlook.estimate(chosen)
    yield f"this run takes {estimate}, if every context is admitted (found in {costs.seconds:.0f} s)"
    if chosen.steps != 0 and not costs.step:
        yield "training is not included: it could not be measured"
    if not all(kind.has_ended for kind in (costs.bare, costs.greedy, costs.exploring, costs.informed)):
        yield "it may well be less: episodes that did not end while measuring count as long as they may be"
    test = min(chosen.test_episodes, outlook.test)
    if config.minutes is not None and test < TEST and test < min(config.test_episodes, outlook.test):
        low, high = wilson_interval(test // 2, test)
        yield (
            f"{test} test episodes are few: intervals will reach up to {50 * (high - low):.0f} points to "
            f"either side; for 10 it takes {TEST}, and more minutes"
        )


def flags(config: SelfImproveConfig) -> str:
    """What a plan decides, as the flags that say the same."""
    return " ".join(f"{flag(name)} {getattr(config, name)}" for name in PLANNED)


def _unit(seconds: float) -> tuple[float, str]:
    if seconds < 100:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 7200 else (3600.0, "hours")


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0") if 0.05 <= value < 9.5 else f"{value:.0f}"
