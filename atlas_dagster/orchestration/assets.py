"""A connection as Dagster definitions. Pure: no container, no network, no secret."""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg

from atlas_dagster.destinations.address import destination_type
from atlas_dagster.orchestration.check import build_check, pool
from atlas_dagster.orchestration.failure import explained_failure
from atlas_dagster.orchestration.io_manager import io_manager_key, io_resources
from atlas_dagster.orchestration.maintenance import MaintenanceConfig, build_maintenance
from atlas_dagster.orchestration.options import SyncConfig
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.orchestration.schedule import build_schedule
from atlas_dagster.orchestration.stream_checks import stream_check_specs
from atlas_dagster.orchestration.sync import run_sync
from atlas_dagster.orchestration.translator import AtlasTranslator, StreamProps, source_key
from atlas_dagster.protocol.config import validate
from atlas_dagster.sync.connection import Connection
from atlas_dagster.sync.discovered import Discovered, config_hash
from atlas_dagster.sync.source import Caller

#: Runs DISCOVER on someone's behalf and stores what it finds.
Refresh = Callable[[Caller], None]
_STALE = {"atlas/discovery": "stale"}


def build_connection_defs(
    connection: Connection,
    discovered: Discovered,
    *,
    schedule: str | None,
    maintenance: MaintenanceConfig | None,
    refresh: Refresh,
    translator: AtlasTranslator,
) -> dg.Definitions:
    """The source asset, its CHECK, one asset per stream, the sensor and the jobs.

    Raises:
        ConfigError: the config does not fit the SPEC, or a declared stream does not exist.
    """
    where = f"Connection '{connection.name}'"
    validate(connection.config, schema=discovered.spec_schema, where=where)
    streams = connection.configured(discovered.catalog)
    paths = discovered.table_paths
    address = AtlasResource.from_environment().address(connection)
    storage_kind = destination_type(address).kind
    specs = [
        translator.get_asset_spec(
            StreamProps(
                connection,
                stream,
                paths[stream.descriptor],
                discovered.documentation_url,
                storage_kind,
            )
        )
        for stream in streams
    ]
    specs = [spec.with_io_manager_key(io_manager_key(connection)) for spec in specs]
    check_specs = [
        check
        for stream, spec in zip(streams, specs, strict=True)
        for check in stream_check_specs(stream, spec.key)
    ]
    if discovered.config_hash != config_hash(connection.config):
        specs = [spec.merge_attributes(tags=_STALE) for spec in specs]

    @dg.multi_asset(
        name=f"{connection.name}__sync",
        specs=specs,
        can_subset=True,
        pool=pool(connection),
        check_specs=check_specs,
    )
    def sync(
        context: dg.AssetExecutionContext, config: SyncConfig, atlas: AtlasResource
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        yield from run_sync(context, connection, discovered, atlas, config)

    sensors = []
    if schedule is not None:
        sensors.append(
            build_schedule(
                connection,
                schedule,
                [spec.key for spec in specs],
                [check.key for check in check_specs],
            )
        )
    defs = dg.Definitions(
        assets=[_source_spec(connection, discovered), sync],
        asset_checks=[build_check(connection, discovered)],
        sensors=sensors,
        jobs=[_discovery_job(connection, refresh)],
        resources=io_resources(connection),
    )
    if maintenance is None:
        return defs
    tables = [paths[stream.descriptor] for stream in streams]
    return dg.Definitions.merge(defs, build_maintenance(connection, tables, maintenance))


def build_undiscovered_defs(connection: Connection, *, refresh: Refresh) -> dg.Definitions:
    """What stands in for a connection until its first DISCOVER: an asset that runs it."""

    @dg.asset(
        key=dg.AssetKey([connection.name, "discover"]),
        group_name=connection.name,
        kinds={"airbyte"},
        pool=pool(connection),
        tags={"atlas/discovery": "missing"},
        description=f"The streams of {connection.name} are not known yet. Materialize this asset "
        f"(or run `atlas discover {connection.name}`), then reload the definitions: the streams "
        "appear in its place.",
    )
    def discover(context: dg.AssetExecutionContext, atlas: AtlasResource) -> None:
        with explained_failure():
            refresh(atlas.caller(context.instance, context.run.run_id, explain=context.log.info))
        context.log.info("Discovered. Reload the definitions to see the streams.")

    return dg.Definitions(assets=[discover])


def build_broken_defs(name: str, sentence: str) -> dg.Definitions:
    """What stands in for a connection that cannot be loaded: an asset that says why."""

    @dg.asset(
        key=dg.AssetKey([name, "broken"]),
        group_name=name,
        kinds={"airbyte"},
        tags={"atlas/status": "broken"},
        description=f"This connection could not be loaded. {sentence}",
    )
    def broken() -> None:
        raise dg.Failure(description=sentence, allow_retries=False)

    return dg.Definitions(assets=[broken])


def _source_spec(connection: Connection, discovered: Discovered) -> dg.AssetSpec:
    docs = discovered.documentation_url
    metadata: Mapping[str, Any] = {
        "atlas/connector": discovered.connector,
        "atlas/discovered_at": dg.MetadataValue.timestamp(
            dt.datetime.fromtimestamp(discovered.discovered_at, dt.UTC)
        ),
        "atlas/streams_offered": len(discovered.streams),
    } | ({"atlas/docs": dg.MetadataValue.url(docs)} if docs else {})
    return dg.AssetSpec(
        key=source_key(connection),
        group_name=connection.name,
        kinds={"airbyte", connection.source_name.removeprefix("source-")},
        description=f"The system that {connection.source_name} reads from. Its check runs the "
        "connector's CHECK.",
        metadata=metadata,
    )


def _discovery_job(connection: Connection, refresh: Refresh) -> dg.JobDefinition:
    @dg.op(name=f"{connection.name}__run_discover", pool=pool(connection))
    def run_discover(context: dg.OpExecutionContext, atlas: AtlasResource) -> None:
        with explained_failure():
            refresh(atlas.caller(context.instance, context.run.run_id, explain=context.log.info))
        context.log.info("Discovered. Reload the definitions to see any change.")

    @dg.job(
        name=f"{connection.name}__discover",
        description=f"Asks the source of {connection.name} which streams it offers now.",
    )
    def discovery() -> None:
        run_discover()

    return discovery
