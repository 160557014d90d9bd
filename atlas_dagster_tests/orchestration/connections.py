"""Connections with a catalog made by hand, and definitions of them that run on any instance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_shared.record import replace

from atlas_dagster.orchestration.automation.cron import Schedule
from atlas_dagster.orchestration.automation.maintenance import MaintenanceConfig
from atlas_dagster.orchestration.definitions.assets import build_connection_defs
from atlas_dagster.orchestration.definitions.discovery import DiscoveryConfig
from atlas_dagster.orchestration.definitions.io_manager import common_resources
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.translator import (
    ConnectionAssets,
    GetAssetSpec,
    stream_spec,
)
from atlas_dagster.orchestration.step.catalog_update import CatalogUpdate
from atlas_dagster.orchestration.step.sync_step import run_sync
from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.protocol.messages import Spec
from atlas_dagster.source.catalog_diff import SchemaPolicy
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered, Discovery, build_discovered
from atlas_dagster.source.run_context import RunContext

DOCS = "https://docs.example.com/shop"

USERS: dict[str, Any] = {
    "name": "users",
    "json_schema": {
        "type": "object",
        "description": "Everyone who ever signed up.",
        "properties": {
            "id": {"type": "integer"},
            "e-mail": {"type": "string", "description": "Where to write to."},
            "born": {"type": "string", "format": "date"},
            "tags": {"type": "array"},
        },
    },
    "supported_sync_modes": ["full_refresh", "incremental"],
    "source_defined_cursor": True,
    "default_cursor_field": ["id"],
    "source_defined_primary_key": [["id"]],
}
ORDERS: dict[str, Any] = {
    "name": "orders",
    "namespace": "sales",
    "json_schema": {"type": "object", "properties": {"total": {"type": "number"}}},
    "supported_sync_modes": ["full_refresh"],
}
SPEC: dict[str, Any] = {
    "type": "object",
    "required": ["host"],
    "properties": {
        "host": {"type": "string"},
        "port": {"type": "integer"},
        "password": {"type": "string", "airbyte_secret": True},
    },
}


def declare_shop(**changes: Any) -> Connection:
    """A connection of the name ``shop`` to a source that nobody can run."""
    return Connection(
        **{"name": "shop", "image": "my/source-shop:1", "config": {"host": "db"}} | changes
    )


def found(
    connection: Connection,
    streams: Sequence[Mapping[str, Any]] = (USERS, ORDERS),
    spec: Mapping[str, Any] = SPEC,
) -> Discovered:
    """What DISCOVER would have found."""
    return build_discovered(
        connection.name,
        connector="my/source-shop:1@sha256:abc",
        config=connection.config,
        spec=Spec(connectionSpecification=dict(spec), documentationUrl=DOCS),
        catalog=Catalog.from_json(list(streams)),
        reserved=connection.source_key_part,
        previous=None,
    )


def define(
    connection: Connection,
    discovered: Discovered | None = None,
    *,
    lake: Path | str = "lake",
    schedule: str | Schedule | None = None,
    maintenance: MaintenanceConfig | None = None,
    discovery: DiscoveryConfig | None = None,
    look: CatalogUpdate | None = None,
    get_asset_spec: GetAssetSpec = stream_spec,
) -> dg.Definitions:
    """The connection's definitions with the resource they need; nothing may refresh them."""

    def refresh(caller: RunContext, policy: SchemaPolicy | None) -> Discovery:
        raise AssertionError("nobody asked for DISCOVER")

    defined = ConnectionAssets.of(
        connection,
        discovered or found(connection),
        get_asset_spec,
        schedule=None if schedule is None else Schedule.of(schedule),
    )
    defs = build_connection_defs(
        defined,
        execute=lambda context, atlas, config: run_sync(context, defined, atlas, config, look),
        refresh=refresh,
        compare=lambda caller: refresh(caller, None),
        maintenance=maintenance,
        discovery=discovery,
    )
    return in_lake(defs, lake)


def in_lake(defs: dg.Definitions, lake: Path | str) -> dg.Definitions:
    """``defs``, but rows land in ``lake``."""
    resources = common_resources(AtlasResource(destination=str(lake)))
    return replace(defs, resources={**(defs.resources or {}), **resources})
