"""What insights are worth in the prompt, before anything is trained; and what the gate saves.

    python -m tests.benchmarks.insights --output runs/insights --seeds 0 1 2
        --env-kwargs '{"task": "chain_sum", "min_terms": 2, "max_terms": 2, "max_digits": 2}'

The agent plays, insights are drawn, the gate chooses one context on validation episodes, and the agent is
tested on others with and without it. Beside it: whole transcripts in place of insights (the paper's
ablation), and the context that would have been chosen by scoring every candidate on all validation episodes.
The same command again goes on where it was stopped.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from agents.cli import run_command
from agents.config import ConfigError, SelfImproveConfig
from agents.reflection import Reflection
from agents.run.resume import begun
from agents.run.run import Run
from distill.parallel import Ranks
from evals.result import Comparison, EvalResult, rate_text
from experience.context import NO_CONTEXT, Context
from experience.phase import Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """What to measure."""

    run: Annotated[SelfImproveConfig, tyro.conf.OmitArgPrefixes]
    seeds: tuple[int, ...] = (0, 1, 2)
    """Run seeds: each plays, writes and is tested on problems of its own."""


def bench_insights(config: SelfImproveConfig, console: Console) -> dict[str, Any]:
    """One seed: the arms on test, and what each choice took.

    Args:
        config: With ``output``, the folder of this seed's run.
        console: Where to report progress.
    """
    assert config.output is not None
    path = config.output
    config = begun(config, path)
    run = Run(config, path, console=console, ranks=Ranks.connect(config.device))
    reflection = Reflection(run)
    with run:
        for wave in range(reflection.waves):
            seeds, known = run.train_seeds(1, wave, reflection.waves), reflection.explore(1, wave)
            run.play(Phase.play(1, wave), run.agent.student, seeds, config.temperature, known)
        candidates = reflection.reflect(1)
        if not candidates:
            raise ConfigError("no insight was written: nothing can be compared")
        chosen, fully = reflection.judge(1, candidates), reflection.judge(1, candidates, fully=True)
        raw = reflection.raw(1)
        arms = {"without": NO_CONTEXT, "chosen": chosen.context, "chosen by all": fully.context, "raw": raw}
        temperature = config.eval_temperature[0]

        def play(context: Context) -> Any:
            phase = Phase(kind="test", index=context.id)
            return run.play(phase, run.agent.base, run.test_seeds, temperature, context)

        frames = {name: play(context) for name, context in arms.items()}
        validation = {s.context_id: (s.successes, len(s.seeds)) for s in fully.scores}
    return {
        "seed": config.seed,
        "arms": {name: EvalResult.from_traces(frame).as_dict() for name, frame in frames.items()},
        "contexts": {name: [i.text for i in context.insights] for name, context in arms.items()},
        "against_without": {
            name: Comparison.of(frame, frames["without"]).as_dict() for name, frame in frames.items()
        },
        "candidates": len(candidates),
        "admitted": chosen.admitted,
        "validation": {name: validation.get(context.id) for name, context in arms.items()},
        "generations": {"halving": chosen.episodes, "fully": chosen.episodes_full},
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """One line per seed."""
    table = Table(title="success on test problems (95% interval), nothing trained", title_justify="left")
    table.add_column("seed")
    for name in rows[0]["arms"]:
        table.add_column(name, justify="right")
    table.add_column("chosen / without", justify="right")
    table.add_column("episodes at the gate", justify="right")
    for row in rows:
        rates = [rate_text(arm) for arm in row["arms"].values()]
        base = row["arms"]["without"]["success_rate"]
        ratio = f"{row['arms']['chosen']['success_rate'] / base:.2f}" if base else ""
        spent = row["generations"]
        share = f"{spent['halving']} of {spent['fully']} ({spent['halving'] / spent['fully']:.0%})"
        table.add_row(str(row["seed"]), *rates, ratio, share)
    Console().print(table)


def main() -> int:
    """The command; returns its exit code."""

    def work(console: Console) -> None:
        default = BenchConfig(
            run=SelfImproveConfig.for_env("Math-v0", episodes=16, test_episodes=256, validation_episodes=64)
        )
        config = tyro.cli(BenchConfig, default=default, prog="python -m tests.benchmarks.insights")
        output = config.run.output or Path("runs/insights")
        rows = []
        for seed in config.seeds:
            run = dataclasses.replace(config.run, seed=seed, output=output / f"seed{seed}")
            rows.append(bench_insights(run, console))
            (output / "insights.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        print_table(rows)

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
