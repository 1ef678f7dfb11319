"""In every reasoning-gym task the reply that the rules ask for is right."""

import pytest

from envs.questions.problems import task_problems
from envs.questions.verify import Verifier
from envs.questions.verify_worker import task_judge

reasoning_gym = pytest.importorskip("reasoning_gym")
from reasoning_gym.factory import DATASETS  # noqa: E402

NO_GOLD = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Any answer that the task's scorer finds valid is right, and the task names none."""
SIZE = {"acre": 5, "word_ladder": 5}
"""These make their problems at once."""


@pytest.mark.parametrize("task", sorted(set(DATASETS) - {"composite"} - NO_GOLD))
def test_the_sentence_that_the_rules_ask_for(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"size": SIZE.get(task, 50)}
    problems = task_problems(task, config)
    judge = task_judge(task, config)
    # As the worker does, without starting one for each of a hundred tasks.
    monkeypatch.setattr(Verifier, "_run", lambda _, jobs: [judge(job) for job in jobs])
    verifier = Verifier(problems.scorer)
    for number in range(3):
        problem = problems.at(number)
        for reply in (f"The answer is {problem.gold}.", f"<think>No.</think>The answer is {problem.gold}."):
            if problem.entry is None:
                verdict = verifier.verify(reply, problem.gold)
            else:
                verdict = verifier.score(reply, problem.entry)
            assert verdict.is_correct, (reply, verdict)


def test_a_full_stop_in_the_worker() -> None:
    problems = task_problems("prime_factorization", {})
    with Verifier(problems.scorer) as verifier:
        problem = problems.at(0)
        assert problem.entry is not None
        assert verifier.score(f"The answer is {problem.gold}.", problem.entry).is_correct
        assert not verifier.score("The answer is 4 x 2.", problem.entry).is_correct
        assert verifier.score(f"<think>{problem.gold}", problem.entry).answer is None
