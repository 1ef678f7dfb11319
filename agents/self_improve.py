"""The whole method, from an untrained agent to a report.

python -m agents.self_improve --env FrozenLake-v1
"""

import dataclasses
import json
import sys
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console

from agents.cli import parse_command, run_command
from agents.config import SelfImproveConfig, flag
from agents.gate import Gate
from agents.measurement import measure
from agents.plan import plan
from agents.reflection import Reflection
from agents.run.reach import reach
from agents.run.resume import default_output, saved_config
from agents.run.run import Run
from agents.sharing import check_target, share
from agents.training import Training
from distill.parallel import is_main_process
from evals.report import print_summary
from experience.context import Context
from experience.masking import masked
from experience.phase import Phase
from experience.terminal import take_standard_output

__all__ = ["SelfImproveConfig", "self_improve"]

RESUME = f"{sys.executable} -m agents.self_improve --resume"
"""By the Python that has this package, which ``python`` may not be."""


def self_improve(
    config: SelfImproveConfig, console: Console | None = None, *, is_settled: bool = False
) -> dict[str, Any]:
    """Run the method, or the rest of it; returns what ``results.json`` holds.

    Args:
        config: What to do.
        console: Where to report progress; by default standard error.
        is_settled: See ``Run.open``.

    Raises:
        Exception: One of ``agents.cli.USER_ERRORS``, with a message for the user.
    """
    # What is done already is found again, and not done twice.
    run = Run.open(config, console, is_settled=is_settled)
    config, agent = run.config, run.agent
    reflection = Reflection(run)  # after this, what is given can be used
    gate = Gate(run, reflection.kind)
    plan(run, reflection, gate)  # what will it take, and how much fits? From here on it may leave a folder
    config = run.config
    trained, admitted = None, dict[int, Context]()
    with run, Training(run) as training:
        if run.results is not None:  # it had come to its end
            return run.finish(run.results)
        for number in range(1, config.rounds + 1):
            for wave in range(reflection.waves):  # 1. play: what was learned so far leads exploration
                seeds = run.seeds.train(number, wave, reflection.waves)
                known = reflection.explore(number, wave)
                run.play(Phase.play(number, wave), agent.student, seeds, config.temperature, known)
            candidates = reflection.reflect(number)  # 2. what do the traces teach?
            context = gate.admit(number, candidates)  # 3. which of it helps on held-out episodes?
            if context is None:
                continue
            distil(training, number, context)  # 4. from the prompt into the weights
            trained = admitted[number] = context
        trained = admitted.get(training.load_best(), trained)  # of the round whose weights are the best
        agent.save(run.path)
        reflection.settle_on(trained)
        results = measure(run, trained or gate.best)  # 5. before and after, on test
        return run.finish(results)


def distil(training: Training, number: int, context: Context) -> None:
    """Train a context into the weights: one round of OPCD, or the rest of it."""
    for step in training.steps(number, context):
        questions = training.draw(step)  # x and context + x, of what was seen while playing
        examples = training.answer(questions)  # y, from the student on x alone
        training.update(examples)  # minimises KL(student(y | x) || teacher(y | context + x))
        if training.is_validation_due:
            training.validate()  # on held-out episodes; the best weights are kept


def main() -> int:
    """The command; returns its exit code."""
    path: Path | None = None
    # Before anything is imported for the env, which may print.
    output = take_standard_output() if "--json" in sys.argv else sys.stdout

    def work(console: Console) -> None:
        nonlocal path
        config, command = parse_command()
        path = config.resume or config.output or default_output(config.env)
        if command.push_to_hub is not None:
            check_target(command.push_to_hub)
        config = config if config.resume else dataclasses.replace(config, output=path)
        results = self_improve(config, console, is_settled=True)
        if is_main_process() and command.json:
            print(json.dumps(masked({"run": str(path), **results})), file=output, flush=True)
        elif is_main_process() and "arms" in results:
            print_summary(results, path)
        if is_main_process() and command.push_to_hub is not None:
            again = f"{RESUME} {quote(str(path))} --push-to-hub {quote(command.push_to_hub)}"
            share(path, command.push_to_hub, console, store=config.store, again=again)

    def how_to_go_on() -> str:
        if path is None or not (path / "config.json").exists():
            return ""
        again = "".join(f" {flag(name)} {quote(value)}" for name, value in reach(saved_config(path)))
        return f"Nothing finished is lost. Go on with: {RESUME} {quote(str(path))}{again}"

    return run_command(work, how_to_go_on)


if __name__ == "__main__":
    sys.exit(main())
