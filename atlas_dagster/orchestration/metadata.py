"""What is shown and stored with each event of a stream."""

from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.metadata.metadata_set import (
    NamespacedMetadataSet,
    TableMetadataSet,
)
from msgspec import Raw

from atlas_dagster.orchestration.envelope_text import from_text, shown_state, to_text
from atlas_dagster.protocol.catalog import ConfiguredStream, FieldPath
from atlas_dagster.records.types import METADATA_FIELDS, Column, ColumnType, TableSchema
from atlas_dagster.state.envelope import Envelope
from atlas_dagster.sync.events import StreamFinished

_METADATA_TYPES = {"_airbyte_extracted_at": "timestamp", "_airbyte_generation_id": "integer"}


class AtlasMetadataSet(NamespacedMetadataSet):
    """Atlas's own entries. Numbers plot themselves in the UI.

    ``envelope`` is the exact text of the stream's last commit, state included: the cursor that the
    next sync continues from. ``cursor_before`` and ``cursor_after`` are for people.
    """

    records_synced: int | None = None
    bytes_synced: int | None = None
    duration_seconds: float | None = None
    checkpoints: int | None = None
    cursor_before: dg.MetadataValue | None = None
    cursor_after: dg.MetadataValue | None = None
    envelope: str | None = None
    connector: str | None = None
    warnings: dg.MetadataValue | None = None

    @classmethod
    def namespace(cls) -> str:
        return "atlas"


def materialization_metadata(finished: StreamFinished, *, connector: str) -> dict[str, Any]:
    """Metadata of a stream that is complete."""
    spec = finished.plan.table
    return {
        **AtlasMetadataSet(
            records_synced=finished.records,
            bytes_synced=finished.bytes,
            duration_seconds=round(finished.seconds, 3),
            checkpoints=finished.checkpoints,
            cursor_before=_cursor(finished.cursor_before),
            cursor_after=_cursor(finished.cursor_after),
            connector=connector,
            warnings=dg.MetadataValue.md("\n".join(f"- {w}" for w in finished.warnings))
            if finished.warnings
            else None,
        ),
        **TableMetadataSet(
            column_schema=column_schema(spec.schema, finished.plan.configured),
            row_count=finished.table.row_count,
            table_name=".".join(spec.path),
        ),
        "dagster/uri": uri_value(finished.table.uri),
        # Last, because it is long and for Atlas, not for people.
        **AtlasMetadataSet(
            envelope=None if finished.envelope is None else to_text(_own(finished.envelope))
        ),
    }


def checkpoint_metadata(envelope: Envelope, blob: Raw | None) -> dict[str, Any]:
    """Metadata of a commit in the middle of a stream."""
    return {**AtlasMetadataSet(cursor_after=_cursor(blob), envelope=to_text(_own(envelope)))}


def shared_state_metadata(envelope: Envelope) -> dict[str, Any]:
    """Metadata of the one place where a state that covers several streams is written out."""
    blob = envelope.connection_state.shared
    return {**AtlasMetadataSet(cursor_after=_cursor(blob), envelope=to_text(envelope))}


def is_shared(envelope: Envelope) -> bool:
    """Whether its state covers several streams, and so is not repeated in the events of each."""
    return len(envelope.streams) > 1


def envelope_of(metadata: Any) -> Envelope | None:
    """The envelope an event carries; None for events that are not Atlas's."""
    text = AtlasMetadataSet.extract(metadata).envelope
    return None if text is None else from_text(text)


def column_schema(schema: TableSchema, stream: ConfiguredStream) -> dg.TableSchema:
    """The table's columns as Dagster shows them."""
    keys = set(stream.primary_key)
    own = [
        dg.TableColumn(field.name, _METADATA_TYPES.get(field.name, "string"))
        for field in METADATA_FIELDS
    ]
    return dg.TableSchema([*(_table_column(c, keys) for c in schema.columns), *own])


def _table_column(column: Column, keys: set[FieldPath]) -> dg.TableColumn:
    kind = "string (JSON)" if column.type.is_json else column.type.value
    if column.type is ColumnType.TIMESTAMP:
        kind = "timestamp (UTC)"
    is_key = (column.path or (column.field,)) in keys
    renamed = f"Field '{column.field}'." if column.field != column.name else None
    return dg.TableColumn(
        column.name,
        kind,
        description=" ".join(filter(None, (column.description, renamed))) or None,
        constraints=dg.TableColumnConstraints(other=["primary key"]) if is_key else None,
    )


def _cursor(blob: Raw | None) -> dg.MetadataValue:
    shown = shown_state(blob)
    return dg.MetadataValue.text(shown) if isinstance(shown, str) else dg.MetadataValue.json(shown)


def _own(envelope: Envelope) -> Envelope:
    return envelope.reference() if is_shared(envelope) else envelope


def uri_value(address: str) -> dg.MetadataValue[Any]:
    """Where a table is, as metadata."""
    return dg.MetadataValue.url(address if "://" in address else Path(address).as_uri())
