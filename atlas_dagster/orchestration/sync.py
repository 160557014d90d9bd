"""The step that syncs: a session driven by Dagster, its events recorded as they become true."""

import time
from collections.abc import Collection, Iterator
from contextlib import closing
from enum import Enum

import dagster as dg
from pydantic import Field

from atlas_dagster.destinations.base import Destination
from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.check import ensure_checked
from atlas_dagster.orchestration.connector_version import major_change
from atlas_dagster.orchestration.dead_runs import end_dead_runs, note_process
from atlas_dagster.orchestration.event_log import EventLogStateStore
from atlas_dagster.orchestration.failure import explained_failure
from atlas_dagster.orchestration.metadata import materialization_metadata
from atlas_dagster.orchestration.reaping import reap_ended
from atlas_dagster.orchestration.recording import observations
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.orchestration.retries import Patience, root_run_id, tag_failure
from atlas_dagster.orchestration.translator import source_key
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.state.envelope import Envelope
from atlas_dagster.sync.connection import Connection
from atlas_dagster.sync.discovered import Discovered
from atlas_dagster.sync.events import Checkpoint
from atlas_dagster.sync.plan import SyncPlan, make_plan
from atlas_dagster.sync.session import SyncSession
from atlas_dagster.sync.source import connected
from atlas_dagster.sync.standing import claim
from atlas_dagster.sync.upkeep import Upkeep

_SETTLE_SECONDS = 5.0


class Refresh(Enum):
    """What becomes of the old rows when streams are read again from the beginning."""

    remove = "remove"
    retain = "retain"


class SyncConfig(dg.Config):
    """Options of one run."""

    refresh: Refresh | None = Field(
        default=None,
        description="Read the selected streams again from the beginning. remove: the old rows are "
        "replaced once that is complete; retain: they stay.",
    )


def run_sync(
    context: dg.AssetExecutionContext,
    connection: Connection,
    discovered: Discovered,
    atlas: AtlasResource,
    config: SyncConfig,
) -> Iterator[dg.MaterializeResult[None]]:
    """Sync the streams selected in ``context``; yield each the moment it is durable.

    A failure that may pass is waited for a little and tried again, for the streams not done yet.

    Raises:
        dagster.Failure: with the one sentence that says what failed and what to do.
    """
    with explained_failure():
        note_process(context.instance, context.run.run_id)
        end_dead_runs(context.instance)
        if reap_ended(context.instance, atlas, connection):
            # The step of a killed run may still be alive and commit what it had read; let it end.
            time.sleep(_SETTLE_SECONDS)
        left = set(context.selected_asset_keys)
        patience = Patience()
        while True:
            try:
                yield from _sync(context, connection, discovered, atlas, config, left, patience)
                return
            except AtlasError as error:
                wait = patience.wait_after(error)
                if wait is None:
                    tag_failure(context.instance, context.run.run_id, error, patience)
                    raise
                context.log.warning(f"{error} Trying again in {wait:.0f} seconds.")
                time.sleep(wait)


def _sync(
    context: dg.AssetExecutionContext,
    connection: Connection,
    discovered: Discovered,
    atlas: AtlasResource,
    config: SyncConfig,
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
        claim(destination, connection.name, atlas.deployment)
        if config.refresh is not None:
            _refresh(context, connection, discovered, destination, left, config.refresh)
        store = EventLogStateStore(context.instance, source_key(connection))
        plan = _plan(context, connection, discovered, destination, store, left)
        identity = connector.runner.identity()
        for notice in major_change(store.connectors, identity, discovered.documentation_url):
            context.log.warning(notice)
        session = SyncSession(plan, connector=connector, destination=destination)
        for event in session.run():
            patience.note_progress()
            if isinstance(event, Checkpoint):
                _observe(context, connection, event.envelope)
                continue
            metadata = materialization_metadata(event, connector=identity)
            key = dg.AssetKey(list(event.plan.table.path))
            if key in left:
                left.remove(key)
                version = dg.DataVersion(event.table.version)
                yield dg.MaterializeResult(asset_key=key, metadata=metadata, data_version=version)
            else:
                context.log_event(dg.AssetMaterialization(key, metadata=metadata))


def _refresh(
    context: dg.AssetExecutionContext,
    connection: Connection,
    discovered: Discovered,
    destination: Destination,
    left: Collection[dg.AssetKey],
    refresh: Refresh,
) -> None:
    streams = connection.configured(discovered.catalog)
    upkeep = Upkeep(
        connection.name,
        streams,
        tables=discovered.table_paths,
        destination=destination,
        store=EventLogStateStore(context.instance, source_key(connection)),
        run_id=context.run.run_id,
        root_run_id=root_run_id(context.instance, context.run),
    )
    asked = _selected(streams, discovered, left)
    for envelope in upkeep.refresh(asked, keep_rows=refresh is Refresh.retain):
        _observe(context, connection, envelope)


def _selected(
    streams: Collection[ConfiguredStream], discovered: Discovered, left: Collection[dg.AssetKey]
) -> list[StreamDescriptor]:
    tables = discovered.table_paths
    names = [stream.descriptor for stream in streams]
    return [name for name in names if dg.AssetKey(list(tables[name])) in left]


def _plan(
    context: dg.AssetExecutionContext,
    connection: Connection,
    discovered: Discovered,
    destination: Destination,
    store: EventLogStateStore,
    left: Collection[dg.AssetKey],
) -> SyncPlan:
    streams = connection.configured(discovered.catalog)
    plan = make_plan(
        connection.name,
        streams,
        selected=_selected(streams, discovered, left),
        tables=discovered.table_paths,
        destination=destination,
        store=store,
        run_id=context.run.run_id,
        root_run_id=root_run_id(context.instance, context.run),
        notify=context.log.warning,
    )
    found = [s.resumption.unrecorded for s in plan.streams]
    # The processes that committed them died before they could say so.
    unrecorded = {envelope.seq: envelope for envelope in found if envelope is not None}
    for envelope in unrecorded.values():
        _observe(context, connection, envelope)
    return plan


def _observe(context: dg.AssetExecutionContext, connection: Connection, envelope: Envelope) -> None:
    for observation in observations(connection, envelope):
        context.log_event(observation)
