"""A log of conversations as prompts, dealt into parts that share no conversation."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from envs.any_text import MAX_CHARS
from envs.parts import PARTS
from envs.questions.conversations import ANSWER, Conversation, Said, read_conversations
from envs.questions.problems import MIN_QUESTIONS, Problem, RowProblems
from envs.words import EnvError

System = Literal["keep", "drop"]

MAX_PROMPTS = 100_000
MAX_LOG_CHARS = 1 << 28
"""How many prompts, and characters of them, are taken from a log at most; what comes after is left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedPrompt(Problem):
    """A prompt, as ``question``: the messages in JSON. ``gold`` is empty where no answer is known."""

    beginning: str
    """What the user began with: all conversations that begin alike belong to one part."""
    reply: str
    """What was replied when it was logged; may be empty."""
    is_last: bool
    """Whether the user says no more in this conversation; another line may hold more of it."""

    @property
    def part(self) -> int:
        """That of the conversation: it may stand in the log many times, each time a turn longer."""
        return Problem(question=self.beginning, gold="").hash % PARTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What was read."""

    prompts: RowProblems
    answered: tuple[int, ...]
    """How many prompts of each part have a right answer."""
    conversations: int
    """How many were taken."""
    skipped: Mapping[str, int]
    """Why conversations were passed over, and how many."""
    first_skipped: Mapping[str, str]
    """Where the first of each kind stands."""
    is_cut: bool
    """Whether there was more than is taken."""


def read_log(path: Path, answer: str = ANSWER, system: System = "keep", *, needs_answers: bool = True) -> Log:
    """The prompts of a log: one for each turn of the user; see ``read_conversations`` and ``LogEnv``.

    Of those that are held out only the last turn of each conversation counts, so that they are as many as
    there are conversations. Equal prompts are one. Where a reply ``needs_answers`` to be judged, and each of
    these parts has ``MIN_QUESTIONS`` prompts that have one, no other is held out: few of a large log are
    played, and with one answer in a hundred hardly any of them could be judged.

    Raises:
        EnvError: It cannot be read, nothing in it is a prompt, or nothing stands where an answer was said to.
    """
    try:
        files = [path, *filter(Path.exists, path.rglob("*"))] if path.is_dir() else [path]
        stamps = [os.stat(file) for file in files]
    except OSError as error:
        raise EnvError(f"the conversations {path} cannot be read: {error.strerror}") from error
    about_files = tuple((stamp.st_mtime_ns, stamp.st_size) for stamp in stamps)
    return _read_log(path, answer, system, needs_answers, about_files)


# The places of a vector env share what they read.
@lru_cache(maxsize=2)
def _read_log(
    path: Path, answer: str, system: System, needs_answers: bool, stamps: tuple[tuple[int, int], ...]
) -> Log:
    prompts: list[LoggedPrompt] = []
    skipped: Counter[str] = Counter()
    first: dict[str, str] = {}
    conversations = chars = 0
    is_cut = False
    for where, read in read_conversations(path, answer):
        taken = read if isinstance(read, str) else _prompts(read, system)
        if isinstance(taken, str):
            skipped[taken] += 1
            first.setdefault(taken, where)
            continue
        chars += sum(len(prompt.question) for prompt in taken)
        if len(prompts) + len(taken) > MAX_PROMPTS or chars > MAX_LOG_CHARS:
            is_cut = True
            break
        conversations += 1
        prompts += taken
    if not prompts:
        reasons = ", ".join(f"{n} with {reason}" for reason, n in skipped.items())
        raise EnvError(f"{path} has no conversation to learn from{f': {reasons}' if reasons else ''}")
    if answer != ANSWER and not any(prompt.gold for prompt in prompts):
        raise EnvError(f"{path} has no right answer under {answer!r}: name their column with answer=")
    distinct = {prompt.hash: prompt for prompt in reversed(_held_out_once(prompts))}.values()
    answered = Counter(prompt.part for prompt in distinct if prompt.gold)
    is_judged = needs_answers and all(answered[part] >= MIN_QUESTIONS for part in range(1, PARTS))
    kept = [prompt for prompt in distinct if prompt.gold or prompt.part == 0 or not is_judged]
    return Log(
        prompts=RowProblems(str(path), kept),
        answered=tuple(answered[part] for part in range(PARTS)),
        conversations=conversations,
        skipped=dict(skipped),
        first_skipped=first,
        is_cut=is_cut,
    )


def _prompts(conversation: Conversation, system: System) -> list[LoggedPrompt] | str:
    """One for each turn of the user, the answer being the last one's; or why the conversation is passed over.

    The last is the longest, and is looked at first: all together grow with the square of the turns.
    """
    own: list[Said] = [("system", conversation.system)] if conversation.system and system == "keep" else []
    turns = conversation.turns
    asked = [number for number, (role, _) in enumerate(turns) if role == "user"]
    if len(as_json([*own, *turns[: asked[-1] + 1]])) > MAX_CHARS:
        return f"more than {MAX_CHARS} characters"
    return [
        LoggedPrompt(
            question=as_json([*own, *turns[: number + 1]]),
            gold=(conversation.answer or "") if number == asked[-1] else "",
            beginning=turns[0][1],
            reply=turns[number + 1][1] if number + 1 < len(turns) else "",
            is_last=number == asked[-1],
        )
        for number in asked
    ]


def _held_out_once(prompts: Sequence[LoggedPrompt]) -> list[LoggedPrompt]:
    """All that are trained on, and of each conversation that is held out the last: it goes on nowhere."""
    goes_on = {prompt.question for prompt in prompts if not prompt.is_last}
    return [prompt for prompt in prompts if prompt.part == 0 or prompt.question not in goes_on]


def as_json(messages: Sequence[Said]) -> str:
    """Messages as one text, which nothing that is said in them can pass for."""
    return json.dumps([{"role": role, "content": text} for role, text in messages], ensure_ascii=False)


def from_json(text: str) -> tuple[Said, ...]:
    """The messages of ``as_json``; of the empty text one of the user's that says nothing."""
    return tuple((said["role"], said["content"]) for said in json.loads(text)) if text else (("user", ""),)
