"""A run as a folder of files, which ``datasets.load_dataset(FOLDER, "turns")`` opens as well."""

from pathlib import Path
from typing import Annotated, Any, Literal

import sqlalchemy as sa
import tyro
import yaml
from pydantic import BaseModel, Field
from tyro.conf import Positional

from experience import ExperienceError, tables
from experience.addresses import store_of
from experience.database import VERSION, Database, find_run, insert_new
from experience.plain_yaml import PlainLoader, read_bounded
from experience.rows import features, insert_rows, write_rows
from experience.terminal import refuse, shown
from experience.whole import appearing

TABLES = [table for table in tables.metadata.sorted_tables if table is not tables.runs]

Short = Annotated[str, Field(max_length=1_000)]


class _About(BaseModel, strict=True):
    """What the folder's README.md says of the run."""

    version: Short
    run: Short
    begun: Short
    rows: dict[str, int]


def export_run(
    store: Positional[str],
    folder: Positional[Path],
    /,
    run: str | None = None,
    format: Literal["jsonl", "parquet"] = "jsonl",
) -> None:
    """Write a run as a folder of files, which appears when it is whole.

    Args:
        store: The run's folder, the path of a database, or its URL.
        folder: A new folder.
        run: The run's name, where the database holds several.
        format: Of the files.

    Raises:
        ExperienceError: The run is not there, the folder is, or pyarrow is missing.
    """
    if folder.exists():
        raise ExperienceError(f"{folder} is there already: name a new folder")
    place, own = store_of(store)
    try:
        with appearing(folder) as tmp, Database(place, create=False) as database:
            tmp.mkdir(parents=True)
            with database.reading() as connection:
                found = find_run(connection, run or own, database.name)
                counts = {str(t.name): write_rows(tmp, t, format, connection, found.run) for t in TABLES}
            kinds = {str(table.name): features(table) for table in TABLES if counts[table.name]}
            card = {
                "configs": [{"config_name": name, "data_files": f"{name}-*.{format}"} for name in kinds],
                "dataset_info": [{"config_name": name, "features": kind} for name, kind in kinds.items()],
                "opcd_gym": {"version": VERSION, "run": found.run_id, "begun": found.begun, "rows": counts},
            }
            with (tmp / "README.md").open("w", encoding="utf-8") as readme:
                readme.write(f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n")
    except OSError as error:
        raise ExperienceError(f"{folder} could not be written: {error.strerror or error}") from error
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
        text = read_bounded(folder / "README.md").partition("\n---\n")[0]
        about = _About.model_validate(yaml.load(text, PlainLoader)["opcd_gym"])
        counts = {table.name: about.rows[table.name] for table in TABLES}
    except (OSError, ValueError, LookupError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise ExperienceError(
            f"{folder} is not an exported run: it has no README.md as export writes"
        ) from error
    if about.version != VERSION:
        raise ExperienceError(f"{folder} is of version {about.version}, this opcd-gym reads {VERSION} alone")
    with Database(store) as database, database.writing() as connection:
        name = run or about.run
        if not (new := insert_new(connection, tables.runs, [{"run_id": name, "begun": about.begun}])):
            raise ExperienceError(f"{database.name} has a run {name} already: give another name with --run")
        [(key,)] = new
        for table in TABLES:
            insert_rows(folder, table, counts[table.name], connection, key)
        turns = sa.select(sa.func.sum(tables.traces.c.num_turns)).where(tables.traces.c.run == key)
        if (told := connection.execute(turns).scalar() or 0) != counts["turns"]:
            raise ExperienceError(f"{folder} has {counts['turns']} turns, and its traces speak of {told}")
    print(shown(f"{database.name}: {counts['traces']} traces of the run {name}"))


def main(args: list[str] | None = None) -> None:
    """The command ``python -m experience.store``."""
    commands: dict[str, Any] = {"export": export_run, "import": import_run}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="python -m experience.store", args=args)
    except ExperienceError as error:
        refuse(error)
