"""A policy that writes insights: the agent itself, or another local model."""

from collections.abc import Sequence

from agents.policies.local import HFPolicy
from agents.policies.policy import Message, Prompt, Sampling
from agents.run.run import Run
from envs.thoughts import outside_thoughts
from experience.writer import MARKER, WritingTask

INSIGHT_TOKENS = 64
"""The longest reply of a writer, which is asked for one short lesson after the other."""
INSIGHT_TEMPERATURE = 0.7
"""At which it samples: like traces are to give different lessons."""


class PolicyWriter:
    """A ``Writer`` that is a policy.

    The reply is begun with the marker, so that a small model writes an item and nothing else.
    """

    begins_replies = True

    def __init__(self, run: Run, policy: HFPolicy, model: str | None) -> None:
        self._run = run
        self._policy = policy
        self._model = model

    @property
    def name(self) -> str:
        """The model, or which of the agent's own weights."""
        return self._model or self._run.agent.weights_of(self._policy)

    def __call__(self, tasks: Sequence[WritingTask], seeds: Sequence[int]) -> list[str]:
        """One reply per task; see ``Writer``. A task that does not fit the window gets an empty one."""
        prompts = [
            Prompt(
                messages=(
                    Message(role="system", content=task.system),
                    Message(role="user", content=task.user),
                ),
                reply_prefix=MARKER,
            )
            for task in tasks
        ]
        sampling = Sampling(temperature=INSIGHT_TEMPERATURE, max_tokens=INSIGHT_TOKENS)
        completions = self._policy.generate(prompts, sampling, seeds)
        if self._model is not None:
            self._policy.clear()
        return [MARKER + completion.text for completion in completions]


def said(reply: str) -> str:
    """What a writer reads of a reply, and what is read of a writer's: nothing where a thought never ends."""
    return outside_thoughts(reply) or ""
