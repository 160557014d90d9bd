"""The step that syncs: a session driven by Dagster, its events recorded as they become true."""

import time
from collections.abc import Iterable, Iterator
from contextlib import closing

import dagster as dg

from atlas_dagster.destinations.base import Destination
from atlas_dagster.orchestration.check import ensure_checked
from atlas_dagster.orchestration.event_log import EventLogStateStore
from atlas_dagster.orchestration.failure import explained_failure
from atlas_dagster.orchestration.metadata import checkpoint_metadata, materialization_metadata
from atlas_dagster.orchestration.reaping import reap_ended
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.state.envelope import Envelope
from atlas_dagster.sync.connection import Connection
from atlas_dagster.sync.connector import Connector
from atlas_dagster.sync.discovered import Discovered
from atlas_dagster.sync.plan import SyncPlan, make_plan
from atlas_dagster.sync.session import Checkpoint, StreamFinished, SyncEvent, SyncSession
from atlas_dagster.sync.source import connected

_SETTLE_SECONDS = 5.0


def run_sync(
    context: dg.AssetExecutionContext,
    connection: Connection,
    discovered: Discovered,
    atlas: AtlasResource,
) -> Iterator[dg.MaterializeResult[None]]:
    """Sync the streams selected in ``context``; yield each the moment it is durable.

    Raises:
        dagster.Failure: with the one sentence that says what failed and what to do.
    """
    with explained_failure():
        yield from _sync(context, connection, discovered, atlas)


def _sync(
    context: dg.AssetExecutionContext,
    connection: Connection,
    discovered: Discovered,
    atlas: AtlasResource,
) -> Iterator[dg.MaterializeResult[None]]:
    if reap_ended(context.instance, atlas):
        # The step of a killed run may still be alive and commit what it had read; let it end.
        time.sleep(_SETTLE_SECONDS)
    caller = atlas.caller(context.instance, context.run.run_id, explain=context.log.info)
    with (
        connected(connection, caller, discovered.spec_schema) as connector,
        closing(atlas.open_destination(connection)) as destination,
    ):
        ensure_checked(context, connection, connector)
        plan = _plan(context, connection, discovered, destination)
        session = SyncSession(plan, connector=connector, destination=destination)
        yield from _recorded(context, session.run(), connector)


def _plan(
    context: dg.AssetExecutionContext,
    connection: Connection,
    discovered: Discovered,
    destination: Destination,
) -> SyncPlan:
    tables = discovered.table_paths
    streams = connection.configured(discovered.catalog)
    plan = make_plan(
        connection.name,
        streams,
        selected=[
            stream.descriptor
            for stream in streams
            if dg.AssetKey(list(tables[stream.descriptor])) in context.selected_asset_keys
        ],
        tables=tables,
        destination=destination,
        store=EventLogStateStore(context.instance),
        run_id=context.run.run_id,
        notify=context.log.warning,
    )
    _record_missing(context, plan)
    return plan


def _recorded(
    context: dg.AssetExecutionContext, events: Iterable[SyncEvent], connector: Connector
) -> Iterator[dg.MaterializeResult[None]]:
    for event in events:
        match event:
            case Checkpoint():
                _observe(context, event.envelope)
            case StreamFinished():
                metadata = materialization_metadata(event, connector=connector.runner.identity())
                key = dg.AssetKey(list(event.plan.table.path))
                version = dg.DataVersion(event.table.version)
                if key in context.selected_asset_keys:
                    yield dg.MaterializeResult(
                        asset_key=key, metadata=metadata, data_version=version
                    )
                else:
                    context.log_event(dg.AssetMaterialization(key, metadata=metadata))


def _record_missing(context: dg.AssetExecutionContext, plan: SyncPlan) -> None:
    """Log the commits whose process died before it could."""
    for stream in plan.streams:
        envelope = stream.resumption.envelope
        if stream.resumption.unrecorded and envelope is not None:
            _observe(context, envelope)


def _observe(context: dg.AssetExecutionContext, envelope: Envelope) -> None:
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
