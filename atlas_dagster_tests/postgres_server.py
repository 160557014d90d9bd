"""A Postgres server of the tests' own."""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa


@cache
def postgres_binaries() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``, of the newest version that is installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    return newest.parent if newest else None


class PostgresServer:
    """A server in ``home``, on this machine's loopback only; any password is accepted."""

    def __init__(self, home: Path) -> None:
        self._home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of Dagster's ``postgres_db``."""
        return {
            "hostname": "127.0.0.1",
            "port": self._port,
            "username": "atlas",
            "password": "atlas",
            "db_name": "postgres",
        }

    def start(self) -> None:
        """Make the database cluster and start the server."""
        self._run(
            "initdb", "--username=atlas", "--auth=trust", "--encoding=UTF8", "--locale=C", "-N"
        )
        # -F: no fsync, the data is not worth it
        options = f"-h 127.0.0.1 -p {self._port} -k {self._home} -F"
        self._run("pg_ctl", "start", "--wait", "--timeout=60", "--options", options)

    def restart(self) -> None:
        """End the server at once, as a crash would, and start it again: all sessions are lost."""
        self._run("pg_ctl", "restart", "--wait", "--timeout=60", "--mode=immediate")

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def _run(self, program: str, *arguments: str) -> None:
        binaries = postgres_binaries()
        assert binaries
        command = [f"{binaries / program}", f"--pgdata={self._home / 'data'}", *arguments]
        user: dict[str, Any] = {}
        if os.geteuid() == 0:  # Postgres refuses to run as root
            user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        # Into a file: the server inherits it, and would keep a pipe open for ever.
        with (self._home / "log").open("ab") as log:
            ended = subprocess.run(
                command, cwd=self._home, stdout=log, stderr=log, check=False, **user
            )
        if ended.returncode:
            raise RuntimeError(f"{program} failed:\n{(self._home / 'log').read_text()}")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A server that runs, and is gone with its data afterwards."""
    # Not under pytest's own folder: that one is closed to the postgres user, and too deep for a
    # socket's path.
    home = Path(tempfile.mkdtemp(prefix="atlas-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(home, "postgres", "postgres")
        server = PostgresServer(home)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(home, ignore_errors=True)


def with_doubles(table: pa.Table) -> pa.Table:
    """Numbers as in a lake: the driver hands over ``numeric`` as text."""
    for place, field in enumerate(table.schema):
        if (field.metadata or {}).get(b"ADBC:postgresql:typname") == b"numeric":
            column = pa.chunked_array([c.storage for c in table[place].chunks], pa.string())
            table = table.set_column(place, field.name, column.cast(pa.float64()))
    return table
