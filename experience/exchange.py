"""Runs as folders of plain files, one per table: to keep, to publish, to load elsewhere, to merge stores.

    python -m experience.store export RUN/experience.db FOLDER
    python -m experience.store import FOLDER postgresql+psycopg://user@host/experience

Rows name their run by its name. In JSON Lines, lists are JSON; in Parquet, which needs pyarrow, they are JSON
in text.
"""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
import tyro

from experience import tables
from experience.database import VERSIONS, Database, StoreError, insert_new
from experience.insight import InsightState
from experience.seeds import Split
from experience.store import find_or_begin, run_keys
from experience.terminal import shown
from experience.trace import StopReason

Format = Literal["jsonl", "parquet"]
Row = dict[str, Any]

ABOUT = "store.json"
BATCH = 1000
"""Rows in memory at once."""
LIMIT = 1 << 63
"""Integers are of 64 bits."""
WORDS = {"split": Split, "stop_reason": StopReason, "state": InsightState}
CHOICES = {name: frozenset(map(str, words)) for name, words in WORDS.items()}
"""Columns that hold one of a few words."""
JSON_COLUMNS = {
    column.name
    for table in tables.metadata.sorted_tables
    for column in table.columns
    if isinstance(column.type, tables.Json)
}


def export_runs(database: Database, folder: Path, *, run: str | None = None, format: Format = "jsonl") -> int:
    """Write a store as a folder, which appears when it is whole.

    Args:
        database: Where the store is.
        folder: A new one.
        run: The one run to write; by default all.
        format: Of the files.

    Returns:
        How many traces were written.

    Raises:
        StoreError: The run is not there, the folder is, or pyarrow is missing.
    """
    if folder.exists():
        raise StoreError(f"{folder} is there already: name a new folder")
    write = _write_parquet if format == "parquet" else _write_jsonl
    tmp = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        tmp.mkdir(parents=True)
        with database.reading() as connection:
            keys = run_keys(connection)
            if run is not None and run not in keys:
                raise StoreError(f"{database.name} has no run {run}; it has: {', '.join(keys) or 'none'}")
            names = {key: name for name, key in keys.items() if run in (None, name)}
            counts = {
                table.name: write(tmp / f"{table.name}.{format}", table, _rows(connection, table, names))
                for table in tables.metadata.sorted_tables
            }
        about = {"format": format, "schema": VERSIONS[-1], "rows": counts}
        (tmp / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        os.replace(tmp, folder)
    except OSError as error:
        raise StoreError(f"{folder} could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return counts["traces"]


def import_runs(folder: Path, database: Database, *, run: str | None = None) -> int:
    """Add what ``export_runs`` wrote to a store, all of it or nothing.

    What the store has already is left as it is, so that importing again changes nothing.

    Args:
        folder: What was exported.
        database: Where the store is.
        run: What to call the run there, if the folder holds one only; by default as in the folder.

    Returns:
        How many traces are new.

    Raises:
        StoreError: The folder is not whole or something else, or the store has another run of that name.
    """
    format, counts = _about(folder)
    if run is not None and counts.get("runs") != 1:
        raise StoreError(f"{folder} holds {counts.get('runs')} runs: only a single one can be given a name")
    # Of what was there before, a trace keeps its own turns, and an insight its own evidence.
    new: dict[str, set[tuple[Any, ...]]] = {"traces": set(), "insights": set()}
    owners = {"turns": ("traces", "trace_id"), "evidence": ("insights", "insight_id")}
    turns: Counter[tuple[Any, ...]] = Counter()
    with database.writing() as connection:
        keys = {
            row["run_id"]: _begin(connection, run or row["run_id"], row)
            for batch in _batches(folder / f"runs.{format}", tables.runs, counts)
            for row in batch
        }
        for table in tables.metadata.sorted_tables[1:]:
            path = folder / f"{table.name}.{format}"
            for batch in _batches(path, table, counts):
                for row in batch:
                    if row["run"] not in keys:
                        raise StoreError(f"{path}: the run {row['run']} is not in runs.{format}")
                    row["run"] = keys[row["run"]]
                if table.name in owners:
                    owner, name = owners[table.name]
                    batch = [row for row in batch if (row["run"], row[name]) in new[owner]]
                try:
                    written = insert_new(connection, table, batch)
                except sa.exc.IntegrityError as error:
                    raise StoreError(f"{path} names what is not in the folder: {error.orig}") from error
                if table.name in new:
                    new[table.name] |= written
                elif table is tables.turns:
                    turns.update(key[:2] for key in written)
        traces = tables.traces.c
        query = sa.select(traces.run, traces.trace_id, traces.num_turns).where(traces.run.in_(keys.values()))
        for *key, num_turns in connection.execute(query):
            found = turns[tuple(key)]
            if tuple(key) in new["traces"] and found != num_turns:
                raise StoreError(f"{folder} has {found} of the {num_turns} turns of {key[1]}")
    return len(new["traces"])


def _batches(path: Path, table: sa.Table, counts: Mapping[str, int]) -> Iterator[list[Row]]:
    """The rows of a file.

    Raises:
        StoreError: They are not of the table, or not as many as were exported.
    """
    read = _read_parquet if path.suffix == ".parquet" else _read_jsonl
    rows, count = _checked(table, read(path)), 0
    while batch := list(islice(rows, BATCH)):
        count += len(batch)
        yield batch
    if count != counts.get(table.name):
        raise StoreError(f"{path} has {count} rows and should have {counts.get(table.name)}")


def _begin(connection: sa.Connection, name: str, row: Row) -> int:
    """The key of an imported run.

    Raises:
        StoreError: The store has another of that name, with which it must not be mixed.
    """
    key = find_or_begin(connection, name, row["begun"])
    begun = connection.execute(sa.select(tables.runs.c.begun).where(tables.runs.c.run == key)).scalar()
    if begun != row["begun"]:
        raise StoreError(
            f"the store has another run called {name}, begun {begun}; this one was begun {row['begun']}: "
            "give it another name with --run"
        )
    return key


def _rows(connection: sa.Connection, table: sa.Table, names: Mapping[int, str]) -> Iterator[Row]:
    """The runs' rows of a table, in the order of their keys."""
    query = sa.select(table).where(table.c.run.in_(names)).order_by(*table.primary_key.columns)
    for row in connection.execution_options(yield_per=BATCH).execute(query).mappings():
        values = dict(row)
        if table is tables.runs:
            del values["run"]
        else:
            values["run"] = names[values["run"]]
        yield values


def _columns(table: sa.Table) -> dict[str, sa.Column[Any]]:
    """What a file of the table holds; ``run`` is a name there, and needless in the table of runs."""
    return {c.name: c for c in table.columns if not (table is tables.runs and c.name == "run")}


# --- files ---------------------------------------------------------------------------------------


def _about(folder: Path) -> tuple[str, dict[str, int]]:
    """The files' format, and how many rows each has."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        format, schema, counts = about["format"], about["schema"], dict(about["rows"])
    except OSError as error:
        raise StoreError(
            f"{folder} is no exported store: {ABOUT} cannot be read ({error.strerror})"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{folder / ABOUT} is not what an export writes") from error
    if format not in ("jsonl", "parquet") or schema != VERSIONS[-1]:
        raise StoreError(
            f"{folder} holds {format} of schema {schema}, this opcd-gym reads jsonl and parquet of "
            f"{VERSIONS[-1]}: import it with the version that wrote it"
        )
    return str(format), counts


def _write_jsonl(path: Path, table: sa.Table, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
            count += 1
    return count


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """Each row, with where it stands."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                yield f"{path}, line {number}", json.loads(line)
    except ValueError as error:
        raise StoreError(f"{path} is no JSON Lines file: {error}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error


def _write_parquet(path: Path, table: sa.Table, rows: Iterable[Row]) -> int:
    pa, parquet = _pyarrow()
    types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string(), object: pa.string()}
    columns = _columns(table)
    schema = pa.schema([(name, types[_type(column)]) for name, column in columns.items()])
    lists = JSON_COLUMNS & columns.keys()
    rows, count = iter(rows), 0
    with parquet.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, BATCH)):
            for row in batch:
                row |= {name: json.dumps(row[name]) for name in lists if row[name] is not None}
            writer.write_table(pa.Table.from_pylist(batch, schema))
            count += len(batch)
    return count


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    pa, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            lists = JSON_COLUMNS.intersection(file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(BATCH):
                for row in batch.to_pylist():
                    number += 1
                    row |= {name: json.loads(row[name]) for name in lists if row[name] is not None}
                    yield f"{path}, row {number}", row
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise StoreError(f"{path} is no Parquet file of a store: {error}") from error
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise StoreError("Parquet needs pyarrow: pip install 'opcd-gym[parquet]'") from error
    return pyarrow, parquet


def _type(column: sa.Column[Any]) -> type:
    """What a column holds in a file; ``object`` for any JSON."""
    if isinstance(column.type, tables.Json):
        return object
    if column.name == "run" or isinstance(column.type, tables.Text):
        return str
    return column.type.python_type


def _checked(table: sa.Table, rows: Iterable[tuple[str, Any]]) -> Iterator[Row]:
    """The rows, each with the table's columns and types.

    Raises:
        StoreError: One is not like that.
    """
    columns = _columns(table)
    for where, row in rows:
        if not isinstance(row, dict) or row.keys() != columns.keys():
            raise StoreError(f"{where} is no row of {table.name} with the columns {', '.join(columns)}")
        for name, column in columns.items():
            value, kind = row[name], _type(column)
            fits = column.nullable if value is None else type(value) is kind or kind is object
            if kind is float and type(value) is int:
                fits = True
            if type(value) is int and not -LIMIT <= value < LIMIT:
                fits = False
            if not fits or (name in CHOICES and value not in CHOICES[name]):
                raise StoreError(f"{where}: {name} cannot be {value!r}")
        yield row


# --- the command ---------------------------------------------------------------------------------


def export_command(
    store: tyro.conf.Positional[str],
    folder: tyro.conf.Positional[Path],
    /,
    run: str | None = None,
    format: Format = "jsonl",
) -> None:
    """Write runs as a folder of files.

    Args:
        store: The path of a database, or its URL.
        folder: A new folder.
        run: The one run to write; all by default.
        format: Of the files.
    """
    with Database(store, create=False) as database:
        print(f"{folder}: {export_runs(database, folder, run=run, format=format)} traces")


def import_command(
    folder: tyro.conf.Positional[Path], store: tyro.conf.Positional[str], /, run: str | None = None
) -> None:
    """Add the runs of such a folder to a store; what it has already stays as it is.

    Args:
        folder: What export wrote.
        store: The path of a database, or its URL; begun if there is none.
        run: What to call the run there, if the folder holds one only; by default as in the folder.
    """
    _about(folder)  # first, so that nothing is begun for nothing
    with Database(store) as database:
        print(f"{database.name}: {import_runs(folder, database, run=run)} new traces")


def main(args: list[str] | None = None) -> None:
    """The command ``python -m experience.store``."""
    commands: dict[str, Callable[..., None]] = {"export": export_command, "import": import_command}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m experience.store", args=args)
    except StoreError as error:
        sys.exit(shown(f"error: {error}"))
