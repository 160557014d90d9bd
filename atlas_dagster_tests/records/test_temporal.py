import datetime as dt

import pyarrow as pa
import pytest

from atlas_dagster.records.temporal import parse_dates, parse_local_timestamps, parse_timestamps

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
    ("1677-01-01T00:00:00Z", "1677-01-01T00:00:00", "1677-01-01T00:00:00"),
    ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00", "0001-01-01T00:00:00"),
    ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999", "9999-12-31T23:59:59.999999"),
]
BAD = ["", "soon", "2024-02-30T00:00:00Z", "0000-00-00 00:00:00", "2024-13-01T00:00:00Z",
       "0044-03-15T00:00:00Z BC", "1700000000", "2024-02-29T25:00:00Z"]  # fmt: skip


@pytest.mark.parametrize("company", [[], [ODD]], ids=["alone", "in odd company"])
@pytest.mark.parametrize(("text", "utc", "local"), MOMENTS)
def test_moments(text: str, utc: str, local: str, company: list[str]) -> None:
    texts = pa.array([text, None, *company], pa.string())
    column, bad = parse_timestamps(texts)
    assert (column.type, bad) == (pa.timestamp("us", tz="UTC"), [])
    assert column.to_pylist()[:2] == [dt.datetime.fromisoformat(utc).replace(tzinfo=dt.UTC), None]
    column, bad = parse_local_timestamps(texts)
    assert (column.type, bad) == (pa.timestamp("us"), [])
    assert column.to_pylist()[:2] == [dt.datetime.fromisoformat(local), None]


def test_all_of_them_at_once() -> None:
    texts = pa.array([text for text, _, _ in MOMENTS])
    assert [f"{t:%H%M%S%f}" for t in parse_timestamps(texts)[0].to_pylist()] == [
        f"{dt.datetime.fromisoformat(utc):%H%M%S%f}" for _, utc, _ in MOMENTS
    ]
    assert parse_local_timestamps(texts)[0].to_pylist() == [
        dt.datetime.fromisoformat(local) for _, _, local in MOMENTS
    ]


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("parse", [parse_timestamps, parse_local_timestamps, parse_dates])
def test_what_is_no_moment(parse: object, text: str) -> None:
    assert callable(parse)
    column, bad = parse(pa.array(["2024-01-01", None, text, "2024-01-02"]))
    values = column.to_pylist()
    assert bad == [2]
    assert (values[1], values[2]) == (None, None)
    assert f"{values[0]:%Y-%m-%d} {values[3]:%Y-%m-%d}" == "2024-01-01 2024-01-02"


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2024-02-29", (2024, 2, 29)),
        ("2024-02-29T23:30:00-05:00", (2024, 2, 29)),
        ("2024-02-29 00:00:00", (2024, 2, 29)),
        ("0001-01-01", (1, 1, 1)),
        ("9999-12-31", (9999, 12, 31)),
    ],
)
def test_dates(text: str, date: tuple[int, int, int]) -> None:
    column, bad = parse_dates(pa.array([text, None]))
    assert (column.type, bad) == (pa.date32(), [])
    assert column.to_pylist() == [dt.date(*date), None]


@pytest.mark.parametrize("parse", [parse_timestamps, parse_local_timestamps, parse_dates])
@pytest.mark.parametrize("texts", [[], [None, None]])
def test_nothing(parse: object, texts: list[None]) -> None:
    assert callable(parse)
    column, bad = parse(pa.array(texts, pa.string()))
    assert (column.to_pylist(), bad) == (texts, [])
