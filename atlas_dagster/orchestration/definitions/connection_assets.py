"""A connection as it is defined in Dagster: what its assets are made of, and which they are."""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Self

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
from atlas_dagster.orchestration.definitions.translator import (
    GetAssetSpec,
    StreamProps,
    source_key,
    table_key,
)
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovered


class ConnectionAssets(Struct, frozen=True, dict=True):
    """A connection, its streams, and the ``specs`` of their assets.

    ``problem``: why it cannot be synced as it is declared, in one sentence; its streams are then
    those that are known of it.
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
        """Raises ConfigError where two streams would be the same asset."""
        streams, wrong = _configured(connection, discovered)
        atlas: AtlasResource = default_resources()["atlas"]
        storage_kind = destination_type(atlas.address(connection)).kind
        freshness = schedule.freshness() if schedule else None
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
        return cls(connection, discovered, specs, schedule, problem or wrong)

    @cached_property
    def streams(self) -> Sequence[ConfiguredStream]:
        """In order of the specs. Not kept from there: thousands of schemas are, and few used."""
        return _configured(self.connection, self.discovered)[0]

    @property
    def source_key(self) -> dg.AssetKey:
        return source_key(self.connection)

    @property
    def keys(self) -> list[dg.AssetKey]:
        return [spec.key for spec in self.specs.values()]

    @property
    def tables(self) -> Mapping[StreamDescriptor, TablePath]:
        """Of every stream that was ever discovered."""
        return self.discovered.table_paths

    def key(self, table: TablePath) -> dg.AssetKey:
        """The asset that ``table`` is."""
        return self._translated.get(table) or table_key(table)

    def selected(self, keys: Collection[dg.AssetKey]) -> list[StreamDescriptor]:
        """The streams whose assets are among ``keys``."""
        return [name for name, spec in self.specs.items() if spec.key in keys]

    @cached_property
    def _translated(self) -> Mapping[TablePath, dg.AssetKey]:
        tables = self.tables
        return {tables[name]: spec.key for name, spec in self.specs.items()}


def _configured(
    connection: Connection, discovered: Discovered
) -> tuple[Sequence[ConfiguredStream], str | None]:
    """The streams to sync; with what is wrong, those that are known."""
    catalog = discovered.catalog
    try:
        where = f"Connection '{connection.name}'"
        if connection.validate_config:
            validate(connection.config, schema=discovered.spec_schema, where=where)
        return connection.configured(catalog), None
    except ConfigError as error:
        return connection.configured_as_far_as_possible(catalog), str(error)


def _with_io_manager(spec: dg.AssetSpec, props: StreamProps) -> dg.AssetSpec:
    """With what its reader needs to find the table."""
    spec = spec.with_io_manager_key(io_manager_key(props.connection))
    if tuple(spec.key.path) == props.table:
        return spec
    return spec.merge_attributes(metadata={TABLE_ENTRY: "/".join(props.table)})


def _check_unique_keys(
    connection: Connection, specs: Mapping[StreamDescriptor, dg.AssetSpec]
) -> None:
    met: dict[dg.AssetKey, str] = {source_key(connection): "the source"}
    for stream, spec in specs.items():
        name = f"stream '{stream}'"
        other = met.setdefault(spec.key, name)
        if other != name:
            raise ConfigError(
                f"Connection '{connection.name}': its translation makes {other} and {name} the "
                f"same asset, {spec.key.to_user_string()}; let the key tell them apart, as in "
                'key: "raw/{{ props.table_name }}".'
            )
