"""Text from models and envs, made fit for databases and terminals."""

import re

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor
    # OSC and its like: titles, links. None holds the beginning of another, so all are found in one pass.
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x1b\\|\x07|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def storable(text: str) -> str:
    """The text with U+FFFD for what not every database can keep: NUL and lone surrogates."""
    return _UNSTORABLE.sub("\ufffd", text)


def printable(text: str) -> str:
    """The text without what would steer a terminal: escape sequences, control and bidi characters."""
    return _CONTROL.sub("", _ESCAPE_SEQUENCE.sub("", text))
