"""The main job with real connectors, its tables in Postgres."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from adbc_driver_postgresql import dbapi

from atlas_dagster.orchestration.automation import retries
from atlas_dagster_tests.conftest import SOURCE_FAKER_IMAGE, SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.orchestration.instances import sqlite_instance
from atlas_dagster_tests.orchestration.real_connectors import (
    RealConnection,
    Row,
    difference,
    metadata,
)
from atlas_dagster_tests.postgres_server import with_doubles

pytestmark = [pytest.mark.docker, pytest.mark.postgres]

PASSWORD = "p@ss/hunter2? #1"
FAKER = {"count": 40, "seed": 1, "always_updated": False, "parallelism": 1}
APPEND = {"sync_mode": "incremental", "destination_sync_mode": "append"}


class Warehouse:
    """The database that the tests' connections write to."""

    def __init__(self, server: dict[str, Any]) -> None:
        place = f"{server['hostname']}:{server['port']}/{server['db_name']}"
        self.uri = f"postgresql://{place}"
        self.address = f"postgresql://{server['username']}:{{{{ env.PG_WORD }}}}@{place}"
        self.connection = dbapi.connect(f"postgresql://{server['username']}@{place}")

    def rows(self, schema: str, table: str) -> list[Row]:
        """In order of their ids, Airbyte's own columns left out."""
        with self.connection.cursor() as cursor:
            cursor.execute(f'SELECT * FROM "{schema}"."{table}" ORDER BY id')
            found = with_doubles(cursor.fetch_arrow_table()).to_pylist()
        self.connection.commit()
        return [{k: v for k, v in row.items() if not k.startswith("_airbyte_")} for row in found]


@pytest.fixture
def warehouse(postgres_url: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Warehouse]:
    monkeypatch.setenv("PG_WORD", PASSWORD)
    warehouse = Warehouse(postgres_url)
    with closing(warehouse.connection):
        yield warehouse


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with sqlite_instance() as instance:
        yield instance


@pytest.mark.slow
def test_two_syncs_of_the_faker(
    warehouse: Warehouse, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    faker = RealConnection.make(
        tmp_path, "fake_pg", SOURCE_FAKER_IMAGE, config=FAKER, destination=warehouse.address
    )
    first = faker.sync(instance)
    records = faker.emitted()
    for stream, emitted in records.items():
        # The faker writes the time of the read into updated_at.
        rows = warehouse.rows("fake_pg", stream)
        assert difference(rows, emitted, ignore="updated_at") == []
        assert metadata(first, stream)["dagster/row_count"] == len(emitted)
    before = {stream: warehouse.rows("fake_pg", stream) for stream in records}

    second = faker.sync(instance)

    assert [metadata(second, stream)["atlas/records_synced"] for stream in records] == [0, 0, 0]
    assert {stream: warehouse.rows("fake_pg", stream) for stream in records} == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_appending_stream_continues(
    warehouse: Warehouse, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    standin = RealConnection.make(
        tmp_path,
        "standin_in_pg",
        SOURCE_STANDIN_IMAGE,
        config={"count": 35},
        streams=[{"name": "events", **APPEND}],
        destination=warehouse.address,
    )
    grown = standin.changed(count=50)
    done = metadata(standin.sync(instance), "events")
    again = metadata(standin.sync(instance), "events")
    more = metadata(grown.sync(instance), "events")

    assert done["dagster/uri"] == f"{warehouse.uri}/standin_in_pg/events"
    assert [each["atlas/records_synced"] for each in (done, again, more)] == [35, 0, 15]
    assert [each["dagster/row_count"] for each in (done, again, more)] == [35, 35, 50]
    assert difference(warehouse.rows("standin_in_pg", "events"), grown.emitted()["events"]) == []
    # Neither the password nor its percent-encoded form is in anything Dagster keeps.
    kept = "".join(
        path.read_bytes().decode("latin-1")
        for path in Path(instance.root_directory).rglob("*")
        if path.is_file()
    )
    assert "standin_in_pg" in kept
    assert PASSWORD not in kept
    assert "p%40ss" not in kept


@pytest.mark.slow
def test_no_server(
    warehouse: Warehouse,
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retries, "_INSIDE_A_RUN_SECONDS", 0)
    standin = RealConnection.make(
        tmp_path,
        "standin_no_pg",
        SOURCE_STANDIN_IMAGE,
        config={"count": 1},
        destination="postgresql://atlas:{{ env.PG_WORD }}@127.0.0.1:1/shop",
    )
    failed = standin.sync(instance, raise_on_error=False)
    (failure,) = [event for event in failed.all_events if event.is_step_failure]
    told = failure.step_failure_data.user_failure_data
    assert told is not None
    assert told.description is not None
    assert "postgresql://127.0.0.1:1/shop cannot be reached" in told.description
