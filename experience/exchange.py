"""A run as a folder of JSON Lines or Parquet, which ``datasets.load_dataset(FOLDER, "turns")`` opens as well.

Not through pandas, which keeps 15 digits of a number in JSON, and no infinity.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import sqlalchemy as sa
import tyro
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, create_model
from tyro.conf import Positional

from experience import ExperienceError, tables
from experience.database import VERSION, Database
from experience.store import find_run
from experience.terminal import shown

TABLES = [table for table in tables.metadata.sorted_tables if table is not tables.runs]
BATCH, SHARD = 1_000, 100_000
"""Rows that are inserted at once, and rows in a file."""


def export_run(
    store: Positional[str],
    folder: Positional[Path],
    /,
    run: str | None = None,
    format: Literal["jsonl", "parquet"] = "jsonl",
) -> None:
    """Write a run as a folder of files, which appears when it is whole.

    Args:
        store: The path of a database, or its URL.
        folder: A new folder.
        run: The run's name; by default the only one.
        format: Of the files.

    Raises:
        ExperienceError: The run is not there, the folder is, or pyarrow is missing.
    """
    if folder.exists():
        raise ExperienceError(f"{folder} is there already: name a new folder")
    tmp, counts = folder.with_name(f"{folder.name}.tmp"), {str(table.name): 0 for table in TABLES}
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        tmp.mkdir(parents=True)
        with Database(store, create=False) as database, database.reading() as connection:
            found = find_run(connection, run, database.name)
            for table in TABLES:
                query = sa.select(*_columns(table)).where(table.c.run == found.run)
                query = query.order_by(*table.primary_key).execution_options(yield_per=SHARD)
                for number, rows in enumerate(connection.execute(query).mappings().partitions()):
                    _write(tmp / f"{table.name}-{number:05}.{format}", [dict(row) for row in rows])
                    counts[table.name] += len(rows)
        features = {str(table.name): _features(table) for table in TABLES if counts[table.name]}
        card = {
            "configs": [{"config_name": name, "data_files": f"{name}-*.{format}"} for name in features],
            "dataset_info": [{"config_name": name, "features": list_} for name, list_ in features.items()],
            "opcd_gym": {"version": VERSION, "run": found.run_id, "begun": found.begun, "rows": counts},
        }
        text = yaml.safe_dump(card, sort_keys=False, allow_unicode=False)
        (tmp / "README.md").write_text(f"---\n{text}---\n", encoding="utf-8")
        os.replace(tmp, folder)
    except OSError as error:
        raise ExperienceError(f"{folder} could not be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    print(f"{folder}: {counts['traces']} traces")


def import_run(folder: Positional[Path], store: Positional[str], /, run: str | None = None) -> None:
    """Add what export wrote to a store, all of it or nothing.

    Args:
        folder: What export wrote.
        store: The path of a database, or its URL; begun if there is none.
        run: What to call the run there; by default as in the folder.

    Raises:
        ExperienceError: The folder is not whole or something else, or the store has a run of that name.
    """
    try:  # first, so that nothing is begun for nothing
        text = (folder / "README.md").read_text(encoding="utf-8")
        about = yaml.safe_load(text.partition("\n---\n")[0])["opcd_gym"]
        version, name, begun = (str(about[key]) for key in ("version", "run", "begun"))
        counts = {table.name: int(about["rows"][table.name]) for table in TABLES}
    except (OSError, ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ExperienceError(f"{folder} is no exported run: it has no README.md as export writes") from error
    if version != VERSION:
        raise ExperienceError(f"{folder} is of version {version}, this opcd-gym reads {VERSION} alone")
    with Database(store) as database, database.writing() as connection:
        name = run or name
        begin = tables.runs.insert().values(run_id=name, begun=begun).returning(tables.runs.c.run)
        try:
            key = connection.execute(begin).scalar_one()
        except sa.exc.IntegrityError:
            raise ExperienceError(
                f"{database.name} has a run {name} already: give another name with --run"
            ) from None
        for table in TABLES:
            rows = _rows(folder, table, counts[table.name])
            try:
                while batch := [{**row, "run": key} for row in islice(rows, BATCH)]:
                    connection.execute(table.insert(), batch)
            except (OverflowError, sa.exc.IntegrityError) as error:
                reason = getattr(error, "orig", error)
                raise ExperienceError(f"{folder}: {table.name} contradicts the rest: {reason}") from error
        column = tables.traces.c
        told = connection.execute(sa.select(sa.func.sum(column.num_turns)).where(column.run == key)).scalar()
        if (told or 0) != counts["turns"]:
            raise ExperienceError(f"{folder} has {counts['turns']} turns, and its traces speak of {told}")
    print(shown(f"{database.name}: {counts['traces']} traces of the run {name}"))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pyarrow = _pyarrow()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _rows(folder: Path, table: sa.Table, count: int) -> Iterator[dict[str, Any]]:
    """The table's rows, each checked, and that all are there."""
    row_type, path, found = _row_type(table), folder, 0
    try:
        for path in sorted(folder.glob(f"{table.name}-*")):
            for line in _lines(path):
                found += 1
                yield dict(row_type.model_validate_json(line))
    except ValidationError as error:
        problem = error.errors()[0]
        column = ".".join(map(str, problem["loc"])) or "all of it"
        raise ExperienceError(f"row {found} of {path}: {column}: {problem['msg']}") from error
    except (OSError, ValueError, TypeError, NotImplementedError, RecursionError) as error:
        raise ExperienceError(f"{path} cannot be read: {error}") from error
    if found != count:
        raise ExperienceError(f"{folder} has {found} rows of {table.name} and should have {count}")


def _lines(path: Path) -> Iterator[str]:
    """The rows of a file, as JSON."""
    if path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as file:
            yield from file
    else:
        for part in _pyarrow().parquet.ParquetFile(path).iter_batches(BATCH):
            yield from map(json.dumps, part.to_pylist())


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ExperienceError("Parquet needs pyarrow: pip install 'opcd-gym[parquet]'") from error
    return pyarrow


def _columns(table: sa.Table) -> list[sa.ColumnElement[Any]]:
    """What a file holds: any JSON as text, for a column of a data set is of one type."""
    return [
        sa.type_coerce(c, sa.Text).label(c.name) if c.type.python_type is object else c
        for c in table.columns
        if c.name != "run"
    ]


def _row_type(table: sa.Table) -> type[BaseModel]:
    """What a row of a file must be, strictly."""
    fields: dict[str, Any] = {}
    for column in table.columns:
        kind: Any = column.type.python_type
        kind = Annotated[str, AfterValidator(json.loads)] if kind is object else kind
        fields[column.name] = kind | None if column.nullable else kind
    del fields["run"]
    return create_model(table.name, __config__=ConfigDict(strict=True, extra="forbid"), **fields)


def _features(table: sa.Table) -> list[dict[str, str]]:
    """The type of each column, as ``datasets`` calls it."""
    dtypes = {int: "int64", float: "float64", bool: "bool"}
    features = []
    for name, kind in ((str(c.name), c.type.python_type) for c in table.columns if c.name != "run"):
        items = get_args(kind)
        dtype = dtypes.get(items[0] if items else kind, "string")
        features.append({"name": name, "list" if items else "dtype": dtype})
    return features


def main(args: list[str] | None = None) -> None:
    """The command ``python -m experience.store``."""
    commands: dict[str, Callable[..., None]] = {"export": export_run, "import": import_run}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m experience.store", args=args)
    except ExperienceError as error:
        sys.exit(shown(f"error: {error}"))
