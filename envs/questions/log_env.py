"""``Logs-v0``: one logged prompt per episode, answered anew; the reply is judged where the log tells how."""

import re
import string
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast, get_args

import gymnasium as gym

from envs.any_text import AnyText
from envs.parts import PartedEnv
from envs.questions.answers import gold_answer
from envs.questions.conversations import ANSWER
from envs.questions.log import LoggedPrompt, System, from_json, read_log
from envs.questions.question_env import question_words
from envs.questions.verify import shared_verifier
from envs.registry import recommend, words_of
from envs.words import EnvError, EnvWords, Options, truth

Check = Literal["contains", "exact", "math"]
Checker = Callable[[str, str], bool | None]
"""(reply, right answer or the empty text) -> whether it is right; ``None`` if that cannot be said."""

_CHECKERS: dict[str, Checker] = {}
_ALIKE = str.maketrans(
    {
        **{mark: " " for mark in map(chr, range(0x80, 0x10000)) if unicodedata.category(mark)[0] == "P"},
        **dict.fromkeys("\u2010\u2011\u2212", "-"),
        "\u2019": "'",
        **dict.fromkeys("$€£¥%"),
    }
)
"""Quotation marks, full stops and dashes of any script are spaces."""
_UNSPACED = "\u3041-\u30ff\u3400-\u9fff"
_APART = re.compile(
    rf"^[-*]\s+(?![\d.])|\s+|[;|]|[:=,](?!\d)|(?<!\d)[:=,]|(?<=[{_UNSPACED}])|(?=[{_UNSPACED}])",
    re.MULTILINE,
)
"""Bullets, spaces, and what stands between words, but for the marks in 1,000 and 10:30. Chinese and Japanese
have no spaces: there each sign is a word."""
_LONE = frozenset("-+*/<>")
_BEGINS = re.compile(r"[-+]?(?:\.\d|\w)")
_BEHIND = "".join(set(string.punctuation) - set("+#"))


def register_checker(name: str, checker: Checker) -> None:
    """Let ``check=name`` judge by a function of your own, in the module that ``--checker`` names.

    Args:
        name: What to call it.
        checker: It is given what a model wrote: never evaluate it.
    """
    _CHECKERS[name] = checker


class LogEnv(PartedEnv[str, str]):
    """A logged prompt is posed, and the reply to it is right (reward 1), wrong (reward 0) or not judged.

    The observation is the conversation up to a turn of the user's, as JSON. Conversations are dealt to seeds
    as problems are in ``MathEnv``, so no two parts share one.

    ``info`` has at reset ``logged``, what was replied when it was logged, and ``gold`` if an answer is known;
    after a step ``is_success``. A reply that nothing can judge truncates the episode with
    ``info["not_judged"] = True``.
    """

    def __init__(
        self, *, file: str, answer: str = ANSWER, check: str = "contains", system: System = "keep"
    ) -> None:
        """Read a log.

        Args:
            file: See ``read_conversations``.
            answer: The key, or column, of right answers.
            check: How a reply is held against the answer: it ``contains`` its words, one after the other; is
                ``exact``; or comes to the same by ``math``, see ``envs.questions.verify``. Or a checker that
                was registered. Case, spaces and marks around words do not count, but for signs.
            system: Whether the conversations' own system messages belong to the prompts.

        Raises:
            EnvError: The log cannot be read, or the check or ``system`` is none.
        """
        if check not in (*get_args(Check), *_CHECKERS):
            known = ", ".join((*get_args(Check), *_CHECKERS))
            raise EnvError(f"a checker is one of {known}, or module:name of one of your own, not {check!r}")
        if system not in get_args(System):
            raise EnvError(f"system must be keep or drop, not {system!r}")
        self.log = read_log(Path(file), answer, system, needs_answers=check not in _CHECKERS)
        self.part_sizes = self.log.prompts.sizes
        self.judged = self.part_sizes if check in _CHECKERS else self.log.answered
        """How many prompts of each part can be judged."""
        self._check = check
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self._prompt: LoggedPrompt | None = None

    def reset(self, *, seed: int | None = None, options: Options = None) -> tuple[str, dict[str, Any]]:
        """Pose a prompt.

        Raises:
            EnvError: There is not one of this part.
        """
        number = self.draw_number(seed)
        self._prompt = prompt = cast("LoggedPrompt", self.log.prompts.draw(self.part, number, self.np_random))
        return prompt.question, {"logged": prompt.reply, **({"gold": prompt.gold} if prompt.gold else {})}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Judge a reply."""
        assert self._prompt is not None, "reset comes first"
        is_right = judge(action, self._prompt.gold, self._check)
        if is_right is None:
            return "", 0.0, False, True, {"not_judged": True}
        return "", float(is_right), True, False, {"is_success": is_right}


def judge(reply: str, gold: str, check: str) -> bool | None:
    """Whether a reply is right; ``None`` if that cannot be said.

    Args:
        reply: Without thoughts, of any content and bounded length.
        gold: The right answer, empty if it is not known.
        check: See ``LogEnv``.
    """
    if (own := _CHECKERS.get(check)) is not None:
        found = own(reply, gold)
        return None if found is None else truth(found, f"what {check} says of a reply")
    if not gold:
        return None
    if check == "math":
        verdict = shared_verifier().verify(reply, gold_answer(gold))
        return verdict.is_correct if verdict.is_judged else None
    said, right = _words(reply), _words(gold)
    if not right:  # marks alone
        return gold.strip() == reply.strip()
    if check == "exact":
        return said == right
    return f" {' '.join(right)} " in f" {' '.join(said)} "  # there is no space in a word


def _words(text: str) -> list[str]:
    """The words of a text, without case and what stands around them; signs, and marks in a word, stay."""
    parts = _APART.split(unicodedata.normalize("NFC", text.casefold()).translate(_ALIKE))
    begun = ((part, _BEGINS.search(part)) for part in parts)
    words = (part[begin.start() :].rstrip(_BEHIND) if begin else part for part, begin in begun)
    return [word for word in words if word in _LONE or _BEGINS.match(word)]


@words_of(LogEnv)
def logs_words(env: gym.Env[Any, Any]) -> EnvWords:
    """Words for ``Logs-v0``: the conversation alone."""
    return question_words(
        means="the reply is right by the log",
        situation=lambda observation: from_json(observation)[-1][1],
        chat=from_json,
    )


gym.register("Logs-v0", entry_point=f"{__name__}:LogEnv", max_episode_steps=2)
recommend(
    "Logs-v0",
    {
        "episodes": 10_000,
        "waves": 1,
        "steps": 30,
        "eval_every": 10,
        "batch_size": 16,
        "validation_episodes": 64,
        "test_episodes": 300,
        "teacher_temperature": 1.0,
        "eval_temperature": (0.0,),
        "context_place": "system",
        "insights_per_prompt": 0,
    },
)
