"""Instructions whose observance a rule can check, in the manner of IF-Eval (Zhou et al. 2023), ours.

They ask for a form, never for knowledge. Replies are hostile input: bounded, and only ever compared.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

MAX_REPLY_CHARS = 4096
"""Of a reply, no more is looked at."""

TOPICS = ("the sea", "a bicycle", "winter", "bread", "an old house", "music")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What is asked, and how one sees whether it was done."""

    rule: str
    """The kind of instruction."""
    prompt: str
    holds: Callable[[str], bool]
    """Whether a reply, without the blanks around it, does what was asked; an empty one never does."""

    def is_followed(self, reply: str) -> bool:
        """Whether the reply does what was asked."""
        text = reply[:MAX_REPLY_CHARS].strip()
        return bool(text) and self.holds(text)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


RULES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "capitals": (
        "Write one sentence about {}. Use capital letters only.",
        lambda text: text.isupper(),
    ),
    "lower case": (
        "Write one sentence about {}. Use lower case letters only, no capital letter anywhere.",
        lambda text: text.islower(),
    ),
    "no commas": ("Write two sentences about {} without any comma.", lambda text: "," not in text),
    "at most ten words": (
        "Describe {} in at most ten words.",
        lambda text: len(_words(text)) <= 10,
    ),
    "one word": ("Name something that belongs to {}. Reply with one word.", lambda t: len(_words(t)) == 1),
    "three bullets": (
        "List three things about {}. Write three lines, and begin each with '- '.",
        lambda text: [line[:2] for line in text.splitlines() if line.strip()] == ["- "] * 3,
    ),
    "first word": (
        "Write one sentence about {}. Its first word must be: Today",
        lambda text: _words(text)[:1] == ["Today"],
    ),
    "last words": (
        "Write one sentence about {}. End your reply with the words: the end.",
        lambda text: text.lower().rstrip(".!\"'").endswith("the end"),
    ),
    "keyword": (
        "Write one sentence about {} that contains the word: lantern",
        lambda text: "lantern" in text.lower(),
    ),
    "quotation marks": (
        'Write one sentence about {}. Put your whole reply in double quotation marks, like "this".',
        lambda text: len(text) > 2 and text[0] == text[-1] == '"',
    ),
    "question": ("Ask one question about {}. Write only the question.", lambda text: text.endswith("?")),
    "JSON": (
        'Give the topic "{}" as a JSON object with the key "topic". Write only the JSON object.',
        _is_json_object,
    ),
}
"""Kind of instruction -> prompt, with {} for the topic, and check."""

INSTRUCTIONS: tuple[Instruction, ...] = tuple(
    Instruction(rule=rule, prompt=prompt.format(topic), holds=holds)
    for rule, (prompt, holds) in RULES.items()
    for topic in TOPICS
)
