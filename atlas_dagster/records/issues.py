"""Issues of rows: values that their columns cannot hold exactly, and undeclared fields.

No value is lost: ``_airbyte_extra`` has it as the source wrote it, under the name of its field, and
``_airbyte_meta.changes`` has the reason. Bytes that are not valid JSON text are kept as
``{"base64": ...}``.
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
    """The reasons why a column cannot hold a value, as change and reason of the protocol
    (``AirbyteRecordMessageMetaChange``)."""

    #: The value has another type, or cannot be read as the column's type.
    TYPE = ("NULLED", "DESTINATION_SERIALIZATION_ERROR")
    #: The value is out of the column's range, or nested too deeply for parsers.
    SIZE = ("NULLED", "DESTINATION_FIELD_SIZE_LIMITATION")
    #: The column has the nearest value: of a number with more digits than a double, a time with
    #: more than microseconds, an offset in a column without zone, a time of day in a date.
    ROUNDED = ("TRUNCATED", "DESTINATION_FIELD_SIZE_LIMITATION")
    #: The column has another text: U+FFFD for invalid UTF-8, or a text without a character that
    #: the store refuses; or a key's value is not a string.
    REPAIRED = ("TRUNCATED", "DESTINATION_SERIALIZATION_ERROR")


class ValueChange(Struct, frozen=True):
    """One entry of ``_airbyte_meta.changes``. ``field`` is the source's name, or "" for the row."""

    field: str
    change: str | None = "NULLED"
    reason: str | None = None


_decode_change = msgspec.json.Decoder(ValueChange).decode


class RowIssues:
    """The issues of one batch, by the row's index."""

    def __init__(self) -> None:
        self.changes: dict[int, list[ValueChange]] = {}
        self.extras: dict[int, dict[str, Raw]] = {}

    def misfit(self, row: int, field: str, why: IssueKind, value: Raw) -> None:
        """Note that the column of ``field`` cannot hold ``value``, and keep the value."""
        self.changed(row, field, why)
        self.undeclared(row, field, value)

    def undeclared(self, row: int, field: str, value: Raw) -> None:
        """Keep a field without a column."""
        self.extras.setdefault(row, {}).setdefault(field, value)

    def changed(self, row: int, field: str, why: IssueKind) -> None:
        change, reason = why.value
        self.changes.setdefault(row, []).append(ValueChange(field, change, reason))

    def reported(self, row: int, meta: Raw) -> None:
        """Insert the changes that the source reports in ``record.meta``, as the first ones."""
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
        """Replace kept values that are invalid UTF-8 by their bytes in base64, and note it."""
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
    """Return JSON for a value that is not valid JSON text."""
    return Raw(_encode({"base64": bytes(value)}))


def utf8(column: pa.Array) -> tuple[pa.Array, list[int]]:
    """Return bytes as text, and the rows with invalid UTF-8, which msgspec does not check."""
    try:
        return column.cast(pa.string()), []
    except pa.ArrowInvalid:
        pass
    values = column.to_pylist()
    texts = [None if value is None else as_text(value) for value in values]
    repaired = [
        row
        for row, (value, text) in enumerate(zip(values, texts, strict=True))
        if text is not None and text.encode() != value
    ]
    return pa.array(texts, pa.string()), repaired


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
