"""``Math-v0``: one problem per episode, answered in text."""

from dataclasses import fields
from typing import Any

import gymnasium as gym

from envs.questions.problems import Problem, Problems, Source, solution_problems, task_problems
from envs.questions.question_env import QuestionEnv, question_words
from envs.questions.verify import Verdict, shared_verifier
from envs.registry import recommend, words_of
from envs.words import EnvError, EnvWords

MAX_ATTEMPTS = 32


class MathEnv(QuestionEnv):
    """The reply's final answer has to equal the problem's; see ``QuestionEnv``."""

    def __init__(self, *, task: str | None = None, attempts: int = 1, **given: Any) -> None:
        r"""Choose where the problems come from.

        Args:
            task: Name of a reasoning-gym generator, such as ``chain_sum``.
            attempts: Replies per problem, at most ``MAX_ATTEMPTS``. After a wrong one the episode goes on
                while some are left.
            given: Of a task its config; else a ``Source``, whose answers may end solutions: ``#### 42`` or
                ``\boxed{42}``.

        Raises:
            EnvError: The problems cannot be had.
        """
        if not 1 <= attempts <= MAX_ATTEMPTS:
            raise EnvError(f"attempts must be from 1 to {MAX_ATTEMPTS}, not {attempts}")
        columns = {field.name for field in fields(Source)}
        self._scorer: tuple[str, str] | None = None
        problems: Problems
        if task is not None:
            if mixed := columns & given.keys():
                raise EnvError(f"a task takes no {', '.join(sorted(mixed))}")
            problems = task_problems(task, given)
            self._scorer = problems.scorer
        elif unknown := given.keys() - columns:
            raise EnvError(f"only a task has settings: {', '.join(sorted(unknown))}")
        elif not {"file", "dataset"} & given.keys():
            raise EnvError("Math-v0 takes its problems from exactly one of task=, file= and dataset=")
        else:
            problems = solution_problems(Source(**given))
        super().__init__(problems, attempts)

    def judge(self, reply: str, problem: Problem) -> tuple[Verdict, str]:
        """See ``QuestionEnv``."""
        if problem.entry is None:
            verdict = shared_verifier().verify(reply, problem.gold)
        else:
            verdict = shared_verifier(self._scorer).score(reply, problem.entry)
        is_right = "That is right." if verdict.is_correct else f"{verdict.answer or 'That'} is not right."
        return verdict, is_right


@words_of(MathEnv)
def math_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for ``Math-v0``, for short answers from small models."""
    return question_words(
        rules="You solve mathematics problems. End with: The answer is <number>.", means="the answer is right"
    )


# One step more than there can be attempts: the env ends its episodes itself.
gym.register("Math-v0", entry_point=f"{__name__}:MathEnv", max_episode_steps=MAX_ATTEMPTS + 1)
recommend(
    "Math-v0",
    {
        "episodes": 240,
        "waves": 1,
        "eval_every": 5,
        "batch_size": 16,
        "lr": 2e-5,
        "teacher_temperature": 1.0,
        "test_episodes": 512,
        "eval_temperature": (0.0,),
        "context_place": "before",
        "max_new_tokens": 32,
        "num_envs": 256,
    },
)
