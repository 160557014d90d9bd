"""What is shown and stored with each event of a stream."""

import base64
import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import dagster as dg
import msgspec
from msgspec import Raw

from atlas_dagster.connector_versions import release
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.orchestration.dagster_internals import NamespacedMetadataSet, TableMetadataSet
from atlas_dagster.orchestration.step.summary import (
    Mask,
    changes_by_field,
    preview,
    shown_state,
    summary,
)
from atlas_dagster.orchestration.step.telemetry import StreamTotals
from atlas_dagster.protocol.catalog import ConfiguredStream, FieldPath
from atlas_dagster.records.issues import ValueChange
from atlas_dagster.records.types import (
    EXTRA,
    EXTRACTED_AT,
    GENERATION_ID,
    METADATA_FIELDS,
    Column,
    ColumnType,
    TableSchema,
)
from atlas_dagster.registry import BreakingChange, ConnectorInfo
from atlas_dagster.sync.events import StreamFinished

#: What a person calls a column's type.
_SHOWN = {
    ColumnType.TIMESTAMP: "timestamp (UTC)",
    ColumnType.LOCAL_TIMESTAMP: "timestamp",
    ColumnType.TEXT: "text (of any simple type)",
    ColumnType.OBJECT: "object (JSON)",
    ColumnType.ARRAY: "array (JSON)",
    ColumnType.UNKNOWN: "any (JSON)",
}
_OWN_TYPES = {EXTRACTED_AT: "timestamp (UTC)", GENERATION_ID: "integer"}
_NOT_NULL = dg.TableColumnConstraints(nullable=False)
_KEY = dg.TableColumnConstraints(nullable=False, other=["primary key"])
_ONLY_KEY = dg.TableColumnConstraints(nullable=False, unique=True, other=["primary key"])
#: Airbyte's own columns, the same in every table.
_OWN_COLUMNS = [
    dg.TableColumn(
        field.name,
        _OWN_TYPES.get(field.name, "string"),
        constraints=None if field.name == EXTRA else _NOT_NULL,
    )
    for field in METADATA_FIELDS
]
#: Syncs whose counts are kept, to compare a new one with.
RECENT_SYNCS = 20
#: Of those whose values are not as the source wrote them.
_LISTED_FIELDS = 20
#: Characters from which the UI shows JSON as a link.
_LINKED_FROM = 1_000
#: Of an image; as much of it as Docker shows.
_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]+")


class AtlasMetadataSet(NamespacedMetadataSet):
    """Atlas's own entries. Numbers plot themselves in the UI.

    ``envelope`` is the exact text of the stream's last commit, state included: the cursor that the
    next sync continues from. ``cursor_before`` and ``cursor_after`` are for people. Counts are of
    all tries of a run; ``records_before`` are those of the syncs before, newest first, so that
    nobody need look for them. ``bytes_synced`` is a float: the UI plots no integer beyond 32 bits.
    """

    summary: dg.MetadataValue | None = None
    dry_run: dg.MetadataValue | None = None
    preview: dg.MetadataValue | None = None
    records_synced: int | None = None
    records_before: str | None = None
    bytes_synced: float | None = None
    duration_seconds: float | None = None
    checkpoints: int | None = None
    cursor_before: dg.MetadataValue | None = None
    cursor_after: dg.MetadataValue | None = None
    connector: str | None = None
    docs: dg.MetadataValue | None = None
    changed_values: dg.MetadataValue | None = None
    envelope: dg.MetadataValue | None = None

    @classmethod
    def namespace(cls) -> str:
        return "atlas"

    @classmethod
    def extract(cls, metadata: Mapping[str, Any]) -> Self:
        size = metadata.get("atlas/bytes_synced")
        if isinstance(size, dg.IntMetadataValue) and size.value is not None:
            # Events of older versions hold an integer.
            metadata = {**metadata, "atlas/bytes_synced": dg.FloatMetadataValue(float(size.value))}
        return super().extract(metadata)


def materialization_metadata(
    finished: StreamFinished,
    *,
    counts: StreamTotals,
    seconds: float,
    connector: str,
    mask: Mask,
    recent: Sequence[int],
    docs_url: str | None,
) -> dict[str, Any]:
    """Metadata of a stream that is complete: what people read first comes first."""
    spec = finished.plan.table
    told = summary(finished, counts, seconds, mask)
    return {
        **AtlasMetadataSet(
            summary=dg.MetadataValue.md(told),
            preview=preview(finished.sample, mask),
            # One that an earlier run has read: what it brought, that run could not say.
            records_synced=None if finished.plan.already_read else counts.records,
            records_before=" ".join(map(str, recent[:RECENT_SYNCS])) or None,
            bytes_synced=float(counts.bytes),
            duration_seconds=round(seconds, 3),
            checkpoints=counts.checkpoints,
            cursor_before=_cursor(counts.cursor_before),
            cursor_after=_cursor(finished.cursor_after),
            connector=short_digest(connector),
            docs=None if docs_url is None else dg.MetadataValue.url(docs_url),
            changed_values=_changed_values(finished.changes),
        ),
        **TableMetadataSet(
            column_schema=column_schema(spec.schema, finished.plan.configured),
            row_count=finished.table.row_count,
            table_name=".".join(spec.path),
        ),
        "dagster/uri": uri_value(finished.table.uri),
        # Last, because it is for Atlas, not for people.
        **AtlasMetadataSet(
            envelope=None if finished.envelope is None else envelope_value(_own(finished.envelope))
        ),
    }


def _changed_values(changes: Mapping[ValueChange, int]) -> dg.MetadataValue | None:
    """Which fields hold values that are not as the source wrote them, and how many."""
    fields = list(changes_by_field(changes).items())[:_LISTED_FIELDS]
    listed = {field or "whole rows": dict(kinds) for field, kinds in fields}
    return _json_value(listed) if listed else None


def checkpoint_metadata(envelope: Envelope, blob: Raw | None) -> dict[str, Any]:
    """Metadata of a commit in the middle of a stream."""
    own = envelope_value(_own(envelope))
    return {**AtlasMetadataSet(cursor_after=_cursor(blob), envelope=own)}


def shared_state_metadata(envelope: Envelope) -> dict[str, Any]:
    """Metadata of the one place where a state that covers several streams is written out."""
    blob = envelope.connection_state.shared
    return {**AtlasMetadataSet(cursor_after=_cursor(blob), envelope=envelope_value(envelope))}


def is_shared(envelope: Envelope) -> bool:
    """Whether its state covers several streams, and so is not repeated in the events of each."""
    return len(envelope.streams) > 1


def envelope_of(metadata: Any) -> Envelope | None:
    """The envelope an event carries; None for events that are not Atlas's, or are damaged.

    Raises:
        ConfigError: a newer Atlas wrote it.
    """
    found = AtlasMetadataSet.extract(metadata).envelope
    try:
        return None if found is None else from_text(str(found.value))
    except msgspec.MsgspecError:
        return None


def envelope_value(envelope: Envelope) -> dg.MetadataValue:
    """The envelope's text as a JSON string: the UI shows a long one as a link, a text in full."""
    return dg.MetadataValue.json(to_text(envelope).ljust(_LINKED_FROM))


def column_schema(schema: TableSchema, stream: ConfiguredStream) -> dg.TableSchema:
    """The table's columns as Dagster shows them: with the source's own words on them.

    Whether a column may be NULL is what the source says of its field. Every one can be in the
    table: a value that does not fit is NULL there.
    """
    key = _ONLY_KEY if len(stream.primary_key) == 1 else _KEY
    keys = dict.fromkeys(stream.primary_key, key)
    return dg.TableSchema([*(_table_column(c, keys) for c in schema.columns), *_OWN_COLUMNS])


def _table_column(
    column: Column, keys: Mapping[FieldPath, dg.TableColumnConstraints]
) -> dg.TableColumn:
    described = column.description
    if column.field != column.name:
        described = " ".join(filter(None, (described, f"Field '{column.field}'.")))
    return dg.TableColumn(
        column.name,
        _SHOWN.get(column.type) or column.type.value,
        description=described,
        constraints=keys.get(column.path or (column.field,))
        or (None if column.nullable else _NOT_NULL),
    )


def _cursor(blob: Raw | None) -> dg.MetadataValue:
    shown = shown_state(blob)
    return dg.MetadataValue.text(shown) if isinstance(shown, str) else _json_value(shown)


def _json_value(content: Any) -> dg.MetadataValue:
    """JSON whose keys are the source's, or its text.

    Dagster's serializer takes keys like ``__class__`` for its own, and then nobody can read the
    event any more.
    """
    text = json.dumps(content, ensure_ascii=False)
    if '"__' in text or not isinstance(content, dict | list):
        return dg.MetadataValue.text(text)
    return dg.MetadataValue.json(content)


def _own(envelope: Envelope) -> Envelope:
    return envelope.reference() if is_shared(envelope) else envelope


def short_digest(connector: str) -> str:
    """What ran, in a length that fits on the page: the UI breaks no word."""
    return _DIGEST.sub(r"\1", connector)


def uri_value(address: str) -> dg.MetadataValue[Any]:
    """Where a table is, as metadata."""
    return dg.MetadataValue.url(address if "://" in address else Path(address).as_uri())


_VERSION = re.compile(r"[:=]v?(\d+\.\d[\w.+-]*)")


def major_change(
    before: Collection[str], now: str, docs_url: str | None, published: ConnectorInfo | None
) -> Iterator[str]:
    """A sentence for each connector in ``before`` whose major version is not that of ``now``.

    Both are what a runner's ``identity`` returns; one without a version is never compared.
    ``published`` is what the registry says of it, where it is from there.
    """
    found = version_of(now)
    for other in sorted(before):
        was = version_of(other)
        if was and found and release(was)[:1] != release(found)[:1]:
            breaking = published.breaking_changes_between(was, found) if published else ()
            moved = f"The connector went from version {was} to {found} since the last sync."
            if breaking:
                yield f"{moved} {_describe(breaking)}"
                continue
            notes = f" ({docs_url})" if docs_url else ""
            yield (
                f"{moved} "
                "A new major version may change streams, keys or states: read its migration notes"
                f"{notes}; where they ask for it, refresh the streams."
            )


def version_of(identity: str) -> str | None:
    """The version in what a runner's ``identity`` returns, if it tells one."""
    # The runner of a manifest comes in brackets, and has a version of its own.
    found = _VERSION.search(identity.partition(" (")[0])
    return found and found[1]


def _describe(breaking: Sequence[BreakingChange]) -> str:
    changes = " ".join(change.describe() for change in breaking)
    streams = sorted({stream for change in breaking for stream in change.streams})
    which = f"the streams {', '.join(streams)}" if streams else "the streams that the guide names"
    return f"{changes} Where the guide asks for it, refresh {which}."


#: Characters up to which an envelope is stored as it is, and compressed.
LONGEST_PLAIN = 64 * 1024
LONGEST_COMPRESSED = 1024 * 1024
_COMPRESSED = "zlib:"


def to_text(envelope: Envelope) -> str:
    """The text for an event; :func:`from_text` is its inverse, except for what is too long."""
    bare = envelope.without_files()
    content = bare.encode()
    if len(content) <= LONGEST_PLAIN:
        return content.decode()
    text = _COMPRESSED + base64.b85encode(zlib.compress(content)).decode()
    return text if len(text) <= LONGEST_COMPRESSED else bare.reference().encode().decode()


def from_text(text: str) -> Envelope:
    """Raises :class:`msgspec.MsgspecError` for anything but an envelope."""
    if text.startswith(_COMPRESSED):
        try:
            return Envelope.decode(zlib.decompress(base64.b85decode(text[len(_COMPRESSED) :])))
        except (ValueError, zlib.error) as error:
            raise msgspec.ValidationError(f"a compressed envelope is broken: {error}") from error
    return Envelope.decode(text)
