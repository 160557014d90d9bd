"""A connection as Dagster definitions, made without containers, network and secrets."""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import dagster as dg

from atlas_dagster.orchestration.automation.maintenance import MaintenanceConfig, build_maintenance
from atlas_dagster.orchestration.automation.schedule import build_schedule
from atlas_dagster.orchestration.definitions.connection_check import build_check
from atlas_dagster.orchestration.definitions.discovery import (
    CompareCatalog,
    DiscoveryConfig,
    RefreshCatalog,
    as_markdown,
    build_discovery,
    discover_and_project,
)
from atlas_dagster.orchestration.definitions.io_manager import default_resources, io_resources
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.stream_checks import stream_check_specs
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
from atlas_dagster.orchestration.operations.kubernetes import pod_tags
from atlas_dagster.orchestration.operations.pools import pool
from atlas_dagster.orchestration.step.metadata import uri_value, version_of
from atlas_dagster.orchestration.step.run_config import SyncConfig
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.uri import find_source_uri
from atlas_dagster.wording import plural

#: Syncs the streams selected in a step.
Execute = Callable[[dg.AssetExecutionContext, AtlasResource, SyncConfig], Iterable[Any]]


def build_connection_defs(
    defined: ConnectionAssets,
    *,
    execute: Execute,
    refresh: RefreshCatalog,
    compare: CompareCatalog,
    maintenance: MaintenanceConfig | None = None,
    discovery: DiscoveryConfig | None = None,
) -> dg.Definitions:
    """Return the source asset and its checks, an asset for each stream, the sensor and the jobs."""
    connection, times = defined.connection, defined.schedule
    specs = list(defined.specs.values())
    checks = [
        check
        for stream in defined.streams
        for check in stream_check_specs(stream, defined.specs[stream.descriptor].key)
    ]
    if defined.problem:
        specs = [_with_note(spec, problem_note(defined.problem), BROKEN) for spec in specs]

    @dg.multi_asset(
        name=f"{connection.name}__sync",
        specs=specs,
        can_subset=True,
        pool=pool(connection),
        op_tags=pod_tags(connection),
        check_specs=checks,
    )
    def sync(
        context: dg.AssetExecutionContext, config: SyncConfig, atlas: AtlasResource
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        yield from execute(context, atlas, config)

    sensors = []
    if times is not None:
        keys = [check.key for check in checks]
        sensors.append(build_schedule(connection, times, defined.keys, keys))
    parts = [
        dg.Definitions(
            assets=[source_spec(defined), sync],
            asset_checks=[build_check(connection, defined.discovered)],
            sensors=sensors,
            resources=default_resources() | io_resources(connection),
        ),
        build_discovery(connection, discovery or DiscoveryConfig(), refresh, compare),
    ]
    if maintenance is not None:
        tables = [defined.tables[name] for name in defined.specs]
        parts.append(build_maintenance(connection, tables, maintenance))
    return dg.Definitions.merge(*parts)


def build_undiscovered_defs(connection: Connection, *, refresh: RefreshCatalog) -> dg.Definitions:
    """Return the stand-in for a connection without a catalog: an asset that runs DISCOVER."""

    @dg.asset(
        key=dg.AssetKey([connection.name, "discover"]),
        group_name=connection.name,
        kinds={"airbyte"},
        pool=pool(connection),
        op_tags=pod_tags(connection),
        tags={"atlas/discovery": "missing"},
        description=f"The streams of {connection.name} are not known yet. Materialize this asset "
        f"(or run `atlas discover {connection.name}`), then reload the definitions: the streams "
        "appear in its place.",
    )
    def discover_streams(context: dg.AssetExecutionContext, atlas: AtlasResource) -> None:
        discover_and_project(context, atlas, connection, refresh, None)
        context.log.info("Reload the definitions to see the streams.")

    return dg.Definitions(assets=[discover_streams], resources=default_resources())


def build_broken_defs(name: str, sentence: str) -> dg.Definitions:
    """Return the stand-in for a connection that cannot be loaded: an asset with the reason."""

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


def _with_note(spec: dg.AssetSpec, note: str, tags: dict[str, str]) -> dg.AssetSpec:
    described = "\n\n".join(filter(None, (note, spec.description)))
    return spec.merge_attributes(tags=tags).replace_attributes(description=described)


BROKEN = {"atlas/status": "broken"}
STALE = {"atlas/discovery": "stale"}
PENDING = {"atlas/schema_changes": "pending"}


def source_spec(defined: ConnectionAssets) -> dg.AssetSpec:
    """Return the external asset of the source system, where lineage starts."""
    connection, discovered = defined.connection, defined.discovered
    name, docs = connection.source_name, discovered.documentation_url
    uri = find_source_uri(name, connection.config, discovered.spec_schema)
    version = version_of(discovered.connector)
    metadata: dict[str, Any] = {
        "atlas/connector": discovered.connector,
        "atlas/discovered_at": dg.MetadataValue.timestamp(
            dt.datetime.fromtimestamp(discovered.discovered_at, dt.UTC)
        ),
        "atlas/streams_offered": len(discovered.streams),
    }
    if uri:
        metadata["dagster/uri"] = uri_value(uri)
    if version:
        metadata["atlas/version"] = version
    if docs:
        metadata["atlas/docs"] = dg.MetadataValue.url(docs)
    if discovered.pending:
        metadata["atlas/pending_changes"] = dg.MetadataValue.md(as_markdown(discovered.pending))
    described = [
        f"The system that {name} reads from. Its check `connection` runs the connector's CHECK, "
        "its check `schema_changes` runs DISCOVER.",
        *_notes(defined),
    ]
    return dg.AssetSpec(
        key=defined.source_key,
        group_name=connection.name,
        kinds={"airbyte", name.removeprefix("source-")},
        description="\n\n".join(described),
        metadata=metadata,
        tags=_status_tags(defined) | (PENDING if discovered.pending else {}),
    )


def problem_note(problem: str) -> str:
    """Return the note on the assets of a connection that cannot be synced."""
    return (
        f"**The current declaration cannot be synced.** {problem} "
        "The streams shown are those of the last discovery."
    )


def _status_tags(defined: ConnectionAssets) -> dict[str, str]:
    """Return the tags for a problem or a stale catalog."""
    return (BROKEN if defined.problem else {}) | (STALE if _is_stale(defined) else {})


def _notes(defined: ConnectionAssets) -> list[str]:
    """Explain each tag in one or two sentences."""
    found = []
    name = defined.connection.name
    if defined.problem:
        found.append(problem_note(defined.problem))
    elif _is_stale(defined):
        found.append(
            "The config has changed since the streams were discovered. To update them, "
            f"run `atlas discover {name}` or the job `{name}__discover`."
        )
    if waiting := len(defined.discovered.pending):
        changes = plural(waiting, "change")
        found.append(
            f"**{changes} of the source pending**: see `atlas/pending_changes` below. "
            f"To apply them, run `atlas discover {name}`, or the job `{name}__discover` with "
            "`take: all`."
        )
    return found


def _is_stale(defined: ConnectionAssets) -> bool:
    return not defined.discovered.is_of(defined.connection.config)
