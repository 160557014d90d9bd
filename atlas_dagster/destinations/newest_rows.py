"""Which rows of a set of files are the newest of their key.

Keys are compared by 64-bit hashes first, eight bytes a new row. Only rows whose hash occurs again
are looked at closer, a bounded number of keys at a time, and there the keys themselves decide. So
rows that are all new, as in a first load, cost one look at their keys and no rewriting.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from atlas_dagster.destinations.data_file import DataFile
from atlas_dagster.destinations.exact_keys import EXACT, exact_batches

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Hashes held at once; more are taken in several passes over the files.
_HASHES = 8_000_000
#: Keys compared at once, and rows of them collected before the losers among them are let go.
_KEYS = 250_000
_VERSIONS = 3 * _KEYS
_HASH, _ROW = "_atlas_hash", "_atlas_row"


class Ranking(Struct, frozen=True):
    """The columns that identify a row, and those that say which of two versions is newer.

    The last of ``order`` decides only between equal ones before it; NULL is older than anything.
    Rows equal in all of them rank as they stand in the files. ``fields``: the source's name of each
    key column, where ``key`` has :data:`~atlas_dagster.destinations.exact_keys.EXACT`, too.
    """

    key: pa.Schema
    order: pa.Schema
    fields: Mapping[str, str] = {}


def by_key(
    schema: pa.Schema, key: Sequence[str], fields: Mapping[str, str], order: Sequence[str] = ()
) -> Ranking:
    """The ranking of rows with the columns of ``schema``."""
    return Ranking(
        pa.schema([*(schema.field(name) for name in key), EXACT]),
        pa.schema([schema.field(name) for name in order]),
        fields,
    )


def newest_rows(old: Sequence[DataFile], new: Sequence[DataFile], by: Ranking) -> list[Mask]:
    """Which rows of each file stay: all but those that a newer one with the same key replaces.

    ``new`` are in order of arrival, all after ``old``. Of a key that only ``old`` has, the newest
    row stays for certain, and others, where the table was not unique before, mostly do.
    """
    files = [*old, *new]
    ends = np.cumsum([file.rows for file in files], dtype=np.int64)
    if not files:
        return []
    stays = np.ones(ends[-1], np.bool_)
    for part in range(parts := -(-sum(file.rows for file in new) // _HASHES)):
        contested = _contested(old, new, by, part, parts)
        if len(contested):
            for lost in _losers(files, _HashSet(contested), by):
                stays[lost] = False
    return np.split(stays, ends[:-1])


class _HashSet:
    """Hashes to look others up in. A table of first bits says no to most that are not here."""

    def __init__(self, ascending: Hashes) -> None:
        self.ascending = ascending
        bits = min(max((16 * len(ascending)).bit_length(), 16), 24)
        self._shift = np.uint64(64 - bits)
        self._near = np.zeros(1 << bits, np.bool_)
        self._near[ascending >> self._shift] = True

    def find(self, wanted: Hashes) -> tuple[Rows, Rows]:
        """Which of ``wanted`` are here, and the place of each in the ascending order."""
        near = np.flatnonzero(self._near[wanted >> self._shift])
        near = near[np.argsort(wanted[near])]  # a search in order stays in the processor's cache
        values = wanted[near]
        places = np.searchsorted(self.ascending, values)
        places[places == len(self.ascending)] = 0
        hit = self.ascending[places] == values
        return near[hit], places[hit]


def _contested(
    old: Sequence[DataFile], new: Sequence[DataFile], by: Ranking, part: int, parts: int
) -> Hashes:
    """The hashes, of one part of all, that occur in ``new`` and once more anywhere; ascending."""
    space = np.empty(sum(file.rows for file in new), np.uint64)  # untouched, it takes no memory
    filled = 0
    for found in _hashes(new, by, part, parts):
        space[filled : filled + len(found)] = found
        filled += len(found)
    hashes = space[:filled]
    hashes.sort()
    again = np.zeros(filled, np.bool_)
    again[1:] = hashes[1:] == hashes[:-1]
    if old and filled:
        known = _HashSet(hashes)
        for found in _hashes(old, by, part, parts):
            again[known.find(found)[1]] = True
    hashes = hashes[again]
    first = np.ones(len(hashes), np.bool_)
    first[1:] = hashes[1:] != hashes[:-1]
    return hashes[first]


def _losers(files: Sequence[DataFile], contested: _HashSet, by: Ranking) -> Iterator[Rows]:
    """The rows, counted over all ``files``, that lose among those with ``contested`` hashes.

    They are put aside on disk first, so that all versions of some keys can be compared at once.
    """
    columns = pa.schema([*by.key, *(field for field in by.order if field.name not in by.key.names)])
    aside = columns.append(pa.field(_HASH, pa.uint64())).append(pa.field(_ROW, pa.int64()))
    row = 0
    with tempfile.TemporaryDirectory(prefix="atlas-merge-") as folder:
        shares = [Path(folder, str(n)) for n in range(-(-len(contested.ascending) // _KEYS))]
        with ExitStack() as stack:
            sinks = [stack.enter_context(pa.ipc.new_stream(path, aside)) for path in shares]
            for file in files:
                for batch in exact_batches(file, columns, by.fields):
                    hashes = _hash(batch, by)
                    rows, places = contested.find(hashes)
                    bounds = np.searchsorted(places, np.arange(len(sinks) + 1) * _KEYS)
                    for sink, low, high in zip(sinks, bounds, bounds[1:], strict=False):
                        if high > low:
                            chosen = rows[low:high]
                            found = batch.take(pa.array(chosen)).columns
                            found += [pa.array(hashes[chosen]), pa.array(chosen + row)]
                            sink.write_batch(pa.RecordBatch.from_arrays(found, schema=aside))
                    row += batch.num_rows
        for path in shares:
            yield from _losers_of_share(path, by)


def _losers_of_share(path: Path, by: Ranking) -> Iterator[Rows]:
    kept: list[pa.RecordBatch] = []
    waiting = 0
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            kept.append(batch)
            waiting += batch.num_rows
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
        for batch in exact_batches(file, by.key, by.fields):
            found = _hash(batch, by)
            yield found if parts == 1 else found[found % np.uint64(parts) == part]


def _hash(batch: pa.RecordBatch, by: Ranking) -> Hashes:
    """One hash per row, the same for equal keys."""
    combined = np.zeros(batch.num_rows, np.uint64)
    for name in by.key.names:
        combined *= np.uint64(1_000_003)
        column = batch.column(name)
        if column.null_count == len(column):
            continue
        hashes = pd.util.hash_array(_hashable(column), categorize=False)
        if column.null_count:
            hashes[column.is_null().to_numpy(zero_copy_only=False)] = 0
        combined += hashes
    return combined


def _hashable(column: pa.Array) -> npt.NDArray[Any]:
    """Values as NumPy has them, anything for NULL."""
    if pa.types.is_floating(column.type):
        column = pc.add(column.fill_null(0), 0.0)  # -0.0 equals 0.0
    elif pa.types.is_primitive(column.type) and not pa.types.is_decimal(column.type):
        # A date is 32 bits wide and casts to no wider number.
        number = column.cast(pa.int32()) if pa.types.is_date(column.type) else column
        column = number.cast(pa.int64()).fill_null(0)
    else:
        column = column.cast(pa.string()).fill_null("")
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values
