"""Dates and timestamps: whole columns of text at once, odd values one by one."""

import datetime as dt
import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

_UTC = pa.timestamp("us", tz="UTC")
_LOCAL = pa.timestamp("us")
_REGULAR = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}(:?\d{2})?)?$"
_ZONE = r"(Z|[+-]\d{2}(:?\d{2})?)$"
_BEYOND_MICROSECONDS = r"(\.\d{6})\d+"
_SPACE_BEFORE_ZONE = re.compile(r"\s+(?=[+-]\d{2}:?\d{0,2}$|Z$|UTC$)")

Parsed = tuple[pa.Array, list[int]]


def parse_timestamps(texts: pa.Array) -> Parsed:
    """UTC timestamps of microseconds; text without an offset is taken as UTC.

    Returns the column and the indices of values that are no timestamps (NULL in the column).
    """
    try:
        return pc.cast(texts, _UTC), []
    except pa.ArrowInvalid:
        pass
    # Arrow wants an offset on every value and six fractional digits at most.
    short = pc.replace_substring_regex(texts, _BEYOND_MICROSECONDS, r"\1")
    zoned = pc.match_substring_regex(short, _ZONE)
    short = pc.if_else(zoned, short, pc.binary_join_element_wise(short, "Z", ""))
    return _cast_or_parse(texts, short, _UTC, _utc)


def parse_local_timestamps(texts: pa.Array) -> Parsed:
    """Timestamps without zone; an offset is dropped and the local time kept."""
    try:
        return pc.cast(texts, _LOCAL), []
    except pa.ArrowInvalid:
        pass
    short = pc.replace_substring_regex(texts, _BEYOND_MICROSECONDS, r"\1")
    # The pattern is anchored behind a time of day, so that the "-01" of a date stays.
    local = pc.replace_substring_regex(short, r"(:\d{2}(\.\d+)?)(Z|[+-]\d{2}(:?\d{2})?)$", r"\1")
    return _cast_or_parse(texts, local, _LOCAL, lambda moment: moment.replace(tzinfo=None))


def parse_dates(texts: pa.Array) -> Parsed:
    """Dates; of a timestamp, its date part as written."""
    try:
        return pc.cast(texts, pa.date32()), []
    except pa.ArrowInvalid:
        return _one_by_one(texts, pa.date32(), lambda moment: moment.date())


def _cast_or_parse(
    texts: pa.Array,
    prepared: pa.Array,
    target: pa.DataType,
    finish: Callable[[dt.datetime], object],
) -> Parsed:
    regular = pc.match_substring_regex(texts, _REGULAR)
    try:
        if pc.all(regular, min_count=0).as_py():
            return pc.cast(prepared, target), []
    except pa.ArrowInvalid:  # regular in form, but the 30th of February
        pass
    return _one_by_one(texts, target, finish)


def _one_by_one(
    texts: pa.Array, target: pa.DataType, finish: Callable[[dt.datetime], object]
) -> Parsed:
    values: list[object | None] = []
    bad: list[int] = []
    for index, text in enumerate(texts.to_pylist()):
        moment = None if text is None else _parse(text)
        if text is not None and moment is None:
            bad.append(index)
        values.append(None if moment is None else finish(moment))
    return pa.array(values, target), bad


def _parse(text: str) -> dt.datetime | None:
    text = _SPACE_BEFORE_ZONE.sub("", text.strip()).removesuffix("UTC")
    text = re.sub(_BEYOND_MICROSECONDS, r"\1", text)
    try:
        moment = dt.datetime.fromisoformat(text)
        _utc(moment)
    except (ValueError, OverflowError):
        return None
    return moment


def _utc(moment: dt.datetime) -> dt.datetime:
    if moment.tzinfo is None:
        return moment.replace(tzinfo=dt.UTC)
    return moment.astimezone(dt.UTC)
