"""The external asset that stands for the source system: where lineage starts."""

import datetime as dt
from typing import Any

import dagster as dg

from atlas_dagster.orchestration.definitions.connection_assets import ConnectionAssets
from atlas_dagster.orchestration.definitions.discovery import as_markdown
from atlas_dagster.orchestration.step.connector_version import version_of
from atlas_dagster.orchestration.step.metadata import uri_value
from atlas_dagster.source.uri import source_uri
from atlas_dagster.wording import plural

BROKEN = {"atlas/status": "broken"}
STALE = {"atlas/discovery": "stale"}
PENDING = {"atlas/schema_changes": "pending"}


def source_spec(defined: ConnectionAssets) -> dg.AssetSpec:
    """What is known of the source; and what is wrong, if anything is."""
    connection, discovered = defined.connection, defined.discovered
    name, docs = connection.source_name, discovered.documentation_url
    uri = source_uri(name, connection.config, discovered.spec_schema)
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
        "its check `schema_changes` DISCOVER.",
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
    """What the source and its streams say where the connection cannot be synced."""
    return (
        f"**Cannot be synced as it is declared now.** {problem} "
        "Shown are the streams that were discovered before."
    )


def _status_tags(defined: ConnectionAssets) -> dict[str, str]:
    """Whether what is shown is what is declared now."""
    return (BROKEN if defined.problem else {}) | (STALE if _is_stale(defined) else {})


def _notes(defined: ConnectionAssets) -> list[str]:
    """Why the tags are there, a sentence or two each."""
    found = []
    name = defined.connection.name
    if defined.problem:
        found.append(problem_note(defined.problem))
    elif _is_stale(defined):
        found.append(
            "The config has changed since the streams were discovered; to see what the source "
            "offers now, "
            f"run `atlas discover {name}` or the job `{name}__discover`."
        )
    if waiting := len(defined.discovered.pending):
        changes = plural(waiting, "change")
        found.append(
            f"**{changes} of the source not taken yet**: see `atlas/pending_changes` below. "
            f"To take them, run `atlas discover {name}`, or the job `{name}__discover` with "
            "`take: all`."
        )
    return found


def _is_stale(defined: ConnectionAssets) -> bool:
    return not defined.discovered.is_of(defined.connection.config)
