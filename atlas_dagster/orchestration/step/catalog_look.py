"""A look at the source's catalog before a sync, where what is known is old.

Many sources send only the fields of the catalog they are given, and their cursor passes the rows
all the same: a new field that is discovered later is missing in them for ever.
"""

import time
from collections.abc import Callable

import dagster as dg
import msgspec
from msgspec import Struct

from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.definitions.discovery import (
    check_result,
    evaluation,
    schema_check_key,
    told,
)
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
from atlas_dagster.orchestration.step.projections import project_discovery
from atlas_dagster.source.catalog_diff import SchemaPolicy
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.discovered_catalog import Discovered, Discovery, discover_with

_OLD_SECONDS = 24 * 3600
_LOOKED_AT = "atlas/looked_at"


class Look(Struct, frozen=True):
    """Which changes a look takes, and what stores the catalog it found."""

    policy: SchemaPolicy
    store: Callable[[Discovered], None]


def look_at_source(
    context: dg.AssetExecutionContext,
    defined: ConnectionAssets,
    connector: Connector,
    how: Look,
) -> ConnectionAssets:
    """``defined`` with the fields that the source has now, if nobody has looked for a day.

    Its streams stay those that it was loaded with. A look that fails is told, and counts as one.
    """
    connection, known = defined.connection, defined.discovered
    if time.time() - max(_last_look(context, defined), known.discovered_at) < _OLD_SECONDS:
        return defined
    try:
        found = discover_with(connector, connection, known, how.policy)
    except AtlasError as error:
        words = f"The source could not be asked what it offers, so it is read as known: {error}"
        context.log.warning(words)
        warn = dg.AssetCheckSeverity.WARN
        result = dg.AssetCheckResult(passed=False, severity=warn, description=words)
        context.log_event(evaluation(connection, _timed(result)))
        return defined
    project_discovery(context.instance, connection, found, context.log.warning)
    discovery = Discovery.since(known, found, connection)
    context.log.info(f"Looked at what the source offers: {told(discovery)}")
    context.log_event(evaluation(connection, _timed(check_result(discovery))))
    try:
        how.store(found)
    except (AtlasError, OSError) as error:
        context.log.warning(f"What the source offers holds for this sync alone: {error}")
    now = {stream.descriptor: stream for stream in found.catalog.streams}
    streams = tuple(now.get(old.descriptor, old).raw for old in known.catalog.streams)
    return msgspec.structs.replace(
        defined, discovered=msgspec.structs.replace(found, streams=streams)
    )


def _last_look(context: dg.AssetExecutionContext, defined: ConnectionAssets) -> float:
    """When a sync looked last; 0 where the check has been executed on its own since."""
    key = schema_check_key(defined.connection)
    record = context.instance.get_latest_asset_check_evaluation_record(key)
    event = record.event.dagster_event if record is not None and record.event is not None else None
    looked = event and event.asset_check_evaluation_data.metadata.get(_LOOKED_AT)
    return float(looked.value) if isinstance(looked, dg.TimestampMetadataValue) else 0.0


def _timed(result: dg.AssetCheckResult) -> dg.AssetCheckResult:
    """``result``, with the time of the look."""
    return dg.AssetCheckResult(
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata={**(result.metadata or {}), _LOOKED_AT: dg.MetadataValue.timestamp(time.time())},
    )
