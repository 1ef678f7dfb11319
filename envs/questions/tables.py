"""Tables of questions from files and data sets."""

import csv
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from envs.any_text import MAX_CHARS, clean, first_line
from envs.questions.cells import cell_list, cell_text, is_missing, plain
from envs.words import EnvError

if TYPE_CHECKING:
    import pandas as pd  # most processes that play have no use for it, and there may be many

MAX_QUESTION_CHARS = MAX_CHARS - 8192
"""An observation is a question, and what is said about the last answer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Rows from somewhere."""

    source: str
    """What it is, for messages."""
    frame: "pd.DataFrame"
    """At least one row."""

    def select(self, columns: Mapping[str, str]) -> "pd.DataFrame":
        """Some of the columns, as they are, each under the name of the setting that asks for it.

        Raises:
            EnvError: One is not there, or there are several of the name.
        """
        names = list(self.frame.columns)
        for setting, column in columns.items():
            if column not in names:
                known = ", ".join(map(str, names))
                raise EnvError(
                    f"{self.source} has no column {column!r}: name one with {setting}=; it has {known}"
                )
            if names.count(column) > 1:
                raise EnvError(
                    f"{self.source} has {names.count(column)} columns {column!r}: rename all but one"
                )
        return self.frame[list(dict.fromkeys(columns.values()))]

    def questions(self, question: str, answer: str, options: Sequence[str] = ()) -> list[tuple[str, str]]:
        """The question, with its options under it, and the answer of each row.

        The options have a column each, or one with lists of them.

        Raises:
            EnvError: There is no such column, or a row has no question or no answer.
        """
        if len(options) > len(ascii_uppercase):
            raise EnvError(f"there can be {len(ascii_uppercase)} options at most, not {len(options)}")
        columns = {"question": question, "answer": answer, **{f"options ({o})": o for o in options}}
        frame, rows = self.select(columns), []
        cells_of_rows = zip(*(frame[column] for column in (question, answer, *options)), strict=True)
        for number, (posing, answered, *cells) in enumerate(cells_of_rows, 1):
            with self.row(number, question):
                text = cell_text(posing)
            with self.row(number, answer):
                answered = cell_text(answered, is_answer=True)
            with self.row(number, ", ".join(options)):
                text = "\n".join([text, *(f"{letter}. {option}" for letter, option in _options(cells))])
            with self.row(number, question):
                if len(text) > MAX_QUESTION_CHARS:
                    raise ValueError(f"has {len(text)} characters; it can have {MAX_QUESTION_CHARS} at most")
            rows.append((clean(text).strip(), answered))
        return rows

    @contextmanager
    def row(self, number: int, column: str) -> Iterator[None]:
        """What is said of a cell that cannot be read inside.

        Raises:
            EnvError: In place of a ``ValueError``, with the row's number, from 1 on.
        """
        try:
            yield
        except ValueError as error:
            raise EnvError(f"{self.source}, row {number}: {column!r} {error}") from error


def file_table(path: str) -> Table:
    """What stands in a file: JSONL, CSV or Parquet, by its ending.

    Raises:
        EnvError: There is no such file, it cannot be read, or it has no rows.
    """
    try:
        changed = os.stat(path).st_mtime_ns
    except OSError as error:
        raise EnvError(f"the file {path} cannot be read: {error.strerror}") from error
    return _file_table(path, changed)


# The places of a vector env share what they read.
@lru_cache(maxsize=8)
def _file_table(path: str, changed: int) -> Table:
    readers: dict[str, Callable[[str], pd.DataFrame]] = {
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".parquet": _read_parquet,
    }
    ending = Path(path).suffix.lower()
    if ending not in readers:
        raise EnvError(f"the file {path} must end in {', '.join(readers)}")
    try:
        frame = readers[ending](path)
    except Exception as error:  # pandas and pyarrow have many
        raise EnvError(f"the file {path} cannot be read as {ending[1:]}: {first_line(error)}") from error
    return _table(f"the file {path}", frame)


@lru_cache(maxsize=8)
def dataset_table(name: str, config: str | None, split: str) -> Table:
    """What stands in a Hugging Face data set; see ``Source``.

    Raises:
        EnvError: The package is missing, or the data set cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise EnvError("dataset= needs datasets: pip install 'opcd-gym[datasets]'") from error
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # whatever the hub and the network raise
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise EnvError(f"the data set {name} cannot be had: {reason}") from error
    return _table(f"the data set {name}", rows.with_format("arrow")[:].to_pandas(integer_object_nulls=True))


def _table(source: str, frame: "pd.DataFrame") -> Table:
    if frame.empty:
        raise EnvError(f"{source} is empty")
    short = frame.select_dtypes(["float16", "float32"])  # with the digits that they have
    return Table(source=source, frame=frame.assign(**short.astype(str).astype(float)))


def _read_csv(path: str) -> "pd.DataFrame":
    """Row by row: pandas would take a field too many for an index, and make up one that is missing."""
    import pandas as pd

    csv.field_size_limit(2**31 - 1)  # a column that nobody asks for may hold whole books
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            rows = [row for row in reader if len(row) > 1 or "".join(row).strip()]
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
    header, *rows = rows or [[]]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(
                f"row {number} has {len(row)} fields and the header {len(header)}: "
                "quote a field that holds a comma"
            )
    return pd.DataFrame(rows, columns=header, dtype=object)


def _read_parquet(path: str) -> "pd.DataFrame":
    """With whole numbers as they are: beside a missing one pandas would make floats of them.

    What was an index when pandas wrote the file is a column like the others.
    """
    from pyarrow import parquet

    frame: pd.DataFrame = parquet.read_table(path).to_pandas(integer_object_nulls=True, ignore_metadata=True)
    return frame


def _read_jsonl(path: str) -> "pd.DataFrame":
    """Line by line: pandas would make dates and floats of what looks like them."""
    import pandas as pd

    rows = []
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"line {number} is not a JSON object")
                rows.append(row)
    return pd.DataFrame(rows, dtype=object)


def _options(cells: Sequence[Any]) -> list[tuple[str, str]]:
    """The options of a row with their letters, from a column for each, or from one column with lists.

    An option that is missing leaves its letter out.

    Raises:
        ValueError: There are too many, or one is no text.
    """
    letters: Sequence[str] = ascii_uppercase
    if len(cells) == 1:
        cell = plain(cells[0])
        if isinstance(cell, dict) and "text" in cell:  # as in ARC, with the letters beside
            letters, cell = cell_list(cell.get("label")) or letters, cell["text"]
        elif isinstance(cell, dict) and set(cell).issubset(letters):  # as in MedQA, each under its own
            letters, cell = sorted(cell), [cell[letter] for letter in sorted(cell)]
        cells = cell_list(cell) or [cell]
    if len(cells) > len(letters):
        raise ValueError(f"has {len(cells)} options; there can be {len(letters)} at most")
    lettered = zip(letters, cells, strict=False)
    return [(str(letter), cell_text(cell)) for letter, cell in lettered if not is_missing(cell)]
