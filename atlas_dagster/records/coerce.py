"""The slow way: one record that does not fit its schema, value by value.

A value that cannot be kept becomes NULL and a change in ``_airbyte_meta``; the row always stays.
"""

import json
import math
from typing import Any, NamedTuple

from msgspec import Raw

from atlas_dagster.protocol.messages import ABSENT
from atlas_dagster.records.types import ColumnType, TableSchema


class Misfit:
    """Reasons of changes (protocol, ``AirbyteRecordMessageMetaChange.reason``)."""

    TYPE = "DESTINATION_SERIALIZATION_ERROR"
    SIZE = "DESTINATION_FIELD_SIZE_LIMITATION"


class Change(NamedTuple):
    """One entry of ``_airbyte_meta.changes``."""

    field: str
    reason: str
    change: str = "NULLED"

    def to_json(self) -> dict[str, str]:
        return {"field": self.field, "change": self.change, "reason": self.reason}


class CoercedRow(NamedTuple):
    """``values`` are in column order and of the types the row struct declares."""

    values: list[Any]
    changes: list[Change]
    extra: str | None


class _Unfit(Exception):  # noqa: N818 - control flow inside this module
    def __init__(self, reason: str = Misfit.TYPE) -> None:
        self.reason = reason


def coerce_row(data: bytes, schema: TableSchema) -> CoercedRow:
    """Fit one record's JSON object into ``schema``."""
    changes: list[Change] = []
    try:
        fields = json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        # Not an object at all, or nested beyond reading: the row stays, with its text.
        values = [ABSENT if column.type.is_json else None for column in schema.columns]
        text = data.decode("utf-8", "replace")
        return CoercedRow(values, [Change("", Misfit.TYPE)], _dumps({"": text}))
    values = []
    for column in schema.columns:
        value = fields.pop(column.field, None)
        try:
            values.append(_coerce(value, column.type))
        except _Unfit as unfit:
            values.append(ABSENT if column.type.is_json else None)
            changes.append(Change(column.name, unfit.reason))
    return CoercedRow(values, changes, _dumps(fields) if fields else None)


def _coerce(value: Any, kind: ColumnType) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        if value is not None:
            raise _Unfit
        return ABSENT if kind.is_json else None
    match kind:
        case ColumnType.BOOLEAN:
            if isinstance(value, bool):
                return value
            raise _Unfit
        case ColumnType.INTEGER:
            return _integer(value)
        case ColumnType.NUMBER:
            return _number(value)
        case _ if kind.is_json:
            return Raw(_dumps(value).encode())
        case ColumnType.STRING:
            return _clean(value) if isinstance(value, str) else _dumps(value)
        case _:
            if isinstance(value, str):
                return _clean(value)
            raise _Unfit


def _integer(value: Any) -> int:
    if isinstance(value, str):
        try:
            value = int(_plain(value))
        except ValueError:
            raise _Unfit from None
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise _Unfit
    if not -(2**63) <= value < 2**63:
        raise _Unfit(Misfit.SIZE)
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _Unfit
    try:
        number = float(_plain(value) if isinstance(value, str) else value)
    except ValueError:
        raise _Unfit from None
    except OverflowError:
        raise _Unfit(Misfit.SIZE) from None
    if not math.isfinite(number):
        raise _Unfit
    return number


def _plain(number: str) -> str:
    """``number``, unless only Python would read it as one: ``1_000``."""
    if "_" in number or not number.isascii():
        raise _Unfit
    return number


def _clean(text: str) -> str:
    """Without lone surrogates, which no UTF-8 column can hold."""
    return text.encode("utf-8", "replace").decode()


def _dumps(value: Any) -> str:
    return _clean(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
