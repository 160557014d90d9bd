"""Rows as JSON objects."""

import json
from typing import Any

import pytest
from msgspec import Raw

from atlas_dagster.protocol.messages import Record
from atlas_dagster.records.batches import BatchBuilder
from atlas_dagster.records.json_rows import RowEncoder
from atlas_dagster.records.types import EXTRA, META, TableSchema

SCHEMA = TableSchema.from_json_schema(
    {
        "properties": {
            "id": {"type": "integer"},
            "price": {"type": "number"},
            "at": {"type": "string", "format": "date-time"},
            "local": {
                "type": "string",
                "format": "date-time",
                "airbyte_type": "timestamp_without_timezone",
            },
            "day": {"type": "string", "format": "date"},
            "note": {"type": "string"},
            "is new": {"type": "boolean"},
            "tags": {"type": "array"},
            "any": {},
        }
    }
)
NAMES = [column.name for column in SCHEMA.columns]


def encoded(*rows: str, columns: list[str] = NAMES) -> bytes:
    builder = BatchBuilder(SCHEMA, sync_id=0, generation_id=0)
    builder.extend([Record("s", Raw(row.encode()), 1_700_000_000_000) for row in rows], 1)
    return RowEncoder(SCHEMA, columns).lines(builder.build())


def values(**fields: Any) -> dict[str, Any]:
    return dict.fromkeys(NAMES) | fields


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ('{"id": 9007199254740993, "price": 1e300}', {"id": 9007199254740993, "price": 1e300}),
        ('{"at": "2024-01-01T02:00:00.5+02:00"}', {"at": "2024-01-01T00:00:00.500000Z"}),
        ('{"local": "2024-01-01T02:00:00"}', {"local": "2024-01-01T02:00:00"}),
        ('{"day": "0001-01-01"}', {"day": "0001-01-01"}),
        ('{"note": "\\u2028\\"\\n€"}', {"note": '\u2028"\n€'}),
        ('{"is new": false}', {"is_new": False}),
        ('{"id": "x"}', {}),
        ("{}", {}),
    ],
)
def test_a_value_is_what_its_column_holds(row: str, fields: dict[str, Any]) -> None:
    assert json.loads(encoded(row)) == values(**fields)


def test_json_inside_of_a_row_stays_as_it_was_written() -> None:
    line = encoded('{"tags": [1.10, {"a":  2}], "any": {"b": 1e400}}')
    assert b'"tags":[1.10, {"a":  2}],"any":{"b": 1e400}' in line


def test_columns_come_in_the_order_they_are_asked_for() -> None:
    assert encoded('{"id": 1, "note": "a"}', columns=["note", "id"]) == b'{"note":"a","id":1}\n'


def test_airbytes_own_columns_are_json_too() -> None:
    (line,) = encoded('{"id": "x", "other": 1}', columns=[META, EXTRA]).splitlines()
    row = json.loads(line)
    assert row[EXTRA] == {"id": "x", "other": 1}
    assert [change["field"] for change in row[META]["changes"]] == ["id"]


def test_a_line_for_each_row_even_without_columns() -> None:
    assert encoded("{}", "{}", columns=[]) == b"{}\n{}\n"
    assert encoded('{"id": 1}', '{"id": 2}', columns=["id"]) == b'{"id":1}\n{"id":2}\n'
