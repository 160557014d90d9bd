"""Deleting runs that ended long ago, with their events and compute logs.

Dagster keeps them for ever. Where a stream continues is kept beside its table, too, so no state is
lost with them; what somebody still asks the past for stays.
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

#: Runs looked at together. Few enough for their records, many enough for a look into what only a
#: whole table tells.
_PAGE = 500
_FINISHED = [
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
]


def prune(instance: dg.DagsterInstance, ended_before: dt.datetime) -> int:
    """Delete the runs of all jobs that ended before then; how many there were.

    These stay: a run with the newest event of an asset, a partition or a check; the newest of each
    schedule; one that a run which stays tried again; one of a backfill under way; and one with a
    key, by which a sensor knows what it has asked for already.

    Raises:
        ConfigError: Dagster's event log is in no SQL database.
    """
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        raise ConfigError(
            f"Runs can be pruned where Dagster's event log is in SQLite or Postgres, and not in "
            f"{type(storage).__name__}."
        )
    kept = _newest(storage) | _newest_of_schedules(instance)
    backfills = _backfills_under_way(instance)
    deleted = 0
    for page in _pages(instance, ended_before):
        ids = [run.run_id for run in page]
        retries = _retries(instance, ids)
        doomed: dict[str, None] = {}
        # The newest first: a run is looked at after those that tried it again.
        for run in page:
            tried_again = not retries[run.run_id] <= doomed.keys()
            of_backfill = run.tags.get(BACKFILL_ID_TAG) in backfills
            if not (run.run_id in kept or tried_again or of_backfill or _keeps_its_key(run)):
                doomed[run.run_id] = None
        _delete(instance, storage, list(doomed))
        deleted += len(doomed)
    return deleted


def _newest(storage: SqlEventLogStorage) -> set[str]:
    """Runs with the newest event of its kind of an asset, a partition or a check.

    And that with the newest event of all: SQLite gives the numbers of the last rows again once
    they are deleted, and sensors remember up to which number they have read.
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


def _newest_of_schedules(instance: dg.DagsterInstance) -> set[str]:
    """A connection's schedule looks at its last run, and must not take an older one for it."""
    found: set[str] = set()
    for _, connections in instance.get_run_tags([SCHEDULE_TAG]):
        for connection in connections:
            ours = dg.RunsFilter(tags={SCHEDULE_TAG: connection})
            found.update(instance.get_run_ids(ours, limit=1))
    return found


def _backfills_under_way(instance: dg.DagsterInstance) -> set[str]:
    under_way = [each for each in BulkActionStatus if each not in BULK_ACTION_TERMINAL_STATUSES]
    found = instance.get_backfills(BulkActionsFilter(statuses=under_way))
    return {backfill.backfill_id for backfill in found}


def _pages(
    instance: dg.DagsterInstance, ended_before: dt.datetime
) -> Iterator[Sequence[dg.DagsterRun]]:
    """Finished runs that nothing happened to since, the newest first."""
    ended = dg.RunsFilter(statuses=_FINISHED, updated_before=ended_before)
    page = instance.get_runs(ended, limit=_PAGE)
    while page:
        # Asked for now, for the run that it follows on may be gone then.
        following = instance.get_runs(ended, cursor=page[-1].run_id, limit=_PAGE)
        yield page
        page = following


def _retries(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> Mapping[str, set[str]]:
    """Of each run, those that tried it again: a retry looks for the first run by way of all."""
    found: dict[str, set[str]] = defaultdict(set)
    for run in instance.get_runs(dg.RunsFilter(tags={PARENT_RUN_ID_TAG: list(run_ids)})):
        found[run.tags[PARENT_RUN_ID_TAG]].add(run.run_id)
    return found


def _keeps_its_key(run: dg.DagsterRun) -> bool:
    """Whether a sensor would ask for it a second time. Those of Atlas never use a key again."""
    ours = SCHEDULE_TAG in run.tags or run.job_name == reap_job.name
    return RUN_KEY_TAG in run.tags and not ours


def _delete(
    instance: dg.DagsterInstance, storage: SqlEventLogStorage, run_ids: Collection[str]
) -> None:
    """The runs themselves go last, so that what is interrupted is found again."""
    with storage.index_connection() as database:
        # Dagster leaves these.
        checks = AssetCheckExecutionsTable
        database.execute(checks.delete().where(checks.c.run_id.in_(run_ids)))
    for run_id in run_ids:
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        storage.delete_events(run_id)
        if isinstance(storage, SqliteEventLogStorage):
            # It empties the run's database and leaves the file.
            file = storage.path_for_shard(run_id)
            for part in (file, f"{file}-wal", f"{file}-shm"):
                Path(part).unlink(missing_ok=True)
        instance.run_storage.delete_run(run_id)
