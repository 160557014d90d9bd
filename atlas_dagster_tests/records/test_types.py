from typing import Any

import pyarrow as pa
import pytest

from atlas_dagster.records.types import (
    METADATA_FIELDS,
    SOURCE_NAME_KEY,
    TYPE_KEY,
    Column,
    ColumnType,
    TableSchema,
    column_type,
)

T = ColumnType
WELL_KNOWN = "WellKnownTypes.json#/definitions/"


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, T.STRING),
        ({"type": "string", "format": "ipv4"}, T.STRING),
        ({"type": ["null", "string"]}, T.STRING),
        ({"type": ["string"]}, T.STRING),
        ({"type": "boolean"}, T.BOOLEAN),
        ({"type": "integer"}, T.INTEGER),
        ({"type": "int"}, T.INTEGER),
        ({"type": "number"}, T.NUMBER),
        ({"type": "number", "airbyte_type": "integer"}, T.INTEGER),
        ({"type": "number", "airbyte_type": "big_number"}, T.NUMBER),
        ({"type": "string", "format": "date"}, T.DATE),
        ({"type": "string", "format": "date-time"}, T.TIMESTAMP),
        (
            {"type": "string", "format": "date-time", "airbyte_type": "timestamp_with_timezone"},
            T.TIMESTAMP,
        ),
        (
            {"type": "string", "format": "date-time", "airbyte_type": "timestamp_without_timezone"},
            T.LOCAL_TIMESTAMP,
        ),
        ({"type": "string", "format": "time"}, T.TIME),
        ({"type": "string", "format": "time", "airbyte_type": "time_without_timezone"}, T.TIME),
        ({"type": "array"}, T.ARRAY),
        ({"type": "array", "items": {"type": "string"}}, T.ARRAY),
        ({"type": "object", "properties": {}}, T.OBJECT),
        ({}, T.OBJECT),
        ({"type": ["string", "integer"]}, T.TEXT),
        ({"type": ["string", "integer", "boolean", "null"]}, T.TEXT),
        ({"type": ["string", "object"]}, T.UNKNOWN),
        ({"type": ["object", "array"]}, T.UNKNOWN),
        ({"type": ["null"]}, T.UNKNOWN),
        ({"type": []}, T.UNKNOWN),
        ({"type": "decimal"}, T.UNKNOWN),
        ({"type": 5}, T.UNKNOWN),
        ({"type": {"a": 1}}, T.UNKNOWN),
        ({"type": [["string"], None]}, T.UNKNOWN),
        ({"type": ["integer", "number"]}, T.NUMBER),
        ({"type": "object", "oneOf": [{"type": "string"}]}, T.OBJECT),
        ({"type": "object", "additionalProperties": True}, T.OBJECT),
        ({"type": "string", "airbyte_type": "big_number"}, T.STRING),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, T.TEXT),
        ({"oneOf": [{"type": "string"}, {"type": "string", "format": "ipv4"}]}, T.STRING),
        ({"oneOf": [{"type": "object"}, {"type": ["null", "object"]}, {"type": "null"}]}, T.OBJECT),
        ({"anyOf": [{"type": "integer"}, {"anyOf": [{"type": "number"}]}]}, T.NUMBER),
        ({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "string"}]}, T.TEXT),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, T.UNKNOWN),
        ({"allOf": [{"type": "object"}, {"description": "d"}]}, T.OBJECT),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, T.STRING),
        ({"anyOf": [{"type": "null"}, {"type": "string", "format": "date"}]}, T.DATE),
        ({"allOf": [{"$ref": WELL_KNOWN + "Integer"}]}, T.INTEGER),
        ({"$ref": WELL_KNOWN + "TimestampWithoutTimezone"}, T.LOCAL_TIMESTAMP),
        ({"$ref": WELL_KNOWN + "BinaryData"}, T.STRING),
        ({"$ref": "#/definitions/other"}, T.UNKNOWN),
        (True, T.UNKNOWN),
        (None, T.UNKNOWN),
    ],
)
def test_airbyte_types(schema: Any, expected: ColumnType) -> None:
    assert column_type(schema) is expected


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"$ref": "#/definitions/Date"}, T.OBJECT),
        ({"$ref": "#/$defs/Integer"}, T.BOOLEAN),
        ({"$ref": "#/definitions/again"}, T.BOOLEAN),
        ({"$ref": "#/definitions/a~1b%20c"}, T.NUMBER),
        ({"$ref": "#/definitions/Date", "type": ["null", "string"]}, T.STRING),
        ({"oneOf": [{"$ref": "#/definitions/Date"}, {"$ref": "#/definitions/Date"}]}, T.OBJECT),
        ({"$ref": WELL_KNOWN + "Date"}, T.DATE),
        ({"$ref": "https://airbyte.test/v0/" + WELL_KNOWN + "Date"}, T.DATE),
        ({"$ref": WELL_KNOWN + "Date", "type": "string"}, T.STRING),
        ({"$ref": "other.json#/definitions/Date"}, T.UNKNOWN),
        ({"$ref": "#/definitions/circle"}, T.UNKNOWN),
        ({"$ref": "#/definitions/tower"}, T.UNKNOWN),
        ({"$ref": "#/definitions/missing"}, T.UNKNOWN),
    ],
)
def test_references(schema: Any, expected: ColumnType) -> None:
    root = {
        "definitions": {
            "Date": {"type": "object"},
            "again": {"$ref": "#/$defs/Integer"},
            "a/b c": {"type": "number"},
            "circle": {"$ref": "#/definitions/circle"},
            "tower": {"oneOf": [{"$ref": "#/definitions/tower"}]},
        },
        "$defs": {"Integer": {"type": "boolean"}},
    }
    assert column_type(schema, root) is expected
    table = TableSchema.from_json_schema(root | {"properties": {"a": schema}})
    assert table.columns[0].type is expected


@pytest.mark.parametrize(
    ("kind", "arrow"),
    [
        (T.STRING, pa.string()),
        (T.BOOLEAN, pa.bool_()),
        (T.INTEGER, pa.int64()),
        (T.NUMBER, pa.float64()),
        (T.DATE, pa.date32()),
        (T.TIMESTAMP, pa.timestamp("us", tz="UTC")),
        (T.LOCAL_TIMESTAMP, pa.timestamp("us")),
        (T.TIME, pa.string()),
        (T.OBJECT, pa.string()),
        (T.ARRAY, pa.string()),
        (T.UNKNOWN, pa.string()),
    ],
)
def test_columns_start_wide(kind: ColumnType, arrow: pa.DataType) -> None:
    assert kind.arrow == arrow


def test_a_table_in_the_sources_order() -> None:
    schema = TableSchema.from_json_schema(
        {
            "required": ["z"],
            "properties": {"z": {"type": "string", "description": "last"}, "a b": {"type": "int"}},
        }
    )
    assert schema.columns == (
        Column("z", "z", T.STRING, "last", nullable=False),
        Column("a b", "a_b", T.INTEGER, None),
    )
    own = [field.name for field in METADATA_FIELDS]
    assert schema.arrow.names == ["z", "a_b", *own]
    assert schema.arrow.field("a_b").metadata == {
        SOURCE_NAME_KEY.encode(): b"a b",
        TYPE_KEY.encode(): b"integer",
    }
    assert all(field.nullable for field in schema.arrow)
    assert schema.column_of("a b") == "a_b"
    with pytest.raises(KeyError):
        schema.column_of("a_b")


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"properties": None},
        {"properties": {}},
        {"type": "object"},
        {"type": "object", "additionalProperties": True},
    ],
)
def test_a_schema_without_properties(schema: dict[str, Any]) -> None:
    assert TableSchema.from_json_schema(schema).arrow.names == [f.name for f in METADATA_FIELDS]


def test_names_given_out_before_stay() -> None:
    properties = {"a-b": {}, "a_b": {}, "_airbyte_raw_id": {}}
    names = [c.name for c in TableSchema.from_json_schema({"properties": properties}).columns]
    assert names[1] == "a_b"
    assert names[0] != "a_b"
    assert names[2] != "_airbyte_raw_id"
    known = {"a-b": "a_b", "gone": "gone"}
    kept = TableSchema.from_json_schema({"properties": properties}, known_names=known)
    assert kept.column_of("a-b") == "a_b"
    assert kept.column_of("a_b") != "a_b"
    assert len(kept.columns) == 3
