"""The job that maintains a connection's tables, and its schedule."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import filelock
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from atlas_dagster.destinations.base import Maintained
from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.orchestration.automation.maintenance import MaintenanceConfig
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster_tests.orchestration.connections import declare_shop, define
from atlas_dagster_tests.orchestration.instances import sqlite_instance

pytestmark = pytest.mark.slow

WEEKLY = MaintenanceConfig(schedule="0 3 * * 0")


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with sqlite_instance() as instance:
        yield instance


def run(
    instance: dg.DagsterInstance, lake: Path, *, raise_on_error: bool = True
) -> dg.ExecuteInProcessResult:
    defs = define(declare_shop(), lake=lake, maintenance=WEEKLY)
    job = defs.resolve_job_def("shop__maintenance")
    return job.execute_in_process(instance=instance, raise_on_error=raise_on_error)


def test_it_is_off_unless_asked_for() -> None:
    defs = define(declare_shop())

    assert [job.name for job in defs.jobs or ()] == ["shop__discover"]
    assert not defs.schedules


def test_a_job_and_a_running_schedule_in_utc() -> None:
    defs = define(declare_shop(), maintenance=WEEKLY)

    job = defs.resolve_job_def("shop__maintenance")
    assert [node.definition.pool for node in job.nodes] == ["airbyte_shop"]
    assert job.tags["atlas/connection"] == "shop"
    schedule = defs.resolve_schedule_def("shop__maintenance_schedule")
    assert schedule.cron_schedule == "0 3 * * 0"
    assert schedule.execution_timezone == "UTC"
    assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


def test_every_table_of_the_connection_is_compacted(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for _ in range(3):
        write_deltalake(tmp_path / "shop/users", pa.table({"id": [1]}), mode="append")

    result = run(instance, tmp_path)  # shop/sales/orders was never synced

    assert len(DeltaTable(str(tmp_path / "shop/users")).file_uris()) == 1
    (output,) = [event for event in result.all_events if event.is_successful_output]
    metadata = {key: value.value for key, value in output.step_output_data.metadata.items()}
    assert metadata == {
        "atlas/files_compacted": 3,
        "atlas/files_written": 1,
        "atlas/files_deleted": 0,
    }


def test_no_command_uses_the_connection_meanwhile(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = []

    def maintain(self: object, table: object, *, retain_hours: int) -> Maintained:
        assert retain_hours == 168
        lock = filelock.FileLock(Path(instance.root_directory) / "renewals/shop.lock")
        with pytest.raises(filelock.Timeout):
            lock.acquire(timeout=0)
        locked.append(table)
        return Maintained()

    monkeypatch.setattr(DeltaDestination, "maintain", maintain)
    run(instance, tmp_path)

    assert locked == [("shop", "users"), ("shop", "sales", "orders")]


def test_a_table_that_fails_keeps_no_other_from_its_maintenance(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for _ in range(3):
        write_deltalake(tmp_path / "shop/sales/orders", pa.table({"id": [1]}), mode="append")
        write_deltalake(tmp_path / "shop/users", pa.table({"id": [1]}), mode="append")
    (broken,) = (tmp_path / "shop/users/_delta_log").glob("*1.json")
    broken.write_text("not json")

    result = run(instance, tmp_path, raise_on_error=False)

    assert len(DeltaTable(str(tmp_path / "shop/sales/orders")).file_uris()) == 1
    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_failure_data.user_failure_data is not None
    said = str(failed.step_failure_data.user_failure_data.description)
    table = f"{tmp_path}/shop/users"
    assert said.startswith(f"Maintenance failed for 1 of 2 tables. {table} cannot be read as")


def test_a_destination_without_maintenance(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        kind = "postgres"

    monkeypatch.setattr(AtlasResource, "open_destination", lambda *_: Other())
    result = run(instance, tmp_path, raise_on_error=False)

    (failed,) = [event for event in result.all_events if event.is_step_failure]
    assert failed.step_failure_data.user_failure_data is not None
    assert failed.step_failure_data.user_failure_data.description == (
        "Tables in postgres need no maintenance; remove maintenance from shop's defs.yaml."
    )
