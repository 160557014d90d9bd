"""The main job with real connectors in real containers, driven by Dagster."""

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import docker
import pytest
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable

from atlas_dagster.orchestration.definitions import connection_check as check
from atlas_dagster.orchestration.definitions.connection_check import check_key
from atlas_dagster.orchestration.step import sync_step as sync
from atlas_dagster.orchestration.step.metadata import envelope_of
from atlas_dagster_tests.conftest import SOURCE_FAKER_IMAGE, SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.orchestration.instances import sqlite_instance
from atlas_dagster_tests.orchestration.real_connectors import (
    RealConnection,
    difference,
    materialized,
    metadata,
    verbs_run,
)

pytestmark = [pytest.mark.docker, pytest.mark.slow]

#: With one process the faker makes the same people every time.
FAKER = {"count": 40, "seed": 1, "always_updated": False, "parallelism": 1}
INCREMENTAL_APPEND = {"sync_mode": "incremental", "destination_sync_mode": "append"}
FAKER_STREAMS = ["users", "products", "purchases"]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with sqlite_instance() as instance:
        yield instance


@pytest.fixture
def faker(tmp_path: Path) -> RealConnection:
    return RealConnection.make(tmp_path, "fake_shop", SOURCE_FAKER_IMAGE, config=FAKER)


@pytest.fixture
def appending_faker(tmp_path: Path) -> RealConnection:
    streams = [{"name": name, **INCREMENTAL_APPEND} for name in FAKER_STREAMS]
    return RealConnection.make(
        tmp_path, "fake_appended", SOURCE_FAKER_IMAGE, config=FAKER, streams=streams
    )


@pytest.fixture
def standin(tmp_path: Path) -> RealConnection:
    """Appending, so that every row read twice is there twice."""
    streams = [{"name": "events", **INCREMENTAL_APPEND}]
    return RealConnection.make(
        tmp_path, "standin", SOURCE_STANDIN_IMAGE, config={"count": 35}, streams=streams
    )


def ids(connection: RealConnection, stream: str = "events") -> list[int]:
    return [row["id"] for row in connection.rows(stream)]


# Rows


def test_the_standins_rows_are_what_it_emits(
    standin: RealConnection, instance: dg.DagsterInstance
) -> None:
    standin.sync(instance)

    records = standin.emitted()["events"]
    assert len(records) == 35
    assert difference(standin.rows("events"), records) == []


def test_the_fakers_rows_are_what_it_emits(
    faker: RealConnection, instance: dg.DagsterInstance
) -> None:
    result = faker.sync(instance)

    records = faker.emitted()
    assert {stream: len(rows) for stream, rows in records.items()} == {
        "users": 40,
        "products": 40,
        "purchases": len(records["purchases"]),
    }
    assert materialized(result) == [f"fake_shop/{stream}" for stream in sorted(FAKER_STREAMS)]
    for stream in FAKER_STREAMS:
        # The faker writes the time of the read into updated_at.
        assert difference(faker.rows(stream), records[stream], ignore="updated_at") == []
        assert all(row["updated_at"] is not None for row in faker.rows(stream))


def test_a_second_sync_brings_only_what_is_new(
    standin: RealConnection, instance: dg.DagsterInstance
) -> None:
    standin.sync(instance)
    grown = standin.changed(count=52)

    second = metadata(grown.sync(instance), "events")

    assert ids(grown) == list(range(1, 53))
    assert second["atlas/records_synced"] == 17
    assert second["dagster/row_count"] == 52
    assert second["atlas/cursor_before"] == {"id": 35}
    assert second["atlas/cursor_after"] == {"id": 52}


def test_the_faker_sends_nothing_twice_even_when_appending(
    appending_faker: RealConnection, instance: dg.DagsterInstance
) -> None:
    first = appending_faker.sync(instance)
    rows = {stream: appending_faker.rows(stream) for stream in FAKER_STREAMS}

    second = appending_faker.sync(instance)

    for stream in FAKER_STREAMS:
        assert metadata(first, stream)["atlas/records_synced"] == len(rows[stream]) > 0
        assert metadata(second, stream)["atlas/records_synced"] == 0
        assert metadata(second, stream)["dagster/row_count"] == len(rows[stream])
        assert appending_faker.rows(stream) == rows[stream]


def test_a_subset_syncs_the_subset(faker: RealConnection, instance: dg.DagsterInstance) -> None:
    result = faker.sync(instance, "products")

    assert materialized(result) == ["fake_shop/products"]
    assert len(faker.rows("products")) == 40
    tables = {path.parent.name for path in faker.lake.glob("fake_shop/*/_delta_log")}
    assert tables == {"products"}
    rest = faker.sync(instance, "users", "purchases")
    assert materialized(rest) == ["fake_shop/purchases", "fake_shop/users"]
    assert len(faker.rows("users")) == 40


# What Dagster is told


def test_a_materialization_says_what_came_and_where_it_is(
    standin: RealConnection, instance: dg.DagsterInstance
) -> None:
    found = metadata(standin.sync(instance), "events")

    data = standin.emitted()["events"]
    assert found["atlas/records_synced"] == 35
    # The bytes of the records' JSON, which the stand-in writes with a space after : and ,.
    assert found["atlas/bytes_synced"] == sum(len(json.dumps(record)) for record in data)
    assert 0 < found["atlas/duration_seconds"] < 60
    assert found["atlas/checkpoints"] == 1
    assert found["dagster/row_count"] == 35
    assert found["dagster/table_name"] == "standin.events"
    assert found["dagster/uri"] == (standin.lake / "standin" / "events").as_uri()
    assert found["atlas/cursor_before"] == "none"
    assert found["atlas/cursor_after"] == {"id": 35}
    assert found["atlas/connector"].startswith(f"{SOURCE_STANDIN_IMAGE}@sha256:")
    columns = [(column.name, column.type) for column in found["dagster/column_schema"].columns]
    assert columns[:3] == [("id", "integer"), ("at", "timestamp (UTC)"), ("note", "string")]
    in_table = [field.name for field in standin.table("events").schema().fields]
    assert [name for name, _ in columns] == in_table


def test_a_sync_without_news_says_so_and_commits_nothing(
    standin: RealConnection, instance: dg.DagsterInstance
) -> None:
    standin.sync(instance)
    version = standin.table("events").version()

    found = metadata(standin.sync(instance), "events")

    assert standin.table("events").version() == version
    assert (found["atlas/records_synced"], found["atlas/checkpoints"]) == (0, 0)
    assert found["dagster/row_count"] == 35
    assert found["atlas/cursor_before"] == found["atlas/cursor_after"] == {"id": 35}


# CHECK


def test_check_is_not_repeated_within_five_minutes(
    standin: RealConnection,
    instance: dg.DagsterInstance,
    docker_client: docker.DockerClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with verbs_run(docker_client, "standin") as first:
        standin.sync(instance)
    with verbs_run(docker_client, "standin") as second:
        standin.sync(instance)
    monkeypatch.setattr(check, "_FRESH_SECONDS", 0)
    with verbs_run(docker_client, "standin") as later:
        standin.sync(instance)

    assert first == {"check": 1, "read": 1}
    assert second == {"read": 1}
    assert later == {"check": 1, "read": 1}


def test_check_in_the_same_run_is_enough(
    standin: RealConnection, instance: dg.DagsterInstance, docker_client: docker.DockerClient
) -> None:
    with verbs_run(docker_client, "standin") as verbs:
        result = standin.run_everything(instance)

    assert result.success
    assert verbs == {"check": 1, "read": 1}
    evaluations = {each.check_name: each for each in result.get_asset_check_evaluations()}
    assert list(evaluations) == ["connection", "records", "primary_key", "schema"]
    assert all(each.passed for each in evaluations.values())
    assert evaluations["connection"].description == "source-standin reached its source."
    assert evaluations["records"].description == "35 records read; matches the source's count."


def test_a_check_is_as_old_as_its_answer_however_long_its_run_was_queued(
    standin: RealConnection, instance: dg.DagsterInstance, docker_client: docker.DockerClient
) -> None:
    standin.sync(instance)
    old = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    with instance.event_log_storage.index_connection() as connection:
        connection.execute(AssetCheckExecutionsTable.update().values(create_timestamp=old))

    with verbs_run(docker_client, "standin") as verbs:
        standin.sync(instance)

    assert verbs == {"read": 1}


@pytest.mark.parametrize("scheduled", [True, False])
def test_a_failed_check_never_starts_a_read(
    standin: RealConnection,
    instance: dg.DagsterInstance,
    docker_client: docker.DockerClient,
    scheduled: bool,
) -> None:
    failing = standin.changed(fail_check=True)
    with verbs_run(docker_client, "standin") as verbs:
        if scheduled:
            result = failing.run_everything(instance)
        else:
            result = failing.sync(instance, raise_on_error=False)

    assert not result.success
    assert verbs == {"check": 1}
    record = instance.get_latest_asset_check_evaluation_record(check_key(failing.connection))
    assert record is not None
    assert record.status.value == "FAILED"
    assert record.evaluation.description == "CHECK of source-standin failed: bad password"
    if not scheduled:
        (failure,) = [event for event in result.all_events if event.is_step_failure]
        said = failure.step_failure_data.user_failure_data
        assert said.description == "CHECK of source-standin failed: bad password"


# State that got lost, wiped or left behind


def test_a_wiped_asset_is_read_again_and_replaced(
    standin: RealConnection, instance: dg.DagsterInstance
) -> None:
    standin.sync(instance)
    instance.wipe_assets([dg.AssetKey(["standin", "events"])])

    again = standin.sync(instance)

    found = metadata(again, "events")
    assert found["atlas/records_synced"] == 35
    assert found["atlas/cursor_before"] == "none"
    assert ids(standin) == list(range(1, 36))
    generations = standin.table("events").to_pyarrow_table(columns=["_airbyte_generation_id"])
    assert set(generations.column(0).to_pylist()) == {1}
    third = metadata(standin.changed(count=40).sync(instance), "events")
    assert third["atlas/records_synced"] == 5
    assert ids(standin) == list(range(1, 41))


def test_a_new_instance_continues_on_the_old_lake(
    standin: RealConnection, instance: dg.DagsterInstance
) -> None:
    standin.sync(instance)
    grown = standin.changed(count=40)
    with dg.DagsterInstance.ephemeral() as new:
        found = metadata(grown.sync(new), "events")
        observed = new.fetch_observations(dg.AssetKey(["standin", "events"]), limit=10).records

    assert found["atlas/records_synced"] == 5
    assert found["atlas/cursor_before"] == {"id": 35}
    assert ids(grown) == list(range(1, 41))
    texts = [record.asset_observation.description for record in observed]
    assert texts == ["Checkpoint: 5 rows committed.", "Checkpoint: 35 rows committed."]
    old = envelope_of(observed[1].asset_observation.metadata)
    (before,) = instance.fetch_observations(dg.AssetKey(["standin", "events"]), limit=10).records
    assert old == envelope_of(before.asset_observation.metadata)


def test_a_deleted_table_is_read_again_from_the_beginning(
    standin: RealConnection, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    standin.sync(instance)
    (tmp_path / "standin" / "events").rename(tmp_path / "elsewhere")

    found = metadata(standin.sync(instance), "events")

    assert found["atlas/records_synced"] == 35
    assert ids(standin) == list(range(1, 36))


def test_a_source_that_dies_keeps_what_its_states_cover_and_resumes(
    standin: RealConnection,
    instance: dg.DagsterInstance,
    docker_client: docker.DockerClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(sync.time, "sleep", waits.append)
    dying = standin.changed(behaviour="die", count=50)
    with verbs_run(docker_client, "standin") as verbs:
        result = dying.sync(instance, raise_on_error=False)

    assert verbs["read"] == 3
    assert [wait for wait in waits if wait >= 10] == [10, 30]
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.tags["atlas/failure_type"] == "transient_error"
    assert run.tags["atlas/progress"] == "yes"
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    said = failure.step_failure_data.user_failure_data
    assert said.description == ("The stream did not complete. source-standin: upstream went away")
    assert said.metadata["atlas/failure_type"].value == "transient_error"
    assert materialized(result) == []
    assert ids(standin) == list(range(1, 21))
    found = metadata(standin.sync(instance), "events")
    assert found["atlas/records_synced"] == 15
    assert found["atlas/cursor_before"] == {"id": 20}
    assert ids(standin) == list(range(1, 36))


def test_a_failure_that_passes_is_tried_again_inside_the_run(
    standin: RealConnection, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(sync.time, "sleep", waits.append)
    stumbling = standin.changed(behaviour="stumble", count=50)

    result = stumbling.sync(instance)

    assert result.success
    assert 10 in waits
    found = metadata(result, "events")
    # Of both tries, the first of which committed 20.
    assert (found["atlas/cursor_before"], found["atlas/records_synced"]) == ("none", 50)
    assert found["atlas/checkpoints"] == 2
    assert ids(standin) == list(range(1, 51))
    assert "atlas/failure_type" not in (instance.get_run_by_id(result.run_id) or run_is_gone()).tags


def run_is_gone() -> dg.DagsterRun:
    raise AssertionError("the run is gone")


def test_a_failure_that_will_not_pass_is_not_tried_again(
    standin: RealConnection, instance: dg.DagsterInstance, docker_client: docker.DockerClient
) -> None:
    failing = standin.changed(fail_check=True)
    with verbs_run(docker_client, "standin") as verbs:
        result = failing.sync(instance, raise_on_error=False)

    assert verbs == {"check": 1}
    run = instance.get_run_by_id(result.run_id) or run_is_gone()
    assert run.tags["atlas/failure_type"] == "config_error"
