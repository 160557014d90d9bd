"""How a stream becomes an asset, before anybody's ``translation``."""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
from msgspec import Struct

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.orchestration.step.metadata import column_schema
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.records.types import TableSchema
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.open import source_key_part


class StreamProps(Struct, frozen=True):
    """Everything known of a stream when its asset is defined: ``props`` in a ``translation``."""

    connection: Connection
    stream: ConfiguredStream
    table: TablePath
    docs_url: str | None
    storage_kind: str
    freshness_policy: dg.FreshnessPolicy | None = None

    @property
    def connection_name(self) -> str:
        return self.connection.name

    @property
    def stream_name(self) -> str:
        """As the source calls it."""
        return self.stream.descriptor.name

    @property
    def namespace(self) -> str | None:
        return self.stream.descriptor.namespace

    @property
    def table_name(self) -> str:
        """The parts of the table's path, with dots between."""
        return ".".join(self.table)

    @property
    def json_schema(self) -> Mapping[str, Any]:
        return self.stream.stream.json_schema


#: What turns a stream into its asset.
GetAssetSpec = Callable[[StreamProps], dg.AssetSpec]


def stream_spec(props: StreamProps) -> dg.AssetSpec:
    """The asset of a stream. Its key is the table's path."""
    stream = props.stream
    name = props.connection.source_name
    schema = TableSchema.of(stream)
    mode = f"{stream.sync_mode} | {stream.destination_sync_mode}"
    cursor = f", cursor `{'.'.join(stream.cursor_field)}`" if stream.cursor_field else ""
    keys = ", ".join(f"`{'.'.join(path)}`" for path in stream.primary_key)
    summary = f"Stream `{stream.descriptor}` of {name}, {mode}{cursor}"
    summary += f", primary key {keys}." if keys else "."
    summary = " ".join([summary, *stream.differences])
    described = props.json_schema.get("description")
    return dg.AssetSpec(
        key=table_key(props.table),
        deps=[source_key(props.connection)],
        group_name=props.connection.name,
        description=f"{described}\n\n{summary}" if isinstance(described, str) else summary,
        kinds={"airbyte", name.removeprefix("source-"), props.storage_kind},
        # By name: Dagster's metadata sets check each field again, five thousand times.
        metadata={
            "dagster/column_schema": column_schema(schema, stream),
            "dagster/table_name": props.table_name,
            "atlas/stream": str(stream.descriptor),
            "atlas/sync_mode": mode,
        },
        freshness_policy=props.freshness_policy,
    )


def table_key(table: TablePath) -> dg.AssetKey:
    """The asset that a table is, unless a translation gave it another key."""
    return dg.AssetKey(list(table))


def source_key(connection: Connection) -> dg.AssetKey:
    """The external asset that stands for the source system."""
    return dg.AssetKey([connection.name, source_key_part(connection)])
