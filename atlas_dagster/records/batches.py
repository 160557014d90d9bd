"""Records of one stream into Arrow batches.

Each record's ``data`` is decoded straight into a struct generated for its stream, which checks
every type in C; only a record that does not fit takes the slow way, value by value. Columns are
built from whole lists. No Python object per value survives the batch.
"""

import gc
import json
import operator
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw

from atlas_dagster.protocol.messages import ABSENT, Record, present
from atlas_dagster.records.coerce import Change, Misfit, coerce_row
from atlas_dagster.records.temporal import parse_dates, parse_local_timestamps, parse_timestamps
from atlas_dagster.records.types import METADATA_FIELDS, ColumnType, TableSchema

_INT64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
#: Smaller than this, ``emitted_at`` must be seconds: old connectors and fixtures send those.
_MILLISECONDS_FROM = 10**11
#: Names that msgspec can match; a table with any other one takes the slow way altogether.
_PLAIN_FIELD = re.compile(r'[^"\\\x00-\x1f]*\Z')

_FIELD_TYPES: dict[ColumnType, Any] = {
    ColumnType.BOOLEAN: bool | None,
    ColumnType.INTEGER: _INT64 | None,
    ColumnType.NUMBER: float | None,
}
_PARSERS = {
    ColumnType.DATE: parse_dates,
    ColumnType.TIMESTAMP: parse_timestamps,
    ColumnType.LOCAL_TIMESTAMP: parse_local_timestamps,
}


class BatchBuilder:
    """Collects records of one stream and turns them into a typed batch.

    Args:
        schema: the columns of the stream's table.
        sync_id: goes into ``_airbyte_meta``.
        generation_id: goes into ``_airbyte_generation_id``.
    """

    def __init__(self, schema: TableSchema, *, sync_id: int, generation_id: int) -> None:
        self.schema = schema
        self._arrow = schema.arrow
        self._sync_id = sync_id
        self._generation_id = generation_id
        self._records: list[Record] = []
        self.bytes = 0
        fields = [f"f{index}" for index in range(len(schema.columns))]
        self._decodable = all(_PLAIN_FIELD.match(column.field) for column in schema.columns)
        self._row_type = msgspec.defstruct(
            "Row",
            [
                (field, Raw, ABSENT)
                if column.type.is_json
                else (field, _FIELD_TYPES.get(column.type, str | None), None)
                for field, column in zip(fields, schema.columns, strict=True)
            ],
            rename=dict(zip(fields, (c.field for c in schema.columns), strict=True))
            if self._decodable
            else None,
            forbid_unknown_fields=True,
            gc=False,
        )
        self._decode = msgspec.json.Decoder(self._row_type).decode
        # attrgetter of one name gives a bare value, of several a tuple: a doubled first name
        # keeps the shape the same.
        self._values = operator.attrgetter(*(fields + fields[:1])) if fields else None

    def __len__(self) -> int:
        return len(self._records)

    def append(self, record: Record, size: int) -> None:
        """Add a record whose line had ``size`` bytes."""
        self._records.append(record)
        self.bytes += size

    def build(self) -> pa.RecordBatch:
        """The collected records as one batch; the builder is empty afterwards."""
        records, self._records, self.bytes = self._records, [], 0
        with _collector_paused():
            return self._build(records)

    def _build(self, records: list[Record]) -> pa.RecordBatch:
        changes: dict[int, list[Change]] = {}
        extras: dict[int, str] = {}
        rows = self._decode_rows(records, changes, extras)
        arrays = self._columns(rows, changes)
        arrays += self._metadata_columns(records, changes, extras)
        return pa.RecordBatch.from_arrays(arrays, schema=self._arrow)

    def _decode_rows(
        self, records: list[Record], changes: dict[int, list[Change]], extras: dict[int, str]
    ) -> list[Any]:
        decode = self._decode
        rows: list[Any] = []
        for record in records:
            try:
                if not self._decodable:
                    raise msgspec.DecodeError
                rows.append(decode(record.data))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                row = coerce_row(bytes(record.data), self.schema)
                if row.changes:
                    changes[len(rows)] = row.changes
                if row.extra is not None:
                    extras[len(rows)] = row.extra
                rows.append(self._row_type(*row.values))
        return rows

    def _columns(self, rows: list[Any], changes: dict[int, list[Change]]) -> list[pa.Array]:
        if self._values is None:
            return []
        lists = list(zip(*map(self._values, rows), strict=True)) if rows else []
        arrays = []
        for index, column in enumerate(self.schema.columns):
            values: Sequence[Any] = lists[index] if lists else ()
            if column.type.is_json:
                array, bad = _json_column(values, column.type)
            elif column.type in _PARSERS:
                array, bad = _PARSERS[column.type](pa.array(values, pa.string()))
            else:
                array, bad = pa.array(values, column.type.arrow), []
            for row in bad:
                changes.setdefault(row, []).append(Change(column.name, Misfit.TYPE))
            arrays.append(array)
        return arrays

    def _metadata_columns(
        self, records: list[Record], changes: dict[int, list[Change]], extras: dict[int, str]
    ) -> list[pa.Array]:
        count = len(records)
        milliseconds = np.fromiter((r.emitted_at for r in records), np.float64, count)
        milliseconds[milliseconds < _MILLISECONDS_FROM] *= 1000
        micros = (milliseconds * 1000).astype(np.int64)
        for index, record in enumerate(records):
            if record.meta is not ABSENT and present(record.meta) is not None:
                reported = _reported_changes(record.meta)
                if reported:
                    changes[index] = reported + changes.get(index, [])
        plain = _meta_text(self._sync_id, [])
        if changes:
            texts = [plain] * count
            for index, found in changes.items():
                texts[index] = _meta_text(self._sync_id, found)
            meta = pa.array(texts, pa.string())
        else:
            meta = pa.repeat(pa.scalar(plain), count)
        extra: pa.Array = pa.nulls(count, pa.string())
        if extras:
            extra = pa.array([extras.get(index) for index in range(count)], pa.string())
        return [
            random_uuids(count),
            pa.array(micros).cast(METADATA_FIELDS[1].type),
            meta,
            pa.repeat(pa.scalar(self._generation_id, pa.int64()), count),
            extra,
        ]


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the cyclic garbage collector, which would walk the batch's rows again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def random_uuids(count: int) -> pa.Array:
    """``count`` random (version 4) UUIDs as text, made together: one by one they cost 2 µs each."""
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


def _json_column(values: Sequence[Raw], kind: ColumnType) -> tuple[pa.Array, list[int]]:
    texts = pa.array([bytes(value) or None for value in values], pa.binary())
    try:
        texts = texts.cast(pa.string())
    except pa.ArrowInvalid:  # msgspec skips over raw values without looking at their UTF-8
        texts = pa.array([bytes(v).decode("utf-8", "replace") or None for v in values], pa.string())
    is_null = pc.equal(texts, "null")
    texts = pc.if_else(pc.fill_null(is_null, True), pa.scalar(None, pa.string()), texts)
    if kind is ColumnType.UNKNOWN:
        return texts, []
    # A column declared as object or array takes nothing else, not even JSON inside a string.
    fits = pc.fill_null(pc.starts_with(texts, "{" if kind is ColumnType.OBJECT else "["), True)
    if pc.all(fits, min_count=0).as_py():
        return texts, []
    bad = [index for index, fit in enumerate(fits.to_pylist()) if not fit]
    return pc.if_else(fits, texts, pa.scalar(None, pa.string())), bad


def _meta_text(sync_id: int, changes: list[Change]) -> str:
    listed = [change.to_json() for change in changes]
    return json.dumps({"sync_id": sync_id, "changes": listed}, separators=(",", ":"))


def _reported_changes(meta: Raw) -> list[Change]:
    """The changes the source itself reports in ``record.meta``."""
    try:
        found = msgspec.json.decode(meta).get("changes") or []
        return [Change(c["field"], c.get("reason", ""), c.get("change", "NULLED")) for c in found]
    except (ValueError, AttributeError, KeyError, TypeError):
        return []
