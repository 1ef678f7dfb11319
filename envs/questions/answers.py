"""The final answer in a reply.

Replies are a model's output: cut to a bounded length before anything looks at them, searched in nearly linear
time, never evaluated.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from envs.any_text import clean
from envs.questions.judge.clauses import BECAUSE, CLAUSES, ENDS, NEGATION, has_prose, tidy
from envs.questions.judge.conclusions import conclusion_of
from envs.questions.judge.corrections import without_corrections
from envs.questions.judge.formulas import formula_in
from envs.questions.judge.marks import boxed, marked, said, stated
from envs.questions.judge.notation import written
from envs.questions.judge.numbers import plain_number
from envs.questions.judge.options import DENIALS, chosen, line_that_chooses
from envs.questions.judge.restated import said_once
from envs.thoughts import outside_thoughts
from envs.words import MAX_REPLY_CHARS

MAX_ENDS = 8
"""How many of the places behind a mark where an answer may end are looked at, the first ones."""
_IS_THE_ANSWER = re.compile(
    r"(?:^|[.,:;]\s)[^\S\n]*(?:(?:so|thus|hence|therefore|then|and)\b,?\s*)?(?P<said>[^.,:;\n]{1,60}?)\s{1,9}(?:is|are)\s+"
    r"(?:the|my|our)\s+(?:(?!wrong|incorrect)\w+\s)?answer\b(?!\s+(?:to|of)\s+(?:another|a different))",
    re.IGNORECASE | re.MULTILINE,
)
_DOUBTED = re.compile(rf"{NEGATION.pattern}|{DENIALS.pattern}|{BECAUSE}", re.IGNORECASE)
_FIRST = re.compile(
    r"\W{0,9}(?P<said>[A-Z][^.!?\n]{1,40}?)(?:\*\*)?[.!\n]\W{0,9}"
    r"(?P<rest>(?:(?i:it|this|he|she|they)|(?P=said))\s(?i:is|was|are|were|has|had|have|lies|means)\b.*)",
    re.DOTALL,
)
"""A short first sentence, and what is then said of it."""
_IS = re.compile(r"\b(?:is|are|was|were)\s+")
_FENCE = re.compile(r"^[ \t]*```\w{0,12}[ \t]*$", re.MULTILINE)
_ROUNDED = re.compile(
    r"(\\(?:sqrt|pi|frac)(?![A-Za-z])[^,.;\n]{0,40}?),?\s+(?:(?:which|that) is\s+|or\s+|i\.e\.,?\s+)?"
    r"(?:about|approximately|roughly|around|approx\.)\s+(?=\W{0,2}[0-9])"
)
"""Between a formula and what it comes to when it is rounded."""
_ABOUT = re.compile(
    r"([0-9]/[0-9]{1,9}),?\s+(?:which|that) is\s+(?=(?:about|approximately|roughly|around)\s)"
)
"""Between a fraction and what it comes to."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Where a reply says its answer."""

    text: str
    """The end of what it says, without what it takes back."""
    box: str
    """Empty if there is none."""
    marked: list[tuple[str, str]]
    """What follows each mark, and the answer in it, the last one first."""


def statement_of(reply: str) -> Statement | None:
    """What is read of a reply, which is its end; ``None`` if it has said nothing yet."""
    spoken = outside_thoughts(reply)
    if spoken is None:
        return None
    text = written(spoken[-MAX_REPLY_CHARS:])[-MAX_REPLY_CHARS:]
    text = _ABOUT.sub(r"\1 or ", _ROUNDED.sub(r"\1 \\approx ", _FENCE.sub("", text)))
    text = without_corrections(text)
    return Statement(text, tidy(boxed(text) or ""), [*stated(text)])


def final_answer(statement: Statement, *, is_text: bool = False, is_choice: bool = False) -> str | None:
    r"""The one answer that is given; ``None`` if there is none.

    It is the last ``\boxed{}``; else what stands after the last ``answer is``, ``answer:``, ``####`` or
    ``<answer>``; else the last formula or number, or a last line that begins with one. What is thought or
    denied is no answer, and neither is what is said about one or in explanation of it.

    Args:
        statement: Where the reply says it.
        is_text: The answer is words: without a mark it is the last sentence and not its last number.
        is_choice: It is the letter of an option: it is what gives one.
    """
    text, answers = statement.text, [answer for _, answer in statement.marked]
    if statement.box:
        return statement.box if is_text else said_once(statement.box)
    if is_choice:
        return next(filter(chosen, answers), None) or line_that_chooses(text)
    if answers:
        answer = next((answer for answer in answers if is_text or not _is_talk(answer)), answers[0])
        return answer if is_text or plain_number(answer) else formula_in(answer)
    *_, last = (None, *_IS_THE_ANSWER.finditer(text))
    if last and not NEGATION.search(last["said"]):
        return formula_in(tidy(last["said"])) or None
    return conclusion_of(text, is_text)


def uncut_answers(statement: Statement) -> list[str]:
    """The final answer as it may be meant where its own text has what would end it, as in St. Petersburg.

    Without a mark it is the whole reply, its last line or what that says is so; with one, all that follows,
    or its first sentences. So it is never one of several that the reply gives.
    """
    text = statement.text
    if statement.box:
        return [*dict.fromkeys(filter(None, (tidy(text), statement.box)))]
    if statement.marked:
        rest, _ = statement.marked[0]
        line = rest.partition("\n")[0]
        found = [rest, line, *(line[: end.start()] for end in islice(ENDS.finditer(line), MAX_ENDS))]
    else:
        line = text.strip().rpartition("\n")[2]
        found = [line]
        if CLAUSES.search(claim := _IS.split(line)[-1]) and not _DOUBTED.search(line):
            found.append(claim)
        first = _FIRST.match(text)
        if first and not NEGATION.search(first["rest"]):
            found.append(first["said"])
    return [*dict.fromkeys(filter(None, map(tidy, (text, *found))))]


def whole_answers(reply: str) -> list[str]:
    """What the reply may say is the answer, where answers are of any form and may have several lines.

    Without a mark it is the whole reply; with one, what follows, with and without a full stop and sentences
    behind it: an answer's own form may have these.

    Args:
        reply: Only its end is looked at.
    """
    spoken = outside_thoughts(reply)
    if spoken is None:
        return []
    text = clean(spoken[-MAX_REPLY_CHARS:])
    if box := (boxed(text) or "").strip():
        return [box]
    whole = next((said(rest)[0] for _, rest in marked(text)), text).strip()
    line = whole.partition("\n")[0].strip()
    sentence = re.split(r"[.!](?=\s+[A-Z])", line, maxsplit=1)[0]
    readings = [
        whole.removesuffix("."),
        whole,
        line.removesuffix("."),
        sentence.removesuffix("."),
        whole.strip("*_."),
    ]
    return list(dict.fromkeys(filter(None, (reading.strip() for reading in readings))))


def gold_answer(gold: str) -> str:
    r"""The answer in a data set's answer column: 42 of ``... #### 42``, ``... \boxed{42}``, ``["42"]``."""
    text = gold.strip()
    if text.startswith('["') and text.endswith('"]'):
        with suppress(ValueError):
            items = json.loads(text)
            text = ", ".join(map(str, items)) if isinstance(items, list) else text
    text = written(text)
    if (box := boxed(text)) is not None:
        return tidy(box)
    if "####" in text:
        return tidy(text.rpartition("####")[2].strip().partition("\n")[0])
    return next((answer for _, answer in stated(text)), tidy(text))


def _is_talk(answer: str) -> bool:
    """Whether it says something of an answer that is given elsewhere, as "an integer" and "not 57" do."""
    return re.match(r"(?:not|never|rounded)\b", answer) is not None or (
        re.search(r"[0-9\\=<>]|\b[A-Z]\b|anything", answer) is None
        and re.match(r"\s*\S\S", answer) is not None
        and has_prose(answer)
    )
