"""A table's rows as files of JSON Lines or Parquet, which are read as anybody's: strictly.

Not through pandas, which keeps 15 digits of a number in JSON, and no infinity.
"""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, get_args

import sqlalchemy as sa
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, create_model

from experience import ExperienceError

BATCH, SHARD = 1_000, 100_000
"""Rows that are in memory at once when they are read, and rows in a file."""
MAX_ROW_CHARS = 1 << 24
"""Of a row of JSON Lines."""
_DTYPES = {int: "int64", float: "float64", bool: "bool"}


def write_rows(folder: Path, table: sa.Table, format: str, connection: sa.Connection, run: int) -> int:
    """Write a run's rows as ``folder/TABLE-*.FORMAT``; returns how many there are.

    Raises:
        ExperienceError: pyarrow is missing.
        OSError: They cannot be written.
    """
    # Any JSON is text there, for a column of a data set is of one type.
    texts = {name: sa.type_coerce(table.c[name], sa.Text).label(name) for name in _kinds(table)}
    columns = [texts[name] if kind is object else table.c[name] for name, kind in _kinds(table).items()]
    query = sa.select(*columns).where(table.c.run == run).order_by(*table.primary_key)
    parts, count = connection.execute(query.execution_options(yield_per=SHARD)).mappings().partitions(), 0
    for number, part in enumerate(parts):
        path, rows = folder / f"{table.name}-{number:05}.{format}", list(map(dict, part))
        if format == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            pyarrow = _pyarrow()
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        count += len(rows)
    return count


def insert_rows(folder: Path, table: sa.Table, count: int, connection: sa.Connection, run: int) -> None:
    """Insert what ``write_rows`` wrote as a run's rows, each checked, and that all are there.

    Raises:
        ExperienceError: One is not as the table wants it, or contradicts another, or there are not ``count``.
    """
    rows, found = _read(folder, table), 0
    try:
        while batch := [{**row, "run": run} for row in islice(rows, BATCH)]:
            connection.execute(table.insert(), batch)
            found += len(batch)
    except (OverflowError, sa.exc.IntegrityError) as error:
        reason = getattr(error, "orig", error)
        raise ExperienceError(f"{folder}: {table.name} contradicts the rest: {reason}") from error
    if found != count:
        raise ExperienceError(f"{folder} has {found} rows of {table.name} and should have {count}")


def features(table: sa.Table) -> list[dict[str, str]]:
    """The type of each column, as ``datasets`` calls it."""
    kinds = [(name, kind, get_args(kind)) for name, kind in _kinds(table).items()]
    return [
        {"name": name, "list" if items else "dtype": _DTYPES.get(items[0] if items else kind, "string")}
        for name, kind, items in kinds
    ]


def _read(folder: Path, table: sa.Table) -> Iterator[dict[str, Any]]:
    fields: Any = {}
    for name, kind in _kinds(table).items():
        checked = Annotated[str, AfterValidator(json.loads)] if kind is object else kind
        fields[name] = (checked | None if table.c[name].nullable else checked, ...)
    strictly = ConfigDict(strict=True, extra="forbid")
    row_type: type[BaseModel] = create_model(table.name, __config__=strictly, **fields)
    path, number = folder, 0
    try:
        for path in sorted(folder.glob(f"{table.name}-*")):
            for number, line in enumerate(_lines(path), 1):  # noqa: B007 (the error's)
                yield dict(row_type.model_validate_json(line))
    except ValidationError as error:
        problem = error.errors()[0]
        column = ".".join(map(str, problem["loc"])) or "all of it"
        raise ExperienceError(f"row {number} of {path}: {column}: {problem['msg']}") from error
    except (OSError, ValueError, TypeError, NotImplementedError, RecursionError) as error:
        raise ExperienceError(f"{path} cannot be read: {error}") from error


def _kinds(table: sa.Table) -> dict[str, Any]:
    """Each column's type in Python; which run it is, files do not say."""
    return {str(c.name): c.type.python_type for c in table.columns if c.name != "run"}


def _lines(path: Path) -> Iterator[str]:
    """The rows of a file, as JSON."""
    if not path.is_file():  # a pipe or a device may have no end
        raise ValueError("it is no regular file")
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            while line := file.readline(MAX_ROW_CHARS + 1):
                if len(line) > MAX_ROW_CHARS:
                    raise ValueError(f"a row has more than {MAX_ROW_CHARS:,} characters")
                yield line
    else:
        for part in _pyarrow().parquet.ParquetFile(path).iter_batches(BATCH):
            yield from map(json.dumps, part.to_pylist())


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ExperienceError("Parquet needs pyarrow: pip install 'opcd-gym[parquet]'") from error
    return pyarrow
