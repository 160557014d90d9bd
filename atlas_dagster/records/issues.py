"""What is said of rows besides their values: changes, and the JSON that no column holds.

A value that its column does not hold exactly is never lost: ``_airbyte_extra`` keeps it as the
source wrote it, under the name of its field, and ``_airbyte_meta.changes`` says why. Where JSON
text cannot hold what the source wrote, ``_airbyte_extra`` keeps ``{"base64": ...}``, its bytes.
"""

from collections.abc import Callable
from enum import Enum
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Raw, Struct

from atlas_dagster.protocol.decoder import as_text

Encode = Callable[[Any], bytes]
_encode: Encode = msgspec.json.Encoder().encode
_decode_meta = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_list = msgspec.json.Decoder(list[Raw] | None).decode


class IssueKind(Enum):
    """Why a column does not hold a value: change and reason of the protocol
    (``AirbyteRecordMessageMetaChange``)."""

    #: Of another type, or not readable as the column's.
    TYPE = ("NULLED", "DESTINATION_SERIALIZATION_ERROR")
    #: Beyond the column's range, or nested more deeply than parsers follow.
    SIZE = ("NULLED", "DESTINATION_FIELD_SIZE_LIMITATION")
    #: More digits than a double has, more than microseconds, an offset in a column without zone, a
    #: time of day in a date; the column holds the nearest value.
    ROUNDED = ("TRUNCATED", "DESTINATION_FIELD_SIZE_LIMITATION")
    #: Not the text of the column: bytes that are no UTF-8 (it holds U+FFFD in their place), a
    #: character that the store refuses, or, in a key, JSON that is no string.
    REPAIRED = ("TRUNCATED", "DESTINATION_SERIALIZATION_ERROR")


class ValueChange(Struct, frozen=True):
    """One entry of ``_airbyte_meta.changes``; ``field`` is the source's name, "" the whole row."""

    field: str
    change: str | None = "NULLED"
    reason: str | None = None


_decode_change = msgspec.json.Decoder(ValueChange).decode


class RowIssues:
    """Changes and left-over fields of the rows of one batch, by the row's index."""

    def __init__(self) -> None:
        self.changes: dict[int, list[ValueChange]] = {}
        self.extras: dict[int, dict[str, Raw]] = {}

    def misfit(self, row: int, field: str, why: IssueKind, value: Raw) -> None:
        """Note that the column of ``field`` does not hold ``value``, and keep it."""
        self.changed(row, field, why)
        self.undeclared(row, field, value)

    def undeclared(self, row: int, field: str, value: Raw) -> None:
        """Keep a field that has no column."""
        self.extras.setdefault(row, {}).setdefault(field, value)

    def changed(self, row: int, field: str, why: IssueKind) -> None:
        change, reason = why.value
        self.changes.setdefault(row, []).append(ValueChange(field, change, reason))

    def reported(self, row: int, meta: Raw) -> None:
        """Put the changes that the source itself reports in ``record.meta`` first."""
        found = _reported(meta)
        if found:
            self.changes[row] = found + self.changes.get(row, [])

    def meta_column(self, count: int, sync_id: int) -> pa.Array:
        plain = _encode({"sync_id": sync_id, "changes": []})
        if not self.changes:
            return pa.repeat(pa.scalar(plain, pa.binary()), count).cast(pa.string())
        texts = [plain] * count
        for row, found in self.changes.items():
            texts[row] = _encode({"sync_id": sync_id, "changes": found})
        return pa.array(texts, pa.binary()).cast(pa.string())

    def extra_column(self, count: int) -> pa.Array:
        if not self.extras:
            return pa.nulls(count, pa.string())
        texts: list[bytes | None] = [None] * count
        for row, fields in self.extras.items():
            texts[row] = _encode(fields)
        column = pa.array(texts, pa.binary())
        try:
            return column.cast(pa.string())
        except pa.ArrowInvalid:
            self._keep_bytes()
            return self.extra_column(count)

    def _keep_bytes(self) -> None:
        """Replace left-over values that are no UTF-8 by their bytes in base64, and note them."""
        for row, fields in self.extras.items():
            for field, value in fields.items():
                if is_utf8(value):
                    continue
                fields[field] = as_base64(value)
                if not any(change.field == field for change in self.changes.get(row, ())):
                    self.changed(row, field, IssueKind.REPAIRED)


def is_utf8(value: Raw | bytes) -> bool:
    try:
        bytes(value).decode()
    except UnicodeDecodeError:
        return False
    return True


def as_base64(value: Raw | bytes) -> Raw:
    """JSON for a value that JSON text cannot hold as it is."""
    return Raw(_encode({"base64": bytes(value)}))


def utf8(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """Bytes as text, and the rows where some were no UTF-8: msgspec skips over raw values."""
    try:
        return column.cast(pa.string()), []
    except pa.ArrowInvalid:
        pass
    values = column.to_pylist()
    texts = [None if value is None else as_text(value) for value in values]
    mended = [
        row
        for row, (value, text) in enumerate(zip(values, texts, strict=True))
        if text is not None and text.encode() != value
    ]
    return pa.array(texts, pa.string()), mended


def _reported(meta: Raw) -> list[ValueChange]:
    try:
        entries = _decode_list(_decode_meta(meta).get("changes", Raw(b"null"))) or []
    except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors
        return []
    changes = []
    for entry in entries:
        try:
            changes.append(_decode_change(entry))
        except (ValueError, RecursionError):
            continue
    return changes
