"""``Math-v0``: one problem per episode, answered in text."""

from typing import Any, cast

import gymnasium as gym

from envs.any_text import MAX_CHARS, AnyText
from envs.problems import PARTS, Problem, Problems, task_problems
from envs.verify import verify
from envs.words import EnvError, EnvWords

MAX_ATTEMPTS = 32


class MathEnv(gym.Env[str, str]):
    """A problem is posed, and the reply to it is right (reward 1) or wrong (reward 0).

    The problems are dealt into three parts by a hash of their question, and seed s poses problems of part s % 3
    only. What is trained on seeds of one remainder by 3 can so be tested on those of another. A reset without
    a seed stays with the part of the last seed; without any, with part 0.

    ``info`` has the problem's ``gold`` answer, and after a step also ``answer`` (what was read in the reply;
    ``None`` for nothing), ``reason`` (why it is right or not) and ``is_success``.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (as in gym.Env)

    def __init__(self, *, task: str | None = None, attempts: int = 1, **config: Any) -> None:
        """Choose where the problems come from.

        Args:
            task: Name of a reasoning-gym generator, such as ``chain_sum``; ``config`` is its config.
            attempts: Replies per problem, at most ``MAX_ATTEMPTS``. After a wrong one the episode goes on
                while some are left.
            config: Of the task.

        Raises:
            EnvError: The problems cannot be had.
        """
        if not 1 <= attempts <= MAX_ATTEMPTS:
            raise EnvError(f"attempts must be from 1 to {MAX_ATTEMPTS}, not {attempts}")
        if task is None:
            raise EnvError("Math-v0 needs a task")
        self._problems: Problems = task_problems(task, config)
        self.attempts = attempts
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self._part = 0
        self._problem: Problem | None = None
        self._attempts_left = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Pose a problem.

        Raises:
            EnvError: There is none of this part, or its question is too long.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._part = seed % PARTS
        number = seed // PARTS if seed is not None else int(self.np_random.integers(2**31))
        problem = self._problems.draw(self._part, number, self.np_random)
        if len(problem.question) > MAX_CHARS:
            raise EnvError(f"a question has {len(problem.question)} characters; at most {MAX_CHARS} can be")
        self._problem = problem
        self._attempts_left = self.attempts
        return problem.question, {"gold": problem.gold}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge a reply."""
        assert self._problem is not None, "reset comes first"
        verdict = verify(action, self._problem.gold)
        self._attempts_left -= 1
        info = {
            "gold": self._problem.gold,
            "answer": verdict.answer,
            "reason": verdict.reason,
            "is_success": verdict.is_correct,
        }
        if verdict.is_correct:
            return self._problem.question, 1.0, True, False, info
        said = "That" if verdict.answer is None else verdict.answer
        observation = f"{self._problem.question}\n{said} is not right."
        if self._attempts_left > 0:
            return f"{observation} Try again.", 0.0, False, False, info
        return observation, 0.0, True, False, info


def math_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for ``Math-v0``, for short answers from small models."""
    return EnvWords(
        rules="You solve mathematics problems. End with: The answer is <number>.",
        question="What is the answer?",
        reply_prefix="",
        actions=(),
        describe=lambda observation: cast("str", observation),
        advise=None,
    )
