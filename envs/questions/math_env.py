"""``Math-v0``: one problem per episode, answered in text."""

from collections.abc import Mapping
from typing import Any, cast

import gymnasium as gym

from envs.actions import text_grammar
from envs.any_text import MAX_CHARS, AnyText, clean
from envs.questions.parts import PartedEnv
from envs.questions.problems import Problem, Problems, dataset_problems, file_problems, task_problems
from envs.questions.verify import shared_verifier
from envs.words import EnvError, EnvWords, Success

MAX_ATTEMPTS = 32
MAX_QUESTION_CHARS = MAX_CHARS - 8192
"""An observation is a question, and what is said about the last answer."""
MATH_SETTINGS: Mapping[str, Any] = {
    "rounds": 1,
    "episodes": 240,
    "waves": 1,
    "steps": 15,
    "eval_every": 5,
    "batch_size": 16,
    "lr": 1e-5,
    "teacher_temperature": 1.0,
    "test_episodes": 512,
    "eval_temperature": (0.0,),
    "context_place": "before",
    "validation_episodes": 128,
    "max_new_tokens": 32,
}
"""What an agent does best with here; the names are those of agents/config.py."""


class MathEnv(PartedEnv[str, str]):
    """A problem is posed, and the reply to it is right (reward 1) or wrong (reward 0).

    The problems are dealt into three parts by a hash of their question, and seed s poses problems of part
    s % 3 only. What is trained on seeds of one remainder by 3 can so be tested on those of another. The
    problems of a file come in a fixed order: seeds 0, 3, 6, ... pose each one of part 0 once, then begin
    again. A reset without a seed stays with the part of the last seed; without any, with part 0.

    ``info`` has the problem's ``gold`` answer, and after a step also ``answer`` (what was read in the reply;
    ``None`` for nothing), ``reason`` (why it is right or not) and ``is_success``. An answer that could not be
    judged (its judge hangs, or was ended from outside, twice) is neither right nor wrong: it truncates the
    episode with ``info["not_judged"] = True`` and without ``is_success``.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (as in gym.Env)

    def __init__(
        self,
        *,
        task: str | None = None,
        file: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        dataset_split: str = "train",
        question: str = "question",
        answer: str = "answer",
        attempts: int = 1,
        **config: Any,
    ) -> None:
        r"""Choose where the problems come from: exactly one of ``task``, ``file`` and ``dataset``.

        Args:
            task: Name of a reasoning-gym generator, such as ``chain_sum``; ``config`` is its config.
            file: A JSONL, CSV or Parquet file.
            dataset: Name of a Hugging Face data set, such as ``openai/gsm8k``.
            dataset_config: Its configuration, such as ``main``.
            dataset_split: Which part of it; its problems are dealt into three parts all the same.
            question: Column of the questions.
            answer: Column of the answers, which may end solutions: ``#### 42`` or ``\boxed{42}``.
            attempts: Replies per problem, at most ``MAX_ATTEMPTS``. After a wrong one the episode goes on
                while some are left.
            config: Of the task.

        Raises:
            EnvError: The problems cannot be had.
        """
        if not 1 <= attempts <= MAX_ATTEMPTS:
            raise EnvError(f"attempts must be from 1 to {MAX_ATTEMPTS}, not {attempts}")
        if sum(source is not None for source in (task, file, dataset)) != 1:
            raise EnvError("Math-v0 takes its problems from exactly one of task=, file= and dataset=")
        if config and task is None:
            raise EnvError(f"only a task has settings: {', '.join(config)}")
        self._problems: Problems
        self._scorer: tuple[str, str] | None = None
        if task is not None:
            self._problems = task_problems(task, config)
            self._scorer = self._problems.scorer
        elif file is not None:
            self._problems = file_problems(file, question, answer)
        elif dataset is not None:
            self._problems = dataset_problems(dataset, dataset_config, dataset_split, question, answer)
        self.part_sizes = self._problems.sizes
        self.attempts = attempts
        self.observation_space = AnyText()
        self.action_space = AnyText()
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
        number = self.draw_number(seed)
        problem = self._problems.draw(self.part, number, self.np_random)
        if len(problem.question) > MAX_QUESTION_CHARS:
            raise EnvError(
                f"a question has {len(problem.question)} characters; it can have {MAX_QUESTION_CHARS} at most"
            )
        self._problem = problem
        self._attempts_left = self.attempts
        return clean(problem.question), {"gold": problem.gold}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge a reply."""
        problem = self._problem
        assert problem is not None, "reset comes first"
        if problem.entry is None:
            verdict = shared_verifier().verify(action, problem.gold)
        else:
            verdict = shared_verifier(self._scorer).score(action, problem.entry)
        self._attempts_left -= 1
        info: dict[str, Any] = {"gold": problem.gold, "answer": verdict.answer, "reason": verdict.reason}
        if not verdict.is_judged:
            return "That could not be judged.", 0.0, False, True, {**info, "not_judged": True}
        info["is_success"] = verdict.is_correct
        if verdict.is_correct:
            return "That is right.", 1.0, True, False, info
        observation = f"{verdict.answer or 'That'} is not right."
        if self._attempts_left > 0:
            return f"{clean(problem.question)}\n{observation} Try again.", 0.0, False, False, info
        return clean(f"{observation} The answer is {problem.gold}."), 0.0, True, False, info


def math_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for ``Math-v0``, for short answers from small models."""
    return EnvWords(
        rules="You solve mathematics problems. End with: The answer is <number>.",
        question="",
        reply_prefix="",
        actions=(),
        grammar=text_grammar,
        describe=lambda observation: cast("str", observation),
        advise=None,
        success=Success(means="the answer is right", reached=lambda total, _: total > 0),
    )
