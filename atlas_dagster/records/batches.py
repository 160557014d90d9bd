"""Convert records of one stream into Arrow batches.

Columns are built from whole lists of values. No Python object per value outlives the batch.
"""

import gc
import itertools
import operator
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw

from atlas_dagster.protocol.messages import ABSENT, Record, present
from atlas_dagster.records.coerce import STRICT_TYPES, decode_string
from atlas_dagster.records.issues import IssueKind, RowIssues, ValueChange, utf8
from atlas_dagster.records.nested import NestedFields
from atlas_dagster.records.numbers import parse_decimals, parse_numbers
from atlas_dagster.records.rows import RowDecoder
from atlas_dagster.records.temporal import (
    parse_dates,
    parse_local_timestamps,
    parse_times,
    parse_timestamps,
)
from atlas_dagster.records.types import METADATA_FIELDS, Column, ColumnType, TableSchema

#: A smaller ``emitted_at`` must be seconds, which old connectors and fixtures send.
_MILLISECONDS_FROM = 10**11
#: Different changes that are counted. A source may report any number.
_MOST_CHANGES = 1_000
#: First and last ``emitted_at`` of the years 1 to 9999, in milliseconds.
_FIRST_EMITTED, _LAST_EMITTED = -62_135_596_800_000, 253_402_300_799_999
#: A larger ``emitted_at`` must be microseconds, and from here on nanoseconds.
_NANOSECONDS_FROM = 10**17
_meta, _emitted_at = operator.attrgetter("meta"), operator.attrgetter("emitted_at")
_TEMPORAL_PARSERS = {
    ColumnType.DATE: parse_dates,
    ColumnType.TIMESTAMP: parse_timestamps,
    ColumnType.LOCAL_TIMESTAMP: parse_local_timestamps,
    ColumnType.TIME: parse_times,
}


class BatchBuilder:
    """Collects records of one stream and converts them into a typed batch.

    Args:
        schema: the columns of the stream's table.
        sync_id: the value in ``_airbyte_meta``.
        generation_id: the value in ``_airbyte_generation_id``.
        key: the columns that identify rows. Their exact values are kept if they do not fit.
    """

    def __init__(
        self,
        schema: TableSchema,
        *,
        sync_id: int,
        generation_id: int,
        key: Collection[str] = (),
    ) -> None:
        self.schema = schema
        self._arrow = schema.arrow
        self._sync_id = sync_id
        self._generation_id = generation_id
        self._records: list[Record] = []
        self.bytes = 0
        #: How often each change was noted, in all batches so far.
        self.changes: Counter[ValueChange] = Counter()
        self._decode = RowDecoder(schema, key)
        self._nested = NestedFields(schema, key)

    def __len__(self) -> int:
        return len(self._records)

    def extend(self, records: Sequence[Record], size: int) -> None:
        """Add records whose ``data`` has ``size`` bytes."""
        self._records += records
        self.bytes += size

    def build(self) -> pa.RecordBatch:
        """Return the collected records as one batch, and empty the builder."""
        records, self._records, self.bytes = self._records, [], 0
        with _collector_paused():
            return self._build(records)

    def _build(self, records: list[Record]) -> pa.RecordBatch:
        issues = RowIssues()
        lists = self._decode(records, issues)
        lists += self._nested(lists, issues)
        arrays = self._columns(lists, issues)
        arrays += self._metadata_columns(records, issues)
        if len(self.changes) < _MOST_CHANGES:
            self.changes.update(itertools.chain.from_iterable(issues.changes.values()))
        return pa.RecordBatch.from_arrays(arrays, schema=self._arrow)

    def _columns(self, lists: list[Sequence[Any]], issues: RowIssues) -> list[pa.Array]:
        by_kind: dict[ColumnType, list[tuple[int, Column, Sequence[Any]]]] = {}
        for index, (column, values) in enumerate(zip(self.schema.columns, lists, strict=True)):
            by_kind.setdefault(column.type, []).append((index, column, values))
        arrays: list[pa.Array] = [None] * len(lists)
        for kind, alike in by_kind.items():
            places, columns, values = zip(*alike, strict=True)
            made = _columns_of(kind, columns, values, issues)
            for place, array in zip(places, made, strict=True):
                arrays[place] = array
        return arrays

    def _metadata_columns(self, records: list[Record], issues: RowIssues) -> list[pa.Array]:
        count = len(records)
        extracted_at = _extraction_times(records, issues)
        metas = [*map(_meta, records)]
        if metas.count(ABSENT) < count:
            for row, meta in enumerate(metas):
                if present(meta) is not None:
                    issues.reported(row, meta)
        extra = issues.extra_column(count)
        return [
            random_uuids(count),
            extracted_at,
            issues.meta_column(count, self._sync_id),
            pa.repeat(pa.scalar(self._generation_id, pa.int64()), count),
            extra,
        ]


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector, which would visit the batch's rows again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def random_uuids(count: int) -> pa.Array:
    """Return ``count`` random UUIDs (version 4) as text. One by one, each would cost 2 µs."""
    raw = np.random.default_rng().integers(0, 256, (count, 16), np.uint8)
    raw[:, 6] = raw[:, 6] & 0x0F | 0x40
    raw[:, 8] = raw[:, 8] & 0x3F | 0x80
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.full((count, 36), ord("-"), np.uint8)
    places = np.array([place for place in range(36) if place not in (8, 13, 18, 23)])
    text[:, places[0::2]] = digits[raw >> 4]
    text[:, places[1::2]] = digits[raw & 0x0F]
    offsets = np.arange(0, 36 * (count + 1), 36, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


def _extraction_times(records: list[Record], issues: RowIssues) -> pa.Array:
    """Return ``emitted_at`` in UTC; the current time if it is missing or invalid."""
    try:
        times = np.array([*map(_emitted_at, records)], np.float64)
    except OverflowError:  # an integer of hundreds of digits
        sent = [r.emitted_at for r in records]
        times = np.array([s and max(-1e300, min(s, 1e300)) for s in sent], np.float64)
    times[np.abs(times) < _MILLISECONDS_FROM] *= 1000
    times[(times >= _NANOSECONDS_FROM) & (times < _NANOSECONDS_FROM * 100)] /= 1_000_000
    times[(times > _LAST_EMITTED) & (times < _NANOSECONDS_FROM)] /= 1000
    sane: npt.NDArray[np.bool_] = (times >= _FIRST_EMITTED) & (times <= _LAST_EMITTED)
    if not sane.all():
        missing = np.isnan(times)
        times[~sane] = time.time() * 1000
        for row in np.flatnonzero(~sane).tolist():
            issues.changed(row, "emitted_at", IssueKind.TYPE if missing[row] else IssueKind.SIZE)
    return pa.array((times * 1000).astype(np.int64)).cast(METADATA_FIELDS[1].type)


def _columns_of(
    kind: ColumnType,
    columns: Sequence[Column],
    lists: Sequence[Sequence[Any]],
    issues: RowIssues,
) -> list[pa.Array]:
    """Return the columns of one type from their decoded values."""
    if kind in _TEMPORAL_PARSERS:
        return [
            _temporal_column(kind, column, values, issues)
            for column, values in zip(columns, lists, strict=True)
        ]
    if kind in STRICT_TYPES:
        return [pa.array(values, kind.arrow) for values in lists]
    # All columns of a type at once: with hundreds of columns, calls cost more than values.
    count = len(lists[0])
    values = [*itertools.chain.from_iterable(lists)]
    texts, repaired = _json_texts(values)
    misfits: dict[int, IssueKind] = {}
    if kind is ColumnType.NUMBER:
        array, misfits = parse_numbers(texts)
    elif kind is ColumnType.DECIMAL:
        array, misfits = parse_decimals(texts)
    elif kind is ColumnType.TEXT:
        array = _plain_texts(texts)
    else:
        array, misfits = _of_kind(texts, kind)
    for place in repaired:
        column, row = divmod(place, count)
        issues.misfit(row, columns[column].field, IssueKind.REPAIRED, values[place])
    for place, why in misfits.items():
        column, row = divmod(place, count)
        issues.misfit(row, columns[column].field, why, values[place])
    return [array.slice(index * count, count) for index in range(len(columns))]


def _temporal_column(
    kind: ColumnType, column: Column, values: Sequence[str | None], issues: RowIssues
) -> pa.Array:
    array, misfits = _TEMPORAL_PARSERS[kind](pa.array(values, pa.string()))
    for row, why in misfits.items():
        issues.misfit(row, column.field, why, Raw(msgspec.json.encode(values[row])))
    return array


def _json_texts(values: Sequence[Raw]) -> tuple[pa.Array, list[int]]:
    """Return JSON as text, NULL for null or absent values; and the rows with invalid UTF-8."""
    # One line of output is one message, so values contain no newline. Joined and split in C, a
    # value costs less than half of a Python object.
    joined = pa.array([b"\n".join(values)], pa.binary())
    column = pc.split_pattern(joined, "\n").flatten()
    if len(column) != len(values):  # or there are no values
        column = pa.array([bytes(value) for value in values], pa.binary())
    texts, repaired = utf8(column)
    absent = pc.is_in(texts, pa.array(["", "null"]))
    return pc.if_else(absent, pa.scalar(None, pa.string()), texts), repaired


def _plain_texts(texts: pa.Array) -> pa.Array:
    """Return JSON as plain text: strings without their quotes, other values as written."""
    quoted = pc.fill_null(pc.starts_with(texts, '"'), False)
    escaped = pc.and_(quoted, pc.fill_null(pc.match_substring(texts, "\\"), False))
    # A string without escapes contains no quotes but its own.
    plain = pc.if_else(pc.xor(quoted, escaped), pc.ascii_trim(texts, '"'), texts)
    if not pc.any(escaped, min_count=0).as_py():
        return plain
    strings = [decode_string(text) for text in texts.filter(escaped).to_pylist()]
    return pc.replace_with_mask(plain, escaped, pa.array(strings, pa.string()))


def _of_kind(texts: pa.Array, kind: ColumnType) -> tuple[pa.Array, dict[int, IssueKind]]:
    """Return an object or array column. It accepts no other values, not even JSON in strings."""
    if kind is ColumnType.UNKNOWN:
        return texts, {}
    fits = pc.fill_null(pc.starts_with(texts, "{" if kind is ColumnType.OBJECT else "["), True)
    if pc.all(fits, min_count=0).as_py():
        return texts, {}
    unfit = pc.indices_nonzero(pc.invert(fits)).to_pylist()
    array = pc.if_else(fits, texts, pa.scalar(None, pa.string()))
    return array, dict.fromkeys(unfit, IssueKind.TYPE)
