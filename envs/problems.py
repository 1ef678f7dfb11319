"""Problems with their answers, from generators, files and data sets, dealt into three parts.

A problem belongs to the part that a hash of its question says, whatever it comes from and wherever it stands
there. So no two parts share a problem, in this run or any other.
"""

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from envs.words import EnvError

PARTS = 3
DEFAULT_SIZE = 100_000
"""Problems that a generator is asked for, unless its config says otherwise."""
MAX_DRAWS = 10_000
"""A generator that gives no problem of a part in so many draws has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question, its answer, and what the generator's own scorer needs."""

    question: str
    gold: str
    entry: dict[str, Any] | None = None
    """The generator's entry if its own scorer judges."""

    @property
    def hash(self) -> int:
        """128 bits that depend on the question's words only."""
        words = " ".join(self.question.split())
        return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=16).digest())


class Problems(Protocol):
    """A source of problems."""

    def draw(self, part: int, number: int, random: np.random.Generator) -> Problem:
        """A problem of one part.

        Args:
            part: From 0 to ``PARTS`` - 1.
            number: Says which one, where the problems can be counted.
            random: Says which one, where they cannot.

        Raises:
            EnvError: The part has none.
        """
        ...


@dataclass(frozen=True, slots=True)
class TaskProblems:
    """What a reasoning-gym generator makes: as many problems as there are indices."""

    task: str
    config: str
    """As JSON."""
    dataset: Any = dataclasses.field(repr=False)

    def draw(self, part: int, number: int, random: np.random.Generator) -> Problem:
        """Index after index at random until one is of the part."""
        for _ in range(MAX_DRAWS):
            entry = self.dataset[int(random.integers(len(self.dataset)))]
            problem = Problem(question=entry["question"], gold=str(entry["answer"]))
            if problem.hash % PARTS == part:
                return problem
        raise EnvError(
            f"task {self.task} with {self.config} makes no problem of part {part}: its questions are too few"
        )


def task_problems(task: str, config: dict[str, Any]) -> TaskProblems:
    """The problems of a reasoning-gym generator.

    Args:
        task: Its name, such as ``chain_sum``.
        config: Its config; ``seed`` is 0 and ``size`` ``DEFAULT_SIZE`` unless given.

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
