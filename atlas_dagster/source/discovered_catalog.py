"""DISCOVER and its cached result, which is enough to define assets without a connector."""

import hashlib
import json
import time
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.errors import ConfigError
from atlas_dagster.format_versions import version_of
from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.protocol.messages import Spec, StreamDescriptor
from atlas_dagster.records.names import assign
from atlas_dagster.source.catalog_diff import (
    CatalogChange,
    SchemaPolicy,
    compare,
    find_pending,
    merge_catalogs,
)
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.open_connector import open_connector
from atlas_dagster.source.run_context import RunContext

VERSION = 1
#: Names that stores and Dagster's serializer reserve.
_TAKEN = (
    "_atlas",
    "_change_data",
    "_delta_log",
    "__class__",
    "__enum__",
    "__frozenset__",
    "__mapping_items__",
    "__set__",
)


class NamedTable(Struct, frozen=True):
    """The table of a stream; it never changes."""

    stream: StreamDescriptor
    path: TablePath


class Discovered(Struct, frozen=True, dict=True):
    """The cached result of SPEC and DISCOVER, without secrets.

    ``config_hash`` is the hash of the declaration's fields that DISCOVER may depend on, with
    templates as written (older caches: of all fields). ``connector`` is the identity of the
    connector. ``streams`` are the source's own JSON. ``pending`` are changes that are not applied
    yet, so ``streams`` lacks them.
    """

    connector: str
    config_hash: str
    discovered_at: float
    spec_schema: dict[str, Any]
    documentation_url: str | None
    streams: tuple[Raw, ...]
    tables: tuple[NamedTable, ...]
    pending: tuple[CatalogChange, ...] = ()
    version: int = VERSION

    @property
    def spec(self) -> Spec:
        return Spec(self.spec_schema, self.documentation_url)

    @cached_property
    def catalog(self) -> Catalog:
        return Catalog.from_raw(self.streams)

    @cached_property
    def table_paths(self) -> Mapping[StreamDescriptor, TablePath]:
        return {table.stream: table.path for table in self.tables}

    def is_of(self, config: Mapping[str, Any]) -> bool:
        """Return whether ``config`` is the one that DISCOVER ran with."""
        return self.config_hash in (config_hash(config, self.spec_schema), _hash(config))

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, content: bytes) -> "Discovered":
        """Decode a cached catalog of this or an older version.

        Raises:
            ConfigError: a newer Atlas wrote it, or it cannot be read; discover again.
        """
        try:
            version_of(content, known=VERSION, what="The cached catalog")
            return msgspec.json.decode(content, type=cls)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"The cached catalog cannot be read ({error}); discover again."
            ) from error


class Discovery(Struct, frozen=True):
    """The result of a DISCOVER, and the changes that were applied (``taken``).

    ``lacking``: streams whose old rows have no values in the new columns.
    """

    found: Discovered
    taken: tuple[CatalogChange, ...] = ()
    lacking: tuple[StreamDescriptor, ...] = ()

    @classmethod
    def since(
        cls, previous: Discovered | None, found: Discovered, connection: Connection
    ) -> "Discovery":
        """Return the changes from ``previous`` to ``found``."""
        if previous is None:
            return cls(found)
        taken = tuple(compare(connection, previous.catalog, found.catalog))
        wider = {change.stream for change in taken if change.what == "added" and change.field}
        known = connection.configured(found.catalog, strict=False)
        kept = [
            stream.descriptor for stream in known if stream.destination_sync_mode != "overwrite"
        ]
        return cls(found, taken, tuple(name for name in kept if name in wider))


def discover(
    connection: Connection,
    context: RunContext,
    previous: Discovered | None,
    policy: SchemaPolicy | None = None,
) -> Discovered:
    """Run SPEC and DISCOVER; see :func:`discover_with`.

    Raises:
        ConfigError: the config does not fit the SPEC, or a declared stream does not exist.
        RunnerUnavailableError: nothing can run the connector.
        ConnectorFailedError: the connector gave no answer.
    """
    with open_connector(connection, context) as connector:
        return discover_with(connector, connection, previous, policy)


def discover_with(
    connector: Connector,
    connection: Connection,
    previous: Discovered | None,
    policy: SchemaPolicy | None = None,
) -> Discovered:
    """Run DISCOVER with an open connector; tables named in ``previous`` keep their names.

    Changes since ``previous`` that ``policy`` allows are applied; without a policy, all that do not
    contradict the declaration. The other changes are pending.
    """
    catalog = connector.discover()
    pending: list[CatalogChange] = []
    if previous is not None:
        pending = find_pending(compare(connection, previous.catalog, catalog), policy)
        catalog = merge_catalogs(previous.catalog, catalog, pending)
    connection.configured(catalog)  # raises if a declared stream does not exist
    assert connector.known_spec is not None
    return build_discovered(
        connection.name,
        connector=connector.runner.identity(),
        config=connection.config,
        spec=connector.known_spec,
        catalog=catalog,
        reserved=connection.source_key_part,
        previous=previous,
        pending=pending,
    )


def build_discovered(
    connection: str,
    *,
    connector: str,
    config: Mapping[str, Any],
    spec: Spec,
    catalog: Catalog,
    reserved: str,
    previous: Discovered | None,
    pending: Collection[CatalogChange] = (),
) -> Discovered:
    """Build the cached result. Tables in ``previous`` keep their names.

    No stream may get the key part ``reserved``. ``catalog`` lacks the ``pending`` changes.
    """
    known = previous.table_paths if previous else {}
    return Discovered(
        connector=connector,
        config_hash=config_hash(config, spec.connectionSpecification),
        discovered_at=time.time(),
        spec_schema=spec.connectionSpecification,
        documentation_url=spec.documentationUrl,
        streams=tuple(stream.raw for stream in catalog.streams),
        tables=_name_tables(connection, catalog, reserved, known),
        pending=tuple(pending),
    )


def config_hash(config: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return the hash of the fields that the streams may depend on.

    Secrets and dates are left out.
    """
    fields = schema.get("properties")
    known = fields if isinstance(fields, Mapping) else {}
    return _hash({name: value for name, value in config.items() if not _ignores(known.get(name))})


def _ignores(field: Any) -> bool:
    if not isinstance(field, Mapping):
        return False
    is_date = field.get("format") in ("date", "date-time")
    return bool(field.get("airbyte_secret")) or is_date


def _hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _name_tables(
    connection: str,
    catalog: Catalog,
    reserved: str,
    known: Mapping[StreamDescriptor, TablePath],
) -> tuple[NamedTable, ...]:
    """Return the path ``connection/[namespace/]stream`` of each stream; keep paths in ``known``.

    Paths differ even when joined with ``__``, as Dagster does.
    """
    found = {stream.descriptor for stream in catalog.streams} | set(known)
    spaces = assign(
        {name.namespace for name in found if name.namespace},
        known={name.namespace: path[1] for name, path in known.items() if name.namespace},
        reserved=[reserved, *_TAKEN, *(path[1] for path in known.values() if len(path) == 2)],
    )
    paths: dict[StreamDescriptor, TablePath] = {}
    joined = ["__".join(path[1:]) for path in known.values()]
    for space in sorted({name.namespace for name in found}, key=lambda space: space or ""):
        prefix = f"{spaces[space]}__" if space else ""
        used = [path.removeprefix(prefix) for path in joined if path.startswith(prefix)]
        members = {name for name in found if name.namespace == space}
        names = assign(
            {name.name for name in members},
            known={name.name: path[-1] for name, path in known.items() if name in members},
            reserved=[*_TAKEN, *used] if space else [reserved, *_TAKEN, *spaces.values(), *used],
        )
        for name in members:
            middle = (spaces[space],) if space else ()
            paths[name] = (connection, *middle, names[name.name])
            joined.append(prefix + names[name.name])
    order = sorted(found, key=str)
    return tuple(NamedTable(name, paths[name]) for name in order)
