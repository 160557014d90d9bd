"""Columns for fields inside objects: nested keys and cursors.

Their values are copied from the JSON of the field above, row by row. That field keeps its own
column.
"""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from atlas_dagster.records.coerce import UNFIT, fit
from atlas_dagster.records.issues import IssueKind, RowIssues
from atlas_dagster.records.types import Column, TableSchema

_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_NULL = Raw(b"null")
_NOTHING = (b"", bytes(_NULL))


class NestedFields:
    """Fills the nested columns of ``schema``. ``key``: the columns that identify rows."""

    def __init__(self, schema: TableSchema, key: Collection[str] = ()) -> None:
        places = {column.field: place for place, column in enumerate(schema.top_level)}
        self._columns = [
            (column, places[column.path[0]], column.name in key)
            for column in schema.columns
            if column.path
        ]

    def __call__(self, lists: Sequence[Sequence[Any]], issues: RowIssues) -> list[Sequence[Any]]:
        """Return the values of each nested column; ``lists`` are those of the top-level columns."""
        return [
            [
                fit(column, _inner(column, parent, row, issues), row, issues, is_key=is_key)
                for row, parent in enumerate(lists[place])
            ]
            for column, place, is_key in self._columns
        ]


def _inner(column: Column, value: Raw, row: int, issues: RowIssues) -> Raw | None:
    for key in column.path[1:]:
        try:
            value = _NULL if bytes(value) in _NOTHING else _decode_fields(value).get(key, _NULL)
        except UNFIT:  # not an object, so the field has no value
            issues.misfit(row, column.field, IssueKind.TYPE, value)
            return None
    return value
