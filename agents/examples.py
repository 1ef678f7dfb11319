"""What is trained on: prompts, answered by the student or by its teacher."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agents.agent import Agent
from agents.policies.local import HFPolicy
from agents.policies.policy import FinishReason, Policy, Prompt, Sampling
from agents.policies.vllm.policy import VLLMPolicy
from distill.examples import Data, DistillError, DistillExample, TokenIds

GAP_EXAMPLES = 8
"""How many completions of a step the log-probabilities of vLLM and of the trainer are compared on."""

ANY_TOKEN: TokenIds = (0,)
"""Stands for a reply of one token that nobody reads."""

Pair = tuple[Prompt, Prompt]
"""The bare prompt x, and the same with its context, c + x."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What an example is to be made of."""

    prompts: Pair
    seed: int
    """Of the answer."""
    moment: str = ""
    """The name of what it is about."""


def sample_examples(
    policy: Policy,
    encode: Callable[[Prompt], TokenIds],
    questions: Sequence[Question],
    sampling: Sampling,
    *,
    data: Data = "student",
    teacher_encode: Callable[[Prompt], TokenIds] | None = None,
) -> list[DistillExample]:
    """Let the policy answer.

    Args:
        policy: The student, which answers the bare prompts, or the teacher, which answers those with context.
        encode: A prompt's token ids, in the student's chat template.
        questions: To be answered.
        sampling: How it samples.
        data: Who ``policy`` is: ``student`` makes the data on-policy, ``teacher`` off-policy.
        teacher_encode: The same in the teacher's template, where it has another.

    Returns:
        One example per non-empty completion.

    Raises:
        DistillError: A prompt and its completion do not fit the policy's context window.
    """
    teacher_encode = teacher_encode or encode
    asked = [question.prompts[0 if data == "student" else 1] for question in questions]
    examples = []
    answers = policy.generate(asked, sampling, [question.seed for question in questions])
    for question, completion in zip(questions, answers, strict=True):
        if completion.finish_reason == FinishReason.OVERFLOW:
            raise DistillError(
                f"a prompt of {completion.prompt_tokens} tokens and {sampling.max_tokens} new ones do not "
                "fit the model's context window: shorten the prompt or its context, or allow fewer new tokens"
            )
        if completion.token_ids:
            examples.append(
                DistillExample(
                    student_prompt_ids=encode(question.prompts[0]),
                    teacher_prompt_ids=teacher_encode(question.prompts[1]),
                    completion_ids=completion.token_ids,
                    is_cut_off=completion.finish_reason == FinishReason.LENGTH,
                    logprobs=completion.logprobs,
                    source=question.moment,
                )
            )
    return examples


def answers(
    agent: Agent, policy: HFPolicy, questions: Sequence[Question], data: Data
) -> list[DistillExample]:
    """What is to be trained on.

    Where a reply is one token and no engine has to show that it is in step, nothing is drawn: student and
    teacher are compared on what comes after the prompts, and the token itself is after that. The teacher
    answers from its sharpened distribution: so its answers are what a data set that it wrote would hold.

    Raises:
        DistillError: A prompt and its answer do not fit the context window.
    """
    config, encode, teacher_encode = agent.config, agent.student.encode, agent.teacher.encode
    if agent.max_tokens == 1 and agent.engine is None:
        return [
            DistillExample(
                student_prompt_ids=encode(question.prompts[0]),
                teacher_prompt_ids=teacher_encode(question.prompts[1]),
                completion_ids=ANY_TOKEN,
                source=question.moment,
            )
            for question in questions
        ]
    temperature = config.temperature if data == "student" else config.teacher_temperature
    sampling = Sampling(temperature=temperature, max_tokens=agent.max_tokens)
    return sample_examples(policy, encode, questions, sampling, data=data, teacher_encode=teacher_encode)


def rollout_gap(policy: Policy, examples: Sequence[DistillExample], data: Data) -> dict[str, float]:
    """How far what drew the completions is from the weights that are trained, if they differ, for the log."""
    if not isinstance(policy, VLLMPolicy):
        return {}
    gap = policy.gap(
        (e.student_prompt_ids if data == "student" else e.teacher_prompt_ids, e.completion_ids, e.logprobs)
        for e in examples[:: max(1, len(examples) // GAP_EXAMPLES)]
    )
    return {"rollout_gap": gap.mean, "rollout_gap_max": gap.max}
