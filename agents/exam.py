"""A model sits an exam (evals/forgetting.py): it reads passages, plays tasks, and replies to instructions."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial

from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from agents.rollout import rollout
from envs.place import vector_env
from envs.text_env import make_text_env
from envs.thoughts import outside_thoughts
from evals.forgetting import Answers, Exam, Task
from experience.context import NO_CONTEXT
from experience.seeds import SeedRange, Split

NUM_ENVS = 64
"""Episodes played at once."""


def sit(policy: HFPolicy, exam: Exam) -> Answers:
    """All answers of a model, greedy, without any context."""
    sampling = Sampling(temperature=0.0, max_tokens=exam.max_new_tokens)
    prompts = [Prompt(messages=(Message(role="user", content=text),)) for text in exam.instructions]
    replies = policy.generate(prompts, sampling, [0] * len(prompts))
    return Answers(
        nats=text_nats(policy, exam.passages),
        successes={name: _successes(policy, task, exam) for name, task in exam.tasks.items()},
        # A thought is no reply, and one that was cut off is none yet.
        replies=[outside_thoughts(reply.text) or "" for reply in replies],
    )


def text_nats(policy: HFPolicy, passages: Sequence[str]) -> list[float]:
    """Mean negative log-likelihood per token of each passage, in nats, its first token taken as given."""
    nats = []
    for passage in passages:
        ids = tuple(policy.tokenizer(passage, add_special_tokens=False)["input_ids"])[: policy.lm.window]
        nats.append(-float(policy.lm.logprobs(ids, 1).mean()))
    return nats


def _successes(policy: HFPolicy, task: Task, exam: Exam) -> list[bool]:
    """Of each test episode, in the order of the seeds."""
    make = partial(make_text_env, task.env, task.env_kwargs)
    words = make().words
    longest = exam.max_new_tokens
    if words.actions:
        longest = policy.longest_action(words.reply_prefix, words.actions)
    seeds = SeedRange(split=Split.TEST, run_seed=exam.seed, start=0, size=exam.episodes)
    with closing(vector_env(make, min(NUM_ENVS, exam.episodes))) as envs:
        traces = rollout(
            envs,
            words,
            policy,
            {"forgetting": NO_CONTEXT},
            seeds,
            sampling=Sampling(temperature=0.0, max_tokens=longest),
            policy_id="",
            env_id=task.env,
        )
        won = {trace.seed: trace.success for trace in traces}
    policy.clear()
    return [won[seed] for seed in sorted(won)]
