import base64
import datetime as dt
import json
import time
import uuid

import pytest
from msgspec import Raw

from atlas_dagster.protocol.messages import Record
from atlas_dagster.records.batches import BatchBuilder, random_uuids
from atlas_dagster.records.types import TableSchema
from atlas_dagster_tests.records.batch_rows import REPAIRED, SIZE, TYPE, build, changes


def test_every_bad_value_of_a_row_is_told_and_kept() -> None:
    data = b'{"integer": "x", "boolean": 1, "moment": "soon", "array": 1.10, "string": "kept"}'
    (row,) = build(data)
    assert row["string"] == "kept"
    assert sorted(changes(row)) == [
        (field, *TYPE) for field in ("array", "boolean", "integer", "moment")
    ]
    assert "1.10" in row["_airbyte_extra"]
    kept = json.loads(row["_airbyte_extra"])
    assert kept == {"integer": "x", "boolean": 1, "moment": "soon", "array": 1.1}


@pytest.mark.parametrize("levels", [501, 1000, 100_000])
@pytest.mark.parametrize("field", ["array", "object", "string", "integer", "undeclared"])
@pytest.mark.slow
def test_a_value_that_nests_too_deeply_is_kept_as_text(field: str, levels: int) -> None:
    deep = "[" * levels + "]" * levels
    deepest = "[" * 100_000 + "]" * 100_000
    data = f'{{"boolean": true, "{field}": {deep}, "other": {{"x": 1}}, "z": {deepest}}}'
    (row,) = build(data.encode())
    assert (row["boolean"], row.get(field)) == (True, None)
    assert sorted(changes(row)) == [(field, *SIZE), ("z", *SIZE)]
    assert json.loads(row["_airbyte_extra"]) == {"other": {"x": 1}, field: deep, "z": deepest}


def test_undeclared_fields_are_kept_together() -> None:
    data = b'{"new": {"a" : [1.10, 1e400]}, "string": "y", "\xc3\xa9\\"": null, "big": %d}' % 10**30
    plain, odd = build(b'{"string": "x"}', data)
    assert (plain["string"], plain["_airbyte_extra"]) == ("x", None)
    kept = '{"new":{"a" : [1.10, 1e400]},"é\\"":null,"big":1' + "0" * 30 + "}"
    assert (odd["string"], odd["_airbyte_extra"]) == ("y", kept)
    assert changes(odd) == []


def test_undeclared_fields_that_many_records_have() -> None:
    """They get a place in the fast way, from the second batch on; what comes out is the same."""
    schema = TableSchema.from_json_schema({"properties": {"string": {"type": "string"}}})
    builder = BatchBuilder(schema, sync_id=7, generation_id=3)
    for _ in range(3):
        data = (b'{"string":"x","a":1.10}', b'{"a":null}', b'{"string":"y"}', b'{"b":{ }}',
                b'{"string":["z"],"a":"1","c\\"":2}', b'{"a":[1],"a":2}', b"5")  # fmt: skip
        builder.extend([Record("s", Raw(each), 0) for each in data], 1)
        rows = builder.build().to_pylist()
        assert [row["string"] for row in rows] == ["x", None, "y", None, '["z"]', None, None]
        assert [row["_airbyte_extra"] for row in rows] == [
            '{"a":1.10}',
            '{"a":null}',
            None,
            '{"b":{ }}',
            '{"a":"1","c\\"":2}',
            '{"a":2}',
            '{"":"5"}',
        ]


def test_of_a_field_sent_twice_the_last_counts() -> None:
    fast, slow, mended = build(
        b'{"string":"a","integer":1,"number":1,"object":{},"string":"b","integer":2,"number":2.5,'
        b'"object":{"a":1,"a":2}}',
        b'{"integer":"x","integer":5,"new":1,"new":2}',
        b'{"integer":5,"integer":"x"}',
    )
    assert (fast["string"], fast["integer"], fast["number"]) == ("b", 2, 2.5)
    assert fast["object"] == '{"a":1,"a":2}'
    assert (slow["integer"], slow["_airbyte_extra"]) == (5, '{"new":2}')
    assert (mended["integer"], mended["_airbyte_extra"]) == (None, '{"integer":"x"}')
    assert changes(fast) == changes(slow) == []


@pytest.mark.parametrize(
    "data",
    [
        b"5",
        b"null",
        b"[1]",
        b'"x"',
        b"[" * 5000 + b"]" * 5000,
        b'{"any":"\\ud800"}',
        b'{"any":NaN}',
    ],
    ids=["number", "null", "array", "string", "deep", "surrogate", "NaN"],
)
def test_data_that_is_no_readable_object_keeps_its_row(data: bytes) -> None:
    before, row, after = build(b'{"any": 1}', data, b'{"any": 2}')
    assert changes(row) == [("", *TYPE)]
    assert json.loads(row["_airbyte_extra"]) == {"": data.decode()}
    assert (before["any"], row["any"], after["any"]) == ("1", None, "2")


@pytest.mark.parametrize("text", [b"\xff", b"a\xed\xa0\x80"], ids=["byte", "surrogate"])
@pytest.mark.parametrize("field", ["string", "moment", "object", "number", "any", "new"])
def test_invalid_utf8_inside_a_record(field: str, text: bytes) -> None:
    """Regression: inside a JSON column it stopped the whole sync. Its bytes are kept."""
    value = b'{"a":"%b"}' % text if field == "object" else b'"%b"' % text
    row, after = build(b'{"%b":%b,"x":1}' % (field.encode(), value), b'{"string":"x"}')
    if field in ("string", "object", "any"):
        assert "\ufffd" in row[field]
    kept = json.loads(row["_airbyte_extra"])
    assert (base64.b64decode(kept[field]["base64"]), kept["x"]) == (value, 1)
    assert (field, *REPAIRED) in changes(row)
    assert (after["string"], changes(after)) == ("x", [])


def test_a_field_whose_name_is_no_utf8() -> None:
    (row,) = build(b'{"\xff":1,"string":"x"}')
    kept = json.loads(row["_airbyte_extra"])
    assert base64.b64decode(kept.pop("")["base64"]) == b'{"\xff":1,"string":"x"}'
    assert (row["string"], kept) == ("x", {"\ufffd": 1})
    assert changes(row) == [("", *REPAIRED)]


@pytest.mark.parametrize("text", ["1", "true", '{"a":1}', '["1"]'])
def test_a_text_key_that_is_no_string_is_told_and_kept(text: str) -> None:
    properties = {"id": {"type": "string"}, "v": {"type": "string"}, "in": {"type": "object"}}
    schema = TableSchema.from_json_schema(
        {"properties": properties | {"in": {"properties": {"id": {"type": "string"}}}}},
        nested=[("in", "id")],
    )
    key = ("id", schema.column_of("in", "id"))
    builder = BatchBuilder(schema, sync_id=7, generation_id=3, key=key)
    odd = f'{{"id":{text},"v":{text},"in":{{"id":{text}}}}}'.encode()
    builder.extend([Record("s", Raw(odd), 0), Record("s", Raw(b'{"id":"1"}'), 0)], 1)
    row, plain = builder.build().to_pylist()
    assert [row[name] for name in (*key, "v")] == [text] * 3
    assert row["_airbyte_extra"] == f'{{"id":{text},"in.id":{text}}}'
    assert changes(row) == [("id", *REPAIRED), ("in.id", *REPAIRED)]
    assert (plain["id"], plain["_airbyte_extra"], changes(plain)) == ("1", None, [])


@pytest.mark.slow
def test_a_record_of_50_megabytes() -> None:
    size = 50_000_000
    row, after = build(
        b'{"string":"%b","object":{"a":"%b"},"integer":%b}'
        % (b"x" * (size // 5), b"y" * (size // 5 * 2), b"9" * (size // 5 * 2)),
        b'{"string":"x"}',
    )
    assert (len(row["string"]), len(row["object"])) == (size // 5, size // 5 * 2 + 8)
    assert changes(row) == [("integer", *SIZE)]
    assert row["_airbyte_extra"] == '{"integer":' + "9" * (size // 5 * 2) + "}"
    assert after["string"] == "x"


def test_newlines_between_json_tokens() -> None:
    """Not in a message, which is one line; but columns must not shift if it ever happens."""
    one, two = build(b'{"object": {"a":\n1}, "number": 1.5}', b'{"object": {}, "number": 2}')
    assert (one["object"], two["object"]) == ('{"a":\n1}', "{}")
    assert (one["number"], two["number"]) == (1.5, 2.0)


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
    assert changes(bad) == [(field, *TYPE)]
    assert json.loads(bad["_airbyte_extra"]) == {field: "x"}


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
        (1_700_000_000.5, "2023-11-14T22:13:20.500000"),
        (0, "1970-01-01T00:00:00"),
        (-1, "1969-12-31T23:59:59"),
        (-1_700_000_000_000, "1916-02-18T01:46:40"),
        (253_402_300_799_000, "9999-12-31T23:59:59"),
        (1_700_000_000_123_456, "2023-11-14T22:13:20.123456"),  # microseconds
        (1_700_000_000_123_456_768, "2023-11-14T22:13:20.123456"),  # nanoseconds
    ],
)
def test_extraction_time(emitted_at: float, moment: str) -> None:
    (row,) = build(b"{}", emitted_at=emitted_at)
    expected = dt.datetime.fromisoformat(moment).replace(tzinfo=dt.UTC)
    assert row["_airbyte_extracted_at"] == expected
    assert row["_airbyte_generation_id"] == 3


@pytest.mark.parametrize("emitted_at", [10**20, -(10**15), 1e300, -1e300, 10**400, -(10**400)])
def test_an_extraction_time_that_is_none_becomes_now(emitted_at: float) -> None:
    (row,) = build(b"{}", emitted_at=emitted_at)
    assert abs(row["_airbyte_extracted_at"].timestamp() - time.time()) < 60
    assert changes(row) == [("emitted_at", *SIZE)]


def test_a_missing_extraction_time_becomes_now() -> None:
    (row,) = build(b"{}", emitted_at=None)
    assert abs(row["_airbyte_extracted_at"].timestamp() - time.time()) < 60
    assert changes(row) == [("emitted_at", *TYPE)]


def test_a_missing_extraction_time_beside_one_that_is_none() -> None:
    builder = BatchBuilder(TableSchema.from_json_schema({}), sync_id=7, generation_id=3)
    times = (None, 10**400, 0, 1_700_000_000_000)
    builder.extend([Record("s", Raw(b"{}"), time) for time in times], 8)
    rows = builder.build().to_pylist()
    assert [changes(row) for row in rows] == [
        [("emitted_at", *TYPE)],
        [("emitted_at", *SIZE)],
        [],
        [],
    ]


def test_changes_that_the_source_reports_come_first() -> None:
    meta = b"""{"changes":[
        {"field":"string","change":"TRUNCATED","reason":"SOURCE_X","more":1}, 5, {"field":null},
        {"field":"any","reason":"NEW_REASON"}, {"field":"time","change":null,"reason":null}
    ]}"""
    (row,) = build(b'{"integer":"x"}', meta=Raw(meta))
    assert changes(row) == [
        ("string", "TRUNCATED", "SOURCE_X"),
        ("any", "NULLED", "NEW_REASON"),
        ("time", None, None),
        ("integer", *TYPE),
    ]


@pytest.mark.parametrize(
    "meta",
    [
        b"null",
        b"5",
        b"[]",
        b"{}",
        b'{"changes":null}',
        b'{"changes":5}',
        b'{"changes":[{}]}',
        b'{"changes":[{"field":"\xff"}]}',
        b'{"\xff":1}',
        b'{"changes":' + b"[" * 5000 + b"]" * 5000 + b"}",
    ],
)
def test_odd_meta_is_no_reason_to_stop(meta: bytes) -> None:
    (row,) = build(b'{"string":"x"}', meta=Raw(meta))
    assert (row["string"], changes(row)) == ("x", [])


def test_raw_ids_are_uuids_of_their_own() -> None:
    ids = random_uuids(5000).to_pylist()
    assert len(set(ids)) == 5000
    for text in ids[:200]:
        parsed = uuid.UUID(text)
        assert (str(parsed), parsed.version, parsed.variant) == (text, 4, uuid.RFC_4122)
    assert random_uuids(0).to_pylist() == []
    first, second = build(b"{}", b"{}")
    assert first["_airbyte_raw_id"] != second["_airbyte_raw_id"]
