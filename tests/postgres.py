"""A real PostgreSQL server for the tests, from the system's package."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

PASSWORD = "open sesame"
FAST = "-c fsync=off -c full_page_writes=off -c synchronous_commit=off -c shared_buffers=32MB"


def binaries() -> Path | None:
    """Where initdb and pg_ctl are; Debian puts them beside the PATH."""
    found = shutil.which("initdb")
    candidates = [*([os.path.realpath(found)] if found else []), *glob("/usr/lib/postgresql/*/bin/initdb")]
    return Path(candidates[-1]).parent if candidates else None


def unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root: as whom, for ``subprocess``."""
    if os.geteuid() != 0:
        return {}
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL cannot run as root, and there is no user postgres")
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


@contextmanager
def server() -> Iterator[str]:
    """Run a server; yields the URL of its databases, but for their name."""
    where = binaries()
    if where is None:
        pytest.skip("no PostgreSQL here: initdb is neither on the PATH nor in /usr/lib/postgresql")
    pytest.importorskip("psycopg")
    user = unprivileged()
    folder = tempfile.mkdtemp(prefix="postgres-")
    try:
        if user:
            shutil.chown(folder, "postgres", "postgres")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def call(program: str, *arguments: str) -> None:
            # Its output goes to a file: the server inherits it, and a pipe would be waited for.
            with open(os.devnull, "w") as quiet:
                command = [str(where / program), "-D", f"{folder}/data", *arguments]
                subprocess.run(command, check=True, cwd="/", stdout=quiet, timeout=60, **user)

        password = Path(folder) / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        call("initdb", "-N", "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password}", "-E", "UTF8")
        options = f"{FAST} -c listen_addresses=127.0.0.1 -p {port} -k {folder}"
        call("pg_ctl", "start", "-w", "-s", "-l", f"{folder}/log", "-o", options)
        try:
            yield f"postgresql+psycopg://postgres:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}"
        finally:
            call("pg_ctl", "stop", "-s", "-m", "immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(url: str) -> str:
    """Make a database on a server; returns its URL."""
    name = f"test_{uuid.uuid4().hex}"
    engine = sa.create_engine(f"{url}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return f"{url}/{name}"
