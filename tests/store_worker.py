"""One of many processes that fill a store at once, each as often as it is killed."""

import os
from pathlib import Path

from experience.seeds import Split
from experience.store import ExperienceStore
from experience.trace import StopReason, Trace, Turn


def make_turn(observation: str, action: str | None, reward: float = 0.0) -> Turn:
    return Turn(
        observation=observation,
        insight_ids=("i1",),
        prompt_tokens=7,
        reply=f"I move {action}",
        token_ids=(1, 2),
        logprobs=(-0.5, -0.25),
        action=action,
        reward=reward,
    )


def make_trace(seed: int, *turns: Turn, final: str = "end", **changes: object) -> Trace:
    values: dict[str, object] = {
        "phase": "round1/play0",
        "split": Split.TRAIN,
        "seed": seed,
        "env_id": "E",
        "policy_id": "base",
        "context_id": "none",
        "turns": turns,
        "final_observation": final,
        "stop_reason": StopReason.TERMINATED,
        "success": sum(turn.reward for turn in turns) > 0,
    }
    return Trace(**{**values, **changes})  # type: ignore[arg-type]


def fill(location: str, worker: int, count: int, batch: int, log: Path) -> None:
    """Add ``count`` traces, and as many that every worker adds; note in ``log`` what is to be kept."""
    store = ExperienceStore(location, "shared")
    acknowledged = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    done = max((int(line) for line in log.read_text().split()), default=0)
    for first in range(done, count, batch):
        seeds = range(first, min(first + batch, count))
        turns = [make_turn(f"square {number}", "left") for number in range(3)]
        own = [make_trace(seed, *turns, phase=f"worker{worker}") for seed in seeds]
        # In another order in each worker.
        common = [make_trace(seed, turns[worker % 3], phase="common") for seed in reversed(seeds)]
        store.add_traces(own + common if worker % 2 else common + own)
        os.write(acknowledged, f"{seeds.stop}\n".encode())
    store.finish_phase(f"worker{worker}")
    store.close()
