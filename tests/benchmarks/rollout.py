"""How fast policies play, against plain ``generate`` on the same prompts, in the same run.

    python -m tests.benchmarks.rollout
    python -m tests.benchmarks.rollout --policies hf,vllm,generate

The first one plays, and the others answer every prompt of that stretch of play, in the same batches. Printed
are their times, how many times faster than ``generate`` each is, and the distance between their action
distributions and the first one's, which must be that of chance; for all but ``generate`` also whether their
greedy replies are the first one's.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
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
from agents.policies.local import HFPolicy
from agents.policies.policy import Completion, Prompt, Sampling
from agents.policies.vllm.engine import LocalEngine
from agents.policies.vllm.policy import VLLMError, VLLMPolicy
from agents.prompts import build_prompt
from agents.rollout import Phase, rollout
from distill.lm.load import LoadedModel, ModelError, load_model
from envs.place import vector_env
from envs.text_env import make_text_env
from envs.words import EnvError
from experience.seeds import SeedRange, Split

FREE_TEXT_TOKENS = 32
"""The longest reply where it is text."""
WINDOW = 2048
"""Of the vLLM that is measured, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """Play some env steps with unchanged weights, with one policy after the other."""

    policies: str = "hf,generate"
    """Which: `hf` (transformers, memoised), `vllm` (in this process), `generate` (plain), between commas."""

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
    max_new_tokens: int | None = None
    """Longest reply; by default what the longest action takes, or 32 where the reply is text."""
    num_envs: int = 64
    """Episodes played at once; at least so many are played."""
    seed: int = 0
    """Of the episodes and the draws."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.num_envs < 1 or not self.temperature > 0:
            raise ValueError("steps and num_envs must be at least 1, temperature above 0")
        chosen = self.policies.split(",")
        if (
            set(chosen) - {"hf", "vllm", "generate"}
            or chosen[0] == "generate"
            or len({*chosen}) < len(chosen)
        ):
            raise ValueError(
                f"policies must be some of hf, vllm and generate, that one last, not {self.policies}"
            )


class Recorder:
    """A ``Policy`` that remembers what another one was asked and answered."""

    def __init__(self, policy: HFPolicy) -> None:
        self.policy = policy
        self.batches: list[tuple[Sequence[Prompt], Sequence[int]]] = []
        self.completions: list[Completion] = []
        self.seconds = 0.0

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """As the policy does, with the time it takes."""
        started = time.perf_counter()
        completions = self.policy.generate(prompts, sampling, seeds)
        self.seconds += time.perf_counter() - started
        self.batches.append((prompts, seeds))
        self.completions += completions
        return completions


def bench(config: BenchConfig, console: Console) -> dict[str, Any]:
    """Play with the first policy, then let the others answer the same prompts.

    Returns:
        Times in seconds, how many times faster than ``generate``, and the comparisons.
    """
    loaded = load_model(config.model)
    first, *others = config.policies.split(",")
    make = partial(make_text_env, config.env, config.env_kwargs)
    words = make().words
    policies = {name: _policy(name, loaded) for name in (first, *others) if name != "generate"}
    policy = policies[first]
    longest = policy.longest_action(words.reply_prefix, words.actions) if words.actions else FREE_TEXT_TOKENS
    sampling = Sampling(temperature=config.temperature, max_tokens=config.max_new_tokens or longest)
    warm_up = build_prompt(words, "Hello.")
    for each in policies.values():
        each.generate([warm_up], sampling, [0])
        each.lm.clear()
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
    seconds = {first: recorder.seconds}
    with_env = time.perf_counter() - started
    asked = [prompt for prompts, _ in recorder.batches for prompt in prompts]
    replies = [completion.text for completion in recorder.completions]
    same: dict[str, float] = {}
    same_greedy: dict[str, float] = {}

    distinct = list(dict.fromkeys(asked))
    greedy = replace(sampling, temperature=0.0)
    for name in others:
        answers: list[str] = []
        if name == "generate":
            plain_generate(loaded.model, loaded.tokenizer, [policy.encode(warm_up)], sampling)
            torch.manual_seed(config.seed)
        started = time.perf_counter()
        for prompts, reply_seeds in track(
            recorder.batches, name, console=console, disable=not console.is_terminal
        ):
            if name == "generate":
                ids = [policy.encode(prompt) for prompt in prompts]
                answers += plain_generate(loaded.model, loaded.tokenizer, ids, sampling)
            else:
                answers += [c.text for c in policies[name].generate(prompts, sampling, reply_seeds)]
        seconds[name] = time.perf_counter() - started
        same[name] = round(same_distribution(asked, replies, answers), 4)
        if name != "generate":
            ours, theirs = (
                p.generate(distinct, greedy, [0] * len(distinct)) for p in (policy, policies[name])
            )
            equal = sum(a.token_ids == b.token_ids for a, b in zip(ours, theirs, strict=True))
            same_greedy[name] = equal / len(distinct)
    plain = seconds.get("generate")
    result = {
        "env_steps": turns,
        "distinct_prompts": len(distinct),
        "max_new_tokens": sampling.max_tokens,
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        f"{first}_seconds_with_env": round(with_env, 3),
        "same_distribution_p": same,
        "same_greedy": same_greedy,
    }
    if plain is not None:
        result["times_faster"] = {n: round(plain / s, 2) for n, s in seconds.items() if n != "generate"}
        result["times_faster_with_env"] = round(plain / with_env, 2)
    return result


def _policy(name: str, loaded: LoadedModel) -> HFPolicy:
    if name == "hf":
        return HFPolicy(loaded.model, loaded.tokenizer)
    engine = LocalEngine(loaded.model, dtype=loaded.model.dtype, window=WINDOW, memory=0.4)
    return VLLMPolicy(loaded.model, loaded.tokenizer, engine=engine)


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
        result = bench(tyro.cli(BenchConfig, prog="python -m tests.benchmarks.rollout"), console)
    except (EnvError, ModelError, VLLMError, ValueError) as error:
        console.print(f"error: {error}", style="bold red", markup=False, soft_wrap=True)
        return 2
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
