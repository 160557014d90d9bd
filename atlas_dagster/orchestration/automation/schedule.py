"""The sensor of a connection with a schedule. It requests CHECK and sync in one run.

Its ticks start no container. A sync with a transient failure is retried with growing delays. While
CHECK fails, only CHECK is requested, with growing delays; once it passes, the sync follows.
"""

import datetime as dt
import json
from collections.abc import Mapping, Sequence

import dagster as dg
from msgspec import Struct

from atlas_dagster.orchestration.automation.cron import Schedule
from atlas_dagster.orchestration.automation.retries import ROOT_RUN_TAG, plan_retry, root_run_id
from atlas_dagster.orchestration.definitions.connection_check import check_key
from atlas_dagster.orchestration.definitions.translator import source_key
from atlas_dagster.orchestration.step.event_repair import read_with_repair
from atlas_dagster.source.connection import Connection

_TICK_SECONDS = 30
#: The longest delay between CHECKs that fail.
_LONGEST_BACKOFF = dt.timedelta(hours=6)
#: Doublings from a second to more than the longest delay.
_MOST_DOUBLINGS = 16
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
#: Tags whose value is the connection's name. All runs that Atlas requests have the first one, those
#: that its schedule requests also the second one.
CONNECTION_TAG = "atlas/connection"
SCHEDULE_TAG = "atlas/schedule"
#: The tag of all runs that schedules request, for finding them with one query.
_SCHEDULED = {"atlas/started_by": "schedule"}


class ScheduleCursor(Struct):
    """The last tick that the sensor handled, and its failed CHECKs since. Times are ISO 8601."""

    handled: str
    failures: int = 0
    retry_at: str | None = None


def build_schedule(
    connection: Connection,
    times: Schedule,
    streams: Sequence[dg.AssetKey],
    checks: Sequence[dg.AssetCheckKey],
) -> dg.SensorDefinition:
    """Return the sensor that syncs ``streams`` at these ``times``, with their ``checks``."""

    @dg.sensor(
        name=f"{connection.name}__schedule",
        # The source is included, because the UI shows a selection of checks alone as code.
        asset_selection=dg.AssetSelection.assets(source_key(connection), *streams),
        minimum_interval_seconds=_TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Requests CHECK, then a sync of {connection.name}, at {times}.",
        metadata={"atlas/cron": times.cron, "atlas/timezone": times.timezone},
    )
    def schedule(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return _tick(context, connection, times, streams, checks)

    return schedule


def _tick(
    context: dg.SensorEvaluationContext,
    connection: Connection,
    times: Schedule,
    streams: Sequence[dg.AssetKey],
    checks: Sequence[dg.AssetCheckKey],
) -> dg.SensorResult:
    now = _now()
    due = times.previous_tick(now)
    following = times.next_tick(due)
    if context.cursor is None:
        # A new schedule does not catch up on ticks of the past.
        cursor = ScheduleCursor(handled=due.isoformat())
        return _skip(f"The schedule starts now; next at {times.format_time(following)}.", cursor)
    cursor = ScheduleCursor(**json.loads(context.cursor))
    retry_at = dt.datetime.fromisoformat(cursor.retry_at) if cursor.retry_at else None
    if retry_at is None and due <= dt.datetime.fromisoformat(cursor.handled):
        return _request_retry(context, connection, times, now, streams, checks, cursor) or _skip(
            f"Not due; next at {times.format_time(following)}.", cursor
        )
    passed = _last_check_passed(context, connection)
    if retry_at is not None and not passed and now < retry_at:
        return _skip(
            f"The last CHECK failed; the next one is at {times.format_time(retry_at)}.", cursor
        )
    if _is_busy(context, connection, streams):
        return _skip(f"A run of {connection.name} is queued or running; waiting for it.", cursor)
    if passed:
        cursor = ScheduleCursor(handled=due.isoformat())
        request = dg.RunRequest(
            run_key=f"{connection.name}:{due.isoformat()}" + (":recovered" if retry_at else ""),
            asset_selection=list(streams),
            asset_check_keys=[check_key(connection), *checks],
            tags=_make_tags(connection),
        )
        return dg.SensorResult(run_requests=[request], cursor=_encode(cursor))
    period = following - due
    longest = max(_LONGEST_BACKOFF, period)
    wait = min(period * 2 ** min(cursor.failures, _MOST_DOUBLINGS), longest)
    cursor = ScheduleCursor(due.isoformat(), cursor.failures + 1, (now + wait).isoformat())
    request = dg.RunRequest(
        run_key=f"{connection.name}:check:{now.isoformat()}",
        asset_selection=[],
        asset_check_keys=[check_key(connection)],
        tags=_make_tags(connection),
    )
    return dg.SensorResult(run_requests=[request], cursor=_encode(cursor))


def _request_retry(
    context: dg.SensorEvaluationContext,
    connection: Connection,
    times: Schedule,
    now: dt.datetime,
    streams: Sequence[dg.AssetKey],
    checks: Sequence[dg.AssetCheckKey],
    cursor: ScheduleCursor,
) -> dg.SensorResult | None:
    """Return the retry of a failed sync, or the reason to wait; None if there is no retry."""
    ours = dg.RunsFilter(tags={SCHEDULE_TAG: connection.name})
    last = next(iter(context.instance.get_run_records(ours, limit=1)), None)
    if last is None or last.dagster_run.status is not dg.DagsterRunStatus.FAILURE:
        return None
    retry = plan_retry(last.dagster_run.tags)
    if retry is None or last.end_time is None:
        return None
    at = dt.datetime.fromtimestamp(last.end_time + retry.after, dt.UTC)
    if now < at:
        why = "The last sync failed with a transient error"
        return _skip(f"{why}; it is retried at {times.format_time(at)}.", cursor)
    # Streams that the failed run completed are left out.
    failed_run = last.dagster_run.run_id
    instance = context.instance
    records = read_with_repair(instance, streams, lambda: instance.get_asset_records(list(streams)))
    done = {
        record.asset_entry.asset_key
        for record in records
        if record.asset_entry.last_run_id == failed_run
        and record.asset_entry.last_materialization
        and record.asset_entry.last_materialization.run_id == failed_run
    }
    wanted = (last.dagster_run.asset_selection or frozenset(streams)) - done
    request = dg.RunRequest(
        run_key=f"{connection.name}:{cursor.handled}:try{retry.attempts}",
        asset_selection=[key for key in streams if key in wanted],
        asset_check_keys=[
            check_key(connection),
            *(check for check in checks if check.asset_key in wanted),
        ],
        tags={
            **_make_tags(connection),
            **retry.tags,
            ROOT_RUN_TAG: root_run_id(context.instance, last.dagster_run),
        },
    )
    return dg.SensorResult(run_requests=[request], cursor=_encode(cursor))


def _make_tags(connection: Connection) -> dict[str, str]:
    return {CONNECTION_TAG: connection.name, SCHEDULE_TAG: connection.name, **_SCHEDULED}


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _last_check_passed(context: dg.SensorEvaluationContext, connection: Connection) -> bool:
    """Return whether the newest CHECK passed, or none has run yet."""
    key = check_key(connection)
    record = context.instance.get_latest_asset_check_evaluation_record(key)
    return record is None or record.status.value != "FAILED"


def _is_busy(
    context: dg.SensorEvaluationContext, connection: Connection, streams: Sequence[dg.AssetKey]
) -> bool:
    """Return whether a run that uses the connection is queued or running.

    Dagster indexes the tags of runs, but not their selections. Schedules can request many runs at
    once (a hundred at midnight), so only the tags of those are compared. Other runs are few; their
    selections are read.
    """
    instance = context.instance
    unfinished = set(instance.get_run_ids(dg.RunsFilter(statuses=_UNFINISHED)))
    if not unfinished:
        return False

    def tagged(tags: Mapping[str, str]) -> set[str]:
        return set(instance.get_run_ids(dg.RunsFilter(statuses=_UNFINISHED, tags=tags)))

    if tagged({CONNECTION_TAG: connection.name}):
        return True
    others = unfinished - tagged(_SCHEDULED)
    return any(
        not (run.asset_selection or frozenset()).isdisjoint(streams)
        or check_key(connection) in (run.asset_check_selection or ())
        for run in (instance.get_runs(dg.RunsFilter(run_ids=list(others))) if others else ())
    )


def _skip(reason: str, cursor: ScheduleCursor) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=reason, cursor=_encode(cursor))


def _encode(cursor: ScheduleCursor) -> str:
    values: Mapping[str, object] = {
        "handled": cursor.handled,
        "failures": cursor.failures,
        "retry_at": cursor.retry_at,
    }
    return json.dumps(values)
