"""Saved conversations: what was said to an assistant, as programs of many kinds write it down.

Read are OpenAI-style ``messages``, ShareGPT's ``conversations`` and bare lists of messages, in JSON Lines
(also where a file is called .json), in a JSON list, in Parquet, and in folders of these or of
``datasets.save_to_disk``. Who wrote them is not trusted: lines, files and texts are bounded, and a file of
any size is read piece by piece.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from envs.any_text import clean, first_line
from envs.questions.cells import cell_text, is_missing
from envs.thoughts import outside_thoughts
from envs.words import EnvError, Role

Said = tuple[Role, str]
"""Who, and what."""

ANSWER = "answer"
"""Where right answers stand unless another place is named; there a log may have none."""

MAX_LINE_BYTES = 4 << 20
"""A longer line is no conversation to train on: it is passed over, and never held."""
MAX_LIST_BYTES = 256 << 20
"""Of a file that is one JSON list, which has to be read as a whole."""
MAX_GROUP_BYTES = 1 << 30
"""Of a row group of Parquet, unpacked."""
ROWS = 256
"""Of Parquet and Arrow, held at once."""

_ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
}
_TOOLS = (
    "tool",
    "function",
    "function_call",
    "function_response",
    "tool_call",
    "tool_response",
    "observation",
)
_TEXTS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning")
"""Parts of a message, by their type."""
_LISTED = re.compile(r"\s*\[\s*\{")
"""How messages in a text begin."""
_LISTED_PROMPT = re.compile(_LISTED.pattern + r"""\s*["'](?:role|from|content|value)["']\s*:""")
"""A prompt may begin with other JSON."""
_NOTHING = ("[]", "{}", "null")
"""As JSON."""
_KEYS = ("messages", "conversations", "conversation", "prompt")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


class UnfitError(Exception):
    """A conversation that is passed over; the message says what it has, such as ``tools``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What was said, in turns: perhaps the system, then the user and the assistant one after the other."""

    system: str
    """Empty where there is none."""
    turns: tuple[Said, ...]
    """The user's first. Thoughts are left out of replies that another turn follows, as templates do it."""
    answer: str | None
    """What the last reply has to come to, where the log tells."""


Read = tuple[str, Conversation | str]
"""Where it stands, such as ``line 3``, and a conversation, or why it is passed over."""


def read_conversations(path: Path, answer: str = ANSWER) -> Iterator[Read]:
    """The conversations in a file or folder, in order.

    Args:
        path: A file that ends in .jsonl, .json or .parquet, or a folder with such files, or one that
            ``datasets.save_to_disk`` wrote.
        answer: The key, or column, of right answers; conversations without one have none.

    Raises:
        EnvError: There is nothing to read, or a line or row is broken.
    """
    files = [path]
    if path.is_dir():
        files = sorted(
            file for file in path.rglob("*") if file.suffix.lower() in _READERS and file.name not in _ABOUT
        )
        if not files:
            raise EnvError(f"the folder {path} has no file that ends in {', '.join(_READERS)}")
    for file in files:
        if (reader := _READERS.get(file.suffix.lower())) is None:
            raise EnvError(f"the conversations {file} must be a folder, or end in {', '.join(_READERS)}")
        where = ""
        try:
            for where, row in reader(file):
                try:
                    yield where, _conversation(row, answer)
                except UnfitError as reason:
                    yield where, str(reason)
            where = ""
        except OSError as error:
            raise EnvError(f"{file} cannot be read: {error.strerror or first_line(error)}") from error
        except (ValueError, RecursionError) as error:  # pyarrow's are ValueErrors too
            place = f"{file}, {where}" if where else f"{file}"
            raise EnvError(f"{place}: {first_line(error)}: mend or remove it") from error


# --- files ---------------------------------------------------------------------------------------


Rows = Iterator[tuple[str, Any]]
"""Where each stands, and what it holds: if that is bytes, as JSON; or why it is not read."""


def _lines(file: Path) -> Rows:
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            is_long = len(line) > MAX_LINE_BYTES
            text = b"" if is_long else line.removeprefix(b"\xef\xbb\xbf").strip()
            while is_long and line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE_BYTES)
            if is_long:
                yield f"line {number}", UnfitError(f"more than {MAX_LINE_BYTES >> 20} MiB in a line")
            elif text:
                yield f"line {number}", text


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text if isinstance(text, str) else text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({first_line(error)})") from error


def _list(file: Path) -> Rows:
    if (size := file.stat().st_size) > MAX_LIST_BYTES:
        raise ValueError(
            f"a JSON list of {size >> 20} MiB: more than {MAX_LIST_BYTES >> 20} MiB have to be JSON Lines"
        )
    text = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        rows = _parsed(text)
    except ValueError:
        if not text.startswith(b"{"):
            raise
        yield from _lines(file)  # as ``datasets`` writes .json
        return
    if isinstance(rows, dict):
        rows = [rows]
    if not isinstance(rows, list):
        raise ValueError("it is not a list of conversations")
    if rows and all(isinstance(row, dict) and {"role", "from"} & row.keys() for row in rows):
        rows = [rows]  # one conversation
    yield from ((f"conversation {number}", row) for number, row in enumerate(rows, 1))


def _parquet(file: Path) -> Rows:
    pyarrow = _pyarrow()
    table = pyarrow.parquet.ParquetFile(file)
    groups = table.metadata
    for index in range(groups.num_row_groups):
        if groups.row_group(index).total_byte_size > MAX_GROUP_BYTES:
            raise ValueError(f"row group {index}: it has more than {MAX_GROUP_BYTES >> 30} GiB")
    yield from _rows(table.iter_batches(ROWS))


def _arrow(file: Path) -> Rows:
    pyarrow = _pyarrow()
    with pyarrow.memory_map(str(file)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
        yield from _rows(part.slice(i, ROWS) for part in stream for i in range(0, len(part), ROWS))


def _rows(batches: Iterable[Any]) -> Rows:
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    return ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise EnvError("Parquet and datasets need pyarrow: pip install 'opcd-gym[parquet]'") from error
    return pyarrow


_READERS: Mapping[str, Callable[[Path], Rows]] = {
    ".jsonl": _lines,
    ".json": _list,
    ".parquet": _parquet,
    ".arrow": _arrow,
}


# --- one conversation ----------------------------------------------------------------------------


def _conversation(row: Any, answer: str) -> Conversation:
    """What a line or row holds.

    Raises:
        UnfitError: It has something that cannot be trained on.
        ValueError: It is no conversation.
    """
    if isinstance(row, UnfitError):
        raise row
    gold, system, row = None, None, _parsed(row) if isinstance(row, bytes) else row
    if isinstance(row, dict):
        if any(row.get(key) and row[key] not in _NOTHING for key in ("tools", "functions")):
            raise UnfitError("tools")
        if not is_missing(given := row.get(answer)):
            try:
                gold = cell_text(given, is_answer=True).strip()
            except ValueError as error:
                raise ValueError(f"the {answer} {error}") from error
        key = next((key for key in _KEYS if not is_missing(row.get(key))), None)
        if key is None:
            raise ValueError(
                f"it has none of {', '.join(_KEYS)}; it has {', '.join(map(str, row)) or 'nothing'}"
            )
        system, row = row.get("system"), row[key]
        if isinstance(row, str):
            listed = _LISTED_PROMPT if key == "prompt" else _LISTED
            row = _parsed(row) if listed.match(row) else [{"role": "user", "content": row}]
    if not isinstance(row, list) or not all(isinstance(message, dict) for message in row):
        raise ValueError("it is not a list of messages")
    said = [_said(message) for message in row]
    if isinstance(system, str) and system.strip() and said and said[0][0] != "system":
        said = [_said({"role": "system", "content": system}), *said]
    return _in_turns(said, gold)


def _said(message: Mapping[str, Any]) -> Said:
    name = next((str(message[key]).lower() for key in ("role", "from") if message.get(key)), "")
    if name in _TOOLS or message.get("tool_calls") or message.get("function_call"):
        raise UnfitError("tools")
    if (role := _ROLES.get(name)) is None:
        raise UnfitError(f"a role other than {', '.join(_ROLES)}")
    content = next((message[key] for key in ("content", "value", "text") if message.get(key) is not None), "")
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        text = part
        if isinstance(part, dict):
            kind = str(part.get("type") or "text")
            if kind in _THOUGHTS:
                continue
            if kind.startswith("tool"):
                raise UnfitError("tools")
            text = part.get("text") if kind in _TEXTS else part
        if not isinstance(text, str):
            raise UnfitError("images, sound or files")
        texts.append(text)
    return role, clean("\n".join(texts)).strip()


def _in_turns(messages: list[Said], answer: str | None) -> Conversation:
    """Messages of one speaker in a row are one; replies before the user's first message are left out."""
    spoken: list[Said] = [
        (role, "\n\n".join(text for _, text in group))
        for role, group in groupby(messages, lambda said: said[0])
    ]
    system = spoken.pop(0)[1] if spoken and spoken[0][0] == "system" else ""
    if any(role == "system" for role, _ in spoken):
        raise UnfitError("a system message after the first turn")
    turns = spoken[1:] if spoken and spoken[0][0] == "assistant" else spoken
    if not turns:
        raise UnfitError("no user turn")
    last = max(number for number, (role, _) in enumerate(turns) if role == "user")
    turns[:last] = [
        (role, (outside_thoughts(text) or "").strip() if role == "assistant" else text)
        for role, text in turns[:last]
    ]
    if not all(text.strip() for _, text in turns[: last + 1]):
        raise UnfitError("an empty message")
    return Conversation(system=system, turns=tuple(turns), answer=answer)
