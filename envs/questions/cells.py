"""What a cell of a table stands for, and what others wrap around it."""

import json
import math
from contextlib import suppress
from decimal import Decimal
from typing import Any

import numpy as np

from envs.any_text import clean

ANSWER_KEYS = ("ground_truth", "answer", "content", "text", "value")
"""Where answers stand in cells that are objects."""
MAX_FOLDS = 8
"""Of cells in cells."""


def cell_text(value: Any, *, is_answer: bool = False, folds: int = MAX_FOLDS) -> str:
    """The text that a cell stands for: of messages what they say, of ``{"ground_truth": "2"}`` the 2.

    Args:
        value: Text, a number, or what others wrap around these: lists of one, messages,
            objects; also as JSON.
        is_answer: Of messages take the assistant's last one, and not what it is told.
        folds: How many may be in one another.

    Raises:
        ValueError: It is empty, or several things; the message completes "the cell ...".
    """
    value = plain(value)
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float) and not math.isnan(value):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    if isinstance(value, list | dict) and folds == 0:
        raise ValueError("has too many lists and objects in one another")
    if isinstance(value, dict):
        keys = [key for key in ANSWER_KEYS if key in value] or (list(value) if len(value) == 1 else [])
        if not keys:
            raise ValueError(
                f"is an object with {', '.join(map(str, value)) or 'nothing'}: name the column of one"
            )
        return cell_text(value[keys[0]], is_answer=is_answer, folds=folds - 1)
    if isinstance(value, list):
        if _is_messages(value):
            value = _said(value, is_answer)
        elif len(value) != 1:
            raise ValueError(f"is a list of {len(value)}: it must be one text")
        return "\n\n".join(cell_text(item, is_answer=is_answer, folds=folds - 1) for item in value)
    if is_missing(value):
        raise ValueError("is empty")
    if not isinstance(value, str):
        raise ValueError(f"is a {type(value).__name__}: write it as text or as a number")
    if value.startswith(("[{'", "{'")) and "':" in value:
        raise ValueError("is a list or an object as Python writes it: write it as JSON")
    return clean(value)


def _is_messages(value: list[Any]) -> bool:
    """Whether it is a chat, or the parts of a message."""
    return bool(value) and all(isinstance(item, dict) and {"content", "text"} & set(item) for item in value)


def cell_list(value: Any) -> list[Any] | None:
    """The items of a cell that is a list, also as JSON; ``None`` if it is none."""
    value = plain(value)
    return value if isinstance(value, list) else None


def is_missing(value: Any) -> bool:
    """Whether nothing stands in a cell."""
    value = plain(value)
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def plain(value: Any) -> Any:
    """A cell in Python's own types; of JSON in a text, what it holds."""
    import pandas as pd

    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, str) and value.startswith(("[{", '{"', '["')):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _said(messages: list[dict[str, Any]], is_answer: bool) -> list[Any]:
    """What is said in a chat: by the assistant at last, or to it before."""
    said = [message.get("content", message.get("text")) for message in messages]
    roles = [message.get("role") for message in messages]
    if is_answer:
        return said[-1:]
    told = [text for text, role in zip(said, roles, strict=True) if role != "assistant"]
    if told and roles[: len(told)] != [role for role in roles if role != "assistant"]:
        raise ValueError("is a chat of several turns: it must be one question")
    return told
