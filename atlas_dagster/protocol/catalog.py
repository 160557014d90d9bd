"""Catalogs: the streams that a source offers, and the streams that Atlas asks for."""

import json
from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.errors import ConfigError, ProtocolError
from atlas_dagster.protocol.messages import CatalogMessage, StreamDescriptor

SyncMode = Literal["full_refresh", "incremental"]
DestinationSyncMode = Literal["append", "overwrite", "append_dedup"]
#: The keys of a field in a record, from the top.
FieldPath = tuple[str, ...]
#: A field of sources that read a database's log: when a row was deleted, or null.
CDC_DELETED_AT = "_ab_cdc_deleted_at"


class _DiscoveredStream(Struct):
    """One stream of DISCOVER as the source sends it."""

    name: str
    json_schema: Any = {}
    supported_sync_modes: list[str] | None = None
    source_defined_cursor: bool | None = None
    default_cursor_field: list[str] | None = None
    source_defined_primary_key: list[list[str]] | None = None
    namespace: str | None = None
    is_resumable: bool | None = None


class Stream(Struct, frozen=True):
    """A stream that the source offers. ``raw`` is the source's own JSON, sent back unchanged.

    ``has_fields``: whether the source's ``json_schema`` is an object; otherwise it is empty here.
    """

    descriptor: StreamDescriptor
    json_schema: dict[str, Any]
    supported_sync_modes: tuple[str, ...]
    source_defined_cursor: bool
    default_cursor_field: FieldPath
    source_defined_primary_key: tuple[FieldPath, ...]
    is_resumable: bool
    raw: Raw
    has_fields: bool = True

    @classmethod
    def from_raw(cls, raw: Raw | bytes) -> "Stream":
        """Decode one stream of a catalog.

        A missing or empty ``supported_sync_modes`` means full refresh.

        Raises:
            ProtocolError: ``raw`` is not a stream.
        """
        try:
            found = msgspec.json.decode(raw, type=_DiscoveredStream, strict=False)
        except msgspec.MsgspecError as error:
            raise ProtocolError(
                f"The connector's catalog contains a stream that Atlas cannot read ({error}); "
                "report it to the connector's maintainers."
            ) from error
        schema = found.json_schema
        return cls(
            descriptor=StreamDescriptor(found.name, found.namespace),
            json_schema=schema if isinstance(schema, dict) else {},
            supported_sync_modes=tuple(found.supported_sync_modes or ("full_refresh",)),
            source_defined_cursor=bool(found.source_defined_cursor),
            default_cursor_field=tuple(found.default_cursor_field or ()),
            source_defined_primary_key=tuple(
                tuple(path) for path in found.source_defined_primary_key or ()
            ),
            is_resumable=bool(found.is_resumable),
            raw=Raw(raw),
            has_fields=isinstance(schema, dict),
        )


class Catalog(Struct, frozen=True):
    """All streams that a source offers, in its order."""

    streams: tuple[Stream, ...]

    @classmethod
    def from_message(cls, message: CatalogMessage) -> "Catalog":
        # Copies, because a message keeps the whole block that was read with it in memory.
        return cls.from_raw(raw.copy() for raw in message.streams)

    @classmethod
    def from_raw(cls, streams: Iterable[Raw]) -> "Catalog":
        """Decode the source's JSON of each stream. Raises ProtocolError."""
        return cls(tuple(Stream.from_raw(raw) for raw in streams))

    @classmethod
    def from_json(cls, streams: Iterable[Any]) -> "Catalog":
        """Decode the result of :meth:`to_json`."""
        return cls.from_raw(Raw(json.dumps(stream).encode()) for stream in streams)

    def to_json(self) -> list[Any]:
        return [json.loads(bytes(stream.raw)) for stream in self.streams]


class ConfiguredStream(Struct, frozen=True):
    """A stream, and how to read and store it.

    ``generation_id`` numbers the full copies of a table; if ``minimum_generation_id`` equals it,
    older generations are removed when the stream is complete. ``hard_deletes``: remove rows that
    the source reports as deleted, instead of marking them with the time. ``ignored_cursor``: the
    declared cursor, if the source uses its own. ``refuses_null_keys``: a record without a value in
    a key field stops the stream.
    """

    stream: Stream
    sync_mode: SyncMode
    destination_sync_mode: DestinationSyncMode
    cursor_field: FieldPath
    primary_key: tuple[FieldPath, ...]
    generation_id: int = 0
    minimum_generation_id: int = 0
    hard_deletes: bool = False
    ignored_cursor: FieldPath = ()
    refuses_null_keys: bool = False

    @property
    def differences(self) -> tuple[str, ...]:
        """Sentences about differences between the declaration and the source's definition."""
        found = []
        own = tuple(path for path in self.stream.source_defined_primary_key if path)
        if own and set(own) != set(self.primary_key):
            found.append(
                f"The source's own primary key is {_join(own)}; Atlas uses the declared one."
            )
        if self.ignored_cursor:
            found.append(
                f"The declared cursor_field {_join([self.ignored_cursor])} has no effect: the "
                f"source uses its own, {_join([self.cursor_field])}."
            )
        return tuple(found)

    @property
    def descriptor(self) -> StreamDescriptor:
        return self.stream.descriptor

    @property
    def compared_fields(self) -> tuple[FieldPath, ...]:
        """Keys and cursor by which rows are compared."""
        if self.destination_sync_mode != "append_dedup":
            return ()
        return tuple(dict.fromkeys((*self.primary_key, self.cursor_field)))

    @property
    def nested_fields(self) -> tuple[FieldPath, ...]:
        """Compared fields inside objects."""
        return tuple(path for path in self.compared_fields if len(path) > 1)

    @property
    def replaces(self) -> bool:
        """True if the rows of this sync replace all rows of the table."""
        return self.minimum_generation_id == self.generation_id and self.generation_id > 0


def configure(
    stream: Stream,
    *,
    sync_mode: SyncMode | None = None,
    destination_sync_mode: DestinationSyncMode | None = None,
    cursor_field: FieldPath | None = None,
    primary_key: tuple[FieldPath, ...] | None = None,
    hard_deletes: bool = False,
    refuses_null_keys: bool = False,
) -> ConfiguredStream:
    """Choose how to sync ``stream``. None means the default of the Airbyte platform.

    The defaults (platform ``CatalogConverter``): incremental | append_dedup if the source defines
    both cursor and primary key; otherwise full_refresh | overwrite; incremental | append if the
    stream does not support full refresh.

    Raises:
        ConfigError: the choice cannot work for this stream.
    """
    name = stream.descriptor
    declared_key = tuple(path for path in primary_key or () if path)
    key = declared_key or tuple(path for path in stream.source_defined_primary_key if path)
    cursor = cursor_field or stream.default_cursor_field
    if stream.source_defined_cursor and stream.default_cursor_field:
        # The source uses its own cursor in any case (protocol, source_defined_cursor).
        cursor = stream.default_cursor_field
    supported = stream.supported_sync_modes
    if sync_mode is None:
        is_default = stream.source_defined_cursor and key and destination_sync_mode != "overwrite"
        is_requested = cursor_field or destination_sync_mode == "append_dedup"
        if "incremental" in supported and (is_default or is_requested):
            sync_mode = "incremental"
        else:
            sync_mode = "full_refresh" if "full_refresh" in supported else "incremental"
    if sync_mode not in supported:
        raise ConfigError(
            f"Stream '{name}' does not support sync_mode {sync_mode}; "
            f"it supports {', '.join(supported)}."
        )
    if destination_sync_mode is None:
        if sync_mode == "incremental":
            destination_sync_mode = "append_dedup" if key else "append"
        else:
            destination_sync_mode = "overwrite"
    if sync_mode == "incremental" and destination_sync_mode == "overwrite":
        raise ConfigError(
            f"Stream '{name}' cannot be incremental and overwrite: it reads only new rows; "
            "use append_dedup or append, or sync_mode full_refresh."
        )
    if sync_mode == "incremental" and not stream.source_defined_cursor and not cursor:
        raise ConfigError(
            f"Stream '{name}' needs a cursor_field to be incremental: "
            "the source defines none; name a field that grows, such as updated_at."
        )
    if destination_sync_mode == "append_dedup" and not key:
        raise ConfigError(
            f"Stream '{name}' needs a primary_key for append_dedup: the source defines none."
        )
    if hard_deletes and destination_sync_mode != "append_dedup":
        raise ConfigError(
            f"Stream '{name}' has cdc_deletes hard, which needs destination_sync_mode "
            f"append_dedup; {destination_sync_mode} never deletes single rows."
        )
    if hard_deletes and CDC_DELETED_AT not in (stream.json_schema.get("properties") or {}):
        raise ConfigError(
            f"Stream '{name}' has cdc_deletes hard, but no field {CDC_DELETED_AT}: let the source "
            "read the database's log (CDC), or leave cdc_deletes out."
        )
    if refuses_null_keys and not key:
        raise ConfigError(
            f"Stream '{name}' has null_keys refuse, but no primary_key: declare one, or leave "
            "null_keys out."
        )
    return ConfiguredStream(
        stream,
        sync_mode,
        destination_sync_mode,
        cursor,
        key,
        hard_deletes=hard_deletes,
        refuses_null_keys=refuses_null_keys,
        ignored_cursor=cursor_field if cursor_field and cursor_field != cursor else (),
    )


def _join(paths: Iterable[FieldPath]) -> str:
    return ", ".join(f"`{'.'.join(path)}`" for path in paths)


def configured_catalog_json(streams: Iterable[ConfiguredStream], *, sync_id: int) -> bytes:
    """Return the ``--catalog`` file, with the discovered streams byte for byte.

    It contains only ``append``, ``overwrite`` and ``append_dedup``, because connectors parse the
    enum strictly (platform ``DefaultProtocolSerializer``).
    """
    return msgspec.json.encode(
        {
            "streams": [
                {
                    "stream": configured.stream.raw,
                    "sync_mode": configured.sync_mode,
                    "destination_sync_mode": configured.destination_sync_mode,
                    "cursor_field": list(configured.cursor_field),
                    "primary_key": [list(path) for path in configured.primary_key],
                    "generation_id": configured.generation_id,
                    "minimum_generation_id": configured.minimum_generation_id,
                    "sync_id": sync_id,
                }
                for configured in streams
            ]
        }
    )
