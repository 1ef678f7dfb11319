"""How fast the policy plays, against plain ``generate`` on the same prompts, in the same run.

    python -m evals.bench_rollout

Both answer every prompt of the same stretch of play, in the same batches. Both times and their ratio are
printed, with the distance between the two action distributions, which must be that of chance.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.progress import track
from scipy.stats import chi2_contingency
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from agents.config import JsonObject
from agents.hf_policy import HFPolicy
from agents.models import load_model
from agents.policy import Completion, Prompt, Sampling
from agents.rollout import rollout, vector_env
from envs.text_env import make_text_env
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
    plain_generate(loaded.model, loaded.tokenizer, [policy.encode(Prompt(messages=()))], sampling)  # warm up
    recorder = Recorder(policy)
    turns, start = 0, 0
    started = time.perf_counter()
    while turns < config.steps:
        seeds = SeedRange(split=Split.TRAIN, run_seed=config.seed, start=start, size=config.num_envs)
        for trace in rollout(
            vector_env(make, config.num_envs),
            words,
            recorder,
            seeds,
            sampling=sampling,
            phase="bench",
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
    return {
        "env_steps": turns,
        "distinct_prompts": len({prompt for prompts in recorder.batches for prompt in prompts}),
        "memoised_seconds": round(recorder.seconds, 3),
        "memoised_seconds_with_env": round(played, 3),
        "generate_seconds": round(plain, 3),
        "ratio": round(plain / recorder.seconds, 1),
        "ratio_with_env": round(plain / played, 1),
        "same_distribution_p": round(same_distribution([c.text for c in recorder.completions], answers), 4),
    }


@torch.no_grad()
def plain_generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
) -> list[str]:
    """What one writes without this toolkit: a left-padded batch through ``generate``."""
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


def same_distribution(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """The p-value of a chi-square test that two samples of replies are of one distribution."""
    first, second = Counter(ours), Counter(theirs)
    common = [reply for reply in first | second if first[reply] + second[reply] >= 10]
    rare = [sum(counts.values()) - sum(counts[r] for r in common) for counts in (first, second)]
    table = [[counts[r] for r in common] for counts in (first, second)]
    if sum(rare) > 0:
        table = [[*row, rest] for row, rest in zip(table, rare, strict=True)]
    return float(chi2_contingency(table).pvalue) if len(table[0]) > 1 else 1.0


def main() -> None:
    """The command."""
    console = Console(stderr=True)
    result = bench(tyro.cli(BenchConfig, prog="python -m evals.bench_rollout"), console)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
