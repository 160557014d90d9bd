"""The reporter records the events of a sync in Dagster as they happen."""

import time
from collections.abc import Iterator

import dagster as dg

from atlas_dagster.destinations.base import Destination
from atlas_dagster.destinations.envelope import Action, Envelope, StreamCommit
from atlas_dagster.errors import AtlasError, BreakingChangeError
from atlas_dagster.orchestration.dagster_internals import DATA_VERSION_TAG
from atlas_dagster.orchestration.definitions.stream_checks import (
    check_evaluation,
    check_key_of,
    check_results,
    make_breaking_result,
    make_miscount_result,
)
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
from atlas_dagster.orchestration.step.event_log import EventLogStateStore
from atlas_dagster.orchestration.step.metadata import (
    column_schema,
    commit_metadata,
    is_shared,
    materialization_metadata,
    shared_state_metadata,
)
from atlas_dagster.orchestration.step.projections import SyncProjection
from atlas_dagster.orchestration.step.telemetry import RunTotals
from atlas_dagster.source.connector import Connector
from atlas_dagster.sync.events import (
    ProgressReport,
    StreamFailed,
    StreamFinished,
    StreamsCommitted,
    SyncEvent,
)

#: Progress appears in the event log after 10 s, 20 s, 40 s … and then every 10 minutes.
_FIRST_REPORT_SECONDS = 10.0
_LONGEST_REPORT_SECONDS = 600.0


class Reporter:
    """Reports one attempt of a run.

    Args:
        remaining: the selected streams that are not materialized yet. The reporter removes each
            stream that it materializes.
        totals: the numbers of the run, over all its attempts.
        projection: the projection of this attempt.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        defined: ConnectionAssets,
        *,
        connector: Connector,
        destination: Destination,
        store: EventLogStateStore,
        remaining: set[dg.AssetKey],
        totals: RunTotals,
        projection: SyncProjection,
    ) -> None:
        self._context = context
        self._defined = defined
        self._connector = connector
        self._identity = connector.runner.identity()
        self._wanted_checks = context.selected_asset_check_keys
        self._destination = destination
        self._store = store
        self._docs_url = defined.discovered.documentation_url
        self._remaining = remaining
        self._totals = totals
        self._projection = projection
        self._report_every = _FIRST_REPORT_SECONDS
        self._next_report = time.monotonic() + self._report_every

    def record(self, event: SyncEvent) -> Iterator[dg.MaterializeResult[None]]:
        """Record ``event``. Yield the result of a selected stream that is complete."""
        match event:
            case StreamsCommitted():
                self._totals.add(event)
                self.record_commit(event.envelope)
            case ProgressReport():
                self._report_progress(event)
            case StreamFailed():
                self._projection.record_result(event)
                if event.miscounted:
                    key = self._defined.key(event.plan.table.path)
                    self._log_result(make_miscount_result(event, key))
            case StreamFinished():
                self._projection.record_result(event)
                yield from self._materialize(event)

    def record_commit(self, envelope: Envelope) -> None:
        """Record a commit."""
        for observation in make_observations(self._defined, envelope):
            self._context.log_event(observation)
        self._projection.record_commit(envelope)

    def record_refusal(self, error: AtlasError) -> None:
        """Record that a stream is not read because of ``error``."""
        if isinstance(error, BreakingChangeError) and error.stream is not None:
            tables = {str(name): path for name, path in self._defined.tables.items()}
            key = self._defined.key(tables[error.stream])
            self._log_result(make_breaking_result(str(error), key))

    def _materialize(self, finished: StreamFinished) -> Iterator[dg.MaterializeResult[None]]:
        table = finished.plan.table.path
        key = self._defined.key(table)
        if finished.plan.already_read and key not in self._remaining:
            return  # an earlier attempt has recorded it
        version = dg.DataVersion(finished.data_version)
        recent = self._store.recent_records.get(table, [])
        metadata = materialization_metadata(
            finished,
            totals=self._totals,
            connector=self._identity,
            mask=self._connector.mask,
            recent=recent,
            docs_url=self._docs_url,
        )
        columns = column_schema(finished.plan.table.schema, finished.plan.configured)
        results = check_results(
            finished,
            key,
            records=self._totals.of(table).records_synced,
            columns=(self._store.columns.get(table), columns),
            recent=recent,
            duplicates=lambda: self._destination.count_duplicates(
                finished.plan.table, finished.plan.key_columns
            ),
        )
        if key not in self._remaining:
            # Not selected, but read: the source has one state for all streams.
            tags = {DATA_VERSION_TAG: version.value}
            self._context.log_event(dg.AssetMaterialization(key, metadata=metadata, tags=tags))
            for result in results:
                self._log_result(result)
            return
        self._remaining.remove(key)
        yield dg.MaterializeResult(
            asset_key=key,
            metadata=metadata,
            data_version=version,
            check_results=[r for r in results if check_key_of(r) in self._wanted_checks],
        )

    def _log_result(self, result: dg.AssetCheckResult) -> None:
        self._context.log_event(check_evaluation(check_key_of(result), result))

    def _report_progress(self, progressed: ProgressReport) -> None:
        # The compute log gets each line; in the event log, each would cost a transaction.
        self._connector.log("INFO", progressed.text)
        now = time.monotonic()
        if now >= self._next_report:
            self._context.log.info(progressed.text)
            self._report_every = min(2 * self._report_every, _LONGEST_REPORT_SECONDS)
            self._next_report = now + self._report_every


_DESCRIPTIONS: dict[Action, str] = {
    "refresh": "Refresh: the next sync reads the stream from the beginning.",
    "clear": "Cleared: rows and state are removed.",
    "reset": "State reset: the next sync reads the stream from the beginning; rows are kept.",
    "set": "State set.",
    "accept": "Accepted the changes that another program made to the table.",
}


def make_observations(
    defined: ConnectionAssets, envelope: Envelope
) -> Iterator[dg.AssetObservation]:
    """Return the events that store ``envelope``: one for each of its streams."""
    if is_shared(envelope):
        # First, because the events of the streams refer to it.
        yield dg.AssetObservation(
            asset_key=defined.source_key,
            description=f"Checkpoint of {len(envelope.streams)} streams.",
            metadata=shared_state_metadata(envelope),
        )
    state = envelope.connection_state
    for commit in envelope.streams:
        blob = state.blob_of(commit.stream)
        yield dg.AssetObservation(
            asset_key=defined.key(commit.table),
            description=_describe(envelope, commit),
            metadata=commit_metadata(envelope, blob),
        )


def _describe(envelope: Envelope, commit: StreamCommit) -> str:
    shown = ", published when the stream is complete" if commit.unpublished else ""
    return _DESCRIPTIONS.get(envelope.action, f"Checkpoint: {commit.rows:,} rows committed{shown}.")
