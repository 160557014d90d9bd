"""The step that syncs: a session driven by Dagster, its events recorded as they become true."""

import time
from collections.abc import Collection, Iterator
from contextlib import closing

import dagster as dg

from atlas_dagster.destinations.base import Destination
from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.check import ensure_checked
from atlas_dagster.orchestration.event_log import EventLogStateStore
from atlas_dagster.orchestration.failure import explained_failure
from atlas_dagster.orchestration.metadata import (
    checkpoint_metadata,
    is_shared,
    materialization_metadata,
    shared_state_metadata,
)
from atlas_dagster.orchestration.reaping import reap_ended
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.orchestration.retries import FAILURE_TAG, PROGRESS_TAG, Patience
from atlas_dagster.orchestration.translator import source_key
from atlas_dagster.state.envelope import Envelope
from atlas_dagster.sync.connection import Connection
from atlas_dagster.sync.discovered import Discovered
from atlas_dagster.sync.plan import SyncPlan, make_plan
from atlas_dagster.sync.session import Checkpoint, SyncSession
from atlas_dagster.sync.source import connected

_SETTLE_SECONDS = 5.0


def run_sync(
    context: dg.AssetExecutionContext,
    connection: Connection,
    discovered: Discovered,
    atlas: AtlasResource,
) -> Iterator[dg.MaterializeResult[None]]:
    """Sync the streams selected in ``context``; yield each the moment it is durable.

    A failure that may pass is waited for a little and tried again, for the streams not done yet.

    Raises:
        dagster.Failure: with the one sentence that says what failed and what to do.
    """
    with explained_failure():
        if reap_ended(context.instance, atlas):
            # The step of a killed run may still be alive and commit what it had read; let it end.
            time.sleep(_SETTLE_SECONDS)
        left = set(context.selected_asset_keys)
        patience = Patience()
        while True:
            try:
                yield from _sync(context, connection, discovered, atlas, left, patience)
                return
            except AtlasError as error:
                wait = patience.wait_after(error)
                if wait is None:
                    _tag_failure(context, error, patience)
                    raise
                context.log.warning(f"{error} Trying again in {wait:.0f} seconds.")
                time.sleep(wait)


def _tag_failure(context: dg.AssetExecutionContext, error: AtlasError, patience: Patience) -> None:
    """For the schedule, which may try again later."""
    progress = "yes" if patience.progressed else "no"
    context.instance.add_run_tags(
        context.run.run_id, {FAILURE_TAG: error.failure_type, PROGRESS_TAG: progress}
    )


def _sync(
    context: dg.AssetExecutionContext,
    connection: Connection,
    discovered: Discovered,
    atlas: AtlasResource,
    left: set[dg.AssetKey],
    patience: Patience,
) -> Iterator[dg.MaterializeResult[None]]:
    """Try once to sync the streams ``left``, which lacks those that are done afterwards."""
    caller = atlas.caller(context.instance, context.run.run_id, explain=context.log.info)
    with (
        connected(connection, caller, discovered.spec_schema) as connector,
        closing(atlas.open_destination(connection)) as destination,
    ):
        ensure_checked(context, connection, connector)
        plan = _plan(context, connection, discovered, destination, left)
        session = SyncSession(plan, connector=connector, destination=destination)
        for event in session.run():
            patience.note_progress()
            if isinstance(event, Checkpoint):
                _observe(context, connection, event.envelope)
                continue
            metadata = materialization_metadata(event, connector=connector.runner.identity())
            key = dg.AssetKey(list(event.plan.table.path))
            if key in left:
                left.remove(key)
                version = dg.DataVersion(event.table.version)
                yield dg.MaterializeResult(asset_key=key, metadata=metadata, data_version=version)
            else:
                context.log_event(dg.AssetMaterialization(key, metadata=metadata))


def _plan(
    context: dg.AssetExecutionContext,
    connection: Connection,
    discovered: Discovered,
    destination: Destination,
    left: Collection[dg.AssetKey],
) -> SyncPlan:
    tables = discovered.table_paths
    streams = connection.configured(discovered.catalog)
    plan = make_plan(
        connection.name,
        streams,
        selected=[
            stream.descriptor
            for stream in streams
            if dg.AssetKey(list(tables[stream.descriptor])) in left
        ],
        tables=tables,
        destination=destination,
        store=EventLogStateStore(context.instance, source_key(connection)),
        run_id=context.run.run_id,
        notify=context.log.warning,
    )
    found = [s.resumption.unrecorded for s in plan.streams]
    # The processes that committed them died before they could say so.
    unrecorded = {envelope.seq: envelope for envelope in found if envelope is not None}
    for envelope in unrecorded.values():
        _observe(context, connection, envelope)
    return plan


def _observe(context: dg.AssetExecutionContext, connection: Connection, envelope: Envelope) -> None:
    if is_shared(envelope):
        # First, for the events of its streams refer to it.
        context.log_event(
            dg.AssetObservation(
                asset_key=source_key(connection),
                description=f"Checkpoint of {len(envelope.streams)} streams.",
                metadata=shared_state_metadata(envelope),
            )
        )
    state = envelope.connection_state
    for commit in envelope.streams:
        blob = state.streams.get(commit.stream) or state.shared
        context.log_event(
            dg.AssetObservation(
                asset_key=dg.AssetKey(list(commit.table)),
                description=f"Checkpoint: {commit.rows:,} rows committed.",
                metadata=checkpoint_metadata(envelope, blob),
            )
        )
