import datetime as dt
import json
import uuid
from typing import Any

import pytest
from msgspec import Raw

from atlas_dagster.protocol.messages import ABSENT, Record
from atlas_dagster.records.batches import BatchBuilder, random_uuids
from atlas_dagster.records.types import TableSchema

TYPE, SIZE = "DESTINATION_SERIALIZATION_ERROR", "DESTINATION_FIELD_SIZE_LIMITATION"
COLUMNS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "date": {"type": "string", "format": "date"},
    "moment": {"type": "string", "format": "date-time"},
    "time": {"type": "string", "format": "time"},
    "object": {"type": "object"},
    "array": {"type": "array"},
    "any": {"type": ["string", "integer"]},
}


def build(*data: bytes, columns: dict[str, Any] | None = None, **record: Any) -> list[Any]:
    schema = TableSchema.from_json_schema({"properties": COLUMNS if columns is None else columns})
    builder = BatchBuilder(schema, sync_id=7, generation_id=3)
    for each in data:
        fields = {"emitted_at": 1_700_000_000_123, "meta": ABSENT} | record
        builder.append(Record("s", Raw(each), **fields), len(each))
    assert (len(builder), builder.bytes) == (len(data), sum(map(len, data)))
    batch = builder.build()
    assert (len(builder), builder.bytes) == (0, 0)
    assert batch.schema == schema.arrow
    batch.validate(full=True)
    return list(batch.to_pylist())


def changes(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    meta = json.loads(row["_airbyte_meta"])
    assert meta["sync_id"] == 7
    return [(c["field"], c["change"], c["reason"]) for c in meta["changes"]]


MOMENT = dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("string", '"x"', "x"),
        ("string", '"a\\u0000\\u2028b"', "a\0\u2028b"),
        ("string", "5", "5"),
        ("string", "1.50", "1.5"),
        ("string", "true", "true"),
        ("string", "9" * 30, "9" * 30),
        ("string", '{"a": [1]}', '{"a":[1]}'),
        ("string", '"\\ud800"', "?"),
        ("boolean", "true", True),
        ("integer", "5", 5),
        ("integer", "5.0", 5),
        ("integer", '"-5"', -5),
        ("integer", str(2**63 - 1), 2**63 - 1),
        ("integer", str(-(2**63)), -(2**63)),
        ("number", "5", 5.0),
        ("number", "1e5", 1e5),
        ("number", '"1.5"', 1.5),
        ("number", "9" * 30, 1e30),
        ("date", '"2024-01-02"', dt.date(2024, 1, 2)),
        ("date", '"2024-01-02T03:04:05Z"', dt.date(2024, 1, 2)),
        ("moment", '"2024-01-02T03:04:05Z"', MOMENT),
        ("moment", '"2024-01-02 03:04:05"', MOMENT),
        ("time", '"03:04:05+01:00"', "03:04:05+01:00"),
        ("object", '{"b": 1.10, "a": 12345678901234567}', '{"b": 1.10, "a": 12345678901234567}'),
        ("array", "[1, null]", "[1, null]"),
        ("any", '"x"', '"x"'),
        ("any", "5", "5"),
        ("any", '{"a": 1}', '{"a": 1}'),
    ]
    + [(field, "null", None) for field in COLUMNS],
)  # fmt: skip
def test_good_values(field: str, text: str, value: Any) -> None:
    (row,) = build(f'{{"{field}": {text}}}'.encode())
    assert row[field] == value
    assert type(row[field]) is type(value)
    assert changes(row) == []
    assert row["_airbyte_extra"] is None


@pytest.mark.parametrize(
    ("field", "text", "reason"),
    [
        ("boolean", '"true"', TYPE),
        ("boolean", "1", TYPE),
        ("integer", "1.5", TYPE),
        ("integer", '"1.5"', TYPE),
        ("integer", '"1_000"', TYPE),
        ("integer", '"x"', TYPE),
        ("integer", '""', TYPE),
        ("integer", "true", TYPE),
        ("integer", "[1]", TYPE),
        ("integer", str(2**63), SIZE),
        ("integer", "9" * 30, SIZE),
        ("integer", f'"{2**63}"', SIZE),
        ("integer", "1e300", SIZE),
        ("number", '"x"', TYPE),
        ("number", '"NaN"', TYPE),
        ("number", '"1_0"', TYPE),
        ("number", "true", TYPE),
        ("number", "1e400", TYPE),
        ("number", "9" * 400, SIZE),
        ("date", '"2024-02-30"', TYPE),
        ("date", "20240102", TYPE),
        ("moment", '"soon"', TYPE),
        ("moment", "1700000000", TYPE),
        ("time", "5", TYPE),
        ("object", '"{}"', TYPE),
        ("object", "[]", TYPE),
        ("object", "5", TYPE),
        ("array", '"[]"', TYPE),
        ("array", "{}", TYPE),
    ],
)
def test_a_bad_value_is_null_and_a_change(field: str, text: str, reason: str) -> None:
    bad = f'{{"any": 1, "{field}": {text}}}'.encode()
    before, row, after = build(b'{"any": 0}', bad, b'{"any": 2}')
    assert row[field] is None
    assert changes(row) == [(field, "NULLED", reason)]
    assert [each["any"] for each in (before, row, after)] == ["0", "1", "2"]
    assert changes(before) == changes(after) == []


def test_every_bad_value_of_a_row_is_told() -> None:
    data = b'{"integer": "x", "boolean": 1, "moment": "soon", "array": 5, "string": "kept"}'
    (row,) = build(data)
    assert row["string"] == "kept"
    assert sorted(field for field, _, _ in changes(row)) == [
        "array",
        "boolean",
        "integer",
        "moment",
    ]


def test_undeclared_fields_are_kept_together() -> None:
    plain, odd = build(b'{"string": "x"}', b'{"new": {"a": [1]}, "string": "y", "\xc3\xa9": null}')
    assert (plain["string"], plain["_airbyte_extra"]) == ("x", None)
    assert (odd["string"], odd["_airbyte_extra"]) == ("y", '{"new":{"a":[1]},"é":null}')
    assert changes(odd) == []


@pytest.mark.parametrize(
    "data", [b"5", b"null", b"[1]", b'"x"', b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"]
)
def test_data_that_is_no_object_keeps_its_row(data: bytes) -> None:
    before, row, after = build(b'{"any": 1}', data, b'{"any": 2}')
    assert changes(row) == [("", "NULLED", TYPE)]
    assert json.loads(row["_airbyte_extra"]) == {"": data.decode()}
    assert (before["any"], row["any"], after["any"]) == ("1", None, "2")


@pytest.mark.parametrize("field", ["string", "object", "any", "new"])
def test_invalid_utf8_inside_a_record(field: str) -> None:
    """Regression: inside a JSON column it stopped the whole sync."""
    value = b'{"a":"\xff"}' if field == "object" else b'"\xff"'
    row, after = build(b'{"%b":%b}' % (field.encode(), value), b'{"string":"x"}')
    text = row["_airbyte_extra" if field == "new" else field]
    assert "\ufffd" in text
    assert after["string"] == "x"


@pytest.mark.parametrize("field", ['a"b', "a\\b", "a\nb", "a.b", "", "é", "self", "f0"])
def test_strange_field_names(field: str) -> None:
    """Regression: quotes and backslashes in a schema stopped the whole sync."""
    columns = {field: {"type": "integer"}, "o": {"type": "object"}}
    good, bad = build(
        *(json.dumps({field: value, "o": {}}).encode() for value in (5, "x")), columns=columns
    )
    name = next(iter(good))
    assert (good[name], bad[name]) == (5, None)
    assert (good["o"], bad["o"]) == ("{}", "{}")
    assert changes(bad) == [(name, "NULLED", TYPE)]


def test_a_schema_without_columns() -> None:
    one, empty = build(b'{"a": 1}', b"{}", columns={})
    assert (one["_airbyte_extra"], empty["_airbyte_extra"]) == ('{"a":1}', None)


def test_no_records() -> None:
    assert build() == []


# Airbyte's own columns


@pytest.mark.parametrize(
    ("emitted_at", "moment"),
    [
        (1_700_000_000_123, "2023-11-14T22:13:20.123"),
        (1_700_000_000_123.5, "2023-11-14T22:13:20.123500"),
        (1_700_000_000, "2023-11-14T22:13:20"),  # seconds, as old connectors send
        (0, "1970-01-01T00:00:00"),
    ],
)
def test_extraction_time(emitted_at: float, moment: str) -> None:
    (row,) = build(b"{}", emitted_at=emitted_at)
    expected = dt.datetime.fromisoformat(moment).replace(tzinfo=dt.UTC)
    assert row["_airbyte_extracted_at"] == expected
    assert row["_airbyte_generation_id"] == 3


def test_changes_that_the_source_reports_come_first() -> None:
    meta = b'{"changes":[{"field":"string","change":"TRUNCATED","reason":"SOURCE_X"}]}'
    (row,) = build(b'{"integer":"x"}', meta=Raw(meta))
    assert changes(row) == [("string", "TRUNCATED", "SOURCE_X"), ("integer", "NULLED", TYPE)]


@pytest.mark.parametrize("meta", [b"null", b"{}", b'{"changes":null}', b'{"changes":[{}]}', b"[]",
                                  b'{"changes":[{"field":"\xff"}]}', b'{"changes":5}'])  # fmt: skip
def test_odd_meta_is_no_reason_to_stop(meta: bytes) -> None:
    (row,) = build(b'{"string":"x"}', meta=Raw(meta))
    assert (row["string"], len(changes(row)) <= 1) == ("x", True)


def test_raw_ids_are_uuids_of_their_own() -> None:
    ids = random_uuids(5000).to_pylist()
    assert len(set(ids)) == 5000
    for text in ids[:200]:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)
    assert random_uuids(0).to_pylist() == []
    first, second = build(b"{}", b"{}")
    assert first["_airbyte_raw_id"] != second["_airbyte_raw_id"]
