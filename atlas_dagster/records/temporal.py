"""Dates and timestamps: whole columns of text at once, odd values one by one.

Columns hold the years 1 to 9999, which every reader knows. Digits beyond microseconds are cut off,
not rounded. 24:00:00 and the leap second 60 are the moment after.
"""

import datetime as dt
import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from atlas_dagster.records.changes import Misfit

_UTC = pa.timestamp("us", tz="UTC")
_LOCAL = pa.timestamp("us")
_DATE = pa.date32()
_EPOCH = dt.datetime(1970, 1, 1)
_MICROSECOND = dt.timedelta(microseconds=1)
#: First and last value, as integers.
_RANGES = {
    _DATE: ((dt.date.min - _EPOCH.date()).days, (dt.date.max - _EPOCH.date()).days),
    **dict.fromkeys(
        (_UTC, _LOCAL),
        ((dt.datetime.min - _EPOCH) // _MICROSECOND, (dt.datetime.max - _EPOCH) // _MICROSECOND),
    ),
}

# What Arrow can read, and nothing it would refuse: one refusal fails a whole column.
_DAY = (
    r"\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
)
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?"
_OFFSET = r"(?:Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)"
_REGULAR = rf"^{_DAY}(?:[T ]{_CLOCK}{_OFFSET}?)?$"
# Behind a time of day only, so that the "-01" of a date stays.
_ZONED = rf"(:\d\d(?:\.\d+)?){_OFFSET}$"
_BEYOND_MICROSECONDS = r"(\.\d{6})\d+"

#: What else is a moment: other separators, one-digit months, more years, eras.
_MOMENT = re.compile(
    r"""\s*(?:(?P<year>[+-]?\d{4,9})(?P<sep>[-/.])(?P<month>\d\d?)(?P=sep)(?P<day>\d\d?)
        |(?P<y>\d{4})(?P<m>\d\d)(?P<d>\d\d))
    (?:(?:[Tt]|\s+)(?P<hour>\d\d)
        (?::?(?P<minute>\d\d)(?::?(?P<second>\d\d)(?:[.,](?P<fraction>\d*))?)?)?
        \s*(?:[Zz]|UTC|GMT|(?P<sign>[+-])(?P<zh>\d\d)(?::?(?P<zm>\d\d))?)?)?
    \s*(?P<era>BC|AD)?\s*""",
    re.VERBOSE | re.ASCII,
)

_NOTHING = pa.scalar(None, pa.string())
_PROBED = 64

Parsed = tuple[pa.Array, dict[int, Misfit]]
#: Parses a column in which every text is regular.
Regular = Callable[[pa.Array], pa.Array]
#: Makes a column's value of a local time and its offset.
Finish = Callable[[dt.datetime, dt.timedelta], dt.datetime]


class _Unfit(Exception):  # noqa: N818 - control flow inside this module
    def __init__(self, why: Misfit) -> None:
        self.why = why


def parse_timestamps(texts: pa.Array) -> Parsed:
    """UTC timestamps of microseconds; text without an offset is taken as UTC.

    Returns the column and the rows whose text is no such timestamp (NULL in the column).
    """
    return _parse_column(texts, _UTC, _regular_utc, lambda moment, offset: moment - offset)


def parse_local_timestamps(texts: pa.Array) -> Parsed:
    """Timestamps without zone; an offset is dropped and the local time kept."""
    return _parse_column(texts, _LOCAL, _regular_local, lambda moment, _: moment)


def parse_dates(texts: pa.Array) -> Parsed:
    """Dates; of a timestamp, its date part as written."""
    return _parse_column(texts, _DATE, _regular_date, None)


def _regular_utc(texts: pa.Array) -> pa.Array:
    short = pc.replace_substring_regex(texts, _BEYOND_MICROSECONDS, r"\1")
    zoned = pc.match_substring_regex(short, _ZONED)
    local = pc.cast(pc.if_else(zoned, _NOTHING, short), _LOCAL)
    return pc.coalesce(pc.cast(pc.if_else(zoned, short, _NOTHING), _UTC), pc.cast(local, _UTC))


def _regular_local(texts: pa.Array) -> pa.Array:
    short = pc.replace_substring_regex(texts, _BEYOND_MICROSECONDS, r"\1")
    return pc.cast(pc.replace_substring_regex(short, _ZONED, r"\1"), _LOCAL)


def _regular_date(texts: pa.Array) -> pa.Array:
    return pc.cast(pc.utf8_slice_codeunits(texts, 0, 10), _DATE)


def _parse_column(
    texts: pa.Array, kind: pa.DataType, parse_regular: Regular, finish: Finish | None
) -> Parsed:
    column = _cast(texts, kind)
    if column is not None:
        return _in_range(column, {})
    regular = pc.match_substring_regex(texts, _REGULAR)
    odd = pc.fill_null(pc.invert(regular), False)
    rest = pc.if_else(regular, texts, _NOTHING)
    column = _cast(rest, kind)
    if column is None:
        column = parse_regular(rest)
    rows = pc.indices_nonzero(odd)
    values: list[dt.date | None] = []
    misfits: dict[int, Misfit] = {}
    for row, text in zip(rows.to_pylist(), texts.take(rows).to_pylist(), strict=True):
        try:
            values.append(_parse(text, finish))
        except _Unfit as unfit:
            values.append(None)
            misfits[row] = unfit.why
    return _in_range(pc.replace_with_mask(column, odd, pa.array(values, kind)), misfits)


def _cast(texts: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """All at once, or None where Arrow refuses a value."""
    # Arrow wants an offset on every timestamp or on none. Each refusal costs it 30 times a success,
    # so a few values are tried first.
    for form in (_UTC, _LOCAL) if kind == _UTC else (kind,):
        try:
            pc.cast(texts.slice(0, _PROBED), form)
            return pc.cast(pc.cast(texts, form), kind)
        except pa.ArrowInvalid:
            continue
    return None


def _in_range(column: pa.Array, misfits: dict[int, Misfit]) -> Parsed:
    least, most = _RANGES[column.type]
    numbers = column.view(pa.int32() if column.type == _DATE else pa.int64())
    found = pc.min_max(numbers).as_py()
    if found["min"] is None or (least <= found["min"] and found["max"] <= most):
        return column, misfits
    beyond = pc.or_(pc.less(numbers, least), pc.greater(numbers, most))
    rows = pc.indices_nonzero(beyond).to_pylist()
    return (
        pc.if_else(beyond, pa.scalar(None, column.type), column),
        misfits | dict.fromkeys(rows, Misfit.SIZE),
    )


def _parse(text: str, finish: Callable[[dt.datetime, dt.timedelta], dt.datetime] | None) -> dt.date:
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise _Unfit(Misfit.TYPE)
    year = int(found["year"] or found["y"])
    hour, minute, second, zone_hours, zone_minutes = (
        int(found[part] or 0) for part in ("hour", "minute", "second", "zh", "zm")
    )
    fraction = int((found["fraction"] or "")[:6].ljust(6, "0"))
    clock = dt.timedelta(hours=hour, minutes=minute, seconds=second, microseconds=fraction)
    if (
        (hour > 23 and clock != dt.timedelta(hours=24))
        or second > 60
        or zone_hours > 23
        or max(minute, zone_minutes) > 59
    ):
        raise _Unfit(Misfit.TYPE)
    if found["era"] == "BC" or not 1 <= year <= 9999:
        raise _Unfit(Misfit.SIZE)
    offset = dt.timedelta(hours=zone_hours, minutes=zone_minutes)
    try:
        day = dt.datetime(year, int(found["month"] or found["m"]), int(found["day"] or found["d"]))
        if finish is None:
            return day.date()
        return finish(day + clock, -offset if found["sign"] == "-" else offset)
    except OverflowError:
        raise _Unfit(Misfit.SIZE) from None
    except ValueError:
        raise _Unfit(Misfit.TYPE) from None
