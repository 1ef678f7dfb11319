"""What an agent writes for an action that is a JSON object, by the object's JSON schema."""

import json
import re
from collections.abc import Mapping
from typing import Any

from envs.actions import MAX_ACTIONS
from envs.any_text import clean

MAX_EXPLANATION = 2000
"""Characters that the fields of an object are explained in."""


class JsonAction:
    """Objects with one field that has to be filled in, by any text or one of a few values; or any others."""

    choices: tuple[Any, ...] = ()
    """The values that the one field can have, where they can be counted."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Look for the one field in the schema of an object.

        It may come from anywhere: what is not understood is left to JSON.

        Raises:
            ValueError: It is no schema of an object.
        """
        if not isinstance(schema, Mapping) or not isinstance(schema.get("properties"), Mapping):
            raise ValueError("no JSON schema of an object")
        kinds = {name: _kind(schema, kind) for name, kind in schema["properties"].items()}
        kinds.pop("metadata", None)
        self._explained = {name: kind.get("description") or kind.get("type") for name, kind in kinds.items()}
        self.field: str | None = None
        """The one field; ``None`` where the agent writes the whole object."""
        needed = schema.get("required")
        fields = [name for name in kinds if isinstance(needed, list) and name in needed] or list(kinds)
        if len(fields) != 1:
            return
        kind = kinds[fields[0]]
        if "enum" not in kind and kind.get("type") == "string":
            self.field = fields[0]
            return
        choices = tuple(_values(kind))
        words = {str(choice).lower() for choice in choices}
        if 0 < len(words) == len(choices) <= MAX_ACTIONS and all(
            re.fullmatch(r"\w+", word) for word in words
        ):
            self.field, self.choices = fields[0], choices

    @property
    def explanation(self) -> str:
        """The fields of an object that the agent writes; empty where it writes only one of them."""
        if self.field is not None:
            return ""
        return clean(json.dumps(self._explained, ensure_ascii=False))[:MAX_EXPLANATION]

    def filled(self, value: Any) -> dict[str, Any]:
        """The object of the one field's value, or of the JSON that the agent wrote.

        Raises:
            ValueError: That is not a JSON object.
        """
        if self.field is not None:
            return {self.field: value}
        try:
            given = json.loads(value)
        except RecursionError as error:
            raise ValueError("too deep") from error
        if not isinstance(given, dict):
            raise ValueError("no JSON object")
        return given


def _kind(schema: Mapping[str, Any], kind: Any) -> Mapping[str, Any]:
    """A field's schema, looked up where it only names one."""
    named = kind.get("$ref") if isinstance(kind, Mapping) else None
    if isinstance(named, str):
        defined = schema.get("$defs")
        kind = defined.get(named.removeprefix("#/$defs/")) if isinstance(defined, Mapping) else None
    return kind if isinstance(kind, Mapping) else {}


def _values(kind: Mapping[str, Any]) -> Any:
    """What a field can be, where that can be counted."""
    listed, low, high = kind.get("enum"), kind.get("minimum"), kind.get("maximum")
    if isinstance(listed, list):
        return listed
    if kind.get("type") == "boolean":
        return False, True
    if kind.get("type") == "integer" and isinstance(low, int) and isinstance(high, int):
        return range(low, min(high, low + MAX_ACTIONS) + 1)
    return ()
