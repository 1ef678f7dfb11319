"""Insights that a model writes, the paper's way: it reads one trace and what is known, and writes items.

The model is a callable, so this file knows no model. What it writes is hostile input: an item is a bounded
line of plain text behind a marker, or it is nothing.
"""

import hashlib
import re
import tomllib
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import jinja2
import pandas as pd
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from rapidfuzz import fuzz

from experience import ExperienceError
from experience.insight import Insight
from experience.masking import masked
from experience.plain_yaml import read_bounded

MARKER = "- EXPERIENCE ITEM:"
MAX_REPLY_CHARS = 16_384
"""Of a reply, no more is looked at."""
MAX_ITEMS = 8
"""Per reply."""
MIN_CHARS, MAX_CHARS = 12, 400
"""Of one item. A shorter one, where wide characters count twice, says nothing; a longer one is refused, not
cut."""
MAX_PROMPT_CHARS = 200_000
"""Of a whole prompt, and of a file of prompts."""
FILTERS = {
    *("capitalize", "count", "default", "first", "int", "float", "last", "length", "lower", "max", "min"),
    *("round", "string", "title", "trim", "truncate", "upper"),
}
ORDERS = {"sort", "unique", "reverse"}
"""Filters that make a list of a list; of a text they would make one that takes more room."""
NODES = (
    *(nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.If, nodes.For, nodes.CondExpr),
    *(nodes.Test, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Keyword),
    *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Add, nodes.Sub, nodes.Concat, nodes.Neg),
)
"""What a template may be made of: nothing that calls, multiplies, defines, or loads."""
MAX_TRANSCRIPT_CHARS = 6_000
"""Of a transcript the middle turns go first, then the middle of what is longest."""
MOST_KNOWN = 40
"""Insights of ``MAX_CHARS`` that a prompt has to have room for."""
QUOTED = 90
"""An item quotes the problem when this percentage of it, or of the problem, is found in the other."""

OUR_PROMPTS = Path(__file__).with_name("prompts.toml")

_BRACKETED = (
    r"\[/?(?:INST|AVAILABLE_TOOLS|TOOL_(?:CALLS|RESULTS|CONTENT)|ARGS|CALL_ID|SYSTEM_PROMPT|MODEL_SETTINGS|THINK"
    r"|IMG(?:_BREAK|_END)?|AUDIO|PREFIX|SUFFIX|MIDDLE|(?:BEGIN|END)_[A-Z_]{1,32}|CONTROL_\d{1,4})\]"
)
"""The words in brackets that are markup; others, ``[LEFT]``, are an env's own."""
_MARKUP = re.compile(
    rf"<[|\uff5c].*?[|\uff5c]>|</?s>|(?-i:{_BRACKETED})|<</?SYS>>|<(start|end)_of_turn>"
    r"|\bEXPERIENCE ITEM\b|^\W*(system|user|assistant|human|developer|tool)\b\s*[:>\]]",
    re.IGNORECASE,
)
"""Chat templates' markup, and a line that speaks in another role."""
_MARKERS = re.compile(rf"<[|\uff5c]|</?s>|{_BRACKETED}|<</?SYS>>|<(start|end)_of_turn>")
"""What begins chat templates' markup, in other models' too."""
_MARKER = re.compile(
    r"[-*+>#\u2022\u2013\u2014_`().:\d ]{0,16}EXPERIENCE ITEM[#*_`()\d ]{0,16}[:\uff1a]", re.IGNORECASE
)
"""``MARKER``, as models write it: in another kind of list, in bold, quoted, numbered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingTask:
    """What a writer is asked: a chat of two messages."""

    system: str
    user: str


class Writer(Protocol):
    """A model that writes."""

    @property
    def name(self) -> str:
        """Which weights or which endpoint's model, for the record."""
        ...

    @property
    def begins_replies(self) -> bool:
        """Whether the replies are begun with the marker, so that it need not be asked for."""
        ...

    def __call__(self, tasks: Sequence[WritingTask], seeds: Sequence[int]) -> list[str]:
        """One reply per task."""
        ...


class InsightPrompts:
    """The prompts that insights are written with; see ``prompts.toml``, which says what a file must hold."""

    def __init__(self, path: Path | None = None) -> None:
        """Read them: the user's own, or else ours.

        Raises:
            ExperienceError: No such file, no TOML, or no such templates.
        """
        path = path or OUR_PROMPTS
        try:
            if len(text := read_bounded(path)) > MAX_PROMPT_CHARS:
                raise ValueError(f"it has more than {MAX_PROMPT_CHARS} characters")
            templates = tomllib.loads(text)
            environment = ImmutableSandboxedEnvironment(
                undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
            )
            for name in ("system", "user"):
                if not isinstance(templates[name], str):
                    raise TypeError(f"{name} is not text")
                _check_template(environment.parse(templates[name]))
            self._system = environment.from_string(templates["system"])
            self._user = environment.from_string(templates["user"])
        except KeyError as error:
            raise ExperienceError(f"{path} has no template {error}: see {OUR_PROMPTS}") from error
        except (OSError, ValueError, TypeError) as error:
            raise ExperienceError(f"{path} cannot be read as prompts: {error}") from error
        except (jinja2.TemplateError, RecursionError) as error:
            raise ExperienceError(f"{path}: {error}") from error
        self.version = hashlib.sha256(text.encode()).hexdigest()[:8]
        played = ("The sum?\nReply: 5", "x" * (2 * MAX_TRANSCRIPT_CHARS))
        lists: Sequence[list[str]] = ([], ["A lesson."] * 3, ["x" * MAX_CHARS] * MOST_KNOWN)
        for text, known, success, is_begun in product(played, lists, (True, False), (True, False)):
            self._fill_in(  # now, not after hours of play
                transcript=text,
                turns=1 + 2 * success,
                success=success,
                total_reward=float(success),
                known=known,
                marker=MARKER,
                is_begun=is_begun,
            )

    def task(
        self, turns: pd.DataFrame, final_observation: str, known: Sequence[str], *, is_begun: bool = False
    ) -> WritingTask:
        """The question about one trace, which has at least one turn.

        ``known`` are texts of the insights there are. The reply may be begun with the marker already.

        Raises:
            ExperienceError: The templates ask for something that there is not.
        """
        return self._fill_in(
            transcript=transcript(turns, final_observation),
            turns=len(turns),
            success=bool(turns["success"].iloc[0]),
            total_reward=float(turns["reward"].sum()),
            known=[plain(text) for text in known],
            marker=MARKER,
            is_begun=is_begun,
        )

    def _fill_in(self, **values: Any) -> WritingTask:
        try:
            system, user = _filled_in(self._system, values), _filled_in(self._user, values)
        except Exception as error:  # templates raise whatever their filters and operators do
            raise ExperienceError(f"the prompts cannot be filled in: {error}") from error
        if not user or len(system) + len(user) > MAX_PROMPT_CHARS:
            raise ExperienceError(
                f"the prompts come to {len(system)} and {len(user)} characters or more: the user's must have "
                f"some, both together at most {MAX_PROMPT_CHARS}, also where a transcript is long"
            )
        return WritingTask(system=system, user=user)


def _filled_in(template: jinja2.Template, values: Mapping[str, Any]) -> str:
    """As far as a prompt may go, and a little more."""
    parts, length = [], 0
    for part in template.generate(values):
        parts.append(part)
        length += len(part)
        if length > MAX_PROMPT_CHARS:
            break
    return "".join(parts).strip()


def _check_template(template: nodes.Template) -> None:
    """Make sure that a template is filled in at once, whatever the texts in it are: that nothing multiplies.

    Raises:
        jinja2.TemplateError: It may do more than show, choose and list.
    """
    for node in template.find_all(nodes.Node):
        if isinstance(node, nodes.Filter):
            name, is_fine = node.name, node.name in FILTERS
            if name in ORDERS:
                is_fine = _lists_known(node)
            elif name == "join":
                by = [*node.args, *node.kwargs]
                is_fine = _lists_known(node.node) and all(isinstance(value, nodes.Const) for value in by)
        else:
            name, is_fine = type(node).__name__, isinstance(node, NODES)
        if not is_fine:
            raise jinja2.TemplateError(
                f"a prompt shows, chooses and lists what is known, and does without {name}"
            )
        if isinstance(node, nodes.For) and (
            any(node.find_all(nodes.For)) or not _lists_known(node.iter) or _lists_known(node.target)
        ):
            raise jinja2.TemplateError("a prompt has loops over what is known, none within another")


def _lists_known(node: nodes.Node | None) -> bool:
    """Whether it is the list of what is known, or a part of it, in some order."""
    if isinstance(node, nodes.Filter) and node.name in ORDERS:
        return _lists_known(node.node)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _lists_known(node.node)
    return isinstance(node, nodes.Name) and node.name == "known"


def transcript(turns: pd.DataFrame, final_observation: str) -> str:
    """One trace as text, the rules left out.

    Its turns take ``MAX_TRANSCRIPT_CHARS`` at most, and some; so does its end.
    """
    rows = turns.itertuples()
    parts = [(plain(str(turn.observation)), plain(str(turn.reply)), turn.action) for turn in rows]
    lengths = [len(_told(*part)) for part in parts]
    left_out = 0
    while len(parts) > 2 and sum(lengths) > MAX_TRANSCRIPT_CHARS:
        del parts[len(parts) // 2], lengths[len(lengths) // 2]
        left_out += 1
    most = _share([len(text) for seen, said, _ in parts for text in (seen, said)])
    lines = [_told(_cut(seen, most), _cut(said, most), action) for seen, said, action in parts]
    if left_out:
        lines.insert(len(lines) // 2, f"... {left_out} turns left out ...")
    return "\n".join(filter(None, [*lines, _cut(plain(final_observation), MAX_TRANSCRIPT_CHARS)]))


def _told(seen: str, said: str, action: Any) -> str:
    """One turn."""
    return f"{seen}\nReply: {said}{'' if isinstance(action, str) else ' (not readable)'}"


def _share(lengths: Sequence[int]) -> int:
    """How much of each text is shown, so that together they fit and only the longest are cut."""
    left = MAX_TRANSCRIPT_CHARS
    for number, length in enumerate(sorted(lengths)):
        if length > (share := left // (len(lengths) - number)):
            return share
        left -= length
    return MAX_TRANSCRIPT_CHARS


def _cut(text: str, most: int) -> str:
    """Its beginning and its end: there stands what is asked, and what is answered."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 2) :]}"


def plain(text: str) -> str:
    """``text`` without what a chat template or a terminal would obey: shown, not acted on."""
    text = "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else " " for c in text)
    text = text.replace("<|", "< |").replace("|>", "| >")
    return _MARKERS.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)


def parse_items(reply: str, forbidden: Collection[str] = ()) -> list[str]:
    """The items of a reply: lines that begin with the marker, in whatever way they are listed, or follow one.

    An item is refused when it is too short or too long, or holds chat markup. Control characters and line
    separators become spaces.

    Args:
        reply: Whatever a model wrote.
        forbidden: Further strings that no item may hold, such as a tokenizer's special tokens.
    """
    items: list[str] = []
    is_begun = False
    for line in reply[:MAX_REPLY_CHARS].split("\n"):
        line = "".join(c if unicodedata.category(c)[0] not in "CZ" else " " for c in line)
        line = " ".join(line.split())
        marker = _MARKER.match(line)
        if marker is None and not is_begun:
            continue
        text = line[marker.end() if marker else 0 :].strip("*_` ")
        is_begun = not text  # it may stand on the next line
        text = masked(text)
        if sum(_width(c) for c in text) < MIN_CHARS or len(text) > MAX_CHARS:
            continue
        if _MARKUP.search(text) or any(string in text for string in forbidden):
            continue
        if text not in items:
            items.append(text)
    return items[:MAX_ITEMS]


def _width(character: str) -> int:
    """In columns: a character of Chinese says as much as two."""
    return 2 if unicodedata.east_asian_width(character) in "FW" else 1


def is_instance_specific(text: str, problem: str) -> bool:
    """Whether an item merely quotes the problem: its words, or its numbers."""
    numbers = set(re.findall(r"\d+(?:\.\d+)?", problem))
    quoted = numbers & set(re.findall(r"\d+(?:\.\d+)?", text))
    return len(quoted) >= min(2, len(numbers)) > 0 or fuzz.partial_ratio(text, problem) >= QUOTED


def write_insights(
    turns: pd.DataFrame,
    endings: pd.Series,
    writer: Writer,
    prompts: InsightPrompts,
    *,
    known: Sequence[Insight] = (),
    seeds: Sequence[int],
    said: Callable[[str], str] = str,
    forbidden: Collection[str] = (),
) -> list[Insight]:
    """Let a model read each trace and write what it teaches.

    ``endings`` has the final observations by trace id, in the order in which the traces are to be read; there
    is a seed for each of them. ``said`` takes a reply without its thoughts, as the replies in ``turns`` are;
    ``forbidden`` is as for ``parse_items``.

    Returns:
        The items in order, duplicates and all; ``reason`` says from which trace. What speaks for and against
        them comes of trying them.

    Raises:
        ExperienceError: The prompts ask for something that there is not.
    """
    by_trace = dict(iter(turns.groupby("trace_id")))
    texts = [insight.text for insight in known]
    read = [str(trace_id) for trace_id in endings.index if trace_id in by_trace]
    tasks = [
        prompts.task(by_trace[trace_id], str(endings[trace_id]), texts, is_begun=writer.begins_replies)
        for trace_id in read
    ]
    replies = writer(tasks, list(seeds)[: len(tasks)])
    insights = []
    for trace_id, reply in zip(read, replies, strict=True):
        problem = " ".join([*by_trace[trace_id]["observation"], str(endings[trace_id])])
        insights += [
            Insight(
                text=text,
                observation=None,
                score=0.0,
                support=1,
                evidence=(),
                source="llm",
                writer=writer.name,
                prompt_version=prompts.version,
                is_instance_specific=is_instance_specific(text, problem),
                reason=f"written from {trace_id}",
            )
            for text in parse_items(said(reply[:MAX_REPLY_CHARS]), forbidden)
        ]
    return insights


def raw_insights(turns: pd.DataFrame, endings: pd.Series) -> list[Insight]:
    """Whole transcripts as if they were insights, for the ablation of the paper's warning."""
    by_trace = dict(iter(turns.groupby("trace_id")))
    return [
        Insight(
            text=transcript(by_trace[trace_id], str(endings[trace_id])),
            observation=None,
            score=float(by_trace[trace_id]["success"].iloc[0]),
            support=1,
            evidence=(str(trace_id),),
            source="raw",
            reason="a whole transcript",
        )
        for trace_id in endings.index
        if trace_id in by_trace
    ]
