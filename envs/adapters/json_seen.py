"""What was observed, in JSON, as text."""

import json
from collections.abc import Mapping
from typing import Any

from envs.any_text import MAX_CHARS, clean
from envs.observations import MAX_NUMBERS
from envs.words import EnvError


def seen_text(observation: Any) -> str:
    """What was observed, field by field where there are several; without those that say nothing.

    Raises:
        EnvError: It is an image, or as long as one.
    """
    seen = observation if isinstance(observation, Mapping) else {"": observation}
    fields = {key: value for key, value in seen.items() if key != "metadata" and value not in (None, "", [])}
    for key, value in fields.items():
        if (size := _numbers(value)) > MAX_NUMBERS:
            raise EnvError(f"its observation's {key!r} is an image, or {size} numbers: no text")
    texts = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in fields.items()}
    lines = texts.values() if len(texts) == 1 else [f"{key}: {text}" for key, text in texts.items()]
    return clean("\n".join(lines)).strip()[-MAX_CHARS:]


def _numbers(value: Any) -> int:
    """How many numbers there are in lists of lists."""
    return sum(map(_numbers, value)) if isinstance(value, list) else isinstance(value, int | float)
