"""A YAML file that people write: its values, and the line on which each of them stands."""

from typing import Any

import yaml

from evals.command import EvalError
from experience.plain_yaml import PlainLoader
from experience.text import printable

Location = tuple[str | int, ...]
"""Where something stands in a file: keys, and numbers in lists."""


class FileError(EvalError):
    """A file that says what cannot be; the message names the file, the line and the key."""


KINDS = {
    **dict.fromkeys(("str", "int", "float", "bool", "null"), yaml.ScalarNode),
    **{"seq": yaml.SequenceNode, "map": yaml.MappingNode},
}
"""What JSON can hold, by YAML's tags."""


class YamlFile:
    """What stands in a file, and where. Only what JSON can hold may stand there, and no key twice."""

    def __init__(self, name: str, text: str, whole: str = "the file") -> None:
        """Read the file; it is called by its name in errors, and as a whole ``whole``.

        Raises:
            FileError: It is no such file.
        """
        self.name, self.whole = name, whole
        self.lines: dict[Location, int] = {}
        self.values: Any = None
        try:
            loader = PlainLoader(text)
            if (node := loader.get_single_node()) is not None:
                self._note_lines(node, ())
                self.values = loader.construct_document(node)
        except FileError:
            raise
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise self._error(line, str(error.problem)) from error
        except (yaml.YAMLError, ValueError, LookupError, RecursionError) as error:
            raise self._error(1, f"no YAML: {str(error).splitlines()[0]}") from error

    def _note_lines(self, node: yaml.Node, at: Location) -> None:
        self.lines.setdefault(at, node.start_mark.line + 1)
        if not isinstance(node, KINDS.get(node.tag.removeprefix("tag:yaml.org,2002:"), ())):
            if isinstance(node, yaml.ScalarNode):  # a date, for instance
                raise self.error(at, "is neither text nor a number: put it in quotes")
            raise self.error(at, "is neither a mapping nor a list: leave its tag out")  # a set, for instance
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*at, str(key.value))
                known = place in self.lines
                self.lines[place] = key.start_mark.line + 1
                if known:
                    raise self.error(place, "stands there twice")
                if key.tag != "tag:yaml.org,2002:str":
                    raise self.error(place, "is not text: put it in quotes")
                self._note_lines(value, place)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._note_lines(value, (*at, index))

    def error(self, at: Location, problem: str) -> FileError:
        """What is wrong at a place, or with what is missing there."""
        line = next((self.lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self.lines), 1)
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).lstrip(".")
        return self._error(line, f"{key or self.whole} {problem}")

    def _error(self, line: int, problem: str) -> FileError:
        problem = " ".join(printable(problem).split())
        return FileError(f"{printable(self.name)}, line {line}: {problem}")
