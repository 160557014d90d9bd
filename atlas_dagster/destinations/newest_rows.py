"""Which rows of a set of files are the newest of their key.

Keys are compared by 64-bit hashes first, eight bytes a new row. Only rows whose hash occurs again
are looked at closer, a bounded number of keys at a time, and there the keys themselves decide. So
rows that are all new, as in a first load, cost one look at their keys and no rewriting.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from atlas_dagster.destinations.data_file import DataFile

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]

#: Hashes held at once; more are taken in several passes over the files.
_HASHES = 16_000_000
#: Keys compared at once, and rows of them collected before the losers among them are let go.
_KEYS = 500_000
_VERSIONS = 4 * _KEYS
_HASH, _ROW = "_atlas_hash", "_atlas_row"


class Ranking(Struct, frozen=True):
    """The columns that identify a row, and those that say which of two versions is newer.

    The last of ``order`` decides only between equal ones before it; NULL is older than anything.
    Rows equal in all of them rank as they stand in the files.
    """

    key: pa.Schema
    order: pa.Schema


def superseded(old: Sequence[DataFile], new: Sequence[DataFile], by: Ranking) -> list[Rows]:
    """The rows that a newer one with the same key replaces: numbers in each file, ascending.

    ``new`` are in order of arrival, all after ``old``. Rows of ``old`` are compared with those of
    ``new``, never with one another alone.
    """
    files = [*old, *new]
    starts = np.cumsum([0, *(file.rows for file in files)])
    lost: list[Rows] = [np.empty(0, np.int64)]
    for hashes in _contested(old, new, by):
        lost += _losers(files, hashes, by)
    ordered = np.sort(np.concatenate(lost))
    bounds = np.searchsorted(ordered, starts)
    return [
        ordered[low:high] - start
        for low, high, start in zip(bounds, bounds[1:], starts, strict=False)
    ]


def _contested(old: Sequence[DataFile], new: Sequence[DataFile], by: Ranking) -> Iterator[Hashes]:
    """The hashes that occur in ``new`` and once more anywhere: ascending, some at a time."""
    count = sum(file.rows for file in new)
    parts = -(-count // _HASHES)
    for part in range(parts):
        space = np.empty(count, np.uint64)  # what stays untouched takes no memory
        filled = 0
        for found in _hashes(new, by, part, parts):
            space[filled : filled + len(found)] = found
            filled += len(found)
        if not filled:
            continue
        hashes = space[:filled]
        hashes.sort()
        again = np.zeros(filled, np.bool_)
        again[1:] = hashes[1:] == hashes[:-1]
        for found in _hashes(old, by, part, parts):
            again[_find(found, hashes)[1]] = True
        twice = np.unique(hashes[again])
        del space, hashes, again
        for start in range(0, len(twice), _KEYS):
            yield twice[start : start + _KEYS]


def _losers(files: Sequence[DataFile], hashes: Hashes, by: Ranking) -> Iterator[Rows]:
    """The rows, counted over all ``files``, that lose among those with these ``hashes``."""
    columns = pa.schema([*by.key, *(field for field in by.order if field not in by.key)])
    kept: list[pa.RecordBatch] = []
    waiting, row = 0, 0
    for file in files:
        for batch in file.batches(columns):
            found = _hash(batch, by)
            chosen, _ = _find(found, hashes)
            if len(chosen):
                rows = batch.take(pa.array(chosen))
                rows = rows.append_column(_HASH, pa.array(found[chosen]))
                kept.append(rows.append_column(_ROW, pa.array(chosen + row)))
                waiting += len(chosen)
            row += batch.num_rows
            if waiting > _VERSIONS:
                kept, lost = _newest(kept, by)
                waiting = 0
                yield lost
    if kept:
        yield _newest(kept, by)[1]


def _newest(rows: list[pa.RecordBatch], by: Ranking) -> tuple[list[pa.RecordBatch], Rows]:
    """The newest row of each key, and the numbers of all others."""
    table = pa.Table.from_batches(rows)
    keys = [_HASH, *by.key.names]
    names = [*keys, *(name for name in by.order.names if name not in keys), _ROW]
    order = pc.sort_indices(table, [(name, "ascending", "at_start") for name in names])
    table = table.take(order).combine_chunks()
    same = np.ones(max(table.num_rows - 1, 0), np.bool_)
    for name in keys:
        first, second = table[name][:-1], table[name][1:]
        equal = pc.fill_null(pc.equal(first, second), False)
        both_null = pc.and_(first.is_null(), second.is_null())
        same &= pc.or_(equal, both_null).to_numpy()
    last = np.append(~same, True)
    numbers = table[_ROW].to_numpy()
    return table.filter(pa.array(last)).to_batches(), numbers[~last]


def _hashes(files: Sequence[DataFile], by: Ranking, part: int, parts: int) -> Iterator[Hashes]:
    for file in files:
        for batch in file.batches(by.key):
            found = _hash(batch, by)
            yield found if parts == 1 else found[found % np.uint64(parts) == part]


def _find(wanted: Hashes, hashes: Hashes) -> tuple[Rows, Rows]:
    """Where ``wanted`` is one of the ascending ``hashes``, and where in ``hashes`` that is."""
    inside = np.flatnonzero((wanted >= hashes[0]) & (wanted <= hashes[-1]))
    places = np.searchsorted(hashes, wanted[inside])
    hit = hashes[places] == wanted[inside]
    return inside[hit], places[hit]


def _hash(batch: pa.RecordBatch, by: Ranking) -> Hashes:
    """One hash per row, the same for equal keys."""
    combined = np.zeros(batch.num_rows, np.uint64)
    for name in by.key.names:
        values = _hashable(batch.column(name))
        combined = combined * np.uint64(1_000_003) + pd.util.hash_array(values, categorize=False)
    return combined


def _hashable(column: pa.Array) -> npt.NDArray[np.generic]:
    """Values as NumPy has them; NULL becomes another value, which the keys themselves undo."""
    if pa.types.is_string(column.type):
        return column.fill_null("").to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        return column.fill_null(0).to_numpy(zero_copy_only=False) + 0.0  # -0.0 equals 0.0
    if pa.types.is_date32(column.type):
        column = column.cast(pa.int32())
    return column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
