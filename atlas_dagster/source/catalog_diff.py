"""The changes of a source's catalog, and which of them need the user's consent.

The kinds of changes, and the breaking ones, are those of the Airbyte platform
(``CatalogDiffHelpers``): added and removed streams and fields, types, keys and cursors. Nested
fields are compared only as keys and cursors. Streams that are not synced are not compared.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from msgspec import Struct

from atlas_dagster.errors import ConfigError
from atlas_dagster.protocol.catalog import Catalog, ConfiguredStream, FieldPath, Stream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.records.types import column_type, declares
from atlas_dagster.source.connection import Connection

#: Airbyte's ``nonBreakingChangesPreference``: nothing; fields; fields and streams. A policy never
#: allows a breaking change.
SchemaPolicy = Literal["ignore", "propagate_columns", "propagate_all"]


class CatalogChange(Struct, frozen=True):
    """One change of a stream.

    ``field`` is a path with dots; None for the stream itself, its key, cursor or mode. ``before``
    and ``after`` are texts for users. ``declared``: the change contradicts the declaration, so the
    user must change the declaration first.
    """

    stream: StreamDescriptor
    what: Literal["added", "removed", "retyped", "key", "cursor", "mode"]
    field: str | None = None
    before: str | None = None
    after: str | None = None
    breaking: bool = False
    declared: bool = False

    def __str__(self) -> str:
        subject = f"{self.stream}.{self.field}" if self.field else str(self.stream)
        match self.what:
            case "added":
                text = f"new field, {self.after}" if self.field else "new stream"
            case "removed":
                text = "field is gone" if self.field else "stream is gone"
            case "retyped":
                text = f"{self.after} instead of {self.before}"
            case "mode" if self.declared:
                text = f"can no longer be read as declared, {self.before}"
            case "mode":
                text = f"would be read as {self.after} instead of {self.before}"
            case _:
                name = "primary key" if self.what == "key" else "cursor"
                text = f"{name} {self.after} instead of {self.before}"
        return f"{subject}: {text}{' (breaking)' if self.breaking else ''}"


def compare(connection: Connection, before: Catalog, after: Catalog) -> list[CatalogChange]:
    """Return the changes of the streams that ``connection`` syncs, in the order of ``after``."""
    named = connection.streams is not None
    synced = {stream.descriptor: stream for stream in connection.configured(before, strict=False)}
    changes: list[CatalogChange] = []
    for stream in after.streams:
        if stream.descriptor in synced:
            changes += _compare_stream(connection, synced[stream.descriptor], stream)
        elif not named:
            changes.append(CatalogChange(stream.descriptor, "added"))
    gone = synced.keys() - {stream.descriptor for stream in after.streams}
    changes += [CatalogChange(name, "removed", declared=named) for name in synced if name in gone]
    return changes


def find_pending(
    changes: Collection[CatalogChange], policy: SchemaPolicy | None
) -> list[CatalogChange]:
    """Return the changes that ``policy`` does not allow: all of a stream's changes, or none.

    Without ``policy``, these are only changes that contradict the declaration.
    """
    pending = {change.stream for change in changes if not _is_allowed(change, policy)}
    return [change for change in changes if change.stream in pending]


def merge_catalogs(before: Catalog, after: Catalog, pending: Collection[CatalogChange]) -> Catalog:
    """Return ``after``, with the streams of ``pending`` as they were ``before``."""
    changed = {change.stream for change in pending}
    old = {stream.descriptor: stream for stream in before.streams}
    streams = [
        old.pop(stream.descriptor, None) if stream.descriptor in changed else stream
        for stream in after.streams
    ]
    found = {stream.descriptor for stream in after.streams}
    streams += [old[name] for name in old if name in changed and name not in found]
    return Catalog(tuple(stream for stream in streams if stream is not None))


def _is_allowed(change: CatalogChange, policy: SchemaPolicy | None) -> bool:
    if change.declared:
        return False
    if policy is None:
        return True
    is_whole_stream = change.field is None and change.what in ("added", "removed")
    if change.breaking or policy == "ignore":
        return False
    return policy == "propagate_all" or not is_whole_stream


def _compare_stream(
    connection: Connection, was: ConfiguredStream, now: Stream
) -> Iterator[CatalogChange]:
    name = now.descriptor
    dedup = was.destination_sync_mode == "append_dedup"
    incremental = was.sync_mode == "incremental"
    required = {path for path in was.primary_key if dedup} | {
        path for path in (was.cursor_field,) if incremental and path
    }
    yield from _compare_fields(name, was.stream.json_schema, now.json_schema, required)
    key, new_key = was.stream.source_defined_primary_key, now.source_defined_primary_key
    try:
        after = connection.configure(now)
    except ConfigError:
        after = None
    if set(key) != set(new_key):
        # A declared key takes precedence over the source's key.
        breaking = dedup and (after is None or set(after.primary_key) != set(was.primary_key))
        yield CatalogChange(name, "key", None, _join(key), _join(new_key), breaking=breaking)
    cursor, new_cursor = was.stream.default_cursor_field, now.default_cursor_field
    if incremental and cursor != new_cursor and was.cursor_field == cursor:
        yield CatalogChange(name, "cursor", None, _join([cursor]), _join([new_cursor]))
    if after is None:
        yield CatalogChange(name, "mode", None, _join_modes(was), declared=True)
    elif _join_modes(after) != _join_modes(was):
        yield CatalogChange(name, "mode", None, _join_modes(was), _join_modes(after), breaking=True)


def _compare_fields(
    name: StreamDescriptor,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    required: Collection[FieldPath],
) -> Iterator[CatalogChange]:
    old, new = before.get("properties") or {}, after.get("properties") or {}
    removed = {path for path in required if declares(before, path) and not declares(after, path)}
    for field in [*new, *(field for field in old if field not in new)]:
        if field not in old:
            yield CatalogChange(name, "added", field, None, column_type(new[field], after).value)
        elif field not in new:
            breaking = (field,) in removed
            was = column_type(old[field], before)
            yield CatalogChange(name, "removed", field, was.value, None, breaking)
        else:
            was, now = column_type(old[field], before), column_type(new[field], after)
            if was is not now:
                yield CatalogChange(name, "retyped", field, was.value, now.value)
    for path in sorted(path for path in removed if len(path) > 1):
        yield CatalogChange(name, "removed", ".".join(path), breaking=True)


def _join_modes(stream: ConfiguredStream) -> str:
    return f"{stream.sync_mode} | {stream.destination_sync_mode}"


def _join(paths: Collection[FieldPath]) -> str:
    return ", ".join(".".join(path) for path in paths if path) or "none"
