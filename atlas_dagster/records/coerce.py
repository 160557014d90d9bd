"""The slow path: convert one record that does not fit its schema, value by value.

Only values that do not fit change. JSON and numbers stay as the source wrote them; their columns
are checked as a whole later, as for records that fit.
"""

import re
from collections.abc import Collection
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
from msgspec import Raw

from atlas_dagster.protocol.decoder import as_text
from atlas_dagster.protocol.messages import ABSENT
from atlas_dagster.protocol.nesting import DEEPEST, split_fields
from atlas_dagster.records.issues import IssueKind, RowIssues, is_utf8
from atlas_dagster.records.types import Column, ColumnType, TableSchema

#: Errors of msgspec for JSON of another type.
UNFIT = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
#: The Python types of values that fit. Numbers stay text, because a double would round them
#: unnoticed.
STRICT_TYPES: dict[ColumnType, Any] = {
    ColumnType.BOOLEAN: bool | None,
    ColumnType.INTEGER: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None,
    ColumnType.STRING: str | None,
    ColumnType.DATE: str | None,
    ColumnType.TIMESTAMP: str | None,
    ColumnType.LOCAL_TIMESTAMP: str | None,
    ColumnType.TIME: str | None,
}
_STRICT = {kind: msgspec.json.Decoder(type_).decode for kind, type_ in STRICT_TYPES.items()}
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
decode_string = msgspec.json.Decoder(str).decode
_NUMBER = re.compile(rb'"?([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"?\Z')
_LONGEST_INTEGER = 19


class RowCoercer:
    """Converts records to ``schema``. ``key``: names of the columns that identify rows."""

    def __init__(self, schema: TableSchema, key: Collection[str] = ()) -> None:
        self._columns = [(column, column.name in key) for column in schema.top_level]

    def __call__(self, data: Raw, row: int, issues: RowIssues) -> list[Any]:
        """Return the values of one record's JSON object, in column order, of the types above.

        ``row`` is its index in the batch. ``issues`` collects the values that do not fit.
        """
        fields = _fields(data, row, issues)
        if fields is None:
            # Not an object, or nested too deeply: keep the row, with its text.
            text = msgspec.json.encode(bytes(data).decode()) if is_utf8(data) else data
            issues.misfit(row, "", IssueKind.TYPE, Raw(text))
            return [fit(column, None, row, issues) for column, _ in self._columns]
        values = [
            fit(column, fields.pop(column.field, None), row, issues, is_key=is_key)
            for column, is_key in self._columns
        ]
        if fields:
            # In the source's order, then the values that do not fit.
            issues.extras[row] = fields | issues.extras.get(row, {})
        return values


def fit(
    column: Column, raw: Raw | None, row: int, issues: RowIssues, *, is_key: bool = False
) -> Any:
    """Return the value of one field, of the type above. ``raw`` is None if the record lacks it.

    In a key, a text and another value differ even if the column has the same text for both.
    """
    strict = _STRICT.get(column.type)
    if strict is None:
        return ABSENT if raw is None else raw
    if raw is None:
        return None
    try:
        return strict(raw)
    except UNFIT:
        value, why = _lenient(bytes(raw), column.type)
    if is_key and why is None and column.type is ColumnType.STRING:
        why = IssueKind.REPAIRED
    if why is not None:
        issues.misfit(row, column.field, why, raw)
    return value


def _fields(data: Raw, row: int, issues: RowIssues) -> dict[str, Raw] | None:
    try:
        return _decode_fields(data)
    except RecursionError:
        return _shallow(data, row, issues)
    except UNFIT:
        pass
    try:  # a field's name may be invalid UTF-8
        fields = _decode_fields(as_text(bytes(data)))
    except UNFIT:
        return None
    issues.misfit(row, "", IssueKind.REPAIRED, data)
    return fields


def _shallow(data: Raw, row: int, issues: RowIssues) -> dict[str, Raw] | None:
    """Return the fields of a record that is nested too deeply, without the deep ones.

    The deep ones are kept as text, because readers of ``_airbyte_extra`` cannot parse them either.
    """
    try:
        found = split_fields(data)
    except ValueError:
        return None
    for field, (value, levels) in found.items():
        if levels > DEEPEST:
            text = Raw(msgspec.json.encode(as_text(bytes(value))))
            issues.misfit(row, field, IssueKind.SIZE, text)
    return {field: value for field, (value, levels) in found.items() if levels <= DEEPEST}


def _lenient(raw: bytes, kind: ColumnType) -> tuple[Any, IssueKind | None]:
    """Return the value for JSON of another type, and the reason if that is not exact."""
    if kind is ColumnType.INTEGER:
        return _integer(raw)
    if kind is ColumnType.BOOLEAN:
        return None, IssueKind.TYPE
    text = as_text(raw)
    if text.startswith('"'):  # only its UTF-8 can be invalid
        return decode_string(text), IssueKind.REPAIRED
    if kind is not ColumnType.STRING:
        return None, IssueKind.TYPE
    return text, None if text.encode() == raw else IssueKind.REPAIRED


def _integer(raw: bytes) -> tuple[int | None, IssueKind | None]:
    """Return a whole number, which may be written as ``5.0`` or inside a string."""
    found = _NUMBER.match(raw)
    if found is None:
        return None, IssueKind.TYPE
    try:
        number = Decimal(found[1].decode())
    except InvalidOperation:  # the exponent is too large
        return None, IssueKind.SIZE
    if number and number.adjusted() >= _LONGEST_INTEGER:
        return None, IssueKind.SIZE
    if number != number.to_integral_value():
        return None, IssueKind.TYPE
    whole = int(number)
    return (whole, None) if -(2**63) <= whole < 2**63 else (None, IssueKind.SIZE)
