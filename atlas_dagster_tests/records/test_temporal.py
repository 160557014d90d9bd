import datetime as dt
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_dagster.records.issues import IssueKind
from atlas_dagster.records.temporal import (
    instant,
    parse_dates,
    parse_local_timestamps,
    parse_times,
    parse_timestamps,
)

TYPE, SIZE, ROUNDED = IssueKind.TYPE, IssueKind.SIZE, IssueKind.ROUNDED
PARSERS: Any = [parse_timestamps, parse_local_timestamps, parse_dates]

#: Makes a column irregular, so that its other values take the slow way, too.
ODD = "2020-01-01T00:00:00 UTC"
#: Text, its moment in UTC, its local time.
MOMENTS = [
    ("2024-02-29T10:20:30Z", "2024-02-29T10:20:30", "2024-02-29T10:20:30"),
    ("2024-02-29T10:20:30+02:00", "2024-02-29T08:20:30", "2024-02-29T10:20:30"),
    ("2024-02-29T10:20:30-0530", "2024-02-29T15:50:30", "2024-02-29T10:20:30"),
    ("2024-02-29T10:20:30+02", "2024-02-29T08:20:30", "2024-02-29T10:20:30"),
    ("2024-02-29 10:20:30", "2024-02-29T10:20:30", "2024-02-29T10:20:30"),
    ("2024-02-29T10:20", "2024-02-29T10:20:00", "2024-02-29T10:20:00"),
    ("2024-02-29", "2024-02-29T00:00:00", "2024-02-29T00:00:00"),
    ("2024-02-29T10:20:30.5Z", "2024-02-29T10:20:30.500000", "2024-02-29T10:20:30.500000"),
    ("2024-02-29T10:20:30.123456789Z", "2024-02-29T10:20:30.123456", "2024-02-29T10:20:30.123456"),
    ("2024-02-29T10:20:30.123456789", "2024-02-29T10:20:30.123456", "2024-02-29T10:20:30.123456"),
    (
        "2024-02-29T10:20:30.1234567+02:00",
        "2024-02-29T08:20:30.123456",
        "2024-02-29T10:20:30.123456",
    ),
    ("2024-02-29T10:20:30.9999999Z", "2024-02-29T10:20:30.999999", "2024-02-29T10:20:30.999999"),
    ("2024-02-29T10:20:30.Z", "2024-02-29T10:20:30", "2024-02-29T10:20:30"),
    ("2024-02-29T10:20:30,25Z", "2024-02-29T10:20:30.250000", "2024-02-29T10:20:30.250000"),
    ("2024-02-29t10:20:30z", "2024-02-29T10:20:30", "2024-02-29T10:20:30"),
    (" 2024-02-29 10:20:30 +0200 ", "2024-02-29T08:20:30", "2024-02-29T10:20:30"),
    ("2024-02-29T10", "2024-02-29T10:00:00", "2024-02-29T10:00:00"),
    ("20240229T102030Z", "2024-02-29T10:20:30", "2024-02-29T10:20:30"),
    ("2024/2/9 10:20 GMT", "2024-02-09T10:20:00", "2024-02-09T10:20:00"),
    ("2024-02-29 10:20:30 AD", "2024-02-29T10:20:30", "2024-02-29T10:20:30"),
    ("2024-Feb-29", "2024-02-29T00:00:00", "2024-02-29T00:00:00"),
    ("2024-02-29T10:20:30+05:30:15", "2024-02-29T04:50:15", "2024-02-29T10:20:30"),
    ("2024-02-29T10:20:30 Europe/Berlin", "2024-02-29T09:20:30", "2024-02-29T10:20:30"),
    ("2024-02-29T10:20:30+01:00[Europe/Berlin]", "2024-02-29T09:20:30", "2024-02-29T10:20:30"),
    ("2024-03-31T02:30:00 Europe/Berlin", "2024-03-31T01:30:00", "2024-03-31T02:30:00"),
    ("2024-02-29T24:00:00Z", "2024-03-01T00:00:00", "2024-03-01T00:00:00"),
    ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00", "2017-01-01T00:00:00"),
    ("2017-01-01T05:29:60.5+05:30", "2017-01-01T00:00:00.5", "2017-01-01T05:30:00.5"),
    ("1677-01-01T00:00:00Z", "1677-01-01T00:00:00", "1677-01-01T00:00:00"),
    ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00", "0001-01-01T00:00:00"),
    ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999", "9999-12-31T23:59:59.999999"),
]
#: Texts that no column holds, and why.
BAD = [
    ("", TYPE),
    ("soon", TYPE),
    ("2024-02-30T00:00:00Z", TYPE),
    ("2023-02-29", TYPE),
    ("2024-13-01T00:00:00Z", TYPE),
    ("1700000000", TYPE),
    ("2024-02-29T25:00:00Z", TYPE),
    ("2024-02-29T24:00:01Z", TYPE),
    ("2024-02-29T10:60:00Z", TYPE),
    ("2024-02-29T10:20:61Z", TYPE),
    ("2024-02-29T10:20:30+24:00", TYPE),
    ("2024-02-29T10:20:30+02:60", TYPE),
    ("2024-02-29T10:20:30 Europe/Nowhere", TYPE),
    ("2024-02-29T10:20:30 ../etc/passwd", TYPE),
    ("24-02-29", TYPE),
    ("2024-02-29T10:20:30Zjunk", TYPE),
    ("२०२४-०२-२९", TYPE),
    ("0000-00-00 00:00:00", SIZE),
    ("0000-01-01", SIZE),
    ("0000-12-31T23:59:59Z", SIZE),
    ("0044-03-15T00:00:00Z BC", SIZE),
    ("0044-03-15 BC", SIZE),
    ("-0044-03-15", SIZE),
    ("10000-01-01", SIZE),
    ("+294277-01-01T00:00:00Z", SIZE),
]


@pytest.mark.parametrize("company", [[], [ODD]], ids=["alone", "in odd company"])
@pytest.mark.parametrize(("text", "utc", "local"), MOMENTS)
def test_moments(text: str, utc: str, local: str, company: list[str]) -> None:
    texts = pa.array([text, None, *company], pa.string())
    column, misfits = parse_timestamps(texts)
    digits = any(more in text for more in (".1234567", ".9999999"))
    assert column.type == pa.timestamp("us", tz="UTC")
    assert misfits == ({0: ROUNDED} if digits else {})
    assert column.to_pylist()[:2] == [dt.datetime.fromisoformat(utc).replace(tzinfo=dt.UTC), None]
    column, misfits = parse_local_timestamps(texts)
    assert column.type == pa.timestamp("us")
    assert misfits == ({0: ROUNDED} if digits or utc != local else {})
    assert column.to_pylist()[:2] == [dt.datetime.fromisoformat(local), None]


def test_all_of_them_at_once() -> None:
    texts = pa.array([text for text, _, _ in MOMENTS])
    assert [f"{t:%H%M%S%f}" for t in parse_timestamps(texts)[0].to_pylist()] == [
        f"{dt.datetime.fromisoformat(utc):%H%M%S%f}" for _, utc, _ in MOMENTS
    ]
    assert parse_local_timestamps(texts)[0].to_pylist() == [
        dt.datetime.fromisoformat(local) for _, _, local in MOMENTS
    ]


@pytest.mark.parametrize("company", [[], [ODD], ["2024-01-01T00:00:00+01:00"]])
@pytest.mark.parametrize(("text", "why"), BAD)
@pytest.mark.parametrize("parse", PARSERS)
def test_what_is_no_moment(parse: Any, text: str, why: IssueKind, company: list[str]) -> None:
    column, misfits = parse(pa.array(["2024-01-01", None, text, "2024-01-02", *company]))
    values = column.to_pylist()
    assert {row: found for row, found in misfits.items() if row < 4} == {2: why}
    assert (values[1], values[2]) == (None, None)
    assert f"{values[0]:%Y-%m-%d} {values[3]:%Y-%m-%d}" == "2024-01-01 2024-01-02"


@pytest.mark.parametrize("company", [[], [ODD]], ids=["alone", "in odd company"])
@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:00:00-05:00", "9999-12-31T24:00:00Z"]
)
def test_an_offset_may_leave_the_calendar(text: str, company: list[str]) -> None:
    column, misfits = parse_timestamps(pa.array([text, None, *company]))
    assert (column.to_pylist()[:2], misfits) == ([None, None], {0: SIZE})


TWO = st.integers(0, 70).map("{:02}".format)
TEXTS = st.builds(
    "{}{}-{}-{}{}{}{}{}".format,
    st.sampled_from(["", "", "", "-", "1"]),
    st.sampled_from(["0000", "0001", "1969", "2023", "2024", "9999"]),
    *[st.sampled_from(["00", "01", "02", "04", "12", "28", "29", "30", "31"])] * 2,
    st.one_of(
        st.just(""),
        st.builds("{}{}".format, st.sampled_from("T tx"), TWO),
        *[st.builds("{}{}:{}:{}".format, st.sampled_from("T tx"), TWO, TWO, TWO)] * 3,
    ),
    st.sampled_from(["", "", ".", ".5", ".123456", ".1234567", ".999999999999"]),
    st.sampled_from(["", "", "Z", "+00", "+0130", "-23:59", "+24:00", "-01:60", " Z", "UTC"]),
    st.sampled_from(["", "", "", " BC", " "]),
) | st.text(max_size=12)


@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_company_changes_nothing(texts: list[str]) -> None:
    """Whether a text is read by Arrow or one by one, it comes out the same."""
    for parse in PARSERS:
        together, misfits = parse(pa.array(texts))
        together.validate(full=True)
        for row, text in enumerate(texts):
            alone, misfit = parse(pa.array([text]))
            one_by_one, odd = parse(pa.array([ODD, text, "soon"]))
            assert together[row] == alone[0] == one_by_one[1]
            assert misfits.get(row) == misfit.get(0) == odd.get(1)
            assert together[row].is_valid == (misfits.get(row) in (None, ROUNDED))
            value = together[row].as_py()  # within Python's own calendar
            exact = instant(text)
            if value is None:
                continue
            assert exact is not None
            if parse is parse_timestamps:
                assert exact[0] == value.timestamp() // 1
                assert exact[1].startswith(f"{value.microsecond:06}".rstrip("0"))
                assert (len(exact[1]) > 6) == (row in misfits)


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2024-02-29", (2024, 2, 29)),
        ("2024-02-29 00:00:00", (2024, 2, 29)),
        ("2024/02/29", (2024, 2, 29)),
        ("20240229", (2024, 2, 29)),
        ("0001-01-01", (1, 1, 1)),
        ("9999-12-31", (9999, 12, 31)),
    ],
)
def test_dates(text: str, date: tuple[int, int, int]) -> None:
    column, misfits = parse_dates(pa.array([text, None]))
    assert (column.type, misfits) == (pa.date32(), {})
    assert column.to_pylist() == [dt.date(*date), None]


@pytest.mark.parametrize("company", [[], [ODD]], ids=["alone", "in odd company"])
@pytest.mark.parametrize(
    "text", ["2024-02-29T23:30:00-05:00", "2024-02-29T24:00:00Z", "2024-02-29T00:00:00+01:00"]
)
def test_what_a_date_leaves_out_is_told(text: str, company: list[str]) -> None:
    column, misfits = parse_dates(pa.array([text, *company]))
    assert (column[0].as_py(), misfits) == (dt.date(2024, 2, 29), {0: ROUNDED})


@pytest.mark.parametrize(
    ("text", "seconds", "digits"),
    [
        ("1970-01-01", 0, ""),
        ("1970-01-01T00:00:00.0000001+01:00", -3600, "0000001"),
        ("2024-02-29T10:20:30.50Z", 1_709_202_030, "5"),
        ("10000-01-01T00:00:00Z", 253_402_300_800, ""),
        ("0000-12-31T00:00:00Z", -62_135_683_200, ""),
        ("0001-12-31 BC", -62_135_683_200, ""),
        ("-0001-12-31", -62_167_305_600, ""),
    ],
)
def test_an_instant_of_any_year(text: str, seconds: int, digits: str) -> None:
    assert instant(text) == (seconds, digits)


@pytest.mark.parametrize("text", ["", "soon", "2024-02-30", "0000-00-00 00:00:00", "1700000000"])
def test_what_is_no_instant(text: str) -> None:
    assert instant(text) is None


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("texts", [[], [None, None]])
def test_nothing(parse: Any, texts: list[None]) -> None:
    column, misfits = parse(pa.array(texts, pa.string()))
    assert (column.to_pylist(), misfits) == (texts, {})


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("12:34:56", "12:34:56"),
        ("12:34:56.789", "12:34:56.789"),
        ("12:34", "12:34:00"),
        ("12:34:56-0800", "12:34:56-08:00"),
        ("12:34:56-08:00", "12:34:56-08:00"),
        ("12:34:56 +05", "12:34:56+05:00"),
        ("12:34:56.5z", "12:34:56.5Z"),
        ("12:34:56+00:00", "12:34:56Z"),
        ("12:34:56 UTC", "12:34:56Z"),
    ],
)
def test_times_have_one_spelling(text: str, spelled: str) -> None:
    column, misfits = parse_times(pa.array([text, None, "01:02:03Z"]))
    assert (column.to_pylist(), misfits) == ([spelled, None, "01:02:03Z"], {})


@pytest.mark.parametrize("text", ["25:00:00", "12:60", "soon", "", "2024-01-01T12:34:56Z"])
def test_what_is_no_time_of_day(text: str) -> None:
    column, misfits = parse_times(pa.array([text, "01:02:03"]))
    assert (column.to_pylist(), misfits) == ([None, "01:02:03"], {0: TYPE})
