"""One tick of a schedule's sensor on an instance with a past: seconds, on SQLite and on Postgres.

Called by ``run.py``. Behind the instance lie thousands of runs, and before it a queue of runs of
other connections with 50 streams each, as after midnight. The sensor is evaluated as its code
server does it, without the daemon and gRPC.
"""

import datetime as dt
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.storage.runs.schema import RunsTable, RunTagsTable
from dagster_shared.serdes import serialize_value

from atlas_dagster.orchestration.automation.schedule import _make_tags
from atlas_dagster.orchestration.definitions.connection_check import check_key
from atlas_dagster_tests.orchestration.connections import USERS, declare_shop, define, found
from atlas_dagster_tests.orchestration.instances import postgres_instance
from atlas_dagster_tests.postgres_server import postgres_server

STREAMS = 50
CONNECTIONS = 100


def measure(past_runs: int, ticks: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a tick, the middle one of ``ticks``, by what there was to decide."""
    with dg.instance_for_test() as instance:
        results = {"sqlite": _measure(instance, past_runs, ticks)}
    with postgres_server() as server, postgres_instance(server.settings) as instance:
        results["postgres"] = _measure(instance, past_runs, ticks)
    return results


def _measure(instance: dg.DagsterInstance, past_runs: int, ticks: int) -> dict[str, float]:
    connection = declare_shop()
    streams = [{**USERS, "name": f"stream_{number}"} for number in range(STREAMS)]
    defs = define(connection, found(connection, streams), schedule="*/15 * * * *")
    sensor = defs.resolve_sensor_def("shop__schedule")
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=check_key(connection).asset_key, check_name="connection", passed=True
        )
    )
    for name in [f"shop{number}" for number in range(CONNECTIONS)]:
        _add_runs(instance, defs, name, past_runs // CONNECTIONS, "SUCCESS")
        _add_runs(instance, defs, name, 1, "NOT_STARTED")
    _add_runs(instance, defs, "shop", past_runs // CONNECTIONS, "FAILURE")
    now = dt.datetime.now(dt.UTC)
    handled = json.dumps({"handled": now.isoformat()})
    due = json.dumps({"handled": (now - dt.timedelta(hours=1)).isoformat()})

    def tick(cursor: str) -> SensorExecutionData:
        with dg.build_sensor_context(
            instance=instance, cursor=cursor, repository_def=defs.get_repository_def()
        ) as context:
            return sensor.evaluate_tick(context)

    def middle(cursor: str) -> float:
        return round(1000 * statistics.median(_seconds(lambda: tick(cursor), ticks)), 1)

    assert not tick(handled).run_requests
    assert tick(due).run_requests
    results = {"not_due_ms": middle(handled), "due_ms": middle(due)}
    _add_runs(instance, defs, "shop", 1, "NOT_STARTED")
    assert not tick(due).run_requests
    return results | {"waiting_ms": middle(due), "past_runs": past_runs, "queued": CONNECTIONS}


def _seconds(work: Callable[[], object], times: int) -> list[float]:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return taken


def _add_runs(
    instance: dg.DagsterInstance, defs: dg.Definitions, connection: str, count: int, status: str
) -> None:
    """Runs of a schedule, put into the tables as Dagster does one by one."""
    keys = [dg.AssetKey([connection, f"stream_{number}"]) for number in range(STREAMS)]
    names = ("records", "primary_key", "schema")
    tags = _make_tags(declare_shop(name=connection))
    runs = [
        dg.DagsterRun(
            job_name="__ASSET_JOB",
            run_id=str(uuid4()),
            status=dg.DagsterRunStatus[status],
            asset_selection=frozenset(keys),
            asset_check_selection=frozenset(
                dg.AssetCheckKey(key, name) for key in keys for name in names
            ),
            tags=tags,
        )
        for _ in range(count)
    ]
    rows = [
        {
            "run_id": run.run_id,
            "pipeline_name": run.job_name,
            "status": status,
            "run_body": serialize_value(run),
        }
        for run in runs
    ]
    labels = [
        {"run_id": run.run_id, "key": key, "value": value}
        for run in runs
        for key, value in tags.items()
    ]
    with ExitStack() as stack:
        database = stack.enter_context(instance.run_storage.connect())  # type: ignore[attr-defined]
        database.execute(sa.insert(RunsTable), rows)
        database.execute(sa.insert(RunTagsTable), labels)


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), 20), indent=2))
