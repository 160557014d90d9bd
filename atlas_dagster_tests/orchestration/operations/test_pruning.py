"""Which runs go when they are pruned, what goes with them, and what nobody may miss."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.runs.schema import RunsTable
from dagster._core.test_utils import create_run_for_test

from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.automation.retries import root_run_id
from atlas_dagster.orchestration.automation.schedule import SCHEDULE_TAG
from atlas_dagster.orchestration.operations import pruning
from atlas_dagster.orchestration.operations.cleanup import reap_job
from atlas_dagster.orchestration.operations.pruning import prune
from atlas_dagster_tests.orchestration.recovery_cases import EITHER, Shop

pytestmark = [pytest.mark.slow, pytest.mark.dagster]


def prune_all(instance: dg.DagsterInstance) -> int:
    """As if all runs had ended long ago."""
    return prune(instance, dt.datetime.now(dt.UTC))


def ended(
    instance: dg.DagsterInstance,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.SUCCESS,
    job: str = "nightly",
    **tags: str,
) -> str:
    """A run of a job that has nothing to do with Atlas."""
    named = {name.replace("__", "/"): value for name, value in tags.items()}
    return create_run_for_test(instance, job_name=job, status=status, tags=named).run_id


def left(instance: dg.DagsterInstance) -> set[str]:
    return set(instance.get_run_ids())


# Syncs


@EITHER
@pytest.mark.parametrize("kind", ["STREAM", "GLOBAL"])
def test_a_stream_goes_on_as_if_nothing_had_been_deleted(shop: Shop, kind: str) -> None:
    shop.have_two_streams()
    shop.source.kind = kind
    ran = []
    for shop.source.last in (3, 5, 7):
        ran.append(shop.run())

    assert prune_all(shop.instance) == 1

    # CHECK was with the first of them, and since then not due again.
    assert left(shop.instance) == {ran[0].run_id, ran[2].run_id}
    shop.source.last = 9
    again = shop.run()
    assert (again.success, again.warnings) == (True, [])
    assert shop.source.started_from == [None] * 2 + [3] * 2 + [5] * 2 + [7] * 2
    assert shop.ids() == shop.ids(stream="visits") == [1, 2, 3, 4, 5, 6, 7, 8, 9]


@EITHER
def test_so_it_does_where_its_last_sync_died(shop: Shop) -> None:
    shop.run()
    shop.source.last = 6
    shop.source.dies_after = 5
    assert not shop.run().success

    prune_all(shop.instance)

    shop.source.dies_after = None
    ran = shop.run()
    assert (ran.success, ran.warnings) == (True, [])
    assert shop.source.started_from == [None, 3, 5]
    assert shop.ids() == [1, 2, 3, 4, 5, 6]


@EITHER
def test_so_it_does_when_its_run_is_deleted_by_hand_besides(shop: Shop) -> None:
    ran = shop.run()
    prune_all(shop.instance)
    shop.instance.delete_run(ran.run_id)
    shop.source.last = 5
    assert shop.run().success
    assert shop.source.started_from == [None, 3]
    assert shop.ids() == [1, 2, 3, 4, 5]


@EITHER
def test_events_evaluations_and_compute_logs_go_with_their_run(shop: Shop) -> None:
    first, old, new = shop.run(), shop.run(), shop.run()
    root = Path(shop.instance.root_directory)

    def files(run_id: str) -> list[Path]:
        return [file for file in root.rglob("*") if run_id in str(file)]

    assert any(file.suffix == ".err" for file in files(old.run_id))

    assert prune_all(shop.instance) == 1

    assert files(old.run_id) == []
    assert any(file.suffix == ".err" for file in files(new.run_id))
    assert shop.instance.get_run_by_id(old.run_id) is None
    assert shop.instance.all_logs(new.run_id)
    made = shop.instance.fetch_materializations(shop.key, limit=10).records
    assert [each.run_id for each in made] == [new.run_id, first.run_id]
    with shop.instance.event_log_storage.index_connection() as database:  # type: ignore[attr-defined]
        for table in ("event_logs", "asset_check_executions"):
            rows = database.exec_driver_sql(f"SELECT DISTINCT run_id FROM {table}")
            assert {run for (run,) in rows if run} == {first.run_id, new.run_id}
    assert prune_all(shop.instance) == 0


# Which runs stay


@EITHER
def test_only_runs_that_ended_before_that_go(instance: dg.DagsterInstance) -> None:
    now = dt.datetime.now(dt.UTC)

    def days_ago(days: int, *statuses: str) -> set[str]:
        runs = {ended(instance, dg.DagsterRunStatus(status)) for status in statuses}
        with instance.run_storage.connect() as database:  # type: ignore[attr-defined]
            then = (now - dt.timedelta(days=days)).replace(tzinfo=None)
            old = RunsTable.update().where(RunsTable.c.run_id.in_(runs))
            database.execute(old.values(update_timestamp=then))
        return runs

    working = days_ago(40, "NOT_STARTED", "STARTING", "STARTED", "CANCELING")
    days_ago(31, "SUCCESS", "FAILURE", "CANCELED")
    recent = days_ago(29, "SUCCESS", "FAILURE", "CANCELED")

    assert prune(instance, now - dt.timedelta(days=30)) == 3
    assert left(instance) == working | recent
    assert prune(instance, now - dt.timedelta(days=30)) == 0
    assert prune(instance, now) == 3
    assert left(instance) == working


@EITHER
def test_the_newest_event_of_each_kind_stays(instance: dg.DagsterInstance) -> None:
    fails = False

    @dg.asset
    def orders() -> None:
        if fails:
            raise dg.Failure("down")

    @dg.observable_source_asset
    def source() -> dg.DataVersion:
        return dg.DataVersion("1")

    @dg.asset_check(asset=orders)
    def fine() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=True)

    @dg.asset
    def latest() -> None:
        pass

    def run(*keys: Any, checks: Sequence[dg.AssetChecksDefinition] = ()) -> str:
        assets, none = dg.AssetSelection.assets(*keys), dg.AssetSelection.all_asset_checks()
        chosen = assets - none if keys else dg.AssetSelection.checks(*checks)
        job = dg.Definitions(
            [orders, source, latest],
            asset_checks=[fine],
            jobs=[dg.define_asset_job("some", chosen)],
        ).resolve_job_def("some")
        return job.execute_in_process(instance=instance, raise_on_error=False).run_id

    run(orders), run(source.key), run(checks=[fine])
    materialized = run(orders)
    observed = run(source.key)
    checked = run(checks=[fine])
    fails = True
    run(orders)
    failed = run(orders)
    last = run(latest)

    prune_all(instance)

    assert left(instance) == {materialized, observed, checked, failed, last}
    [record] = instance.get_asset_records([orders.key])
    assert record.asset_entry.last_materialization is not None
    assert record.asset_entry.last_materialization.run_id == materialized
    assert record.asset_entry.last_run_id == failed


@EITHER
def test_the_newest_of_each_partition_stays(instance: dg.DagsterInstance) -> None:
    days = dg.StaticPartitionsDefinition(["mon", "tue"])

    @dg.asset(partitions_def=days)
    def sales() -> None:
        pass

    def run(day: str) -> str:
        return dg.materialize([sales], instance=instance, partition_key=day).run_id

    run("mon")
    stay = {run("mon"), run("tue")}

    assert prune_all(instance) == 1
    assert left(instance) == stay
    assert instance.get_materialized_partitions(sales.key) == {"mon", "tue"}


@EITHER
def test_numbers_of_events_are_not_given_again(instance: dg.DagsterInstance) -> None:
    """A sensor that has read up to one would not see the next."""

    @dg.op
    def work() -> None:
        pass

    @dg.job
    def nightly() -> None:
        work()

    nightly.execute_in_process(instance=instance)
    nightly.execute_in_process(instance=instance)
    ended_runs = dg.DagsterEventType.RUN_SUCCESS
    [seen] = instance.fetch_run_status_changes(ended_runs, limit=1).records

    assert prune_all(instance) == 1

    nightly.execute_in_process(instance=instance)
    [new] = instance.fetch_run_status_changes(ended_runs, limit=1).records
    assert new.storage_id > seen.storage_id


@EITHER
def test_what_a_retry_leads_back_to_stays(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_PAGE", 2)

    def again(of: str, status: dg.DagsterRunStatus = dg.DagsterRunStatus.FAILURE) -> str:
        # As the UI and the daemon do it.
        tags = {"dagster/parent_run_id": of}
        run = create_run_for_test(
            instance, status=status, tags=tags, root_run_id=of, parent_run_id=of
        )
        return run.run_id

    given_up = ended(instance, dg.DagsterRunStatus.FAILURE)
    again(again(given_up))
    first = ended(instance, dg.DagsterRunStatus.FAILURE)
    second = again(first)
    third = again(second)
    fourth = again(third, dg.DagsterRunStatus.STARTED)

    assert prune_all(instance) == 3

    assert left(instance) == {first, second, third, fourth}
    run = instance.get_run_by_id(fourth)
    assert run is not None
    assert root_run_id(instance, run) == first


@EITHER
def test_the_newest_of_each_schedule_stays(instance: dg.DagsterInstance) -> None:
    key = {"dagster__run_key": "shop:2026-01-01"}
    tag = SCHEDULE_TAG.replace("/", "__")
    ended(instance, **{tag: "shop"}, **key)
    stay = {ended(instance, **{tag: "shop"}), ended(instance, **{tag: "crm"})}
    ended(instance, job=reap_job.name, **key)

    assert prune_all(instance) == 2
    assert left(instance) == stay


@EITHER
def test_runs_that_somebody_will_ask_for_stay(instance: dg.DagsterInstance) -> None:
    def backfill(name: str, status: BulkActionStatus) -> None:
        instance.add_backfill(
            PartitionBackfill(
                backfill_id=name,
                status=status,
                from_failure=False,
                tags={},
                backfill_timestamp=0.0,
                partition_names=[],
            )
        )

    backfill("working", BulkActionStatus.REQUESTED)
    backfill("done", BulkActionStatus.COMPLETED_SUCCESS)
    ended(instance, dagster__backfill="done")
    stay = {
        ended(instance, dagster__backfill="working"),
        # A sensor that lists the files of a folder asks for a run of each, each time.
        ended(instance, dagster__run_key="/inbox/2026-01-01.csv"),
    }

    assert prune_all(instance) == 1
    assert left(instance) == stay


# How it goes about it


@EITHER
def test_many_runs_are_looked_at_in_pages(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_PAGE", 3)
    stay = {ended(instance, dagster__run_key=str(number)) for number in range(4)}
    for _ in range(7):
        ended(instance)
    stay |= {ended(instance, dagster__run_key=str(number)) for number in range(4)}
    asked: list[int] = []
    get_runs = instance.get_runs

    def counted(*args: Any, **options: Any) -> Any:
        found = get_runs(*args, **options)
        asked.append(len(found))
        return found

    monkeypatch.setattr(instance, "get_runs", counted)

    assert prune_all(instance) == 7

    assert left(instance) == stay
    assert max(asked) == 3


def test_what_was_interrupted_is_done_the_next_time(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, old, new = shop.run(), shop.run(), shop.run()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def prune_anew() -> int:
        """In a process of its own, as it were."""
        with dg.DagsterInstance.from_ref(shop.instance.get_ref()) as instance:
            return prune_all(instance)

    for owner, step in (
        (LocalComputeLogManager, "delete_logs"),
        (SqliteEventLogStorage, "delete_events"),
        (SqliteRunStorage, "delete_run"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, step, interrupt)
            with pytest.raises(KeyboardInterrupt):
                prune_anew()
        assert old.run_id in left(shop.instance)

    assert prune_anew() == 1
    assert left(shop.instance) == {first.run_id, new.run_id}
    assert not list(Path(shop.instance.root_directory).rglob(f"*{old.run_id}*"))


def test_an_event_log_in_no_database_is_said(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(instance, "_event_storage", object())
        with pytest.raises(ConfigError, match="SQLite or Postgres"):
            prune_all(instance)
