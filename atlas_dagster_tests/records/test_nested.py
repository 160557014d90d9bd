"""Columns for fields below the top of a record."""

from typing import Any

import pytest
from msgspec import Raw

from atlas_dagster.protocol.messages import Record
from atlas_dagster.records.batches import BatchBuilder
from atlas_dagster.records.types import Column, ColumnType, TableSchema
from atlas_dagster_tests.records.batch_rows import ROUNDED, SIZE, TYPE, changes

INTEGER = {"type": "integer"}
DEEP = {
    "id": INTEGER,
    "a": {
        "type": "object",
        "properties": {
            "n": INTEGER,
            "x": {"type": "number"},
            "at": {"type": "string", "format": "date-time"},
            "deep": {"type": "object", "properties": {"key": {"type": "string"}}},
            "open": {"type": "object"},
        },
    },
    "any": {"type": ["string", "object"]},
    "text": {"type": "string"},
}


def schema(*paths: tuple[str, ...], **properties: Any) -> TableSchema:
    return TableSchema.from_json_schema({"properties": DEEP | properties}, nested=paths)


def build(wanted: TableSchema, *data: bytes) -> list[Any]:
    builder = BatchBuilder(wanted, sync_id=7, generation_id=3)
    builder.extend([Record("s", Raw(each), 1_700_000_000_123) for each in data], 1)
    return list(builder.build().to_pylist())


@pytest.mark.parametrize(
    ("path", "name", "kind"),
    [
        (("a", "n"), "a_n", ColumnType.INTEGER),
        (("a", "deep", "key"), "a_deep_key", ColumnType.STRING),
        (("a", "open", "what"), "a_open_what", ColumnType.UNKNOWN),
        (("any", "b"), "any_b", ColumnType.UNKNOWN),
    ],
)
def test_the_column_of_a_nested_field(path: tuple[str, ...], name: str, kind: ColumnType) -> None:
    found = schema(path)
    assert found.columns[-1] == Column(".".join(path), name, kind, path=path)
    assert found.column_of(*path) == name
    assert [c.field for c in found.top_level] == list(DEEP)


def test_names_that_look_like_paths() -> None:
    found = schema(("a", "n"), **{"a.n": {"type": "string"}, "a_n": INTEGER})
    assert found.column_of("a_n") == "a_n"
    names = {found.column_of("a.n"), found.column_of("a_n"), found.column_of("a", "n")}
    assert len(names) == 3
    (filled,) = build(found, b'{"a.n":"plain","a_n":1,"a":{"n":2}}')
    assert [filled[found.column_of(*path)] for path in (("a.n",), ("a_n",), ("a", "n"))] == [
        "plain",
        1,
        2,
    ]


@pytest.mark.parametrize("path", [("b", "n"), ("a", "m"), ("text", "n"), ("id", "n")])
def test_a_field_that_cannot_be_there_has_no_column(path: tuple[str, ...]) -> None:
    with pytest.raises(KeyError):
        schema(path).column_of(*path)


def test_values_and_what_does_not_fit() -> None:
    paths = [("a", "n"), ("a", "x"), ("a", "deep", "key")]
    rows = build(
        schema(*paths),
        b'{"a":{"n": 1,"x":1.5,"deep":{"key":"k"}}}',
        b"{}",
        b'{"a":null}',
        b'{"a":{"n":null,"deep":null}}',
        b'{"a":{"n":9223372036854775808,"x":1.0000000000000001}}',
        b'{"a":"no object"}',
        b'{"id":"no integer","a":{"n":"5"}}',
        b'{"a":{"n":"x","deep":7}}',
    )
    found = [(row["a_n"], row["a_x"], row["a_deep_key"]) for row in rows]
    nothing = (None, None, None)
    assert found == [
        (1, 1.5, "k"),
        *[nothing] * 3,
        (None, 1.0, None),
        nothing,
        (5, None, None),
        nothing,
    ]
    assert rows[0]["a"] == '{"n": 1,"x":1.5,"deep":{"key":"k"}}'
    assert changes(rows[4]) == [("a.n", *SIZE), ("a.x", *ROUNDED)]
    assert rows[4]["_airbyte_extra"] == '{"a.n":9223372036854775808,"a.x":1.0000000000000001}'
    assert {("a", *TYPE), ("a.n", *TYPE), ("a.deep.key", *TYPE)} <= {*changes(rows[5])}
    assert changes(rows[7]) == [("a.n", *TYPE), ("a.deep.key", *TYPE)]
    assert rows[7]["_airbyte_extra"] == '{"a.n":"x","a.deep.key":7}'


def test_no_rows() -> None:
    assert build(schema(("a", "n"))) == []
