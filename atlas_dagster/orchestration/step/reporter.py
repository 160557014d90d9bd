"""A session's events as Dagster's own: each is told the moment it is true."""

import time
from collections.abc import Iterator

import dagster as dg

from atlas_dagster.destinations.base import Destination
from atlas_dagster.destinations.envelope import Action, Envelope, StreamCommit
from atlas_dagster.errors import AtlasError, BreakingChangeError
from atlas_dagster.orchestration.dagster_internals import DATA_VERSION_TAG
from atlas_dagster.orchestration.definitions.stream_checks import (
    broken_schema,
    check_evaluation,
    check_key_of,
    check_results,
    miscounted,
)
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
from atlas_dagster.orchestration.step.event_log import EventLogStateStore
from atlas_dagster.orchestration.step.metadata import (
    checkpoint_metadata,
    column_schema,
    is_shared,
    materialization_metadata,
    shared_state_metadata,
)
from atlas_dagster.orchestration.step.projections import SyncProjection
from atlas_dagster.orchestration.step.telemetry import RunTotals
from atlas_dagster.source.connector import Connector
from atlas_dagster.sync.events import (
    Checkpoint,
    ProgressReport,
    StreamFailed,
    StreamFinished,
    SyncEvent,
)

#: Progress is told in the event log ever more rarely: after 10 s, 20, 40 … and every 10 minutes.
_FIRST_TOLD_SECONDS = 10.0
_RAREST_TOLD_SECONDS = 600.0


class Reporter:
    """Reports one try of a run.

    Args:
        left: the selected streams that are not materialized yet; those that are, leave it.
        tally: of the run, over all its tries.
        book: of this try.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        defined: ConnectionAssets,
        *,
        connector: Connector,
        destination: Destination,
        store: EventLogStateStore,
        left: set[dg.AssetKey],
        tally: RunTotals,
        book: SyncProjection,
    ) -> None:
        self._context = context
        self._defined = defined
        self._connector = connector
        self._identity = connector.runner.identity()
        self._wanted_checks = context.selected_asset_check_keys
        self._destination = destination
        self._store = store
        self._docs_url = defined.discovered.documentation_url
        self._left = left
        self._tally = tally
        self._book = book
        self._told_every = _FIRST_TOLD_SECONDS
        self._next_told = time.monotonic() + self._told_every

    def take(self, event: SyncEvent) -> Iterator[dg.MaterializeResult[None]]:
        """Record ``event``; a selected stream that is complete is for Dagster to record."""
        match event:
            case Checkpoint():
                self._tally.add(event)
                self.observe(event.envelope)
            case ProgressReport():
                self._tell(event)
            case StreamFailed():
                self._book.ended(event)
                if event.miscounted:
                    key = self._defined.key(event.plan.table.path)
                    self._evaluate(miscounted(event, key))
            case StreamFinished():
                self._book.ended(event)
                yield from self._materialize(event)

    def observe(self, envelope: Envelope) -> None:
        """Remember a commit."""
        for observation in observations(self._defined, envelope):
            self._context.log_event(observation)
        self._book.committed(envelope)

    def refused(self, error: AtlasError) -> None:
        """A stream is not read at all."""
        if isinstance(error, BreakingChangeError) and error.stream is not None:
            tables = {str(name): path for name, path in self._defined.tables.items()}
            key = self._defined.key(tables[error.stream])
            self._evaluate(broken_schema(str(error), key))

    def _materialize(self, finished: StreamFinished) -> Iterator[dg.MaterializeResult[None]]:
        table = finished.plan.table.path
        key = self._defined.key(table)
        if finished.plan.already_read and key not in self._left:
            return  # an earlier try has told it
        version = dg.DataVersion(finished.data_version)
        counts = self._tally.of(table)
        recent = self._store.recent_records.get(table, [])
        metadata = materialization_metadata(
            finished,
            counts=counts,
            seconds=self._tally.seconds,
            connector=self._identity,
            mask=self._connector.mask,
            recent=recent,
            docs_url=self._docs_url,
        )
        columns = column_schema(finished.plan.table.schema, finished.plan.configured)
        results = check_results(
            finished,
            key,
            records=counts.records,
            columns=(self._store.columns.get(table), columns),
            recent=recent,
            duplicates=lambda: self._destination.count_duplicates(
                finished.plan.table, finished.plan.key_columns
            ),
        )
        if key not in self._left:
            # Not selected, but read along: its source has one state for all streams.
            tags = {DATA_VERSION_TAG: version.value}
            self._context.log_event(dg.AssetMaterialization(key, metadata=metadata, tags=tags))
            for result in results:
                self._evaluate(result)
            return
        self._left.remove(key)
        yield dg.MaterializeResult(
            asset_key=key,
            metadata=metadata,
            data_version=version,
            check_results=[r for r in results if check_key_of(r) in self._wanted_checks],
        )

    def _evaluate(self, result: dg.AssetCheckResult) -> None:
        self._context.log_event(check_evaluation(check_key_of(result), result))

    def _tell(self, progressed: ProgressReport) -> None:
        # Into the compute log each time; a line of the event log is a database transaction.
        self._connector.log("INFO", progressed.told)
        now = time.monotonic()
        if now >= self._next_told:
            self._context.log.info(progressed.told)
            self._told_every = min(2 * self._told_every, _RAREST_TOLD_SECONDS)
            self._next_told = now + self._told_every


_TOLD: dict[Action, str] = {
    "refresh": "Refresh: to be read again from the beginning.",
    "clear": "Cleared: no rows, no state.",
    "reset": "State reset: to be read from the beginning, rows kept.",
    "set": "State set.",
    "accept": "Accepted as someone else left it.",
}


def observations(defined: ConnectionAssets, envelope: Envelope) -> Iterator[dg.AssetObservation]:
    """The events that remember ``envelope``: one for each stream of it."""
    if is_shared(envelope):
        # First, for the events of its streams refer to it.
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
            description=_told(envelope, commit),
            metadata=checkpoint_metadata(envelope, blob),
        )


def _told(envelope: Envelope, commit: StreamCommit) -> str:
    shown = ", shown once the stream is complete" if commit.unpublished else ""
    return _TOLD.get(envelope.action, f"Checkpoint: {commit.rows:,} rows committed{shown}.")
