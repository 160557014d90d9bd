"""Decode records into lists of values, one list for each column.

msgspec decodes each record's ``data`` into a struct that is generated for its stream, and checks
types in C. Only a record that does not fit takes the slow path, value by value.
"""

import operator
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Any

import msgspec
from msgspec import Raw
from msgspec.structs import astuple

from atlas_dagster.protocol.messages import ABSENT, Record
from atlas_dagster.records.coerce import STRICT_TYPES, UNFIT, RowCoercer
from atlas_dagster.records.issues import RowIssues
from atlas_dagster.records.types import TableSchema

#: Names that msgspec can match. A table with another name always takes the slow path.
_PLAIN_FIELD = re.compile(r'[^"\\\x00-\x1f]*\Z')
#: An undeclared field gets a place in the struct if one in so many records has it ...
_WORTH_A_PLACE = 10
#: ... up to this number of fields, because field names may be data.
_MOST_UNDECLARED = 200


_data = operator.attrgetter("data")


class RowDecoder:
    """Decodes records of one stream. ``key``: the columns that identify its rows."""

    def __init__(self, schema: TableSchema, key: Collection[str] = ()) -> None:
        self._schema = schema
        self._coerce = RowCoercer(schema, key)
        self._declared = {column.field for column in schema.top_level}
        self._undeclared: list[str] = []
        self._decode: Callable[[Raw], Any]
        self._shape()

    def _shape(self) -> None:
        """Generate the struct: declared fields, then undeclared ones that many records have."""
        columns = self._schema.top_level
        names = [column.field for column in columns] + self._undeclared
        fields = [f"f{index}" for index in range(len(names))]
        types = [STRICT_TYPES.get(column.type, Raw) for column in columns]
        types += [Raw] * len(self._undeclared)
        plain = all(map(_PLAIN_FIELD.match, names))
        self._row_type = msgspec.defstruct(
            "Row",
            [
                (field, type_, ABSENT if type_ is Raw else None)
                for field, type_ in zip(fields, types, strict=True)
            ],
            rename=dict(zip(fields, names, strict=True)) if plain else None,
            forbid_unknown_fields=True,
            gc=False,
        )
        self._decode = msgspec.json.Decoder(self._row_type).decode if plain else _refuse

    def __call__(self, records: Sequence[Record], issues: RowIssues) -> list[Sequence[Any]]:
        """Return the values of each top-level column, in :data:`STRICT_TYPES` or raw.

        ``issues`` collects values that do not fit, and undeclared fields.
        """
        width = len(self._schema.top_level)
        rows: list[Any] = []
        slow = 0
        decoded = map(self._decode, map(_data, records))
        while len(rows) < len(records):
            try:
                rows.extend(decoded)  # in C, until a record does not fit
            except UNFIT:
                data = records[len(rows)].data
                rows.append(self._row_type(*self._coerce(data, len(rows), issues)))
                slow += 1
        none: list[Sequence[Any]] = [()] * (width + len(self._undeclared))
        # Twice as fast as reading each row's columns one by one.
        lists: list[Sequence[Any]] = [*zip(*map(astuple, rows), strict=True)] or none
        for field, values in zip(self._undeclared, lists[width:], strict=True):
            for row, value in enumerate(values):
                if value is not ABSENT:
                    issues.undeclared(row, field, value)
        if slow * _WORTH_A_PLACE > len(rows):
            self._learn(issues, len(rows))
        return lists[:width]

    def _learn(self, issues: RowIssues, count: int) -> None:
        seen = Counter(chain.from_iterable(issues.extras.values()))
        known = self._declared.union(self._undeclared)
        often = [
            field
            for field, times in seen.most_common(_MOST_UNDECLARED - len(self._undeclared))
            if times * _WORTH_A_PLACE > count and field not in known and _PLAIN_FIELD.match(field)
        ]
        if often:
            self._undeclared += often
            self._shape()


def _refuse(data: Raw) -> Any:
    raise msgspec.DecodeError(f"{len(data)} bytes of a table on the slow path")
