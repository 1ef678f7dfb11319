"""How fast policies play, against plain ``generate`` on the same prompts, in the same run.

    python -m tests.benchmarks.rollout
    python -m tests.benchmarks.rollout --policies hf vllm

The first one plays, and the others answer every prompt of that stretch of play, in the same batches. Each
answers as the first does, or it would not count: ``p`` is of a test that their replies have one distribution.
"""

import operator
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import transformers
import tyro
from rich.console import Console
from rich.table import Table
from scipy.stats import chi2, chi2_contingency

from agents.config import JsonObject
from agents.policies.local import HFPolicy
from agents.policies.policy import Completion, Prompt, Sampling
from agents.policies.vllm.engine import LocalEngine
from agents.policies.vllm.policy import VLLMPolicy
from agents.prompts import build_prompt
from agents.rollout import rollout
from distill.lm.load import LoadedModel, load_model
from envs.place import vector_env
from envs.text_env import make_text_env
from experience.context import NO_CONTEXT
from experience.seeds import SeedRange, Split


class Recorder:
    """A ``Policy`` that answers with another one, and remembers what was asked and how long it took."""

    def __init__(self, policy: HFPolicy) -> None:
        self.policy = policy
        self.batches: list[tuple[Sequence[Prompt], Sequence[int]]] = []
        self.replies: list[str] = []
        self.seconds = 0.0

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        started = time.perf_counter()
        completions = self.policy.generate(prompts, sampling, seeds)
        self.seconds += time.perf_counter() - started
        self.batches.append((prompts, seeds))
        self.replies += [completion.text for completion in completions]
        return completions


def bench(
    *,
    policies: tuple[Literal["hf", "vllm"], ...] = ("hf",),
    env: str = "FrozenLake-v1",
    env_kwargs: JsonObject = {},  # noqa: B006
    model: str = "smollm2",
    steps: int = 2000,
    num_envs: int = 64,
) -> dict[str, Any]:
    """Play with the first policy, then let the others answer the same prompts; times are in seconds.

    Args:
        policies: transformers, memoised, and vLLM in this process.
        env: Gymnasium id of the environment.
        env_kwargs: Arguments for the environment, as JSON.
        model: As for `python -m agents.self_improve`.
        steps: Env steps to play, at least.
        num_envs: Episodes played at once; at least as many are played.
    """
    if min(steps, num_envs, len(policies)) < 1 or len({*policies}) < len(policies):
        raise ValueError("steps and num_envs must be at least 1, and policies at least one, each once")
    loaded = load_model(model)
    make = partial(make_text_env, env, env_kwargs)
    words = make().words
    players: dict[str, HFPolicy] = {"hf": HFPolicy(loaded.model, loaded.tokenizer)}
    if "vllm" in policies:
        engine = LocalEngine(loaded.model, dtype=loaded.model.dtype, window=2048, memory=0.4)
        players["vllm"] = VLLMPolicy(loaded.model, loaded.tokenizer, engine=engine)
    first = players[policies[0]]
    longest = first.longest_action(words.reply_prefix, words.actions) if words.actions else 32
    sampling, greedy = Sampling(max_tokens=longest), Sampling(max_tokens=longest, temperature=0.0)
    warm_up = build_prompt(words, "Hello.")
    for policy in players.values():
        policy.generate([warm_up], sampling, [0])
        policy.lm.clear()
    plain_generate(loaded, [first.encode(warm_up)], sampling)
    recorder, turns, start = Recorder(first), 0, 0
    while turns < steps:
        seeds = SeedRange(split=Split.TRAIN, run_seed=0, start=start, size=num_envs)
        slots, phases = vector_env(make, num_envs), {"bench": NO_CONTEXT}
        traces = rollout(
            slots, words, recorder, phases, seeds, sampling=sampling, policy_id="base", env_id=env
        )
        turns += sum(len(trace.turns) for trace in traces)
        start += num_envs
    asked = [prompt for prompts, _ in recorder.batches for prompt in prompts]
    rows: dict[str, dict[str, float]] = {policies[0]: {"seconds": recorder.seconds}}
    torch.manual_seed(0)
    for name in (*policies[1:], "generate"):
        answers: list[str] = []
        started = time.perf_counter()
        for prompts, reply_seeds in recorder.batches:
            if name == "generate":
                answers += plain_generate(loaded, [first.encode(prompt) for prompt in prompts], sampling)
            else:
                answers += [c.text for c in players[name].generate(prompts, sampling, reply_seeds)]
        seconds = time.perf_counter() - started
        rows[name] = {"seconds": seconds, "p": same_distribution(asked, recorder.replies, answers)}
    distinct = list(dict.fromkeys(asked))
    for name, row in rows.items():
        row["times_faster"] = rows["generate"]["seconds"] / row["seconds"]
        if name in policies[1:]:
            one, two = (
                [c.token_ids for c in player.generate(distinct, greedy, [0] * len(distinct))]
                for player in (first, players[name])
            )
            row["same_greedy"] = sum(map(operator.eq, one, two)) / len(distinct)
    return {"env_steps": turns, "distinct_prompts": len(distinct), "policies": rows}


@torch.no_grad()
def plain_generate(loaded: LoadedModel, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[str]:
    """What one writes without this toolkit: a left-padded batch through ``generate``."""
    tokenizer, model = loaded.tokenizer, loaded.model
    tokenizer.pad_token_id = tokenizer.pad_token_id or tokenizer.eos_token_id
    ids = {"input_ids": [list(ids) for ids in prompts]}
    batch = tokenizer.pad(ids, padding_side="left", return_tensors="pt").to(model.device)
    output = model.generate(  # type: ignore[operator]
        **batch,
        do_sample=True,
        temperature=sampling.temperature,
        top_k=0,
        top_p=1.0,
        max_new_tokens=sampling.max_tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def same_distribution(prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str]) -> float:
    """The p-value of a chi-square test that both sides answer each prompt with one distribution."""
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


def main() -> None:
    """The command."""
    transformers.utils.logging.disable_progress_bar()
    result = tyro.cli(bench, prog="python -m tests.benchmarks.rollout")
    table = Table("", "seconds", "times faster than generate", "p", title=f"{result['env_steps']} env steps")
    for name, row in result["policies"].items():
        p = f"{row['p']:.2g}" if "p" in row else ""
        table.add_row(name, f"{row['seconds']:.2f}", f"{row['times_faster']:.2f}", p)
    Console(stderr=True).print(table)


if __name__ == "__main__":
    main()
