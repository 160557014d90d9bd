import math
import struct
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from atlas_dagster.records.issues import IssueKind
from atlas_dagster.records.numbers import parse_numbers

TYPE, SIZE, ROUNDED = IssueKind.TYPE, IssueKind.SIZE, IssueKind.ROUNDED
#: Makes its column irregular.
ODD = '"+1.5"'


def parse(*texts: str | None) -> tuple[list[Any], dict[int, IssueKind]]:
    column, misfits = parse_numbers(pa.array(texts, pa.string()))
    column.validate(full=True)
    assert column.type == pa.float64()
    return column.to_pylist(), misfits


@pytest.mark.parametrize("company", [[], [ODD], ["1e400"]])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0.0),
        ("-0.0", -0.0),
        ("0.000000000000000000000000000000", 0.0),
        ("0e5", 0.0),
        ("5", 5.0),
        ("1.10", 1.1),
        ("0.1", 0.1),
        ("1e5", 1e5),
        ("1E+22", 1e22),
        ("12345678901234.5", 12345678901234.5),
        ("0.30000000000000004", 0.1 + 0.2),
        ("9007199254740992", 2.0**53),
        ("100000000000000000000", 1e20),
        ("1.50000000000000000000000000", 1.5),
        ("1.7976931348623157E308", 1.7976931348623157e308),
        ("2.2250738585072014e-308", 2.2250738585072014e-308),
        ("5e-324", 5e-324),
        ('"1.5"', 1.5),
        ('"-1.5e3"', -1500.0),
        ('".5"', 0.5),
        ('"1."', 1.0),
    ],
)
def test_held_as_written(text: str, value: float, company: list[str]) -> None:
    values, misfits = parse(text, None, *company)
    assert values[:2] == [value, None]
    assert math.copysign(1, values[0]) == math.copysign(1, value)
    assert not misfits.keys() & {0, 1}


@pytest.mark.parametrize("company", [[], [ODD], ["1e400"]])
@pytest.mark.parametrize(
    ("text", "value", "why"),
    [
        ("0.10000000000000000001", 0.1, ROUNDED),
        ("1234567890123456789", 1234567890123456768.0, ROUNDED),
        ('"1234567890123456789"', 1234567890123456768.0, ROUNDED),
        ("12345678901234567.89", 12345678901234568.0, ROUNDED),
        ("9" * 30, 1e30, ROUNDED),
        ("9007199254740993", 9007199254740992.0, ROUNDED),
        ("1e-400", 0.0, ROUNDED),
        ("1e-99999999999999999999", 0.0, ROUNDED),
        ("1.23456789e-320", 1.2347e-320, ROUNDED),
        ("1e400", None, SIZE),
        ("-1e400", None, SIZE),
        ("1e99999999999999999999", None, SIZE),
        ("9" * 400, None, SIZE),
        ('"x"', None, TYPE),
        ('""', None, TYPE),
        ('" 1"', None, TYPE),
        ('"NaN"', None, TYPE),
        ('"Infinity"', None, TYPE),
        ('"1_0"', None, TYPE),
        ('"0x10"', None, TYPE),
        ('"1,5"', None, TYPE),
        ('"\u0661"', None, TYPE),
        ("true", None, TYPE),
        ("[1]", None, TYPE),
        ('{"a":1}', None, TYPE),
    ],
)
def test_what_no_double_holds(
    text: str, value: float | None, why: IssueKind, company: list[str]
) -> None:
    values, misfits = parse("1", text, *company)
    assert values[:2] == [1.0, value]
    assert misfits[1] is why
    assert 0 not in misfits


DOUBLES = st.binary(min_size=8, max_size=8).map(lambda raw: struct.unpack("d", raw)[0])
NUMBERS = st.one_of(
    st.integers().map(str),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    DOUBLES.filter(math.isfinite).map(repr),
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
)


@pytest.mark.slow
@given(st.lists(NUMBERS, min_size=1), st.booleans())
@example(["0.1"], False)
def test_no_number_is_rounded_unseen(texts: list[str], odd: bool) -> None:
    values, misfits = parse(*texts, *([ODD] if odd else []))
    for row, text in enumerate(texts):
        nearest = float(text)
        if row not in misfits:
            assert Decimal(repr(values[row])) == Decimal(text)
        elif math.isinf(nearest):
            assert (values[row], misfits[row]) == (None, SIZE)
        else:
            assert (values[row], misfits[row]) == (nearest, ROUNDED)
            assert Decimal(repr(nearest)) != Decimal(text)


@pytest.mark.parametrize("texts", [[], [None, None]])
def test_nothing(texts: list[None]) -> None:
    assert parse(*texts) == (texts, {})
