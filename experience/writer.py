"""Insights that a model writes, the paper's way: it reads one trace and what is known, and writes items.

The model is a callable, so this file knows no model. What it writes is hostile input: an item is a bounded
line of plain text behind a marker, or it is nothing.
"""

import hashlib
import re
import tomllib
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import jinja2
import pandas as pd
from jinja2.sandbox import ImmutableSandboxedEnvironment
from rapidfuzz import fuzz

from experience import ExperienceError
from experience.insight import Insight

MARKER = "- EXPERIENCE ITEM:"
MAX_REPLY_CHARS = 16_384
"""Of a reply, no more is looked at."""
MAX_ITEMS = 8
"""Per reply."""
MIN_CHARS, MAX_CHARS = 12, 400
"""Of one item. A shorter one says nothing; a longer one is refused, not cut."""
MAX_TRANSCRIPT_CHARS = 6_000
"""Of a transcript the middle turns go first."""
QUOTED = 90
"""An item quotes the problem when so many percent of it, or of the problem, are found in the other."""

OUR_PROMPTS = Path(__file__).with_name("prompts.toml")

_MARKUP = re.compile(
    r"<\|.*?\|>|</?s>|\[/?INST\]|<</?SYS>>|<(start|end)_of_turn>|\bEXPERIENCE ITEM\b"
    r"|^\W*(system|user|assistant|human|developer|tool)\b\s*[:>\]]",
    re.IGNORECASE,
)
"""Chat templates' markup, and a line that speaks in another role."""


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
        """Read them.

        Args:
            path: The user's own; by default ours.

        Raises:
            ExperienceError: No such file, no TOML, or no such templates.
        """
        path = path or OUR_PROMPTS
        try:
            text = path.read_text(encoding="utf-8")
            templates = tomllib.loads(text)
            environment = ImmutableSandboxedEnvironment(
                undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
            )
            self._system = environment.from_string(templates["system"])
            self._user = environment.from_string(templates["user"])
        except KeyError as error:
            raise ExperienceError(f"{path} has no template {error}: see {OUR_PROMPTS}") from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, TypeError) as error:
            raise ExperienceError(f"{path} cannot be read as prompts: {error}") from error
        except jinja2.TemplateError as error:
            raise ExperienceError(f"{path}: {error}") from error
        self.version = hashlib.sha256(text.encode()).hexdigest()[:8]

    def task(
        self, turns: pd.DataFrame, final_observation: str, known: Sequence[str], *, is_begun: bool = False
    ) -> WritingTask:
        """The question about one trace.

        Args:
            turns: Its rows of ``ExperienceStore.turns()``; at least one.
            final_observation: What it ended with.
            known: Texts of the insights there are.
            is_begun: Whether the reply is begun with the marker.

        Raises:
            ExperienceError: The templates ask for something that there is not.
        """
        values = {
            "transcript": transcript(turns, final_observation),
            "turns": len(turns),
            "success": bool(turns["success"].iloc[0]),
            "total_reward": float(turns["reward"].sum()),
            "known": [plain(text) for text in known],
            "marker": MARKER,
            "is_begun": is_begun,
        }
        try:
            return WritingTask(
                system=self._system.render(values).strip(), user=self._user.render(values).strip()
            )
        except jinja2.TemplateError as error:
            raise ExperienceError(f"the prompts cannot be filled in: {error}") from error


def transcript(turns: pd.DataFrame, final_observation: str) -> str:
    """One trace as text, the rules left out; never longer than ``MAX_TRANSCRIPT_CHARS`` by much."""
    lines = [
        f"{plain(str(turn.observation))}\nReply: {plain(str(turn.reply))}"
        + ("" if isinstance(turn.action, str) else " (not readable)")
        for turn in turns.itertuples()
    ]
    last = [plain(final_observation)] if final_observation else []
    left_out = 0
    while len(lines) > 2 and sum(map(len, lines)) > MAX_TRANSCRIPT_CHARS:
        del lines[len(lines) // 2]
        left_out += 1
    if left_out:
        lines.insert(len(lines) // 2, f"... {left_out} turns left out ...")
    return "\n".join(line[:MAX_TRANSCRIPT_CHARS] for line in lines + last)


def plain(text: str) -> str:
    """``text`` without what a chat template or a terminal would obey: shown, not acted on."""
    text = "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else " " for c in text)
    return text.replace("<|", "< |").replace("|>", "| >")


def parse_items(reply: str, forbidden: Collection[str] = ()) -> list[str]:
    """The items of a reply: lines that begin with the marker.

    An item is refused when it is too short or too long, or holds chat markup. Control characters and line
    separators become spaces.

    Args:
        reply: Whatever a model wrote.
        forbidden: Further strings that no item may hold, such as a tokenizer's special tokens.
    """
    items: list[str] = []
    for line in reply[:MAX_REPLY_CHARS].split("\n"):
        line = "".join(c if unicodedata.category(c)[0] not in "CZ" else " " for c in line)
        marker, found, text = line.strip().partition(MARKER)
        text = " ".join(text.split())
        if marker or not found or not MIN_CHARS <= len(text) <= MAX_CHARS:
            continue
        if _MARKUP.search(text) or any(string in text for string in forbidden):
            continue
        if text not in items:
            items.append(text)
    return items[:MAX_ITEMS]


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
    forbidden: Collection[str] = (),
) -> list[Insight]:
    """Let a model read each trace and write what it teaches.

    Args:
        turns: ``ExperienceStore.turns()`` of train traces.
        endings: The final observation by trace id, in the order in which the traces are to be read.
        writer: Who writes.
        prompts: With what prompts.
        known: The insights there are.
        seeds: One per trace, for the writer's sampling.
        forbidden: See ``parse_items``.

    Returns:
        The items in order, duplicates and all; each with its trace as evidence for it.

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
            for text in parse_items(reply, forbidden)
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
