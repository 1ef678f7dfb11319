"""How a reply becomes an action: one of some words, JSON that fits a space, or the text itself.

Grammars are strict on purpose: a reply that is not clearly an action is none. It is a model's output, and is
only ever compared with words or read by a JSON parser, within bounds.
"""

import itertools
import json
import math
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple

from envs.any_text import AnyText, clean

MAX_ACTIONS = 64
"""Actions are counted one by one up to here."""
MAX_WORD_CHARS = 64
"""A reply longer than this is no action word: nothing longer is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What was read in a reply."""

    text: str
    """The same for all replies that mean the same: what traces record."""
    value: Any
    """What the env's ``step`` takes."""


Grammar = Callable[[str], Action | None]


def word_grammar(words: Sequence[str], first: int = 0) -> Grammar:
    """The one word that the reply consists of, in any case, with no letters or digits beside it.

    The words are in lower case, one per action; ``first`` is the env's number for the first of them.
    """
    values = {word: first + number for number, word in enumerate(words)}

    def read(reply: str) -> Action | None:
        if len(reply) > MAX_WORD_CHARS:
            return None
        match = re.fullmatch(r"[^\w]*(\w+)[^\w]*", reply)
        word = match[1].lower() if match else None
        return Action(text=word, value=values[word]) if word in values else None

    return read


def text_grammar(reply: str) -> Action:
    """The reply itself, free of control characters; it may be empty."""
    text = clean(reply).strip()
    return Action(text=text, value=text)


def json_grammar(space: Space[Any]) -> Grammar:
    """JSON and nothing else, of a value in ``space``; a full stop may follow it."""

    def read(reply: str) -> Action | None:
        try:
            given = json.loads(
                reply.strip().removesuffix("."), parse_constant=_refuse, object_pairs_hook=_object
            )
            value = _fitted(space, given)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            return None
        return Action(text=action_text(value), value=value) if space.contains(value) else None

    return read


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(given := dict(pairs)) < len(pairs):
        raise ValueError("a key stands there twice")
    return given


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _fitted(space: Space[Any], given: Any) -> Any:
    """What JSON holds, in the types of ``space``.

    Raises:
        ValueError: It does not fit; or TypeError, KeyError, OverflowError.
    """
    if isinstance(space, Discrete):
        return space.dtype.type(_whole(given))
    if isinstance(space, MultiDiscrete | MultiBinary):
        numbers = np.asarray(given, dtype=object)
        whole = [_whole(number) for number in numbers.flat]
        return np.asarray(whole, dtype=space.dtype).reshape(numbers.shape)
    if isinstance(space, Box):
        numbers = np.asarray(given, dtype=object)
        if numbers.shape != space.shape:
            raise ValueError("another shape")
        is_whole = _is_whole(space)
        fitted = [_whole(number) if is_whole else _finite(number) for number in numbers.flat]
        # By the bounds as they are said: those of float32, a little beside, must not refuse 0.7, nor must a
        # number just outside be rounded into the space.
        bounds = zip(fitted, _said(space.low), _said(space.high), strict=True)
        if not all(low <= number <= high for number, low, high in bounds):
            raise ValueError("out of bounds")
        with np.errstate(over="ignore"):
            values = np.asarray(fitted).reshape(space.shape).astype(space.dtype)
        if not np.isfinite(values).all():
            raise ValueError("too large")
        return np.asarray(values.clip(space.low, space.high))
    if isinstance(space, Dict):
        if set(given) != set(space.spaces):
            raise ValueError("other keys")
        return {key: _fitted(inner, given[key]) for key, inner in space.spaces.items()}
    if isinstance(space, Tuple):
        if not isinstance(given, list):
            raise ValueError("a list is needed")
        return tuple(_fitted(inner, item) for inner, item in zip(space.spaces, given, strict=True))
    return given


def _is_whole(space: Box) -> bool:
    return space.dtype.kind in "biu"


def _whole(number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f"{number!r} is not a whole number")
    return number


def _finite(number: Any) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise ValueError(f"{number!r} is not a number")
    return float(number)


def is_supported(space: Space[Any]) -> bool:
    """Whether actions of this space can be written as JSON."""
    if isinstance(space, Dict):
        return all(isinstance(key, str) and is_supported(inner) for key, inner in space.spaces.items())
    if isinstance(space, Tuple):
        return all(map(is_supported, space.spaces))
    return isinstance(space, Discrete | MultiDiscrete | MultiBinary | Box | Text)


def action_text(value: Any) -> str:
    """An action as the JSON that ``json_grammar`` reads back, floats as short as their type allows."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        if isinstance(value, np.ndarray):
            return [plain(item) for item in value] if value.ndim else plain(value[()])
        if isinstance(value, np.integer | np.bool_):
            return int(value)
        if isinstance(value, float | np.floating):
            return float(number_text(value))
        return value

    return json.dumps(plain(value), ensure_ascii=False)


def all_actions(space: Space[Any]) -> tuple[str, ...]:
    """The text of every action, in order; none if there are more than ``MAX_ACTIONS``."""
    if _size(space) > MAX_ACTIONS:
        return ()
    return tuple(action_text(value) for value in all_values(space))


def _size(space: Space[Any]) -> float:
    """How many values there are."""
    if isinstance(space, Discrete):
        return int(space.n)
    if isinstance(space, MultiDiscrete):
        return math.prod(map(float, space.nvec.flat))
    if isinstance(space, MultiBinary):
        return math.prod([2.0] * math.prod(space.shape))
    if isinstance(space, Dict):
        return math.prod(map(_size, space.spaces.values()))
    if isinstance(space, Tuple):
        return math.prod(map(_size, space.spaces))
    return math.inf


def all_values(space: Space[Any]) -> Iterator[Any]:
    """What the env's ``step`` takes for each of ``all_actions``, in the same order."""
    if isinstance(space, Discrete):
        yield from range(int(space.start), int(space.start + space.n))
    elif isinstance(space, MultiDiscrete | MultiBinary):
        if isinstance(space, MultiDiscrete):
            sizes, starts = list(space.nvec.flat), list(space.start.flat)
        else:
            sizes, starts = [2] * math.prod(space.shape), [0] * math.prod(space.shape)
        ranges = [range(int(start), int(start + size)) for size, start in zip(sizes, starts, strict=True)]
        for numbers in itertools.product(*ranges):
            yield np.asarray(numbers, space.dtype).reshape(space.shape)
    elif isinstance(space, Dict):
        for values in itertools.product(*map(all_values, space.spaces.values())):
            yield dict(zip(space.spaces, values, strict=True))
    elif isinstance(space, Tuple):
        yield from itertools.product(*map(all_values, space.spaces))


def explain(space: Space[Any]) -> str:
    """What ``json_grammar`` takes, in words."""
    if isinstance(space, Discrete):
        return f"a whole number from {space.start} to {space.start + space.n - 1}"
    if isinstance(space, MultiBinary):
        return f"{_list_of(space.shape)} that are 0 or 1"
    if isinstance(space, MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
        return f"{_list_of(space.shape, 'whole numbers')} {_bounds(low, high)}"
    if isinstance(space, Box):
        kind = "whole number" if _is_whole(space) else "number"
        what = _list_of(space.shape, f"{kind}s") if space.shape else f"a {kind}"
        return f"{what} {_bounds(space.low, space.high)}".rstrip()
    if isinstance(space, Text):
        return f"a text of {_text_bounds(space)} in double quotes"
    if isinstance(space, Dict):
        items = (f"{json.dumps(key)}: {explain(inner)}" for key, inner in space.spaces.items())
        return f"a JSON object with {', '.join(items)}"
    assert isinstance(space, Tuple)
    return f"a JSON list of {', then '.join(map(explain, space.spaces))}"


def _list_of(shape: tuple[int, ...], what: str = "numbers") -> str:
    if len(shape) == 1:
        return f"a JSON list of {shape[0]} {what}"
    return f"nested JSON lists ({' by '.join(map(str, shape))}) of {what}"


def _bounds(low: Any, high: Any) -> str:
    """From where to where, if that is finite."""
    lows, highs = np.unique(low), np.unique(high)
    if len(lows) == len(highs) == 1:
        least, most = lows[0], highs[0]
        if np.isfinite(least) and np.isfinite(most):
            return f"from {number_text(least)} to {number_text(most)}"
        if np.isfinite(least):
            return f"of at least {number_text(least)}"
        return f"of at most {number_text(most)}" if np.isfinite(most) else ""
    return f"from {_nested(low)} to {_nested(high)}"


def _nested(bounds: Any) -> str:
    if bounds.ndim:
        return f"[{', '.join(map(_nested, bounds))}]"
    return number_text(bounds[()]) if np.isfinite(bounds) else "no limit"


def _said(bounds: Any) -> list[float]:
    """Each bound as ``explain`` says it."""
    return [
        int(bound) if isinstance(bound, np.integer) else float(number_text(bound)) for bound in bounds.flat
    ]


def number_text(number: Any) -> str:
    """The shortest text that no other number of its type has, as JSON writes numbers."""
    if isinstance(number, int | np.integer):
        return str(int(number))
    if number == 0 or 1e-4 <= abs(float(number)) < 1e16:
        return np.format_float_positional(number + 0, trim="-")
    return np.format_float_scientific(number, trim="-")


def _text_bounds(space: Text) -> str:
    length = f"at most {space.max_length} characters"
    if space.min_length:
        length = f"{space.min_length} to {space.max_length} characters"
    if isinstance(space, AnyText):
        return length
    if space.character_set == set(string.ascii_letters + string.digits):
        return f"{length} (letters from A to Z or a to z, and digits)"
    return f"{length} (only those in {json.dumps(''.join(sorted(space.character_set)), ensure_ascii=False)})"
