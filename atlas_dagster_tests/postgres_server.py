"""A Postgres of our own, for the tests and the benchmarks."""

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


@cache
def binaries() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``, of the newest version that is installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    return newest.parent if newest else None


@contextmanager
def private_server() -> Iterator[dict[str, Any]]:
    """A server on this machine's loopback only, gone afterwards.

    The fields are those of Dagster's ``postgres_db``; any password is accepted.

    Raises:
        RuntimeError: it cannot be started; the message has its log.
    """
    programs = binaries()
    assert programs
    # Not under pytest's own folder: that one is closed to the postgres user, and too deep for a
    # socket's path.
    home = Path(tempfile.mkdtemp(prefix="atlas-postgres-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # Postgres refuses to run as root
        shutil.chown(home, "postgres", "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}

    def run(program: str, *arguments: str) -> None:
        command = [f"{programs / program}", f"--pgdata={home / 'data'}", *arguments]
        # Into a file: the server inherits it, and would keep a pipe open for ever.
        with (home / "log").open("ab") as log:
            ended = subprocess.run(command, cwd=home, stdout=log, stderr=log, check=False, **user)
        if ended.returncode:
            raise RuntimeError(f"{program} failed:\n{(home / 'log').read_text()}")

    port = _free_port()
    options = f"-h 127.0.0.1 -p {port} -k {home} -F"  # -F: no fsync, the data is not worth it
    try:
        run("initdb", "--username=atlas", "--auth=trust", "--encoding=UTF8", "--locale=C", "-N")
        run("pg_ctl", "start", "--wait", "--timeout=60", "--options", options)
        try:
            yield {
                "hostname": "127.0.0.1",
                "port": port,
                "username": "atlas",
                "password": "atlas",
                "db_name": "postgres",
            }
        finally:
            run("pg_ctl", "stop", "--wait", "--mode=immediate")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
