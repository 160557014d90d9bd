"""The slow way: one record that does not fit its schema, value by value.

Only what does not fit is touched. JSON and numbers pass through as the source wrote them; their
columns are judged as a whole later, as in records that do fit.
"""

import re
from collections.abc import Collection
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec
from msgspec import Raw

from atlas_dagster.protocol.decoder import as_text
from atlas_dagster.protocol.messages import ABSENT
from atlas_dagster.protocol.nesting import DEEPEST, shallow_fields
from atlas_dagster.records.issues import IssueKind, RowIssues, is_utf8
from atlas_dagster.records.types import Column, ColumnType, TableSchema

#: What msgspec raises for JSON that it cannot read as asked.
UNFIT = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
#: The types a fitting value has. Numbers stay text, because a double would round them unseen.
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
    """Fits records into ``schema``. ``key``: names of the columns that tell rows apart."""

    def __init__(self, schema: TableSchema, key: Collection[str] = ()) -> None:
        self._columns = [(column, column.name in key) for column in schema.top_level]

    def __call__(self, data: Raw, row: int, remarks: RowIssues) -> list[Any]:
        """The values of one record's JSON object, in column order, of the types above.

        ``row`` is its index in the batch, under which ``remarks`` takes what does not fit.
        """
        fields = _fields(data, row, remarks)
        if fields is None:
            # Not an object at all, or nested beyond reading: the row stays, with its text.
            text = msgspec.json.encode(bytes(data).decode()) if is_utf8(data) else data
            remarks.misfit(row, "", IssueKind.TYPE, Raw(text))
            return [fit(column, None, row, remarks) for column, _ in self._columns]
        values = [
            fit(column, fields.pop(column.field, None), row, remarks, is_key=is_key)
            for column, is_key in self._columns
        ]
        if fields:
            # In the source's order, the misfits behind.
            remarks.extras[row] = fields | remarks.extras.get(row, {})
        return values


def fit(
    column: Column, raw: Raw | None, row: int, remarks: RowIssues, *, is_key: bool = False
) -> Any:
    """The value of one field, of the type above; ``raw`` is None where the record lacks it.

    In a key, text and what is no text differ even where their column holds the same for both.
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
        remarks.misfit(row, column.field, why, raw)
    return value


def _fields(data: Raw, row: int, remarks: RowIssues) -> dict[str, Raw] | None:
    try:
        return _decode_fields(data)
    except RecursionError:
        return _shallow(data, row, remarks)
    except UNFIT:
        pass
    try:  # a field's name may be no UTF-8
        fields = _decode_fields(as_text(bytes(data)))
    except UNFIT:
        return None
    remarks.misfit(row, "", IssueKind.REPAIRED, data)
    return fields


def _shallow(data: Raw, row: int, remarks: RowIssues) -> dict[str, Raw] | None:
    """The fields of a record that nests more deeply than parsers follow, without those that do.

    These are kept as text: whoever parses ``_airbyte_extra`` could not read them either.
    """
    try:
        found = shallow_fields(data)
    except ValueError:
        return None
    for field, (value, levels) in found.items():
        if levels > DEEPEST:
            text = Raw(msgspec.json.encode(as_text(bytes(value))))
            remarks.misfit(row, field, IssueKind.SIZE, text)
    return {field: value for field, (value, levels) in found.items() if levels <= DEEPEST}


def _lenient(raw: bytes, kind: ColumnType) -> tuple[Any, IssueKind | None]:
    """The value of JSON that is not of its column's type, and why that is not all of it."""
    if kind is ColumnType.INTEGER:
        return _integer(raw)
    if kind is ColumnType.BOOLEAN:
        return None, IssueKind.TYPE
    text = as_text(raw)
    if text.startswith('"'):  # only its UTF-8 can be wrong
        return decode_string(text), IssueKind.REPAIRED
    if kind is not ColumnType.STRING:
        return None, IssueKind.TYPE
    return text, None if text.encode() == raw else IssueKind.REPAIRED


def _integer(raw: bytes) -> tuple[int | None, IssueKind | None]:
    """Whole numbers, also as ``5.0`` and inside strings."""
    found = _NUMBER.match(raw)
    if found is None:
        return None, IssueKind.TYPE
    try:
        number = Decimal(found[1].decode())
    except InvalidOperation:  # an exponent beyond all measure
        return None, IssueKind.SIZE
    if number and number.adjusted() >= _LONGEST_INTEGER:
        return None, IssueKind.SIZE
    if number != number.to_integral_value():
        return None, IssueKind.TYPE
    whole = int(number)
    return (whole, None) if -(2**63) <= whole < 2**63 else (None, IssueKind.SIZE)
