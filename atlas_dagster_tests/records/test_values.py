"""Every type, in records that fit (decoded in C) and in records that do not (value by value)."""

import datetime as dt
import json
import struct
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_dagster_tests.records.batch_rows import (
    COLUMNS,
    REPAIRED,
    ROUNDED,
    SIZE,
    TYPE,
    build,
    changes,
)

MOMENT = dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
LOCAL = MOMENT.replace(tzinfo=None)
GOOD = [
    ("string", '"x"', "x"),
    ("string", '""', ""),
    ("string", '"a\\u0000\\u2028\\ud83c\\udf89\\"b"', 'a\0\u2028🎉"b'),
    ("string", '"\u2028é"', "\u2028é"),
    ("string", "5", "5"),
    ("string", "1.50", "1.50"),
    ("string", "1e400", "1e400"),
    ("string", "true", "true"),
    ("string", "9" * 5000, "9" * 5000),
    ("string", '{"b" : 1.10, "b": [ 1 ]}', '{"b" : 1.10, "b": [ 1 ]}'),
    ("string", "[1.0,\t2]", "[1.0,\t2]"),
    ("boolean", "true", True),
    ("boolean", "false", False),
    ("integer", "5", 5),
    ("integer", "-0", 0),
    ("integer", "5.0", 5),
    ("integer", "5e2", 500),
    ("integer", "9007199254740993.0", 9007199254740993),
    ("integer", '"-5"', -5),
    ("integer", '"5.00"', 5),
    ("integer", '"+5"', 5),
    ("integer", str(2**63 - 1), 2**63 - 1),
    ("integer", str(-(2**63)), -(2**63)),
    ("integer", f'"{2**63 - 1}"', 2**63 - 1),
    ("number", "5", 5.0),
    ("number", "1e5", 1e5),
    ("number", "0.1", 0.1),
    ("number", "0.30000000000000004", 0.1 + 0.2),
    ("number", '"1.5"', 1.5),
    ("date", '"2024-01-02"', LOCAL.date()),
    ("date", '"2024-01-02T00:00:00.000Z"', LOCAL.date()),
    ("moment", '"2024-01-02T03:04:05Z"', MOMENT),
    ("moment", '"2024-01-02T05:04:05+02:00"', MOMENT),
    ("moment", '"2024-01-02 03:04:05"', MOMENT),
    ("moment", '"2024-01-02T03:04:05.000000000Z"', MOMENT),
    ("moment", '"2024-01-01T24:00:00Z"', dt.datetime(2024, 1, 2, tzinfo=dt.UTC)),
    ("local", '"2024-01-02T03:04:05"', LOCAL),
    ("local", '"2024-01-02T03:04:05+00:00"', LOCAL),
    ("local", '"2024-01-02T03:04:05Z"', LOCAL),
    ("time", '"03:04:05"', "03:04:05"),
    ("time", '"03:04:05.123456789+01:00"', "03:04:05.123456789+01:00"),
    ("object", '{"b": 1.10, "a": 12345678901234567890}', '{"b": 1.10, "a": 12345678901234567890}'),
    ("object", '{"a":1e400,"a":"\\u0000\u2028"}', '{"a":1e400,"a":"\\u0000\u2028"}'),
    ("array", "[1, null]", "[1, null]"),
    ("array", "[ ]", "[ ]"),
    ("any", '"x"', '"x"'),
    ("any", '"null"', '"null"'),
    ("any", "1.10", "1.10"),
    ("any", '{"a": 1}', '{"a": 1}'),
    *[(field, "null", None) for field in COLUMNS],
]  # fmt: skip
#: What a column does not hold: the value it has instead, and why.
BAD = [
    ("boolean", '"true"', None, TYPE),
    ("boolean", "1", None, TYPE),
    ("boolean", "{}", None, TYPE),
    ("integer", "1.5", None, TYPE),
    ("integer", "1e-999999999", None, TYPE),
    ("integer", '"1.5"', None, TYPE),
    ("integer", '"1_000"', None, TYPE),
    ("integer", '"x"', None, TYPE),
    ("integer", '""', None, TYPE),
    ("integer", "true", None, TYPE),
    ("integer", "[1]", None, TYPE),
    ("integer", str(2**63), None, SIZE),
    ("integer", str(-(2**63) - 1), None, SIZE),
    ("integer", "9" * 30, None, SIZE),
    ("integer", "9" * 5000, None, SIZE),
    ("integer", f'"{2**63}"', None, SIZE),
    ("integer", "1e300", None, SIZE),
    ("integer", "1e999999999", None, SIZE),
    ("integer", "1e99999999999999999999", None, SIZE),
    ("number", '"x"', None, TYPE),
    ("number", '"NaN"', None, TYPE),
    ("number", "true", None, TYPE),
    ("number", "{}", None, TYPE),
    ("number", "1e400", None, SIZE),
    ("number", "9" * 400, None, SIZE),
    ("number", "1234567890123456789", 1234567890123456768.0, ROUNDED),
    ("number", "0.33333333333333333333", 1 / 3, ROUNDED),
    ("number", '"0.33333333333333333333"', 1 / 3, ROUNDED),
    ("date", '"2024-01-02T23:04:05-05:00"', LOCAL.date(), ROUNDED),
    ("date", '"2024-01-02 00:00:00.0000001"', LOCAL.date(), ROUNDED),
    ("date", '"2024-01-02T00:00:00+02:00"', LOCAL.date(), ROUNDED),
    ("date", '"2024-02-30"', None, TYPE),
    ("date", "20240102", None, TYPE),
    ("date", '"0044-03-15 BC"', None, SIZE),
    ("moment", '"2024-01-02T03:04:05.0000009Z"', MOMENT, ROUNDED),
    ("moment", '"2024-01-02 03:04:05,0000009"', MOMENT, ROUNDED),
    ("moment", '"soon"', None, TYPE),
    ("moment", "1700000000", None, TYPE),
    ("moment", '"0000-00-00 00:00:00"', None, SIZE),
    ("moment", '"294277-01-01T00:00:00Z"', None, SIZE),
    ("moment", '"0001-01-01T00:00:00+01:00"', None, SIZE),
    ("local", '"2024-01-02T03:04:05+02:00"', LOCAL, ROUNDED),
    ("local", '"2024-01-02T03:04:05 -0030"', LOCAL, ROUNDED),
    ("local", '"2024-01-02T03:04:05.0000001"', LOCAL, ROUNDED),
    ("local", '"0044-03-15T00:00:00 BC"', None, SIZE),
    ("local", "{}", None, TYPE),
    ("time", "5", None, TYPE),
    ("object", '"{}"', None, TYPE),
    ("object", "[]", None, TYPE),
    ("object", "5", None, TYPE),
    ("array", '"[]"', None, TYPE),
    ("array", "{}", None, TYPE),
]


def exact(text: str) -> Any:
    """JSON with its numbers as they are written."""
    return json.loads(text, parse_float=lambda t: ("number", t), parse_int=lambda t: ("number", t))


def three_ways(field: str, text: str) -> list[tuple[Any, list[Any], Any]]:
    """Value, changes and kept JSON of a field: alone, in bad company, in a slow record."""
    alone = f'{{"{field}": {text}}}'.encode()
    slow = f'{{"{field}": {text}, "undeclared": 1}}'.encode()
    bad = b'{"boolean":5,"integer":"x","number":"x","date":"x","moment":"x","local":"x","any":1}'
    (first,) = build(alone)
    second, *_ = build(alone, bad, alone)
    third, *_ = build(slow, bad)
    rows = []
    for row in (first, second, third):
        kept = exact(row["_airbyte_extra"] or "{}")
        kept.pop("undeclared", None)
        assert kept.keys() <= {field}
        assert all(row[other] is None for other in COLUMNS if other != field)
        rows.append((row[field], changes(row), kept.get(field)))
    return rows


@pytest.mark.parametrize(("field", "text", "value"), GOOD)
def test_good_values(field: str, text: str, value: Any) -> None:
    for found, told, kept in three_ways(field, text):
        assert found == value
        assert type(found) is type(value)
        assert (told, kept) == ([], None)


@pytest.mark.parametrize(("field", "text", "value", "why"), BAD)
def test_a_bad_value_is_told_and_kept(field: str, text: str, value: Any, why: Any) -> None:
    for found, told, kept in three_ways(field, text):
        assert found == value
        assert told == [(field, *why)]
        assert kept == exact(text)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.one_of(
    st.none().map(json.dumps),
    st.booleans().map(json.dumps),
    st.integers().map(str),
    st.integers(-(2**64), 2**64).map(str),
    FINITE.map(repr),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.text(st.characters(exclude_categories=["Cs"])).map(json.dumps),
    st.text(st.characters(exclude_categories=["Cs"])).map(
        lambda text: json.dumps(text, ensure_ascii=False)
    ),
    st.integers().map(lambda number: f'"{number}"'),
    st.decimals().map(lambda number: f'"{number}"'),
    st.datetimes().map(lambda moment: f'"{moment.isoformat()}Z"'),
    st.dates().map(lambda date: f'"{date}"'),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(st.text("ab").map(json.dumps), inner)).map(
            lambda items: "{" + ",".join(f"{key} : {item}" for key, item in items) + "}"
        )
    ),
    max_leaves=4,
)


@pytest.mark.slow
@settings(deadline=None)
@given(st.sampled_from(sorted(COLUMNS)), VALUES)
def test_any_value_comes_out_the_same_and_whole(field: str, text: str) -> None:
    """On each way in; and what the column does not hold exactly is kept beside it."""
    first, second, third = three_ways(field, text)
    assert first == second == third
    value, told, kept = first
    written = exact(text)
    if told:
        assert kept == written
    elif field in ("object", "array", "any") and written is not None:
        assert value == text
    elif field == "string" and written is not None:
        assert value == (written if isinstance(written, str) else text)
    elif field in ("integer", "number") and written is not None:
        number = written if isinstance(written, str) else written[1]
        assert Decimal(repr(value)) == Decimal(number)
    elif isinstance(written, bool) or written is None:
        assert value is written


@pytest.mark.slow
@given(st.lists(st.binary(min_size=8, max_size=8).map(lambda raw: struct.unpack("q", raw)[0])))
def test_integers_of_64_bits(numbers: list[int]) -> None:
    rows = build(*(b'{"integer":%d}' % number for number in numbers))
    assert [row["integer"] for row in rows] == numbers


def test_text_that_is_no_utf8_is_told() -> None:
    (row,) = build(b'{"string":"a\xff","any":"\xff"}')
    assert (row["string"], row["any"]) == ("a\ufffd", '"\ufffd"')
    assert sorted(changes(row)) == [("any", *REPAIRED), ("string", *REPAIRED)]
