"""DISCOVER before a sync, if the stored catalog is old.

Many sources send only the fields of the catalog that they get, and the cursor moves on all the
same. So the values of a field that is discovered later would be missing for ever.
"""

import time
from collections.abc import Callable

import dagster as dg
import msgspec
from msgspec import Struct

from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.definitions.discovery import (
    check_result,
    describe_discovery,
    make_evaluation,
    schema_check_key,
)
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
from atlas_dagster.orchestration.step.projections import project_discovery
from atlas_dagster.source.catalog_diff import SchemaPolicy
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.discovered_catalog import Discovered, Discovery, discover_with

_OLD_SECONDS = 24 * 3600
_LOOKED_AT = "atlas/looked_at"


class CatalogUpdate(Struct, frozen=True):
    """The policy for changes of the catalog, and the function that stores the new one."""

    policy: SchemaPolicy
    store: Callable[[Discovered], None]


def update_old_catalog(
    context: dg.AssetExecutionContext,
    defined: ConnectionAssets,
    connector: Connector,
    update: CatalogUpdate,
) -> ConnectionAssets:
    """Return ``defined`` with the source's current fields, if the catalog is a day old.

    The list of streams does not change. A failed DISCOVER is a warning, and is not repeated before
    the next day.
    """
    connection, known = defined.connection, defined.discovered
    if time.time() - max(_last_discovery(context, defined), known.discovered_at) < _OLD_SECONDS:
        return defined
    try:
        found = discover_with(connector, connection, known, update.policy)
    except AtlasError as error:
        words = f"DISCOVER failed, so the sync uses the stored catalog: {error}"
        context.log.warning(words)
        warn = dg.AssetCheckSeverity.WARN
        result = dg.AssetCheckResult(passed=False, severity=warn, description=words)
        context.log_event(make_evaluation(connection, _with_time(result)))
        return defined
    project_discovery(context.instance, connection, found, context.log.warning)
    discovery = Discovery.since(known, found, connection)
    context.log.info(f"DISCOVER before the sync: {describe_discovery(discovery)}")
    context.log_event(make_evaluation(connection, _with_time(check_result(discovery))))
    try:
        update.store(found)
    except (AtlasError, OSError) as error:
        context.log.warning(
            f"The new catalog could not be stored, so only this sync uses it: {error}"
        )
    now = {stream.descriptor: stream for stream in found.catalog.streams}
    streams = tuple(now.get(old.descriptor, old).raw for old in known.catalog.streams)
    return msgspec.structs.replace(
        defined, discovered=msgspec.structs.replace(found, streams=streams)
    )


def _last_discovery(context: dg.AssetExecutionContext, defined: ConnectionAssets) -> float:
    """Return the time when a sync last ran DISCOVER; 0 if the check has run alone since then."""
    key = schema_check_key(defined.connection)
    record = context.instance.get_latest_asset_check_evaluation_record(key)
    event = record.event.dagster_event if record is not None and record.event is not None else None
    entry = event and event.asset_check_evaluation_data.metadata.get(_LOOKED_AT)
    return float(entry.value) if isinstance(entry, dg.TimestampMetadataValue) else 0.0


def _with_time(result: dg.AssetCheckResult) -> dg.AssetCheckResult:
    """Return ``result`` with the current time in its metadata."""
    return dg.AssetCheckResult(
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata={**(result.metadata or {}), _LOOKED_AT: dg.MetadataValue.timestamp(time.time())},
    )
