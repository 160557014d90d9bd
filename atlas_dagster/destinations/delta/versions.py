"""Keys and cursors of rows, read from files so that they can be compared.

A value that its column cannot hold exactly is kept in ``_airbyte_extra`` and noted in
``_airbyte_meta``. These columns are read only if the file's statistics show such notes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from atlas_dagster.destinations.delta.data_file import DataFile
from atlas_dagster.destinations.exact_values import identity_of
from atlas_dagster.records.kept_values import Mask, is_valid, kept_values, note_of
from atlas_dagster.records.types import EXTRA, EXTRACTED_AT, META, Column

#: Computed columns: the kept values of the key, normalized, and of the cursor, as written by the
#: source; NULL if the columns hold the exact values.
KEPT_KEY = pa.field("_atlas_kept_key", pa.string())
KEPT_CURSOR = pa.field("_atlas_kept_cursor", pa.string())
#: The cursor, and the time of extraction in microseconds.
CURSOR = "_atlas_cursor"
EXTRACTED = pa.field("_atlas_extracted", pa.int64())
_NOTES = pa.schema([(META, pa.string()), (EXTRA, pa.string())])
_TIME = pa.field(EXTRACTED_AT, pa.timestamp("us", tz="UTC"))
_EARLIEST = pa.scalar(-(2**63), pa.int64())


class Ranking(Struct, frozen=True):
    """The key columns that identify a row, and the cursor that orders its versions."""

    key: tuple[Column, ...]
    cursor: Column | None = None

    @property
    def key_schema(self) -> pa.Schema:
        return pa.schema([*map(_field, self.key), KEPT_KEY])

    @property
    def schema(self) -> pa.Schema:
        order = [EXTRACTED]
        if self.cursor is not None:
            order += [pa.field(CURSOR, self.cursor.type.arrow), KEPT_CURSOR]
        return pa.schema([*self.key_schema, *order])


def keys(file: DataFile, by: Ranking) -> Iterator[pa.RecordBatch]:
    """Yield all rows of ``file`` with the columns of ``by.key_schema``."""
    for batch, notes in _batches(file, by.key):
        yield pa.RecordBatch.from_arrays(_key(batch, by, notes), schema=by.key_schema)


def versions(file: DataFile, by: Ranking) -> Iterator[pa.RecordBatch]:
    """Yield all rows of ``file`` with the columns of ``by.schema``."""
    cursor = () if by.cursor is None else (by.cursor,)
    for batch, notes in _batches(file, (*by.key, *cursor), _TIME):
        columns = _key(batch, by, notes)
        columns.append(batch.column(EXTRACTED_AT).cast(pa.int64()).fill_null(_EARLIEST))
        for column in cursor:
            columns += [batch.column(column.name), _kept(notes, column, batch.num_rows)]
        yield pa.RecordBatch.from_arrays(columns, schema=by.schema)


def with_identity(batch: pa.RecordBatch, by: Ranking) -> Mask | None:
    """Return a mask of the rows of :func:`keys` with a value in every key field; None for all.

    A kept value counts; null and a missing field do not.
    """
    columns = [batch.column(column.name) for column in by.key]
    if not any(column.null_count for column in columns):
        return None
    filled = np.ones(batch.num_rows, np.bool_)
    for column in columns:
        filled &= is_valid(column)
    return filled | is_valid(batch.column(KEPT_KEY.name))


def has_value(file: DataFile, column: Column) -> Mask:
    """Return a mask of the rows of ``file`` with a value in ``column``, kept or not."""
    if file.null_count(column.name) == file.rows and not _has_notes(file, [column]):
        return np.zeros(file.rows, np.bool_)
    found = [np.zeros(0, np.bool_)]
    for batch, notes in _batches(file, (column,)):
        kept = _kept(notes, column, batch.num_rows)
        found.append(is_valid(batch.column(column.name)) | is_valid(kept))
    return np.concatenate(found)


def _batches(
    file: DataFile, columns: Sequence[Column], *more: pa.Field
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch | None]]:
    """Yield rows with ``columns`` and ``more``, and their notes and kept values, if any."""
    wanted = pa.schema(dict.fromkeys([*map(_field, columns), *more]))
    if not _has_notes(file, columns):
        for batch in file.batches(wanted):
            yield batch, None
        return
    for batch in file.batches(pa.schema([*wanted, *_NOTES])):
        yield batch.select(wanted.names), batch.select(_NOTES.names)


def _field(column: Column) -> pa.Field:
    return pa.field(column.name, column.type.arrow)


def _has_notes(file: DataFile, columns: Sequence[Column]) -> bool:
    if file.null_count(EXTRA) == file.rows:
        return False
    return any(file.holds_text(META, note_of(column)) for column in columns)


def _kept(notes: pa.RecordBatch | None, column: Column, count: int) -> pa.Array:
    """Return the kept JSON of ``column`` for each row; all null without ``notes``."""
    return pa.nulls(count, pa.string()) if notes is None else kept_values(notes, column)


def _key(batch: pa.RecordBatch, by: Ranking, notes: pa.RecordBatch | None) -> list[pa.Array]:
    """Return the columns of ``by.key_schema``. JSON keys go, normalized, to the last one."""
    count = batch.num_rows
    columns = [batch.column(column.name) for column in by.key]
    if notes is None and not any(column.type.is_json for column in by.key):
        return [*columns, pa.nulls(count, KEPT_KEY.type)]
    kept = [_kept(notes, column, count) for column in by.key]
    for place, column in enumerate(by.key):
        if column.type.is_json:
            kept[place] = pc.coalesce(kept[place], columns[place])
            columns[place] = pa.nulls(count, pa.string())
    odd = np.zeros(count, np.bool_)
    whole = np.ones(count, np.bool_)
    for values, column in zip(kept, columns, strict=True):
        odd |= is_valid(values)
        whole &= is_valid(values) | is_valid(column)
    texts: list[str | None] = [None] * count
    for row in np.flatnonzero(odd & whole).tolist():
        parts = (values[row].as_py() for values in kept)
        texts[row] = "\0".join("" if part is None else identity_of(part) for part in parts)
    return [*columns, pa.array(texts, KEPT_KEY.type)]
