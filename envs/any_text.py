"""Text that anybody may have written: what is kept of it, and the Gymnasium space of what is left."""

import re
import string
from typing import Any

from gymnasium.spaces import Text

MAX_CHARS = 65_536
"""The longest observation or reply that the text spaces admit, in characters."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def clean(text: str) -> str:
    """``text`` with a space for every control character (but tab and newline) and lone surrogate.

    Windows' newlines become newlines.
    """
    return _UNPRINTABLE.sub(" ", text.replace("\r\n", "\n"))


def first_line(error: BaseException, max_length: int = 300) -> str:
    """What an error of somebody else's code says, in one line; at least what it is called."""
    if isinstance(error, UnicodeDecodeError):  # which speaks of bytes and their positions
        return f"it is not text in {error.encoding.upper()}"
    text = clean(str(error)).strip() or type(error).__name__
    return text.splitlines()[0][:max_length]


class AnyText(Text):
    """Every text of bounded length, in any script, that ``clean`` leaves as it is; samples are ASCII.

    Gymnasium's ``Text`` lists its characters, which for all of Unicode would be a million.
    """

    def __init__(self, max_length: int = MAX_CHARS) -> None:
        """Texts of up to ``max_length`` characters."""
        charset = string.ascii_letters + string.digits + string.punctuation + " \n\t"
        super().__init__(max_length, min_length=0, charset=charset)

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is such a text."""
        return isinstance(x, str) and len(x) <= self.max_length and _UNPRINTABLE.search(x) is None

    def __repr__(self) -> str:
        return f"AnyText({self.max_length})"
