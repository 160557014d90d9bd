"""The books in SQLite and in Postgres: what is in them, and that nobody minds when they fail."""

import json
import multiprocessing
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from msgspec import Raw
from msgspec.structs import replace

from atlas_dagster.destinations.envelope import Envelope, StreamCommit
from atlas_dagster.projections import ProjectionWriter, SyncStats, tables
from atlas_dagster.projections.database import HEAD, engine
from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.registry.catalogue import shipped_listing

USERS = StreamDescriptor("users")
ORDERS = StreamDescriptor("orders", "sales")
NOW = 1_700_000_000.5


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> sa.URL:
    if request.param == "sqlite":
        return sa.URL.create("sqlite", database=str(tmp_path / "new" / "pipeline.db"))
    server = request.getfixturevalue("postgres_url")
    database = f"books_{uuid4().hex}"
    main = sa.URL.create(
        "postgresql+psycopg2",
        username=server["username"],
        password=server["password"],
        host=server["hostname"],
        port=server["port"],
        database=server["db_name"],
    )
    made = sa.create_engine(main, isolation_level="AUTOCOMMIT", poolclass=sa.pool.NullPool)
    with made.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {database}"))
    return main.set(database=database)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def books(url: sa.URL, warnings: list[str]) -> Iterator[ProjectionWriter]:
    yield ProjectionWriter(url, warnings.append)
    assert warnings == []


def rows(url: sa.URL, table: sa.Table) -> list[dict[str, Any]]:
    found = engine(url)
    with found.connect() as connection:
        answer = connection.execute(sa.select(table)).mappings()
        listed = [dict(row) for row in answer]
    found.dispose()
    return listed


def envelope(seq: int, state: Any, *streams: StreamDescriptor) -> Envelope:
    return Envelope(
        seq=seq,
        sync_id=1,
        connection="shop",
        streams=tuple(StreamCommit(name, ("shop", name.name), 0, False) for name in streams),
        state=Raw(json.dumps(state).encode()),
        prepared_at=NOW,
        run_id="run-1",
    )


def of_stream(name: StreamDescriptor, blob: Any) -> dict[str, Any]:
    descriptor = {"name": name.name} | ({"namespace": name.namespace} if name.namespace else {})
    return {
        "type": "STREAM",
        "stream": {"stream_descriptor": descriptor, "stream_state": blob},
    }


# What is in them


def test_what_was_discovered(books: ProjectionWriter, url: sa.URL) -> None:
    stream = {
        "name": "orders",
        "namespace": "sales",
        "json_schema": {"properties": {"id": {"type": "integer"}}},
        "supported_sync_modes": ["incremental"],
        "source_defined_primary_key": [["customer", "id"]],
        "default_cursor_field": ["updated_at"],
    }
    found = Catalog.from_json([stream, {"name": "users", "json_schema": {}}])
    paths = {ORDERS: ("shop", "sales", "orders"), USERS: ("shop", "users")}

    for connection in ("shop", "other"):
        books.write_catalog(connection, found, paths=paths, connector="x:1", at=NOW)
    books.write_catalog("shop", found, paths=paths, connector="x:2", at=NOW)

    listed = rows(url, tables.catalogs)
    assert [row["connector"] for row in listed if row["connection"] == "other"] == ["x:1", "x:1"]
    row = next(
        row for row in listed if row["connection"] == "shop" and row["stream_name"] == "orders"
    )
    assert row["stream_namespace"] == "sales"
    assert row["table_path"] == "shop/sales/orders"
    assert row["json_schema"] == stream["json_schema"]
    assert row["primary_key"] == [["customer", "id"]]
    assert row["cursor_field"] == ["updated_at"]
    assert row["supported_sync_modes"] == ["incremental"]
    assert row["connector"] == "x:2"
    assert row["discovered_at"].replace(tzinfo=None).isoformat() == "2023-11-14T22:13:20.500000"


def test_a_stream_that_is_gone_is_gone_here_too(books: ProjectionWriter, url: sa.URL) -> None:
    for names in (["users", "orders"], ["users"], []):
        catalog = Catalog.from_json([{"name": name, "json_schema": {}} for name in names])
        books.write_catalog("shop", catalog, paths={}, connector="x:1", at=NOW)
        assert sorted(row["stream_name"] for row in rows(url, tables.catalogs)) == sorted(names)


def test_where_streams_continue(books: ProjectionWriter, url: sa.URL) -> None:
    books.write_states(
        envelope(5, [of_stream(USERS, {"at": 1}), of_stream(ORDERS, 7)], USERS, ORDERS)
    )
    books.write_states(envelope(9, [of_stream(USERS, {"at": 2})], USERS))
    found = {row["stream_name"]: row for row in rows(url, tables.state)}
    assert found["users"]["state"] == {"at": 2}
    assert found["users"]["seq"] == 9
    assert found["users"]["state_type"] == "STREAM"
    assert found["users"]["run_id"] == "run-1"
    assert (found["orders"]["state"], found["orders"]["stream_namespace"]) == (7, "sales")


def test_a_state_of_all_streams_is_told_for_each(books: ProjectionWriter, url: sa.URL) -> None:
    state = {"type": "GLOBAL", "global": {"shared_state": {"lsn": 3}, "stream_states": []}}
    books.write_states(envelope(5, [state], USERS, ORDERS))
    assert [row["state"] for row in rows(url, tables.state)] == [{"lsn": 3}, {"lsn": 3}]


def test_no_secret_gets_in(books: ProjectionWriter, url: sa.URL) -> None:
    state = [of_stream(USERS, {"next": "https://api/?key=hunter2", "odd": "\0"})]
    books.write_states(envelope(5, state, USERS), lambda text: text.replace("hunter2", "*****"))
    assert rows(url, tables.state)[0]["state"] == {"next": "https://api/?key=*****", "odd": ""}


def test_a_stream_without_a_state(books: ProjectionWriter, url: sa.URL) -> None:
    books.write_states(envelope(5, [], USERS))
    assert rows(url, tables.state)[0]["state"] is None


def test_how_syncs_ended(books: ProjectionWriter, url: sa.URL) -> None:
    good = SyncStats(USERS, "succeeded", records=3, bytes=2**40, seconds=1.5, checkpoints=2)
    bad = SyncStats(ORDERS, "failed", error="The key is wrong.")
    books.write_stats("shop", [good, bad], run_id="run-1", connector="x:1")
    books.write_stats("shop", [good], run_id=None, connector=None)
    books.write_stats("shop", [], run_id=None, connector=None)
    first, second, third = rows(url, tables.sync_stats)
    assert (first["status"], first["records"], first["bytes"]) == ("succeeded", 3, 2**40)
    assert (second["status"], second["error"]) == ("failed", "The key is wrong.")
    assert (third["run_id"], third["connector"]) == (None, None)
    assert len({row["id"] for row in (first, second, third)}) == 3


def test_all_connectors_are_listed_once(books: ProjectionWriter, url: sa.URL) -> None:
    shipped = shipped_listing()
    books.write_registry(shipped)
    books.write_registry(
        replace(shipped, connectors=())
    )  # of the same date, so it is the same list
    found = {row["name"]: row for row in rows(url, tables.connector_registry)}
    assert len(found) == len(shipped.connectors)
    assert found["source-faker"]["docker_image"] == "airbyte/source-faker:7.2.1"
    assert found["source-faker"]["pypi_package"] == "airbyte-source-faker"
    newer = replace(shipped, date="2999-01-01", connectors=shipped.connectors[:3])
    books.write_registry(newer)
    assert len(rows(url, tables.connector_registry)) == 3


# How they are made


def test_the_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", "atlas_dagster:projections/migrations")
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_the_migrations_make_the_tables_that_are_declared(
    books: ProjectionWriter, url: sa.URL
) -> None:
    books.write_stats("shop", [SyncStats(USERS, "succeeded")], run_id=None, connector=None)
    made = engine(url)
    schema = "pipeline" if made.dialect.name == "postgresql" else None
    expected = sa.MetaData()
    for table in tables.metadata.tables.values():
        table.to_metadata(expected, schema=schema)  # type: ignore[arg-type]
    options = {
        "include_schemas": schema is not None,
        "include_name": lambda name, kind, _: kind != "schema" or name == schema,
        "compare_type": True,
        "version_table_schema": schema,
    }
    with made.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, expected) == []
    made.dispose()


def _open(url: str, ready: Any, results: Any) -> None:
    warnings: list[str] = []
    books = ProjectionWriter(sa.make_url(url), warnings.append)
    ready.wait()
    books.write_registry(shipped_listing())
    books.write_stats("shop", [SyncStats(USERS, "succeeded")], run_id=None, connector=None)
    results.put(warnings)


@pytest.mark.slow
def test_several_processes_may_open_them_first(url: sa.URL) -> None:
    spawning = multiprocessing.get_context("spawn")
    ready, results = spawning.Barrier(4), spawning.Queue()
    address = url.render_as_string(hide_password=False)
    processes = [spawning.Process(target=_open, args=(address, ready, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in processes] == [[]] * 4
    for process in processes:
        process.join()
    assert len(rows(url, tables.sync_stats)) == 4
    assert len(rows(url, tables.connector_registry)) == len(shipped_listing().connectors)


# When they cannot be written


def _say_twice(url: sa.URL) -> list[str]:
    warnings: list[str] = []
    books = ProjectionWriter(url, warnings.append)
    for _ in range(2):
        books.write_stats("shop", [SyncStats(USERS, "succeeded")], run_id=None, connector=None)
    return warnings


def test_a_newer_atlas_has_changed_them(url: sa.URL) -> None:
    assert _say_twice(url) == []
    made = engine(url)
    schema = "pipeline." if made.dialect.name == "postgresql" else ""
    with made.begin() as connection:
        connection.execute(sa.text(f"UPDATE {schema}alembic_version SET version_num = '9999'"))
    made.dispose()
    (warning,) = _say_twice(url)
    assert "newer Atlas" in warning
    assert "sync continues" in warning


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (warning,) = _say_twice(sa.URL.create("sqlite", database=str(tmp_path / "file" / "x.db")))
    assert f"sqlite:///{tmp_path}/file/x.db cannot be written" in warning


def test_a_file_that_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("no database" * 100)
    (warning,) = _say_twice(sa.URL.create("sqlite", database=str(tmp_path / "x.db")))
    assert "file is not a database" in warning


def test_a_server_that_is_down_is_not_waited_for() -> None:
    url = sa.make_url("postgresql+psycopg2://atlas:hunter2@127.0.0.1:9/atlas")
    begun = time.monotonic()
    (warning,) = _say_twice(url)
    assert time.monotonic() - begun < 20
    assert "hunter2" not in warning
    assert "Connection refused" in warning


@pytest.mark.slow
def test_someone_who_holds_them_is_not_waited_for_long(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    url = sa.URL.create("sqlite", database=str(path))
    assert _say_twice(url) == []
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        (warning,) = _say_twice(url)
    assert "database is locked" in warning
