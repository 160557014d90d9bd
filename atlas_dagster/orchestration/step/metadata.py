"""The metadata of events: numbers and notes for people, and the envelope that stores the state."""

import base64
import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
from msgspec import Raw
from msgspec.structs import asdict

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
from atlas_dagster.orchestration.step.telemetry import RunTotals
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

#: Types as people call them.
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
#: Airbyte's columns, the same in each table.
_OWN_COLUMNS = [
    dg.TableColumn(
        field.name,
        _OWN_TYPES.get(field.name, "string"),
        constraints=None if field.name == EXTRA else _NOT_NULL,
    )
    for field in METADATA_FIELDS
]
#: The number of :class:`StreamTotals` that the next sync compares with its own.
RECORDS_SYNCED = "atlas/records_synced"
#: Earlier syncs whose number of records is stored, for the check of unusual numbers.
RECENT_SYNCS = 20
#: Fields that are listed in ``changed_values``.
_LISTED_FIELDS = 20
#: From this many characters on, the UI shows JSON as a link.
_LINKED_FROM = 1_000
#: An image's digest; the first part is as long as Docker shows it.
_DIGEST = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]+")


class AtlasMetadataSet(NamespacedMetadataSet):
    """The entries of Atlas that are not numbers of :class:`StreamTotals`.

    ``envelope`` is the exact text of the stream's last commit; the next sync resumes from its
    state. ``cursor_before`` and ``cursor_after`` are for people. ``records_before`` are the numbers
    of records of earlier syncs, newest first: the next sync compares without reading their events.
    """

    summary: dg.MetadataValue | None = None
    dry_run: dg.MetadataValue | None = None
    preview: dg.MetadataValue | None = None
    records_before: str | None = None
    duration_seconds: float | None = None
    cursor_before: dg.MetadataValue | None = None
    cursor_after: dg.MetadataValue | None = None
    connector: str | None = None
    docs: dg.MetadataValue | None = None
    changed_values: dg.MetadataValue | None = None
    envelope: dg.MetadataValue | None = None

    @classmethod
    def namespace(cls) -> str:
        return "atlas"


def materialization_metadata(
    finished: StreamFinished,
    *,
    totals: RunTotals,
    connector: str,
    mask: Mask,
    recent: Sequence[int],
    docs_url: str | None,
) -> dict[str, Any]:
    """Return the metadata of a complete stream, the most important entries first."""
    spec = finished.plan.table
    numbers = {f"atlas/{n}": value for n, value in asdict(totals.of(spec.path)).items()}
    if finished.plan.already_read:
        del numbers[RECORDS_SYNCED]  # an earlier run has counted them
    return {
        **AtlasMetadataSet(
            summary=dg.MetadataValue.md(summary(finished, totals, mask)),
            preview=preview(finished.sample, mask),
        ),
        **numbers,
        **AtlasMetadataSet(
            records_before=" ".join(map(str, recent[:RECENT_SYNCS])) or None,
            duration_seconds=round(totals.seconds, 3),
            cursor_before=_cursor(totals.first_state(spec.path)),
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
        # Last, because people do not read it.
        **AtlasMetadataSet(
            envelope=None if finished.envelope is None else envelope_value(_own(finished.envelope))
        ),
    }


def _changed_values(changes: Mapping[ValueChange, int]) -> dg.MetadataValue | None:
    """Return fields with values that differ from the source's, and how many."""
    fields = list(changes_by_field(changes).items())[:_LISTED_FIELDS]
    listed = {field or "whole rows": dict(kinds) for field, kinds in fields}
    return _json_value(listed) if listed else None


def commit_metadata(envelope: Envelope, blob: Raw | None) -> dict[str, Any]:
    """Return the metadata of a commit before the stream is complete."""
    own = envelope_value(_own(envelope))
    return {**AtlasMetadataSet(cursor_after=_cursor(blob), envelope=own)}


def shared_state_metadata(envelope: Envelope) -> dict[str, Any]:
    """Return the metadata of the event that stores a state shared by several streams."""
    blob = envelope.connection_state.shared
    return {**AtlasMetadataSet(cursor_after=_cursor(blob), envelope=envelope_value(envelope))}


def is_shared(envelope: Envelope) -> bool:
    """Whether the state covers several streams. Their events then refer to the shared event."""
    return len(envelope.streams) > 1


def envelope_of(metadata: Any) -> Envelope | None:
    """Return the envelope of an event; None if the event is not Atlas's, or damaged.

    Raises:
        ConfigError: a newer Atlas wrote it.
    """
    found = AtlasMetadataSet.extract(metadata).envelope
    try:
        return None if found is None else from_text(str(found.value))
    except msgspec.MsgspecError:
        return None


def envelope_value(envelope: Envelope) -> dg.MetadataValue:
    """Return the envelope as JSON, long enough that the UI shows it as a link."""
    return dg.MetadataValue.json(to_text(envelope).ljust(_LINKED_FROM))


def column_schema(schema: TableSchema, stream: ConfiguredStream) -> dg.TableSchema:
    """Return the table's columns for Dagster, with the source's descriptions.

    A column is nullable here if its field is nullable in the source. In the table each column is:
    a value that does not fit becomes NULL.
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
    """Return JSON with keys of the source, or its text if a key would break the event.

    Dagster's serializer interprets keys such as ``__class__`` and cannot read such an event.
    """
    text = json.dumps(content, ensure_ascii=False)
    if '"__' in text or not isinstance(content, dict | list):
        return dg.MetadataValue.text(text)
    return dg.MetadataValue.json(content)


def _own(envelope: Envelope) -> Envelope:
    return envelope.reference() if is_shared(envelope) else envelope


def short_digest(connector: str) -> str:
    """Return the connector with a shorter digest: the UI breaks no long words."""
    return _DIGEST.sub(r"\1", connector)


def uri_value(address: str) -> dg.MetadataValue[Any]:
    """Return the address of a table as metadata."""
    return dg.MetadataValue.url(address if "://" in address else Path(address).as_uri())


_VERSION = re.compile(r"[:=]v?(\d+\.\d[\w.+-]*)")


def major_change(
    before: Collection[str], now: str, docs_url: str | None, published: ConnectorInfo | None
) -> Iterator[str]:
    """Describe each connector in ``before`` with another major version than ``now``.

    Both are identities that a runner returned; those without a version are skipped. ``published``
    is the connector's entry in the registry.
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
                f"{notes}, and refresh the streams if they say so."
            )


def version_of(identity: str) -> str | None:
    """Return the version in an identity that a runner returned."""
    # A manifest is followed by its runner in brackets, with another version.
    found = _VERSION.search(identity.partition(" (")[0])
    return found and found[1]


def _describe(breaking: Sequence[BreakingChange]) -> str:
    changes = " ".join(change.describe() for change in breaking)
    streams = sorted({stream for change in breaking for stream in change.streams})
    which = f"the streams {', '.join(streams)}" if streams else "the streams that the guide names"
    return f"{changes} Refresh {which} if the guide says so."


#: The longest text of a plain and of a compressed envelope.
LONGEST_PLAIN = 64 * 1024
LONGEST_COMPRESSED = 1024 * 1024
_COMPRESSED = "zlib:"


def to_text(envelope: Envelope) -> str:
    """Return the text for an event: short envelopes plain, long ones compressed.

    :func:`from_text` reads it. The web UI and the daemon read whole events, so an envelope that is
    still too long is replaced by a reference to the one beside the data.
    """
    bare = envelope.without_files()
    content = bare.encode()
    if len(content) <= LONGEST_PLAIN:
        return content.decode()
    text = _COMPRESSED + base64.b85encode(zlib.compress(content)).decode()
    return text if len(text) <= LONGEST_COMPRESSED else bare.reference().encode().decode()


def from_text(text: str) -> Envelope:
    """Return the envelope in a text. Raises msgspec.MsgspecError if there is none."""
    if text.startswith(_COMPRESSED):
        try:
            return Envelope.decode(zlib.decompress(base64.b85decode(text[len(_COMPRESSED) :])))
        except (ValueError, zlib.error) as error:
            raise msgspec.ValidationError(f"a compressed envelope is broken: {error}") from error
    return Envelope.decode(text)
