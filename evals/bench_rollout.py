"""How fast the policy plays, against plain ``generate`` on the same prompts, in the same run.

    python -m evals.bench_rollout

Both answer every prompt of the same stretch of play, in the same batches. Both times and their ratio are
printed, with the distance between the two action distributions, which must be that of chance.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import transformers
import tyro
from rich.console import Console
from rich.progress import track
from scipy.stats import chi2, chi2_contingency
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agents.config import JsonObject
from agents.hf_policy import HFPolicy
from agents.models import ModelError, load_model
from agents.policy import Completion, Prompt, Sampling
from agents.prompts import build_prompt
from agents.rollout import Phase, rollout, vector_env
from envs.text_env import make_text_env
from envs.words import EnvError
from experience.split import SeedRange, Split


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """Play some env steps with unchanged weights, memoised and with plain `generate`."""

    env: str = "FrozenLake-v1"
    """Gymnasium id of the environment."""
    env_kwargs: JsonObject = field(default_factory=dict)
    """Arguments for the environment, as JSON."""
    model: str = "smollm2"
    """As for `python -m agents.self_improve`."""
    steps: int = 2000
    """Env steps to play, at least."""
    temperature: float = 1.0
    """At which replies are drawn; above 0."""
    num_envs: int = 64
    """Episodes played at once."""
    seed: int = 0
    """Of the episodes and the draws."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.num_envs < 1 or not self.temperature > 0:
            raise ValueError("steps and num_envs must be at least 1, temperature above 0")


class Recorder:
    """A ``Policy`` that remembers what another one was asked and answered."""

    def __init__(self, policy: HFPolicy) -> None:
        self.policy = policy
        self.batches: list[Sequence[Prompt]] = []
        self.completions: list[Completion] = []
        self.seconds = 0.0

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """As the policy does, with the time it takes."""
        started = time.perf_counter()
        completions = self.policy.generate(prompts, sampling, seeds)
        self.seconds += time.perf_counter() - started
        self.batches.append(prompts)
        self.completions += completions
        return completions


def bench(config: BenchConfig, console: Console) -> dict[str, Any]:
    """Play, then let ``generate`` answer the same prompts; returns times, ratio and the comparison."""
    loaded = load_model(config.model)
    policy = HFPolicy(loaded.model, loaded.tokenizer)
    make = partial(make_text_env, config.env, config.env_kwargs)
    words = make().words
    sampling = Sampling(
        temperature=config.temperature,
        max_tokens=policy.longest_action(words.reply_prefix, words.actions),
    )
    warm_up = policy.encode(build_prompt(words, "Hello."))
    plain_generate(loaded.model, loaded.tokenizer, [warm_up], sampling)
    recorder = Recorder(policy)
    turns, start = 0, 0
    started = time.perf_counter()
    while turns < config.steps:
        seeds = SeedRange(split=Split.TRAIN, run_seed=config.seed, start=start, size=config.num_envs)
        for trace in rollout(
            vector_env(make, config.num_envs),
            words,
            recorder,
            [Phase(name="bench", seeds=seeds)],
            sampling=sampling,
            policy_id="base",
            env_id=config.env,
        ):
            turns += len(trace.turns)
        start += config.num_envs
    played = time.perf_counter() - started

    torch.manual_seed(config.seed)
    answers: list[str] = []
    started = time.perf_counter()
    for prompts in track(
        recorder.batches, "plain generate", console=console, disable=not console.is_terminal
    ):
        answers += plain_generate(
            loaded.model, loaded.tokenizer, [policy.encode(p) for p in prompts], sampling
        )
    plain = time.perf_counter() - started
    asked = [prompt for prompts in recorder.batches for prompt in prompts]
    return {
        "env_steps": turns,
        "distinct_prompts": len(set(asked)),
        "memoised_seconds": round(recorder.seconds, 3),
        "memoised_seconds_with_env": round(played, 3),
        "generate_seconds": round(plain, 3),
        "ratio": round(plain / recorder.seconds, 1),
        "ratio_with_env": round(plain / played, 1),
        "same_distribution_p": round(
            same_distribution(asked, [c.text for c in recorder.completions], answers), 4
        ),
    }


@torch.no_grad()
def plain_generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
) -> list[str]:
    """What one writes without this toolkit: a left-padded batch through ``generate``."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = tokenizer.eos_token_id
    batch = tokenizer.pad(
        {"input_ids": [list(ids) for ids in prompts]}, padding_side="left", return_tensors="pt"
    )
    output = model.generate(  # type: ignore[operator]
        **batch.to(model.device),
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampling.max_tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    width = batch["input_ids"].shape[1]
    return tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)


def same_distribution(prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str]) -> float:
    """The p-value of a chi-square test that both sides answer each prompt with one distribution.

    Args:
        prompts: What was asked.
        ours: One side's replies.
        theirs: The other's.
    """
    statistic, degrees = 0.0, 0
    for prompt in dict.fromkeys(prompts):
        asked = [index for index, other in enumerate(prompts) if other == prompt]
        counts = [Counter(side[index] for index in asked) for side in (ours, theirs)]
        both = counts[0] + counts[1]
        # The usual rule: at least 5 are expected in each cell; rarer replies count as one.
        common = [reply for reply in both if both[reply] >= 10]
        table = [
            [side[reply] for reply in common] + [len(asked) - sum(side[r] for r in common)] for side in counts
        ]
        columns = [column for column in zip(*table, strict=True) if sum(column) > 0]
        if len(columns) > 1:
            test = chi2_contingency(list(zip(*columns, strict=True)), correction=False)
            statistic, degrees = statistic + float(test.statistic), degrees + int(test.dof)
    return float(chi2.sf(statistic, degrees)) if degrees else 1.0


def main() -> int:
    """The command; returns its exit code."""
    console = Console(stderr=True)
    transformers.utils.logging.disable_progress_bar()
    try:
        result = bench(tyro.cli(BenchConfig, prog="python -m evals.bench_rollout"), console)
    except (EnvError, ModelError, ValueError) as error:
        console.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        return 2
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
