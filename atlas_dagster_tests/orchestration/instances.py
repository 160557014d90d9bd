"""Dagster instances of a test's own, copied from one whose tables are made already.

Dagster makes its tables with one migration after the other, which takes longer than most tests.
"""

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import psycopg2
import pytest


@contextmanager
def sqlite_instance(**overrides: Any) -> Iterator[dg.DagsterInstance]:
    """An instance on SQLite; ``overrides`` are fields of ``dagster.yaml``."""
    with tempfile.TemporaryDirectory(prefix="dagster-") as folder:
        shutil.copytree(_sqlite_template(), folder, dirs_exist_ok=True)
        with dg.instance_for_test(temp_dir=folder, overrides=overrides) as instance:
            yield instance


@cache
def _sqlite_template() -> Path:
    with tempfile.TemporaryDirectory() as made:
        with dg.instance_for_test(temp_dir=made) as instance:
            _make_tables(instance)
        copies = Path(tempfile.mkdtemp(prefix="dagster-template-"))
        atexit.register(shutil.rmtree, copies, ignore_errors=True)
        for part in ("history", "schedules"):
            shutil.copytree(Path(made) / part, copies / part)
    return copies


def open_instance(
    storage: str, request: pytest.FixtureRequest
) -> AbstractContextManager[dg.DagsterInstance]:
    """An instance on ``sqlite`` or ``postgres``; ``request`` has the fixture of the server."""
    if storage == "postgres":
        return postgres_instance(request.getfixturevalue("postgres_url"))
    return sqlite_instance()


@contextmanager
def postgres_instance(server: Mapping[str, Any]) -> Iterator[dg.DagsterInstance]:
    """An instance whose storage is a database of its own; ``server`` is ``postgres_url``."""
    settings = new_database(server, template=_postgres_template(tuple(server.items())))
    with _on_postgres(settings) as instance:
        yield instance


@cache
def _postgres_template(server: tuple[tuple[str, Any], ...]) -> str:
    settings = new_database(dict(server))
    with _on_postgres(settings) as instance:
        _make_tables(instance)
    return str(settings["db_name"])


def _on_postgres(settings: Mapping[str, Any]) -> Any:
    return dg.instance_for_test(overrides={"storage": {"postgres": {"postgres_db": settings}}})


def _make_tables(instance: dg.DagsterInstance) -> None:
    """Use each storage once."""
    instance.get_runs_count()
    instance.event_log_storage.get_asset_records()
    instance.all_instigator_state()


def new_database(server: Mapping[str, Any], *, template: str | None = None) -> dict[str, Any]:
    """A database of its own on ``server``, as Dagster's ``postgres_db``."""
    database = f"dagster_{uuid4().hex}"
    connection = psycopg2.connect(
        host=server["hostname"],
        port=server["port"],
        user=server["username"],
        password=server["password"],
        dbname=server["db_name"],
    )
    with closing(connection):
        connection.autocommit = True
        cursor = connection.cursor()
        copied = ""
        if template:
            # Postgres copies no database with a session in it, such as one that is just ending.
            sessions = "FROM pg_stat_activity WHERE datname = %s"
            cursor.execute(f"SELECT pg_terminate_backend(pid, 5000) {sessions}", [template])
            copied = f" TEMPLATE {template}"
        cursor.execute(f"CREATE DATABASE {database}{copied}")
    # Without the scheme, SQLAlchemy 2.1 would want psycopg 3.
    return {**server, "db_name": database, "scheme": "postgresql+psycopg2"}
