"""The translation of streams into asset specs, and a connection with all its assets."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, Self

import dagster as dg
from msgspec import Struct

from atlas_dagster.config.validation import validate
from atlas_dagster.destinations.base import TablePath
from atlas_dagster.destinations.factory import destination_type
from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.automation.cron import Schedule
from atlas_dagster.orchestration.definitions.io_manager import (
    TABLE_ENTRY,
    default_resources,
    io_manager_key,
)
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.step.metadata import column_schema
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.records.types import TableSchema
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered


class StreamProps(Struct, frozen=True):
    """A stream whose asset is defined: ``props`` in a ``translation``."""

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
        """The stream's name in the source."""
        return self.stream.descriptor.name

    @property
    def namespace(self) -> str | None:
        return self.stream.descriptor.namespace

    @property
    def table_name(self) -> str:
        """The table's path, joined by dots."""
        return ".".join(self.table)

    @property
    def json_schema(self) -> Mapping[str, Any]:
        return self.stream.stream.json_schema


#: The function that makes the asset of a stream.
GetAssetSpec = Callable[[StreamProps], dg.AssetSpec]


def stream_spec(props: StreamProps) -> dg.AssetSpec:
    """Return the asset of a stream. Its key is the table's path."""
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
        # Written by name, because Dagster's metadata sets would validate each field again.
        metadata={
            "dagster/column_schema": column_schema(schema, stream),
            "dagster/table_name": props.table_name,
            "atlas/stream": str(stream.descriptor),
            "atlas/sync_mode": mode,
        },
        freshness_policy=props.freshness_policy,
    )


def table_key(table: TablePath) -> dg.AssetKey:
    """Return the key of a table's asset before any translation."""
    return dg.AssetKey(list(table))


def source_key(connection: Connection) -> dg.AssetKey:
    """Return the key of the external asset for the source system."""
    return dg.AssetKey([connection.name, connection.source_key_part])


class ConnectionAssets(Struct, frozen=True, dict=True):
    """A connection, its streams, and the ``specs`` of their assets.

    If the connection cannot be synced, ``problem`` says why in one sentence, and the streams are
    those of the last discovery.
    """

    connection: Connection
    discovered: Discovered
    specs: Mapping[StreamDescriptor, dg.AssetSpec]
    schedule: Schedule | None = None
    problem: str | None = None

    @classmethod
    def of(
        cls,
        connection: Connection,
        discovered: Discovered,
        get_asset_spec: GetAssetSpec,
        *,
        schedule: Schedule | None = None,
        problem: str | None = None,
    ) -> Self:
        """Define the assets. Raises ConfigError if two streams have the same asset key."""
        streams, fault = _configure_streams(connection, discovered)
        atlas: AtlasResource = default_resources()["atlas"]
        storage_kind = destination_type(atlas.address(connection)).kind
        freshness = schedule.freshness_policy() if schedule else None
        paths = discovered.table_paths
        specs = {}
        for stream in streams:
            props = StreamProps(
                connection,
                stream,
                paths[stream.descriptor],
                discovered.documentation_url,
                storage_kind,
                freshness,
            )
            specs[stream.descriptor] = _with_io_manager(get_asset_spec(props), props)
        _check_unique_keys(connection, specs)
        return cls(connection, discovered, specs, schedule, problem or fault)

    @cached_property
    def streams(self) -> Sequence[ConfiguredStream]:
        """The streams, in the order of the specs. They are parsed on demand: there may be many."""
        return _configure_streams(self.connection, self.discovered)[0]

    @property
    def source_key(self) -> dg.AssetKey:
        return source_key(self.connection)

    @property
    def keys(self) -> list[dg.AssetKey]:
        return [spec.key for spec in self.specs.values()]

    @property
    def tables(self) -> Mapping[StreamDescriptor, TablePath]:
        """The tables of all streams that were ever discovered."""
        return self.discovered.table_paths

    def key(self, table: TablePath) -> dg.AssetKey:
        """Return the key of the asset of ``table``."""
        return self._translated.get(table) or table_key(table)

    def selected(self, keys: Collection[dg.AssetKey]) -> list[StreamDescriptor]:
        """Return the streams whose assets are among ``keys``."""
        return [name for name, spec in self.specs.items() if spec.key in keys]

    @cached_property
    def _translated(self) -> Mapping[TablePath, dg.AssetKey]:
        tables = self.tables
        return {tables[name]: spec.key for name, spec in self.specs.items()}


def _configure_streams(
    connection: Connection, discovered: Discovered
) -> tuple[Sequence[ConfiguredStream], str | None]:
    """Return the streams to sync; if something is wrong, the known streams and the reason."""
    catalog = discovered.catalog
    try:
        where = f"Connection '{connection.name}'"
        if connection.validate_config:
            validate(connection.config, schema=discovered.spec_schema, where=where)
        return connection.configured(catalog), None
    except ConfigError as error:
        return connection.configured(catalog, strict=False), str(error)


def _with_io_manager(spec: dg.AssetSpec, props: StreamProps) -> dg.AssetSpec:
    """Return ``spec`` with its IO manager and, if the key differs, the table's path."""
    spec = spec.with_io_manager_key(io_manager_key(props.connection))
    if tuple(spec.key.path) == props.table:
        return spec
    return spec.merge_attributes(metadata={TABLE_ENTRY: "/".join(props.table)})


def _check_unique_keys(
    connection: Connection, specs: Mapping[StreamDescriptor, dg.AssetSpec]
) -> None:
    names: dict[dg.AssetKey, str] = {source_key(connection): "the source"}
    for stream, spec in specs.items():
        name = f"stream '{stream}'"
        other = names.setdefault(spec.key, name)
        if other != name:
            raise ConfigError(
                f"Connection '{connection.name}': its translation gives {other} and {name} the "
                f"same asset key, {spec.key.to_user_string()}; make the keys different, as in "
                'key: "raw/{{ props.table_name }}".'
            )
