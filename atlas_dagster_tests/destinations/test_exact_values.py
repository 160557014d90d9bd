"""The one order of cursors and the one identity of keys."""

import itertools
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_dagster.destinations.exact_values import identity_of, order_of
from atlas_dagster.records.types import ColumnType

NUMBERS = [ColumnType.INTEGER, ColumnType.NUMBER, ColumnType.DECIMAL]
NULLS = [(kind, None, None) for kind in ColumnType]


@pytest.mark.slow
@pytest.mark.parametrize("kind", NUMBERS)
@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False), min_size=2, max_size=2))
def test_numbers_compare_as_numbers(kind: ColumnType, numbers: list[Decimal]) -> None:
    one, other = numbers
    first, second = order_of(kind, str(one)), order_of(kind, None, f'"{other}"')
    assert first is not None
    assert second is not None
    assert (first < second, first == second) == (one < other, one == other)


@pytest.mark.parametrize(
    ("kind", "ascending"),
    [
        (ColumnType.INTEGER, ["-1e30", "-10", "-9", "0", "9", "10", "9223372036854775808", "1e30"]),
        (ColumnType.DECIMAL, ["-1e400", "-0.11", "-0.1", "0", "1e-400", "0.1", "9", "10", "1e400"]),
        (ColumnType.BOOLEAN, ["false", "true"]),
        (
            ColumnType.TIMESTAMP,
            ["-0001-01-01", "0000-12-31T00:00:00Z", "2024-01-01T10:00:00+05:00",
             "2024-01-01 06:00:00", "2024-01-01T06:00:00.0000000001Z", "10000-01-01T00:00:00Z"],
        ),
        (
            ColumnType.STRING,
            ["2024-01-01T10:00:00+05:00", "2024-01-01T06:00:00Z", "2024-01-01T06:00:00.5Z",
             "", "1", "10", "9", "B", "a", "é"],
        ),
        (ColumnType.TIME, ["10:00:00", "9:00:00"]),
        (
            ColumnType.UNKNOWN,
            ["false", "true", "9", "10", "1e400", '"2024-01-01T10:00:00+05:00"',
             '"2024-01-01T06:00:00Z"', '"10"', '"9"', '{"a":1}'],
        ),
    ],
)  # fmt: skip
def test_values_in_ascending_order(kind: ColumnType, ascending: list[str]) -> None:
    orders = [order_of(kind, text) for text in ascending]
    assert all(a is not None and b is not None and a < b for a, b in itertools.pairwise(orders))


@pytest.mark.parametrize(
    ("kind", "text", "kept"),
    [
        *NULLS,
        (ColumnType.INTEGER, None, '"x"'),
        (ColumnType.INTEGER, None, "{}"),
        (ColumnType.INTEGER, None, "1e99999999999999999999"),
        (ColumnType.TIMESTAMP, None, '"soon"'),
        (ColumnType.DATE, None, '"2024-02-30"'),
        (ColumnType.BOOLEAN, None, '"yes"'),
    ],
)
def test_what_does_not_compare(kind: ColumnType, text: str | None, kept: str | None) -> None:
    assert order_of(kind, text, kept) is None


def test_what_is_kept_counts_before_the_column() -> None:
    exact = order_of(ColumnType.TIMESTAMP, None, '"2024-01-01T00:00:00.0000001Z"')
    rounded = "2024-01-01 00:00:00+00"
    kept = '"2024-01-01T01:00:00.0000001+01:00"'
    assert order_of(ColumnType.TIMESTAMP, rounded, kept) == exact
    plain, odd = order_of(ColumnType.STRING, "a"), '{"base64":"ImH/Ig=="}'  # "a\xff"
    found = order_of(ColumnType.STRING, "a\ufffd", odd)
    assert found is not None
    assert plain is not None
    assert plain < found != order_of(ColumnType.STRING, "a\ufffd")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":[2]}', '{ "b":[2.0], "a":1e0 }'),
        (r'"\u0041"', '"A"'),
        ("1e400", "10e399"),
        ("-0", "0.0"),
    ],
)
def test_the_same_value_is_the_same_key(one: str, other: str) -> None:
    assert identity_of(one) == identity_of(other)


def test_different_values_are_different_keys() -> None:
    values = ["1", '"1"', "true", '"true"', "null", "[]", "[1]", "[[1]]", '["1"]', "{}", '{"a":1}',
              '["",1]', "12", '["12",2]', '"12"', "0", "[0]"]  # fmt: skip
    assert len({identity_of(value) for value in values}) == len(values)
