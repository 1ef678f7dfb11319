"""Problems with their answers, from generators, files and data sets, dealt into three parts.

A problem belongs to the part that a hash of its question says, whatever it comes from and wherever it stands
there. So no two parts share a problem, in this run or any other.
"""

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from envs.any_text import clean
from envs.parts import PARTS
from envs.questions.answers import gold_answer
from envs.questions.tables import Table, dataset_table, file_table
from envs.questions.verify import can_be_given, shared_verifier
from envs.words import EnvError

MIN_QUESTIONS = 8
"""Of each part: of fewer an interval says nothing."""
DEFAULT_SIZE = 100_000
"""Problems that a generator is asked for, unless its config says otherwise."""
MAX_DRAWS = 10_000
"""A generator that gives no problem of a part in this many draws has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question, its answer, and what the generator's own scorer needs."""

    question: str
    gold: str
    entry: dict[str, Any] | None = None
    """The generator's entry if its own scorer judges."""

    @property
    def part(self) -> int:
        """The part that it belongs to."""
        return self.hash % PARTS

    @property
    def hash(self) -> int:
        """128 bits that depend on the question's words only."""
        words = " ".join(self.question.split())
        return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=16).digest())


class RowProblems:
    """Problems that can be counted: the rows of a file or a data set."""

    def __init__(self, name: str, rows: Iterable[Problem]) -> None:
        """Deal the rows into parts, each in an order that depends on their questions only.

        A question that comes again is left out.
        """
        self._name = name
        self._parts: list[list[Problem]] = [[] for _ in range(PARTS)]
        distinct = {problem.hash: problem for problem in reversed(list(rows))}
        for problem in sorted(distinct.values(), key=lambda problem: problem.hash):
            self._parts[problem.part].append(problem)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Problems of each part."""
        return tuple(map(len, self._parts))

    def draw(self, part: int, number: int, random: np.random.Generator) -> Problem:
        """Number ``number`` of the part, and after its last one the first again."""
        problems = self._parts[part]
        if not problems:
            raise EnvError(
                f"{self._name} is too small: it has no problem left for "
                f"{('training', 'validation', 'the test')[part]}, each gets a third"
            )
        return problems[number % len(problems)]


def check_agree(source: str, problems: Iterable[Problem], is_same: Callable[[str, str], bool]) -> None:
    """Make sure that a question which comes again, in a later row of ``source``, has the same answer there.

    Raises:
        EnvError: It has another one.
    """
    firsts: dict[int, tuple[int, Problem]] = {}
    for row, problem in enumerate(problems, 1):
        first_row, first = firsts.setdefault(problem.hash, (row, problem))
        if first.gold != problem.gold and not is_same(first.gold, problem.gold):
            raise EnvError(
                f"{source}, rows {first_row} and {row}: one question has two answers, {first.gold!r:.80} and "
                f"{problem.gold!r:.80}: leave one row out"
            )


class TaskProblems:
    """What a reasoning-gym generator makes: as many problems as there are indices."""

    def __init__(self, task: str, config: str, dataset: Any) -> None:
        """A generator, and its config as JSON, of what ``dataset`` has by index."""
        self.scorer = (task, config)
        self._dataset = dataset

    @property
    def sizes(self) -> None:
        """Nobody counts them."""

    def draw(self, part: int, number: int, random: np.random.Generator) -> Problem:
        """Index after index at random until one is of the part."""
        for _ in range(MAX_DRAWS):
            problem = self.at(int(random.integers(len(self._dataset))))
            if problem.part == part:
                return problem
        task, config = self.scorer
        raise EnvError(
            f"task {task} with {config} has no problem for seeds of remainder {part} by {PARTS}: "
            "it makes too few different questions"
        )

    def at(self, index: int) -> Problem:
        """The problem of one index."""
        entry = self._dataset[index]
        gold = str(entry["answer"])
        # Of any other form of answer there may be several that are right: the task knows.
        is_plain = re.fullmatch(r"-?[0-9]+(/[0-9]+)?", gold) is not None
        return Problem(question=clean(entry["question"]), gold=gold, entry=None if is_plain else entry)


Problems = RowProblems | TaskProblems


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Rows of questions with their answers, from either ``file`` or ``dataset``."""

    file: str | None = None
    """A JSONL, CSV or Parquet file."""
    dataset: str | None = None
    """Name of a Hugging Face data set, such as ``openai/gsm8k``."""
    dataset_config: str | None = None
    """Its configuration, such as ``main``."""
    dataset_split: str = "train"
    """Which part of it; its questions are dealt into three parts all the same."""
    question: str = "question"
    """Column of the questions."""
    answer: str = "answer"
    """Column of the answers."""

    def table(self) -> Table:
        """What stands there.

        Raises:
            EnvError: It cannot be had.
        """
        if self.file is not None and self.dataset is None:
            return file_table(self.file)
        if self.file is None and self.dataset is not None:
            return dataset_table(self.dataset, self.dataset_config, self.dataset_split)
        raise EnvError("questions come from exactly one of file= and dataset=")


def solution_problems(source: Source) -> RowProblems:
    r"""Problems whose answers may end solutions: ``#### 42`` or ``\boxed{42}``.

    Raises:
        EnvError: They cannot be had, a row has no question or no answer, or two rows contradict each other.
    """
    return _solution_problems(source.table(), source.question, source.answer)


# The places of a vector env share what they read.
@lru_cache(maxsize=8)
def _solution_problems(table: Table, question: str, answer: str) -> RowProblems:
    problems = []
    for number, (posed, solution) in enumerate(table.questions(question, answer), 1):
        problems.append(Problem(question=posed, gold=gold_answer(solution)))
        with table.row(number, answer):
            if not problems[-1].gold:
                raise ValueError("has no answer in it")
            if not can_be_given(problems[-1].gold):
                raise ValueError("is too long to be given in a reply, or has tags of thoughts: shorten it")
    check_agree(table.source, problems, lambda one, other: shared_verifier().verify(one, other).is_correct)
    return RowProblems(table.source, problems)


def task_problems(task: str, config: dict[str, Any]) -> TaskProblems:
    """The problems of a reasoning-gym generator, such as ``chain_sum``.

    In its config ``seed`` is 0 and ``size`` ``DEFAULT_SIZE`` unless given.

    Raises:
        EnvError: The package is missing, there is no such task, or it refuses its config.
    """
    try:
        text = json.dumps({"seed": 0, "size": DEFAULT_SIZE, **config}, sort_keys=True)
    except TypeError as error:
        raise EnvError(f"the config of task {task} must be JSON: {error}") from error
    return _task_problems(task, text)


@lru_cache(maxsize=8)
def _task_problems(task: str, config: str) -> TaskProblems:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise EnvError("task= needs reasoning-gym: pip install 'opcd-gym[math]'") from error
    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(DATASETS))}"
        raise EnvError(f"reasoning-gym has no task {task!r}; {hint}")
    values = json.loads(config)
    unknown = set(values) - {field.name for field in dataclasses.fields(DATASETS[task][1])}
    if unknown:
        known = ", ".join(field.name for field in dataclasses.fields(DATASETS[task][1]))
        raise EnvError(f"task {task} has no setting {', '.join(sorted(unknown))}; it has {known}")
    try:
        dataset = reasoning_gym.create_dataset(task, **values)
    except Exception as error:  # the generators check with assert, and some not at all
        raise EnvError(f"task {task} refuses {config}: {type(error).__name__}: {error}") from error
    return TaskProblems(task, config, dataset)
