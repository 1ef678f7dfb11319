"""A SQLite file or a PostgreSQL database that holds a store: opened, given its tables, shared.

Whatever goes wrong in it is an ``ExperienceError`` that says what to do and shows no password.
"""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from experience import ExperienceError
from experience.masking import masked
from experience.tables import metadata, runs
from experience.text import storable

VERSION = "0004"
"""Of the schema. Nothing was released before this one; the next has to bring its tables up to date."""
VERSION_TABLE = "opcd_gym_version"
"""Has the version; by its name another program's database is told apart."""
BUSY_SECONDS = 30.0
"""How long a writer waits for another."""
CONNECT_SECONDS = 10
"""How long a server may take to answer at first."""

_LOCK = 0x4F504344  # "OPCD": on a server, who makes the tables holds it
_INSERTS: Mapping[str, Callable[[sa.Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
"""The databases that a store can be in; both know ON CONFLICT DO NOTHING."""
_PACKAGES = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}
"""Where a driver's package has another name."""
_ADVICE = {
    sqlite3.SQLITE_BUSY: "another process is writing to it: wait for it, or stop it, and try again",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable, or work on a copy",
    sqlite3.SQLITE_CANTOPEN: "its folder must exist and be writable",
    sqlite3.SQLITE_FULL: "free some space and try again",
    sqlite3.SQLITE_IOERR: "see whether its disk is full, since reading takes some space too, or failing",
    sqlite3.SQLITE_NOTADB: "it is not a SQLite file: name another",
    sqlite3.SQLITE_CORRUPT: "it is damaged: take a copy, or save what is left with sqlite3's .recover",
}


class Database(AbstractContextManager["Database", None]):
    """Connections to one database of the present schema."""

    def __init__(self, location: str | Path, *, create: bool = True) -> None:
        """Open it; make its tables where they are missing.

        Args:
            location: The path of a SQLite file, or an SQLAlchemy URL, which has "://" in it.
            create: Whether to begin a new store where there is none.

        Raises:
            ExperienceError: It cannot be opened or is no store; or there is none and ``create`` is off.
        """
        url = _url(location)
        is_file = url.get_backend_name() == "sqlite"
        is_path = is_file and not url.query
        # Options of a URL may hold a password as well.
        shown = url.set(query={}).render_as_string(hide_password=True)
        self.name = str(url.database) if is_path else shown
        """What to call it in messages."""
        self._secrets = [str(secret) for secret in (url.password, url.query.get("password")) if secret]
        if is_file and not create and not Path(str(url.database).removeprefix("file:")).exists():
            raise ExperienceError(f"there is no store at {self.name}")
        self._engine = self._create_engine(url)
        sa.event.listen(self._engine, "before_cursor_execute", _mask, retval=True)
        self._reader, self._writer = self._engine, self._engine.execution_options(immediate=True)
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _set_up_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        else:
            # What is read in one transaction is of one moment, as in SQLite.
            self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ")
        try:
            self._prepare(create)
        except BaseException:
            self.close()
            raise

    def _create_engine(self, url: sa.URL) -> sa.Engine:
        options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}}
        if url.get_backend_name() == "postgresql":
            limit = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_SECONDS}
            options = {"connect_args": limit, "pool_pre_ping": True}
        try:
            return sa.create_engine(url, **options)
        except ImportError as error:
            driver = error.name or url.get_driver_name()
            package = _PACKAGES.get(driver, driver)
            raise ExperienceError(
                f"{self.name} needs the driver {driver}: pip install '{package}'"
            ) from error
        except (sa.exc.ArgumentError, TypeError) as error:
            raise ExperienceError(f"{self.name} cannot be opened: {self._without_secrets(error)}") from error

    def _prepare(self, create: bool) -> None:
        """Make the tables of an empty database, all or none."""
        with self.reading() as connection:
            version = self._version(connection)
        if version is None and not create:
            raise ExperienceError(f"there is no store in {self.name}, it has no tables")
        if self._engine.dialect.name == "sqlite":
            self._log_ahead()
        if version == VERSION:
            return
        with self.writing() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            version = self._version(connection)  # others may have been faster
            if version == VERSION:
                return
            if version is not None:
                raise ExperienceError(
                    f"{self.name} is of schema version {version}, this opcd-gym has {VERSION} and does not "
                    "know that one: use the version that wrote it, or name another store"
                )
            metadata.create_all(connection)
            connection.exec_driver_sql(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) PRIMARY KEY)")
            connection.exec_driver_sql(f"INSERT INTO {VERSION_TABLE} VALUES ('{VERSION}')")

    def _log_ahead(self) -> None:
        """WAL: a reader never waits for the writer, and a killed writer leaves no half transaction.

        It changes the file, which by now is known to be no other program's.
        """
        until = time.monotonic() + BUSY_SECONDS
        with self._clear_errors(), closing(self._engine.raw_connection()) as connection:
            while True:
                try:
                    connection.cursor().execute("PRAGMA journal_mode = WAL")
                    return
                except sqlite3.OperationalError as error:
                    # Where many processes make the file at once, SQLite does not wait by itself.
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                        raise
                    time.sleep(0.01)

    def _version(self, connection: sa.Connection) -> str | None:
        """The schema's version; ``None`` in an empty database.

        Raises:
            ExperienceError: It is another program's.
        """
        tables = sa.inspect(connection).get_table_names()
        if tables and VERSION_TABLE not in tables:
            names = ", ".join(sorted(tables)[:8])
            raise ExperienceError(
                f"{self.name} is a database of another program, or of an opcd-gym that is too old "
                f"(tables {names}): name another, or an empty one"
            )
        query = f"SELECT version_num FROM {VERSION_TABLE}"
        return str(connection.exec_driver_sql(query).scalar()) if tables else None

    def close(self) -> None:
        """Let go of it."""
        self._engine.dispose()

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One transaction that reads, and sees the database of one moment."""
        with self._clear_errors(), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction that writes: all of it is kept, or none."""
        with self._clear_errors(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.IntegrityError:
            raise  # what is written contradicts itself: not the database's fault
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
            message = f"{self.name}: {self._without_secrets(cause)}"
            advice = _ADVICE.get(getattr(cause, "sqlite_errorcode", 0) & 0xFF)
            if self._engine.dialect.name != "sqlite" and getattr(cause, "sqlstate", None) is None:
                advice = "see that the server runs, and that address, user, password and database are right"
            raise ExperienceError(f"{message}: {advice}" if advice else message) from error

    def _without_secrets(self, error: object) -> str:
        text = " ".join(str(error).split())
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def find_run(connection: sa.Connection, name: str | None, where: str) -> sa.Row[Any]:
    """The row of the run called ``name``, or of the only one; the database is called ``where``.

    Raises:
        ExperienceError: There is no such run, or several and no name.
    """
    name = None if name is None else storable(name)
    query = sa.select(runs).order_by(runs.c.run)
    known = {row.run_id: row for row in connection.execute(query)}
    names = ", ".join(list(known)[:20]) or "none"
    if name is None and len(known) > 1:
        raise ExperienceError(f"{where} holds {len(known)} runs, say which: {names}")
    if not known or name not in (None, *known):
        raise ExperienceError(f"{where} has no run{f' {name}' if name else ''}; it has: {names}")
    return known[name] if name else next(iter(known.values()))


def insert_new(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]
) -> set[tuple[Any, ...]]:
    """Insert the rows that are not there yet; returns their primary keys.

    Another process may insert the same at the same moment: each row is inserted by one of them.
    """
    if not rows:
        return set()
    insert = _INSERTS[connection.dialect.name](table)
    statement = insert.on_conflict_do_nothing().returning(*table.primary_key.columns)
    return {tuple(row) for row in connection.execute(statement, rows)}


def _url(location: str | Path) -> sa.URL:
    if isinstance(location, Path) or "://" not in location:
        return _of_file(sa.URL.create("sqlite", database=str(location)))
    try:
        url = sa.make_url(location)
        url.get_dialect()
    except ImportError:
        pass  # the dialect's driver, which ``create_engine`` will miss as well
    except (sa.exc.ArgumentError, ValueError):
        scheme = re.sub(r"[^\w+].*", "", location)
        # No word of the rest, nor of the error: they may show a password.
        raise ExperienceError(
            f"{scheme}://... is not a database URL, which looks like "
            "postgresql+psycopg://user:password@host/name, "
            "with %40 for @ and %2F for / in the password"
        ) from None
    if url.get_backend_name() not in _INSERTS:
        raise ExperienceError(
            f"a store cannot be in {url.get_backend_name()}: give the path of a SQLite file, or a URL like "
            "postgresql+psycopg://user:password@host/name"
        )
    return _of_file(url) if url.get_backend_name() == "sqlite" else url


def _of_file(url: sa.URL) -> sa.URL:
    name = (url.database or "").removeprefix("file:").lstrip("/")
    if (
        name in ("", ":memory:")
        or "memory" in url.query.get("mode", ())
        or "memdb" in url.query.get("vfs", ())
    ):
        raise ExperienceError(
            "a store that is in no file is lost when its process ends: give the path of a file"
        )
    return url


def _set_up_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # transactions begin in ``_begin_sqlite``, not when the driver thinks
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _mask(
    _connection: sa.Connection, _cursor: Any, statement: str, values: Any, _context: Any, _many: bool
) -> tuple[str, Any]:
    """No secret goes into the database, nor is looked for."""
    return statement, masked(values)


def _begin_sqlite(connection: sa.Connection) -> None:
    """A writer waits for others when it begins; later it could only fail."""
    immediate = connection.get_execution_options().get("immediate")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")
