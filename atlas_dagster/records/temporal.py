"""Parse dates, timestamps and times: whole columns at once, irregular values one by one.

Columns contain the years 1 to 9999, which all readers support. Digits beyond microseconds are cut
off, not rounded. 24:00:00 and the leap second 60 mean the following moment. :func:`instant` parses
the same texts exactly, for any year.
"""

import datetime as dt
import re
from collections.abc import Callable
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyarrow as pa
import pyarrow.compute as pc

from atlas_dagster.records.issues import IssueKind

_UTC = pa.timestamp("us", tz="UTC")
_LOCAL = pa.timestamp("us")
_DATE = pa.date32()
_EPOCH = dt.datetime(1970, 1, 1)
_MICROSECOND = dt.timedelta(microseconds=1)
_DAYS_OF_400_YEARS = 146_097
#: First and last value, as integers.
_RANGES = {
    _DATE: ((dt.date.min - _EPOCH.date()).days, (dt.date.max - _EPOCH.date()).days),
    **dict.fromkeys(
        (_UTC, _LOCAL),
        ((dt.datetime.min - _EPOCH) // _MICROSECOND, (dt.datetime.max - _EPOCH) // _MICROSECOND),
    ),
}

# Texts that Arrow can read. It must refuse none of them: one refusal fails the whole column.
_DAY = (
    r"\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8]))"
)
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?"
_OFFSET = r"(?:Z|[+-](?:[01]\d|2[0-3])(?::?[0-5]\d)?)"
_REGULAR = rf"^{_DAY}(?:[T ]{_CLOCK}{_OFFSET}?)?$"
# Only behind a time of day, so that the "-01" of a date stays.
_ZONED = rf"(:\d\d(?:\.\d+)?){_OFFSET}$"
_BEYOND_MICROSECONDS = r"(\.\d{6})\d+"
#: The parts of a regular text that do not fit into a column of its type, unless they are zero.
_LOST = {
    _UTC: r"\.\d{6}\d*[1-9]",
    _LOCAL: r"\.\d{6}\d*[1-9]|[T ].*[+-].*[1-9]",
    _DATE: r"[T ].*[1-9]",
}

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_ZONE = r"(?:[Zz]|UTC|GMT|(?P<sign>[+-])(?P<zh>\d\d)(?::?(?P<zm>\d\d)(?::?(?P<zs>\d\d))?)?)"
#: Irregular moments: other separators, one-digit or named months, more years, eras, and zones by
#: name, as in Java's ``ZonedDateTime``, where an offset beside the name takes precedence.
_MOMENT = re.compile(
    rf"""\s*(?:(?P<year>[+-]?\d{{4,9}})(?P<sep>[-/.])
            (?P<month>\d\d?|{"|".join(_MONTHS)})(?P=sep)(?P<day>\d\d?)
        |(?P<y>\d{{4}})(?P<m>\d\d)(?P<d>\d\d))
    (?:(?:[Tt]|\s+)(?P<hour>\d\d)
        (?::?(?P<minute>\d\d)(?::?(?P<second>\d\d)(?:[.,](?P<fraction>\d*))?)?)?
        \s*{_ZONE}?(?:\s*\[?(?P<zone>[A-Za-z]+(?:/[A-Za-z0-9_+-]+)+)\]?)?)?
    \s*(?P<era>BC|AD)?\s*""",
    re.VERBOSE | re.ASCII | re.IGNORECASE,
)
#: A time of day as in columns, and in other spellings.
_CLEAN_TIME = (
    r"^(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:Z|[+-](?:0[1-9]|1\d|2[0-3]):[0-5]\d)?$"
)
_TIME = re.compile(
    rf"""\s*(?P<hour>[01]\d|2[0-3]):(?P<minute>[0-5]\d)
        (?::(?P<second>[0-5]\d)(?:[.,](?P<fraction>\d+))?)?\s*(?P<zoned>{_ZONE})?\s*""",
    re.VERBOSE | re.ASCII,
)

# pa.scalar would import pandas, which takes half a second.
_NOTHING = pa.nulls(1, pa.string())[0]
_PROBED = 64

Parsed = tuple[pa.Array, dict[int, IssueKind]]
#: Parses a column of regular texts.
Regular = Callable[[pa.Array], pa.Array]


class _Moment(NamedTuple):
    """The parts of a text. ``seconds`` is the time of day, ``digits`` its fraction."""

    year: int
    month: int
    day: int
    seconds: int
    digits: str
    offset: int


class _Unfit(Exception):  # noqa: N818 - control flow inside this module
    def __init__(self, why: IssueKind) -> None:
        self.why = why


def parse_timestamps(texts: pa.Array) -> Parsed:
    """Parse UTC timestamps in microseconds. Without an offset, a text is in UTC.

    Returns the column, and the rows that are not exact; NULL if the text is not a timestamp.
    """
    return _parse_column(texts, _UTC, _regular_utc)


def parse_local_timestamps(texts: pa.Array) -> Parsed:
    """Parse timestamps without zone. An offset is dropped; the local time stays."""
    return _parse_column(texts, _LOCAL, _regular_local)


def parse_dates(texts: pa.Array) -> Parsed:
    """Parse dates. For a timestamp, this is its date as written."""
    return _parse_column(texts, _DATE, _regular_date)


def parse_times(texts: pa.Array) -> Parsed:
    """Parse times of day into one spelling: ``12:34:56``, ``12:34:56.5Z``, ``12:34:56-08:00``."""
    clean = pc.fill_null(pc.match_substring_regex(texts, _CLEAN_TIME), True)
    if pc.all(clean, min_count=0).as_py():
        return texts, {}
    odd = pc.invert(clean)
    rows = pc.indices_nonzero(odd)
    spelled = [_spell_time(text) for text in texts.take(rows).to_pylist()]
    misfits = {
        row: IssueKind.TYPE
        for row, text in zip(rows.to_pylist(), spelled, strict=True)
        if text is None
    }
    return pc.replace_with_mask(texts, odd, pa.array(spelled, pa.string())), misfits


def _spell_time(text: str) -> str | None:
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    fraction = f".{found['fraction']}" if found["fraction"] else ""
    clock = f"{found['hour']}:{found['minute']}:{found['second'] or '00'}{fraction}"
    if not found["zoned"]:
        return clock
    hours, minutes, seconds = (found[part] or "00" for part in ("zh", "zm", "zs"))
    if int(hours) > 23 or int(minutes) > 59 or int(seconds):
        return None
    offset = f"{hours}:{minutes}"
    return f"{clock}Z" if offset == "00:00" else f"{clock}{found['sign']}{offset}"


def instant(text: str) -> tuple[int, str] | None:
    """Return the seconds since 1970 in UTC and the digits of the fraction; None if invalid.

    The result is exact, for any year. Without an offset, a text is in UTC.
    """
    try:
        moment = _read(text)
    except _Unfit:
        return None
    if not _is_day(moment):
        return None
    # The calendar repeats every 400 years.
    cycles, year = divmod(moment.year, 400)
    day = dt.date(year + 400, moment.month, moment.day).toordinal() - _EPOCH.date().toordinal()
    days = day + (cycles - 1) * _DAYS_OF_400_YEARS
    return days * 86_400 + moment.seconds - moment.offset, moment.digits


def _is_day(moment: _Moment) -> bool:
    try:
        dt.date(moment.year % 400 + 400, moment.month, moment.day)
    except ValueError:
        return False
    return True


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


def _parse_column(texts: pa.Array, kind: pa.DataType, parse_regular: Regular) -> Parsed:
    # Arrow refuses inexact values, so if it accepts all, nothing is lost.
    column = _cast(texts, kind)
    if column is not None:
        return _in_range(column, {})
    regular = pc.match_substring_regex(texts, _REGULAR)
    odd = pc.fill_null(pc.invert(regular), False)
    rest = pc.if_else(regular, texts, _NOTHING)
    column = _cast(rest, kind)
    if column is None:
        column = parse_regular(rest)
    lost = pc.indices_nonzero(pc.fill_null(pc.match_substring_regex(rest, _LOST[kind]), False))
    misfits = dict.fromkeys(lost.to_pylist(), IssueKind.ROUNDED)
    rows = pc.indices_nonzero(odd)
    values: list[dt.date | None] = []
    for row, text in zip(rows.to_pylist(), texts.take(rows).to_pylist(), strict=True):
        try:
            moment = _read(text)
            values.append(_value(moment, kind))
        except _Unfit as unfit:
            values.append(None)
            misfits[row] = unfit.why
        else:
            if _loses(moment, kind):
                misfits[row] = IssueKind.ROUNDED
    return _in_range(pc.replace_with_mask(column, odd, pa.array(values, kind)), misfits)


def _cast(texts: pa.Array, kind: pa.DataType) -> pa.Array | None:
    """Convert all texts at once. Return None if Arrow refuses one."""
    # Arrow requires an offset on all timestamps or on none. A refusal takes 30 times as long as a
    # success, so a few values are tried first.
    for form in (_UTC, _LOCAL) if kind == _UTC else (kind,):
        try:
            pc.cast(texts.slice(0, _PROBED), form)
            return pc.cast(pc.cast(texts, form), kind)
        except pa.ArrowInvalid:
            continue
    return None


def _in_range(column: pa.Array, misfits: dict[int, IssueKind]) -> Parsed:
    least, most = _RANGES[column.type]
    numbers = column.view(pa.int32() if column.type == _DATE else pa.int64())
    found = pc.min_max(numbers).as_py()
    if found["min"] is None or (least <= found["min"] and found["max"] <= most):
        return column, misfits
    beyond = pc.or_(pc.less(numbers, least), pc.greater(numbers, most))
    rows = pc.indices_nonzero(beyond).to_pylist()
    return (
        pc.if_else(beyond, pa.scalar(None, column.type), column),
        misfits | dict.fromkeys(rows, IssueKind.SIZE),
    )


def _read(text: str) -> _Moment:
    """Parse ``text`` without checking that the day exists. Raises :class:`_Unfit`."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise _Unfit(IssueKind.TYPE)
    hour, minute, second, zone_hours, zone_minutes, zone_seconds = (
        int(found[part] or 0) for part in ("hour", "minute", "second", "zh", "zm", "zs")
    )
    seconds = (hour * 60 + minute) * 60 + second
    digits = (found["fraction"] or "").rstrip("0")
    midnight = seconds == 86_400 and not digits[:6].strip("0")
    if (
        (hour > 23 and not midnight)
        or second > 60
        or zone_hours > 23
        or max(minute, zone_minutes, zone_seconds) > 59
    ):
        raise _Unfit(IssueKind.TYPE)
    year = int(found["year"] or found["y"])
    month = (found["month"] or found["m"]).lower()
    offset = (zone_hours * 60 + zone_minutes) * 60 + zone_seconds
    moment = _Moment(
        1 - year if (found["era"] or "").upper() == "BC" else year,
        _MONTHS.index(month) + 1 if month in _MONTHS else int(month),
        int(found["day"] or found["d"]),
        seconds,
        digits,
        -offset if found["sign"] == "-" else offset,
    )
    if found["zone"] and not found["sign"]:
        return moment._replace(offset=_offset_in(found["zone"], moment))
    return moment


def _offset_in(zone: str, moment: _Moment) -> int:
    """Return the seconds by which the local time ``moment`` in ``zone`` is ahead of UTC.

    For an hour that occurs twice, this is the first one; for a skipped hour, the offset before it.
    """
    try:
        local = _value(moment, _LOCAL)
        assert isinstance(local, dt.datetime)
        offset = local.replace(tzinfo=ZoneInfo(zone)).utcoffset()
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise _Unfit(IssueKind.TYPE) from None
    return int((offset or dt.timedelta()).total_seconds())


def _value(moment: _Moment, kind: pa.DataType) -> dt.date:
    """Return ``moment`` for a column of ``kind``. Raises :class:`_Unfit`."""
    if not 1 <= moment.year <= 9999:
        raise _Unfit(IssueKind.SIZE)
    try:
        day = dt.datetime(moment.year, moment.month, moment.day)
        if kind == _DATE:
            return day.date()
        microseconds = int(moment.digits[:6].ljust(6, "0"))
        local = day + dt.timedelta(seconds=moment.seconds, microseconds=microseconds)
        return local - dt.timedelta(seconds=moment.offset) if kind == _UTC else local
    except OverflowError:
        raise _Unfit(IssueKind.SIZE) from None
    except ValueError:
        raise _Unfit(IssueKind.TYPE) from None


def _loses(moment: _Moment, kind: pa.DataType) -> bool:
    """Whether a column of ``kind`` cannot hold ``moment`` exactly."""
    if kind == _DATE:
        return bool(moment.seconds or moment.digits or moment.offset)
    return len(moment.digits) > 6 or (kind == _LOCAL and moment.offset != 0)
