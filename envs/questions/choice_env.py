"""``Choice-v0``: one question per episode, answered with one of a few labels, such as yes and no."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import ascii_uppercase
from typing import Any, Literal, cast, get_args

import gymnasium as gym

from envs.actions import text_grammar
from envs.any_text import AnyText, clean
from envs.questions.parts import PartedEnv
from envs.questions.problems import Problem, RowProblems
from envs.questions.tables import Table, cell_list, cell_text, dataset_table, file_table, is_missing
from envs.thoughts import outside_thoughts
from envs.words import EnvError, EnvWords, Success

Match = Literal["tag", "exact", "letter"]

MAX_LABELS = 64
"""More different answers than these are no labels."""
MAX_QUESTION_CHARS = 32_768
CHOICE_SETTINGS: Mapping[str, Any] = {
    "rounds": 1,
    "episodes": 128,
    "waves": 1,
    "steps": 20,
    "off_policy_steps": 6,
    "eval_every": 5,
    "batch_size": 8,
    "lr": 2e-5,
    "validation_episodes": 64,
    "test_episodes": 300,
    "teacher_temperature": 1.0,
    "eval_temperature": (0.0,),
    "max_new_tokens": 12,
}
"""What an agent does best with here; the names are those of agents/config.py."""

_TAG = re.compile(r"<answer>\s*([^<>]*?)\s*</answer>", re.IGNORECASE)
_LETTER = re.compile(r"\W*([A-Za-z])(?![A-Za-z'’])")  # noqa: RUF001


def read_label(reply: str, labels: Sequence[str], match: Match) -> str | None:
    """The label that a reply gives in the form that is asked for; ``None`` if it gives none.

    Case does not count, and neither does what is thought.

    Args:
        reply: Of any content and bounded length.
        labels: What can be answered.
        match: ``tag`` reads ``<answer>yes</answer>``, which may stand among other text, but once only;
            ``exact`` takes the whole reply, a full stop or quotation marks around it aside; ``letter`` takes
            the letter that a reply begins with: ``B``, ``B.``, ``(b) The liver``.
    """
    spoken = outside_thoughts(reply)
    if spoken is None:
        return None
    reply = spoken.strip()
    if match == "tag":
        found = _TAG.findall(reply)
        said = found[0] if len(found) == 1 else ""
    elif match == "exact":
        said = reply.strip().strip("\"'`").removesuffix(".")
    else:
        letter = _LETTER.match(reply)
        said = letter[1] if letter else ""
    return next((label for label in labels if label.casefold() == said.strip().casefold()), None)


class ChoiceEnv(PartedEnv[str, str]):
    """A question is posed, and the reply names the right label (reward 1) or does not (reward 0).

    Questions are dealt to seeds as in ``MathEnv``: those of a part to the seeds of one remainder by 3.

    ``info`` has the right label, ``gold``, and at reset ``gold_reply``, the same in the form that is asked
    for. After a step it has ``answer`` (the label that was read; ``None`` if the reply is not in the form),
    ``reason`` and ``is_success``. So form and correctness can be told apart.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (as in gym.Env)

    def __init__(
        self,
        *,
        file: str | None = None,
        dataset: str | None = None,
        dataset_config: str | None = None,
        dataset_split: str = "train",
        question: str = "question",
        answer: str = "answer",
        options: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        match: Match = "tag",
    ) -> None:
        """Choose where the questions come from: either ``file`` or ``dataset``.

        Args:
            file: A JSONL, CSV or Parquet file.
            dataset: Name of a Hugging Face data set.
            dataset_config: Its configuration.
            dataset_split: Which part of it; its questions are dealt into three parts all the same.
            question: Column of the questions.
            answer: Column of the answers.
            options: Columns of the options, which are put under the question as ``A. ...``, ``B. ...``; or
                one column with lists of them.
            labels: What the values of the answers' column are called in replies, such as
                ``{"0": "no", "1": "yes"}``; by default what they are.
            match: The form that replies must have; see ``read_label``.

        Raises:
            EnvError: The questions cannot be had, or do not fit the labels.
        """
        if (file is None) == (dataset is None):
            raise EnvError("Choice-v0 takes its questions from exactly one of file= and dataset=")
        if match not in get_args(Match):
            raise EnvError(f"match must be one of {', '.join(get_args(Match))}, not {match!r}")
        if bad := [name for name in (labels or {}).values() if not isinstance(name, str)]:
            raise EnvError(f"labels must be text, not {', '.join(map(repr, bad))}")
        if file is not None:
            table = file_table(file)
        else:
            table = dataset_table(cast("str", dataset), dataset_config, dataset_split)
        self._problems, self.labels = _questions(
            table, question, answer, tuple(options), None if labels is None else tuple(labels.items())
        )
        self.part_sizes = self._problems.sizes
        if match == "letter" and any(len(label) != 1 or not label.isalpha() for label in self.labels):
            raise EnvError(f"match letter needs labels of one letter, not {', '.join(self.labels)}")
        self.match: Match = match
        for label in self.labels:
            if (read := read_label(self._reply(label), self.labels, match)) != label:
                raise EnvError(
                    f"the label {label!r} cannot be given: with match {match} it is read as {read!r}"
                )
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self._problem: Problem | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Pose a question.

        Raises:
            EnvError: There is none of this part.
        """
        super().reset(seed=seed)
        number = self.draw_number(seed)
        self._problem = problem = self._problems.draw(self.part, number, self.np_random)
        return problem.question, {"gold": problem.gold, "gold_reply": self._reply(problem.gold)}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge a reply."""
        problem = self._problem
        assert problem is not None, "reset comes first"
        answer = read_label(action, self.labels, self.match)
        is_right = answer == problem.gold
        if answer is None:
            said, reason = "That is in no form that can be read.", f"the reply has no label ({self.match})"
        else:
            said, reason = (f"{answer} is {'' if is_right else 'not '}right.",) * 2
        info = {"gold": problem.gold, "answer": answer, "reason": reason, "is_success": is_right}
        if not is_right:
            said += f" The answer is {problem.gold}."
        return said, float(is_right), True, False, info

    def _reply(self, label: str) -> str:
        """The label in the form that is asked for."""
        return f"<answer>{label}</answer>" if self.match == "tag" else label


def choice_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for ``Choice-v0``: the question alone, since all else is the system prompt's to say."""
    return EnvWords(
        rules="",
        question="",
        reply_prefix="",
        actions=(),
        grammar=text_grammar,
        describe=lambda observation: cast("str", observation),
        advise=None,
        success=Success(
            means="the right label is given in the right form", reached=lambda total, _: total > 0
        ),
    )


# The places of a vector env share what they read.
@lru_cache(maxsize=8)
def _questions(
    table: Table,
    question: str,
    answer: str,
    options: tuple[str, ...],
    labels: tuple[tuple[str, str], ...] | None,
) -> tuple[RowProblems, tuple[str, ...]]:
    """The questions, and the labels in order."""
    if len(options) > len(ascii_uppercase):
        raise EnvError(f"there can be {len(ascii_uppercase)} options at most, not {len(options)}")
    columns = {"question": question, "answer": answer, **{f"options ({o})": o for o in options}}
    frame = table.select(columns)
    posed, values = [], []
    for number, (posing, answered, *cells) in enumerate(
        frame[[question, answer, *options]].values.tolist(), 1
    ):
        with table.row(number, question):
            text = cell_text(posing)
        with table.row(number, answer):
            values.append(cell_text(answered, is_answer=True).strip())
        with table.row(number, ", ".join(options)):
            posed.append(_pose(text, _options(cells)))
    names = _labels(table.source, answer, values, labels)
    if (longest := max(map(len, posed))) > MAX_QUESTION_CHARS:
        raise EnvError(
            f"{table.source} has a question of {longest} characters; it can have {MAX_QUESTION_CHARS} at most"
        )
    problems = (Problem(question=q, gold=names[value]) for q, value in zip(posed, values, strict=True))
    return RowProblems(table.source, problems), tuple(dict.fromkeys(names.values()))


def _labels(
    source: str, column: str, values: Sequence[str], labels: tuple[tuple[str, str], ...] | None
) -> dict[str, str]:
    """Value of the column -> label."""
    occurring = sorted(set(values))
    shown = ", ".join(map(repr, occurring[:10])) + (", ..." if len(occurring) > 10 else "")
    names = (
        {value: value for value in occurring}
        if labels is None
        else {value: name.strip() for value, name in labels}
    )
    if missing := [value for value in names if value not in occurring]:
        raise EnvError(
            f"labels has {', '.join(map(repr, missing))}, which no row of {source} has in {column!r}; "
            f"there is {shown}"
        )
    if unknown := [value for value in occurring if value not in names]:
        raise EnvError(
            f"{source} has {', '.join(map(repr, unknown[:10]))} in {column!r}, which labels does not have"
        )
    if len(set(names.values())) < 2:
        raise EnvError(f"{source} has only {shown} in {column!r}: nothing is to be chosen")
    if len(names) > MAX_LABELS:
        raise EnvError(
            f"{source} has {len(names)} different answers in {column!r} ({shown}): there can be "
            f"{MAX_LABELS} labels at most"
        )
    if bad := [name for name in names.values() if not name.strip() or set(name) & set("<>\n")]:
        raise EnvError(f"{', '.join(map(repr, bad))} cannot be a label: it must be a line without < and >")
    return names


def _options(cells: Sequence[Any]) -> list[tuple[str, str]]:
    """The options of a row with their letters, from a column for each, or from one column with lists.

    An option that is missing leaves its letter out.

    Raises:
        ValueError: There are too many, or one is no text.
    """
    letters: Sequence[str] = ascii_uppercase
    if len(cells) == 1:
        [cell] = cells
        if isinstance(cell, dict) and "text" in cell:  # as in ARC, with the letters beside
            letters, cell = cell_list(cell.get("label")) or letters, cell["text"]
        cells = cell_list(cell) or [cell]
    if len(cells) > len(letters):
        raise ValueError(f"has {len(cells)} options; there can be {len(letters)} at most")
    lettered = zip(letters, cells, strict=False)
    return [(str(letter), cell_text(cell)) for letter, cell in lettered if not is_missing(cell)]


def _pose(question: str, options: Sequence[tuple[str, str]]) -> str:
    """The question with its options under it."""
    return clean("\n".join([question, *(f"{letter}. {option}" for letter, option in options)])).strip()
