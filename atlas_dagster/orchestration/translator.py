"""How a stream becomes an asset: the one place to change it."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.definitions.metadata.metadata_set import TableMetadataSet
from msgspec import Struct

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.orchestration.metadata import column_schema
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.records.types import TableSchema
from atlas_dagster.sync.connection import Connection
from atlas_dagster.sync.source import source_key_part


class StreamProps(Struct, frozen=True):
    """Everything known of a stream when its asset is defined."""

    connection: Connection
    stream: ConfiguredStream
    table: TablePath
    docs_url: str | None
    storage_kind: str


class AtlasTranslator:
    """Override :meth:`get_asset_spec` to change how streams look in Dagster.

    The key must stay: it is also the table's path.
    """

    def get_asset_spec(self, props: StreamProps) -> dg.AssetSpec:
        stream = props.stream
        name = props.connection.source_name
        schema = TableSchema.from_json_schema(
            stream.stream.json_schema, nested=stream.nested_fields
        )
        described = stream.stream.json_schema.get("description")
        mode = f"{stream.sync_mode} | {stream.destination_sync_mode}"
        cursor = f", cursor `{'.'.join(stream.cursor_field)}`" if stream.cursor_field else ""
        keys = ", ".join(f"`{'.'.join(path)}`" for path in stream.primary_key)
        metadata: Mapping[str, Any] = {
            **TableMetadataSet(
                column_schema=column_schema(schema, stream), table_name=".".join(props.table)
            ),
            "atlas/stream": str(stream.descriptor),
            "atlas/sync_mode": mode,
        }
        return dg.AssetSpec(
            key=dg.AssetKey(list(props.table)),
            deps=[source_key(props.connection)],
            group_name=props.connection.name,
            description="\n\n".join(
                filter(
                    None,
                    [
                        described if isinstance(described, str) else None,
                        f"Stream `{stream.descriptor}` of {name}, {mode}{cursor}"
                        + (f", primary key {keys}." if keys else "."),
                    ],
                )
            ),
            kinds={"airbyte", name.removeprefix("source-"), props.storage_kind},
            metadata=metadata,
        )


def source_key(connection: Connection) -> dg.AssetKey:
    """The external asset that stands for the source system."""
    return dg.AssetKey([connection.name, source_key_part(connection)])
