"""Observations of any space as text, and what like ones have in common."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Tuple

from envs.any_text import MAX_CHARS, clean

MAX_NUMBERS = 256
"""Arrays with more numbers are abbreviated to their corners."""
MAX_COMPONENTS = 16
"""In vectors of up to this many numbers each is named."""
DECIMALS = 2
"""Of a number; more where its bounds are narrow, never fewer: wide ones may be placeholders."""
BUCKETS = 7
"""Of each component of an observation, between its bounds; odd, so that one lies around the middle."""
WIDE = 3.0
"""Where a component has no bounds, the buckets lie between minus and plus this."""


def is_image(space: Space[Any] | None) -> bool:
    """Whether its values are pictures, or views coded as such: bytes in rows, with channels or many.

    So are those of a ``Dict`` or ``Tuple`` of nothing else.
    """
    if isinstance(space, Dict | Tuple) and space.spaces:
        return all(map(is_image, space.spaces.values() if isinstance(space, Dict) else space.spaces))
    return (
        isinstance(space, Box)
        and space.dtype == np.uint8
        and bool((space.high == 255).all())
        and (len(space.shape) > 2 or (len(space.shape) == 2 and math.prod(space.shape) > MAX_NUMBERS))
    )


def without_images(space: Space[Any] | None, value: Any) -> Any:
    """A value of ``space`` without its images, however deep they are."""
    if isinstance(space, Dict):
        kinds = {key: space.spaces.get(key) for key in value}
        return {key: without_images(kinds[key], value[key]) for key in value if not is_image(kinds[key])}
    if isinstance(space, Tuple):
        parts = zip(space.spaces, value, strict=True)
        return tuple(without_images(kind, item) for kind, item in parts if not is_image(kind))
    return value


def value_text(value: Any) -> str:
    """Any value of any space as one text: numbers rounded, large arrays abbreviated, texts as they are."""
    return clean(_text(value))


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_text, value))})"
    if isinstance(value, np.ndarray) and not value.ndim:
        return _text(value[()])
    if isinstance(value, np.ndarray):
        shape = f"{'x'.join(map(str, value.shape))} array " if value.size > MAX_NUMBERS else ""
        return shape + np.array2string(
            value, precision=DECIMALS, suppress_small=True, threshold=MAX_NUMBERS, max_line_width=MAX_CHARS
        ).replace("\n\n", "\n")
    if isinstance(value, float | np.floating):
        return number_text(float(value), DECIMALS)
    return str(value)


def number_text(number: float, decimals: int) -> str:
    """Rounded, without trailing zeros or a minus before zero."""
    text = f"{round(number, decimals) + 0.0:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if decimals else text


class Components:
    """A vector whose numbers have names."""

    def __init__(self, space: Box, names: Sequence[str]) -> None:
        """Set the decimals and the buckets by the bounds of the space, which has one dimension."""
        self.names = tuple(names)
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        # A bound near the largest float is none.
        bounded = (np.abs(low) < 1e30) & (np.abs(high) < 1e30)
        self._low = np.where(bounded, low, -WIDE)
        self._high = np.where(bounded, high, WIDE)
        widths = np.maximum(self._high - self._low, 1e-9)
        whole = np.issubdtype(space.dtype, np.integer)
        self._decimals = [
            0 if whole else max(DECIMALS, 2 - math.floor(math.log10(width))) for width in widths
        ]

    def describe(self, observation: Any) -> str:
        """A sentence such as "Position -0.52, velocity 0.003."."""
        numbers = np.asarray(observation, dtype=np.float64)
        if numbers.shape != (len(self.names),) or np.isnan(numbers).any():
            raise ValueError(f"an observation of {len(self.names)} numbers is needed, not {observation}")
        return self._sentence(numbers)

    def situation(self, sentence: str) -> str:
        """The sentence of the middle of its buckets."""
        numbers = np.asarray([float(part.rsplit(" ", 1)[1]) for part in sentence.rstrip(".").split(", ")])
        width = (self._high - self._low) / BUCKETS
        width = np.where(width > 0, width, 1.0)
        bucket = np.clip(np.floor((numbers - self._low) / width), 0, BUCKETS - 1)
        return self._sentence(self._low + (bucket + 0.5) * width)

    def _sentence(self, numbers: Any) -> str:
        parts = (
            f"{name} {number_text(float(number), decimals)}"
            for name, number, decimals in zip(self.names, numbers, self._decimals, strict=True)
        )
        text = ", ".join(parts) + "."
        return text[0].upper() + text[1:]
