"""YAML that may be anybody's: no longer than it looks, and that is bounded."""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
"""Of a file."""


class PlainLoader(yaml.SafeLoader):
    """Refuses aliases: a few lines of them can stand for more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """See ``yaml.SafeLoader``."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="no aliases, please: write it out", problem_mark=mark)
        return super().compose_node(parent, index)


def read_bounded(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no UTF-8, or has more than ``MAX_BYTES``.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return content.decode("utf-8").replace("\r\n", "\n")
