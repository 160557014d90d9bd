"""Deletion of old runs with their events and compute logs; Dagster keeps them for ever.

No state is lost: it is stored beside the tables, too. Runs that Dagster or Atlas still needs stay.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import dagster as dg
import sqlalchemy

from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.automation.schedule import SCHEDULE_TAG
from atlas_dagster.orchestration.dagster_internals import (
    BACKFILL_ID_TAG,
    BULK_ACTION_TERMINAL_STATUSES,
    PARENT_RUN_ID_TAG,
    RUN_KEY_TAG,
    AssetCheckExecutionsTable,
    BulkActionsFilter,
    BulkActionStatus,
    SqlEventLogStorage,
    SqlEventLogStorageTable,
    SqliteEventLogStorage,
)
from atlas_dagster.orchestration.operations.cleanup import reap_job

#: Runs that are examined together: few enough to keep them in memory, many enough that queries over
#: a whole table are rare.
_PAGE = 500
_FINISHED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]


def prune(instance: dg.DagsterInstance, ended_before: dt.datetime) -> int:
    """Delete runs of all jobs that ended before ``ended_before``. Return how many.

    These runs stay: those with the newest event of an asset, a partition or a check; the newest run
    of each schedule; runs that a remaining run retries; runs of an unfinished backfill; and runs
    with a run key, because a sensor would request them again.

    Raises:
        ConfigError: Dagster's event log is not in an SQL database.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise ConfigError(
            f"Runs can be pruned only if Dagster's event log is in SQLite or Postgres; it is in "
            f"{type(storage).__name__}."
        )
    kept = _find_newest_runs(storage) | _find_newest_of_schedules(instance)
    backfills = _find_active_backfills(instance)
    deleted = 0
    for page in _iterate_pages(instance, ended_before):
        ids = [run.run_id for run in page]
        retries = _find_retries(instance, ids)
        deletable: dict[str, None] = {}
        # The newest first: a run is examined after its retries.
        for run in page:
            is_retried = not retries[run.run_id] <= deletable.keys()
            of_backfill = run.tags.get(BACKFILL_ID_TAG) in backfills
            if not (run.run_id in kept or is_retried or of_backfill or _has_sensor_key(run)):
                deletable[run.run_id] = None
        _delete(instance, storage, list(deletable))
        deleted += len(deletable)
    return deleted


def _find_newest_runs(storage: SqlEventLogStorage) -> set[str]:
    """Return the runs with the newest event of each kind, of each asset, partition and check.

    The run with the newest event of all is included: sensors store the number of the last event
    that they read, and SQLite would give the number of a deleted last event to a new one.
    """
    events, checks = SqlEventLogStorageTable.c, AssetCheckExecutionsTable.c
    number = sqlalchemy.func.max
    of_assets = (
        sqlalchemy.select(number(events.id))
        .where(events.asset_key.is_not(None))
        .group_by(events.asset_key, events.partition, events.dagster_event_type)
    )
    of_all = sqlalchemy.select(number(events.id)).scalar_subquery()
    of_checks = sqlalchemy.select(number(checks.id)).group_by(
        checks.asset_key, checks.check_name, checks.partition, checks.execution_status
    )
    newest_events = sqlalchemy.or_(events.id.in_(of_assets), events.id == of_all)
    with storage.index_connection() as database:
        found = set(database.scalars(sqlalchemy.select(events.run_id).where(newest_events)))
        found.update(
            database.scalars(sqlalchemy.select(checks.run_id).where(checks.id.in_(of_checks)))
        )
    return found


def _find_newest_of_schedules(instance: dg.DagsterInstance) -> set[str]:
    """Return the last run of each connection's schedule, which decides about retries."""
    found: set[str] = set()
    for _, connections in instance.get_run_tags([SCHEDULE_TAG]):
        for connection in connections:
            ours = dg.RunsFilter(tags={SCHEDULE_TAG: connection})
            found.update(instance.get_run_ids(ours, limit=1))
    return found


def _find_active_backfills(instance: dg.DagsterInstance) -> set[str]:
    under_way = [each for each in BulkActionStatus if each not in BULK_ACTION_TERMINAL_STATUSES]
    found = instance.get_backfills(BulkActionsFilter(statuses=under_way))
    return {backfill.backfill_id for backfill in found}


def _iterate_pages(
    instance: dg.DagsterInstance, ended_before: dt.datetime
) -> Iterator[Sequence[dg.DagsterRun]]:
    """Yield the finished runs in pages, the newest first."""
    ended = dg.RunsFilter(statuses=_FINISHED, updated_before=ended_before)
    page = instance.get_runs(ended, limit=_PAGE)
    while page:
        # Fetched now: the run that the cursor names may be deleted by then.
        following = instance.get_runs(ended, cursor=page[-1].run_id, limit=_PAGE)
        yield page
        page = following


def _find_retries(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> Mapping[str, set[str]]:
    """Return the retries of each run: a retry finds the first run through all in between."""
    found: dict[str, set[str]] = defaultdict(set)
    for run in instance.get_runs(dg.RunsFilter(tags={PARENT_RUN_ID_TAG: list(run_ids)})):
        found[run.tags[PARENT_RUN_ID_TAG]].add(run.run_id)
    return found


def _has_sensor_key(run: dg.DagsterRun) -> bool:
    """Return whether a sensor needs the run's key, or would request it again. Atlas does not."""
    ours = SCHEDULE_TAG in run.tags or run.job_name == reap_job.name
    return RUN_KEY_TAG in run.tags and not ours


def _delete(
    instance: dg.DagsterInstance, storage: SqlEventLogStorage, run_ids: Collection[str]
) -> None:
    """Delete runs. Their own rows go last, so that an interrupted deletion can be repeated."""
    with storage.index_connection() as database:
        # Dagster does not delete these.
        checks = AssetCheckExecutionsTable
        database.execute(checks.delete().where(checks.c.run_id.in_(run_ids)))
    for run_id in run_ids:
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        storage.delete_events(run_id)
        if isinstance(storage, SqliteEventLogStorage):
            # Dagster empties the run's database but leaves the file.
            file = storage.path_for_shard(run_id)
            for part in (file, f"{file}-wal", f"{file}-shm"):
                Path(part).unlink(missing_ok=True)
        instance.run_storage.delete_run(run_id)
