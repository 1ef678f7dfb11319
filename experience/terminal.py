"""The terminal: the one place where text is shown to people."""

import os
import sys
import warnings
from collections.abc import Iterable
from traceback import format_exception
from types import TracebackType
from typing import Any, NoReturn, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from experience.masking import masked
from experience.text import printable


class Terminal(Console):
    """A console that shows any text as it is: no secrets, nothing that would steer it, no markup."""

    def __init__(self, **options: Any) -> None:
        """See ``Console``; text is neither markup nor highlighted unless asked for."""
        super().__init__(**{"markup": False, "highlight": False, "emoji": False, **options})

    def render_str(self, text: str, *args: Any, **options: Any) -> Text:
        """See ``Console``."""
        return super().render_str(shown(text), *args, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See ``Console``: whatever is printed comes through here, cells of tables too."""
        if isinstance(renderable, Text) and (text := shown(renderable.plain)) != renderable.plain:
            renderable = renderable.copy()
            renderable.plain = text
        return super().render(renderable, options)


def tell(console: Console, text: str, style: str | None = None) -> None:
    """Print a text as it is, whatever the console would make of its marks, in as many lines as it has."""
    console.print(text, style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)


def refuse(error: Exception) -> NoReturn:
    """End a command for what its user can mend: a line on standard error, and exit code 2."""
    tell(Terminal(stderr=True), " ".join(f"error: {error}".splitlines()), "bold red")
    sys.exit(2)


def shown(text: str) -> str:
    """A text as it may be shown."""
    return printable(masked(text))


def take_standard_output() -> TextIO:
    """Standard output for an answer alone: what else is printed from now on goes to standard error.

    Also by other processes that this one begins, and at its end.
    """
    sys.stdout.flush()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answer


def guard_standard_error() -> None:
    """Let warnings and tracebacks, which Python itself prints, be shown as other text is."""

    def tell(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        sys.stderr.write(shown("".join(format_exception(kind, error, traceback))))

    def format_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
        return f"{shown(f'{category.__name__}: {message}')}\n"

    sys.excepthook = tell
    warnings.formatwarning = format_warning
