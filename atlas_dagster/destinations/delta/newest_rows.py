"""The newest row of each key in a set of files.

Keys are compared by 64-bit hashes first, which takes eight bytes for each new row. Only rows with a
repeated hash are compared by the keys themselves, a bounded number of keys at a time. If all rows
are new, as in a first load, their keys are read once and no file is rewritten.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

from atlas_dagster.destinations.delta.data_file import DataFile
from atlas_dagster.destinations.delta.versions import (
    CURSOR,
    EXTRACTED,
    KEPT_CURSOR,
    Ranking,
    keys,
    versions,
    with_identity,
)
from atlas_dagster.destinations.exact_values import DATED, ZONE, order_of
from atlas_dagster.records.kept_values import Mask

Hashes = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]

#: Most hashes in memory; more take several passes over the files.
_HASHES = 8_000_000
#: Most keys compared at once, and rows collected before the outdated ones are dropped.
_KEYS = 250_000
_VERSIONS = 3 * _KEYS
_HASH, _ARRIVAL, _ROW, _ORDER = "_atlas_hash", "_atlas_arrival", "_atlas_row", "_atlas_order"
#: Arrival of new rows: after all old rows, whose arrival is their time of extraction.
_LAST = pa.scalar(2**63 - 1, pa.int64())
_NAMED_ZONE = ZONE.replace("(", "(?P<zone>")
_NO_ROWS: Rows = np.empty(0, np.int64)


class Newest(Struct, frozen=True):
    """The rows of each file that ``stay``, as masks.

    ``late``: the number of rows that lost to a row that arrived before them.
    """

    stay: list[Mask]
    late: int = 0


def newest_rows(
    old: Sequence[DataFile], new: Sequence[DataFile], by: Ranking, *, unique: bool = True
) -> Newest:
    """Find the rows that stay: all except those that a newer version of their key replaces.

    A version without a comparable cursor replaces all that arrived before it. The newest version
    is the one with the greatest cursor since the last such version; of equal ones, the one
    extracted last, then the one that arrived last. A row without a value in a field of the key has
    no other versions.

    Args:
        old: files of the table, in the order of their extraction.
        new: files in order of arrival, all after ``old``.
        unique: ``old`` has each key once, so only keys of ``new`` are compared.
    """
    files, arrivals = [*old, *new], len(new)
    ends = np.cumsum([file.rows for file in files], dtype=np.int64)
    if not files:
        return Newest([])
    if not unique:
        old, new = (), files
    first_new = int(ends[-1]) - sum(file.rows for file in files[len(files) - arrivals :])
    stays = np.ones(ends[-1], np.bool_)
    late = 0
    for part in range(parts := -(-sum(file.rows for file in new) // _HASHES)):
        repeated = _repeated_hashes(old, new, by, part, parts)
        if len(repeated):
            for lost in _find_outdated(files, _HashSet(repeated), by, first_new):
                stays[lost.rows] = False
                late += lost.late
    return Newest(np.split(stays, ends[:-1]), late)


class _Outdated(Struct, frozen=True):
    rows: Rows
    late: int


class _HashSet:
    """A set of hashes. A table of their first bits rejects most other hashes at once."""

    def __init__(self, ascending: Hashes) -> None:
        self.ascending = ascending
        bits = min(max((16 * len(ascending)).bit_length(), 16), 24)
        self._shift = np.uint64(64 - bits)
        self._near = np.zeros(1 << bits, np.bool_)
        self._near[ascending >> self._shift] = True

    def find(self, wanted: Hashes) -> tuple[Rows, Rows]:
        """Return the indices of ``wanted`` that are in the set, and their positions in it."""
        near = np.flatnonzero(self._near[wanted >> self._shift])
        near = near[np.argsort(wanted[near])]  # searching in order uses the processor's cache
        values = wanted[near]
        places = np.searchsorted(self.ascending, values)
        places[places == len(self.ascending)] = 0
        hit = self.ascending[places] == values
        return near[hit], places[hit]


def _repeated_hashes(
    old: Sequence[DataFile], new: Sequence[DataFile], by: Ranking, part: int, parts: int
) -> Hashes:
    """Return the hashes of one part that occur in ``new`` and once more anywhere, ascending."""
    space = np.empty(sum(file.rows for file in new), np.uint64)  # unused parts take no memory
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


def _find_outdated(
    files: Sequence[DataFile], repeated: _HashSet, by: Ranking, first_new: int
) -> Iterator[_Outdated]:
    """Find the outdated rows, numbered over all ``files``, among those with ``repeated`` hashes.

    Rows with such a hash are first written to temporary files, each with all versions of its keys.
    """
    numbers = [(_HASH, pa.uint64()), (_ARRIVAL, pa.int64()), (_ROW, pa.int64())]
    schema = pa.schema([*by.schema, *itertools.starmap(pa.field, numbers)])
    row = 0
    with tempfile.TemporaryDirectory(prefix="atlas-merge-") as folder:
        shares = [Path(folder, str(n)) for n in range(-(-len(repeated.ascending) // _KEYS))]
        with ExitStack() as stack:
            sinks = [stack.enter_context(pa.ipc.new_stream(path, schema)) for path in shares]
            for file in files:
                is_new = row >= first_new
                for batch in versions(file, by):
                    hashes, identified = _hash(batch, by), with_identity(batch, by)
                    rows, places = repeated.find(hashes)
                    if identified is not None:
                        rows, places = rows[identified[rows]], places[identified[rows]]
                    bounds = np.searchsorted(places, np.arange(len(sinks) + 1) * _KEYS)
                    for sink, low, high in zip(sinks, bounds, bounds[1:], strict=False):
                        if high > low:
                            chosen = rows[low:high]
                            found = batch.take(pa.array(chosen))
                            arrival = found.column(EXTRACTED.name)
                            columns = [
                                *found.columns,
                                pa.array(hashes[chosen]),
                                pa.repeat(_LAST, len(chosen)) if is_new else arrival,
                                pa.array(chosen + row),
                            ]
                            sink.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
                    row += batch.num_rows
        for path in shares:
            yield from _find_outdated_of_share(path, by, first_new)


def _find_outdated_of_share(path: Path, by: Ranking, first_new: int) -> Iterator[_Outdated]:
    kept: list[pa.RecordBatch] = []
    collected = 0
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
        for batch in reader:
            kept.append(batch)
            collected += batch.num_rows
            if collected > _VERSIONS:
                kept, lost = _split_newest(kept, by, first_new)
                collected = 0
                yield lost
    if kept:
        yield _split_newest(kept, by, first_new)[1]


def _split_newest(
    rows: list[pa.RecordBatch], by: Ranking, first_new: int
) -> tuple[list[pa.RecordBatch], _Outdated]:
    """Return the rows to compare with the next ones, and the outdated rows."""
    kept: list[pa.RecordBatch] = []
    lost: list[Rows] = []
    late = 0
    keys = [_HASH, *by.key_schema.names]
    for found in _add_order(pa.Table.from_batches(rows), by):
        table, replaced = _split_at_reset(found, keys) if by.cursor else (found, _NO_ROWS)
        order = [*([_ORDER] if by.cursor else []), EXTRACTED.name, _ROW]
        table, first = _sort(table, keys, *order)
        numbers, last = table[_ROW].to_numpy(), np.append(first[1:], True)[: table.num_rows]
        winners = numbers[last][np.cumsum(first) - 1]
        lost += [replaced, numbers[~last]]
        late += int(np.sum(~last & (numbers > winners) & (numbers >= first_new)))
        # A version without a cursor stays to be compared with the rows that follow.
        still = pc.or_(pa.array(last), table[_ORDER].is_null()) if by.cursor else pa.array(last)
        kept += table.filter(still).drop_columns([_ORDER]).to_batches()
    return kept, _Outdated(np.concatenate(lost), late)


def _add_order(table: pa.Table, by: Ranking) -> Iterator[pa.Table]:
    """Yield ``table`` in parts with a column that orders versions; no key is in two parts."""
    if by.cursor is None:
        yield table.append_column(_ORDER, pa.nulls(table.num_rows, pa.bool_()))
        return
    cursors = table[CURSOR]
    odd = table[KEPT_CURSOR.name].is_valid()
    text = cursors.type == pa.string()
    if by.cursor.type.is_json or (text and not _compares_as_text(cursors)):
        odd = pa.chunked_array([pa.repeat(pa.scalar(True), table.num_rows)])
    if not pc.any(odd, min_count=0).as_py():
        yield table.append_column(_ORDER, cursors)
        return
    apart = pc.is_in(table[_HASH], pc.unique(table[_HASH].filter(odd)))
    plain, exact = table.filter(pc.invert(apart)), table.filter(apart)
    yield plain.append_column(_ORDER, plain[CURSOR])
    texts, kept = exact[CURSOR].cast(pa.string()), exact[KEPT_CURSOR.name]
    order = [
        order_of(by.cursor.type, *values)
        for values in zip(texts.to_pylist(), kept.to_pylist(), strict=True)
    ]
    yield exact.append_column(_ORDER, pa.array(order, pa.binary()))


def _compares_as_text(cursors: pa.ChunkedArray) -> bool:
    """Return whether text order is cursor order: no dates, or all dates in one format."""
    dated = pc.match_substring_regex(cursors, DATED)
    if not pc.any(dated, min_count=0).as_py():
        return True
    zones = pc.struct_field(pc.extract_regex(cursors, _NAMED_ZONE), [0])
    forms = pc.replace_substring_regex(cursors, r"[0-9]", "0")
    forms = pc.binary_join_element_wise(forms, pc.fill_null(zones, ""), "")
    return len(pc.unique(forms.drop_null())) == 1


def _split_at_reset(table: pa.Table, keys: list[str]) -> tuple[pa.Table, Rows]:
    """Return the versions of each key since its last one without a cursor, and earlier rows."""
    if not table[_ORDER].null_count:
        return table, _NO_ROWS
    table, first = _sort(table, keys, _ARRIVAL, _ROW)
    group, places = np.cumsum(first) - 1, np.arange(table.num_rows)
    resets = table[_ORDER].is_null().to_numpy()
    last = np.full(int(first.sum()), -1)
    last[group[resets]] = places[resets]
    since = places >= last[group]
    return table.filter(pa.array(since)), table[_ROW].to_numpy()[~since]


def _sort(table: pa.Table, keys: list[str], *then: str) -> tuple[pa.Table, Mask]:
    """Return ``table`` sorted, and a mask of the first row of each key."""
    names = [(name, "ascending", "at_start") for name in (*keys, *then)]
    table = table.take(pc.sort_indices(table, names)).combine_chunks()
    same = np.ones(max(table.num_rows - 1, 0), np.bool_)
    for name in keys:
        one, other = table[name][:-1], table[name][1:]
        equal = pc.fill_null(pc.equal(one, other), False)
        same &= pc.or_(equal, pc.and_(one.is_null(), other.is_null())).to_numpy()
    return table, np.append(True, ~same)[: table.num_rows]


def _hashes(files: Sequence[DataFile], by: Ranking, part: int, parts: int) -> Iterator[Hashes]:
    for file in files:
        for batch in keys(file, by):
            found = _hash(batch, by)
            identified = with_identity(batch, by)
            if identified is not None:
                found = found[identified]
            yield found if parts == 1 else found[found % np.uint64(parts) == part]


def _hash(batch: pa.RecordBatch, by: Ranking) -> Hashes:
    """Return one hash per row; equal keys have equal hashes."""
    combined = np.zeros(batch.num_rows, np.uint64)
    for name in by.key_schema.names:
        combined *= np.uint64(1_000_003)
        column = batch.column(name)
        if column.null_count == len(column):
            continue
        hashes = pd.util.hash_array(_to_hashable(column), categorize=False)
        if column.null_count:
            hashes[column.is_null().to_numpy(zero_copy_only=False)] = 0
        combined += hashes
    return combined


def _to_hashable(column: pa.Array) -> npt.NDArray[Any]:
    """Return the values as a NumPy array; NULLs become arbitrary values."""
    if pa.types.is_floating(column.type):
        column = pc.add(column.fill_null(0), 0.0)  # -0.0 equals 0.0
    elif pa.types.is_primitive(column.type) and not pa.types.is_decimal(column.type):
        # A date has 32 bits and cannot be cast to a wider integer directly.
        number = column.cast(pa.int32()) if pa.types.is_date(column.type) else column
        column = number.cast(pa.int64()).fill_null(0)
    else:
        column = column.cast(pa.string()).fill_null("")
    values: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values
