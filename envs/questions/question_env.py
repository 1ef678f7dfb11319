"""An env that poses one question per episode, and judges what is said to it."""

from typing import Any

from envs.actions import text_grammar
from envs.any_text import AnyText, clean
from envs.parts import PartedEnv
from envs.questions.problems import Problem, Problems
from envs.questions.verify import Verdict
from envs.words import EnvWords, Options, Success


class QuestionEnv(PartedEnv[str, str]):
    """A question is posed, and the reply to it is right (reward 1) or wrong (reward 0).

    The questions are dealt into three parts by a hash of their words, and seed s poses those of part s % 3
    only. What is trained on seeds of one remainder by 3 can so be tested on those of another. The questions
    of a file come in a fixed order: seeds 0, 3, 6, ... pose each one of part 0 once, then begin again. A
    reset without a seed stays with the part of the last seed; without any, with part 0.

    ``info`` has the right answer, ``gold``, and after a step also ``answer`` (what was read in the reply;
    ``None`` for nothing), ``reason`` (why it is right or not) and ``is_success``. So form and correctness can
    be told apart. An answer that could not be judged (its judge hangs, or was ended from outside, twice) is
    neither right nor wrong: it truncates the episode with ``info["not_judged"] = True`` and without
    ``is_success``.
    """

    def __init__(self, problems: Problems, attempts: int = 1) -> None:
        """Pose ``problems``; after a wrong reply an episode goes on while ``attempts`` are left."""
        self._problems = problems
        self.part_sizes = problems.sizes
        self.attempts = attempts
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self._problem: Problem | None = None
        self._attempts_left = 0

    def judge(self, reply: str, problem: Problem) -> tuple[Verdict, str]:
        """Whether the reply is right, and how to say it."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[str, dict[str, Any]]:
        """Pose a question.

        Raises:
            EnvError: There is not one of this part.
        """
        number = self.draw_number(seed)
        self._problem = problem = self._problems.draw(self.part, number, self.np_random)
        self._attempts_left = self.attempts
        return problem.question, {"gold": problem.gold}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge a reply."""
        problem = self._problem
        assert problem is not None, "reset comes first"
        verdict, said = self.judge(action, problem)
        self._attempts_left -= 1
        info: dict[str, Any] = {"gold": problem.gold, "answer": verdict.answer, "reason": verdict.reason}
        if not verdict.is_judged:
            return "That could not be judged.", 0.0, False, True, {**info, "not_judged": True}
        info["is_success"] = verdict.is_correct
        if verdict.is_correct:
            return said, 1.0, True, False, info
        if self._attempts_left > 0:
            return f"{problem.question}\n{said} Try again.", 0.0, False, False, info
        return clean(f"{said} The answer is {problem.gold}."), 0.0, True, False, info


def question_words(*, means: str, rules: str = "", **more: Any) -> EnvWords:
    """Words of an env that poses one question per episode, which is answered in text; see ``EnvWords``."""
    return EnvWords(
        rules=rules,
        grammar=text_grammar,
        success=Success(means=means, reached=lambda total, _: total > 0),
        **more,
    )
