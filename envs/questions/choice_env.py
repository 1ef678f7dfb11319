"""``Choice-v0``: one question per episode, answered with one of a few labels, such as yes and no."""

import operator
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

import gymnasium as gym

from envs.questions.problems import Problem, RowProblems, Source, check_agree
from envs.questions.question_env import QuestionEnv, question_words
from envs.questions.tables import Table
from envs.questions.verify import Verdict
from envs.registry import recommend, words_of
from envs.thoughts import outside_thoughts
from envs.words import EnvError, EnvWords, Options

Match = Literal["tag", "exact", "letter"]

MAX_LABELS = 64
"""More different answers than these are no labels."""

_TAG = re.compile(r"<answer>([^<>]*)</answer>", re.IGNORECASE)
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


class ChoiceEnv(QuestionEnv):
    """The reply names the right label; see ``QuestionEnv``.

    At reset ``info`` also has ``gold_reply``, the right label in the form that is asked for.
    """

    def __init__(
        self,
        *,
        options: str | Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        match: Match = "tag",
        **source: Any,
    ) -> None:
        """Choose the questions and how they are answered.

        Args:
            options: Columns of the options, which are put under the question as ``A. ...``, ``B. ...``; or
                one column with lists of them.
            labels: What the values of the answers' column are called in replies, such as
                ``{"0": "no", "1": "yes"}``; by default what they are.
            match: The form that replies must have; see ``read_label``.
            source: Where the questions come from: a ``Source``.

        Raises:
            EnvError: The questions cannot be had, or do not fit the labels.
        """
        if match not in get_args(Match):
            raise EnvError(f"match must be one of {', '.join(get_args(Match))}, not {match!r}")
        if bad := [name for name in (labels or {}).values() if not isinstance(name, str)]:
            raise EnvError(f"labels must be text, not {', '.join(map(repr, bad))}")
        rows = Source(**source)
        problems, self.labels = _questions(
            rows.table(),
            rows.question,
            rows.answer,
            (options,) if isinstance(options, str) else tuple(options),
            None if labels is None else tuple(labels.items()),
        )
        if match == "letter" and any(len(label) != 1 or not label.isalpha() for label in self.labels):
            raise EnvError(f"match letter needs labels of one letter, not {', '.join(self.labels)}")
        self.match: Match = match
        for label in self.labels:
            if (read := read_label(self._reply(label), self.labels, match)) != label:
                raise EnvError(
                    f"the label {label!r} cannot be given: with match {match} it is read as {read!r}"
                )
        super().__init__(problems)

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[str, dict[str, Any]]:
        """Pose a question; see ``QuestionEnv``."""
        question, info = super().reset(seed=seed)
        return question, {**info, "gold_reply": self._reply(info["gold"])}

    def judge(self, reply: str, problem: Problem) -> tuple[Verdict, str]:
        """See ``QuestionEnv``."""
        answer = read_label(reply, self.labels, self.match)
        is_right = answer == problem.gold
        said = f"{answer} is {'' if is_right else 'not '}right."
        reason = said if answer is not None else f"the reply has no label ({self.match})"
        verdict = Verdict(is_correct=is_right, answer=answer, reason=reason)
        return verdict, said if answer is not None else "That is in no form that can be read."

    def _reply(self, label: str) -> str:
        """The label in the form that is asked for."""
        return f"<answer>{label}</answer>" if self.match == "tag" else label


@words_of(ChoiceEnv)
def choice_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for ``Choice-v0``: the question alone, since all else is the system prompt's to say."""
    return question_words(means="the right label is given in the right form")


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
    posed, values = zip(*table.questions(question, answer, options), strict=True)
    values = tuple(value.strip() for value in values)
    names = _labels(table.source, answer, values, labels)
    problems = [Problem(question=q, gold=names[value]) for q, value in zip(posed, values, strict=True)]
    check_agree(table.source, problems, operator.eq)
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


gym.register("Choice-v0", entry_point=f"{__name__}:ChoiceEnv", max_episode_steps=2)
recommend(
    "Choice-v0",
    {
        "episodes": 128,
        "waves": 1,
        "steps": 20,
        "off_policy_steps": 6,
        "eval_every": 5,
        "batch_size": 8,
        "lr": 5e-5,
        "validation_episodes": 64,
        "test_episodes": 300,
        "teacher_temperature": 1.0,
        "eval_temperature": (0.0,),
        "max_new_tokens": 12,
    },
)
