"""Which rows win, against a plain model: any files, any keys, however few hashes fit at once."""

import datetime as dt
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_dagster.destinations import newest_rows as room
from atlas_dagster.destinations.data_file import DataFile
from atlas_dagster.destinations.newest_rows import Ranking, newest_rows

ZONED = pa.timestamp("us", tz="UTC")
DAYS = st.dates(dt.date(1960, 1, 1), dt.date(1960, 1, 4))
MOMENTS = st.datetimes(
    dt.datetime(1960, 1, 1), dt.datetime(1960, 1, 1, 0, 0, 0, 3), timezones=st.just(dt.UTC)
)
KEYS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int64(): st.integers(-2, 3) | st.sampled_from([2**63 - 1, -(2**63)]),
    pa.string(): st.sampled_from(["", "a", "b", "ä", "\x00", "0"]),
    pa.float64(): st.sampled_from([0.0, -0.0, 0.5, 1e300]),
    pa.decimal128(38, 0): st.integers(-1, 1).map(Decimal),
    pa.bool_(): st.booleans(),
    pa.date32(): DAYS,
    ZONED: MOMENTS,
}


def write(folder: str, name: str, rows: list[tuple[Any, ...]], schema: pa.Schema) -> DataFile:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    pq.write_table(pa.table(arrays, schema=schema), Path(folder, name), row_group_size=3)
    return DataFile(pafs.LocalFileSystem(), folder, name)


def model(old: list[Any], new: list[Any], keys: int) -> tuple[set[Any], set[Any]]:
    """The rows, as (file, number), that must stay, and those that may."""

    def rank(value: Any) -> tuple[bool, Any]:
        return (value is not None, value)

    newest: dict[Any, tuple[Any, tuple[int, int]]] = {}
    rows = {(f, r): row for f, rows in enumerate(old + new) for r, row in enumerate(rows)}
    for place, row in rows.items():
        order = (*map(rank, row[keys:]), place)
        if row[:keys] not in newest or newest[row[:keys]][0] < order:
            newest[row[:keys]] = (order, place)
    changed = {row[:keys] for file in new for row in file}
    winners = {place for _, place in newest.values()}
    return winners, winners | {place for place, row in rows.items() if row[:keys] not in changed}


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_newest_of_each_key_stays(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(list(KEYS)), min_size=1, max_size=2))
    cursor = data.draw(st.sampled_from([pa.int64(), pa.string(), ZONED]))
    schema = pa.schema(
        [*((f"k{n}", kind) for n, kind in enumerate(kinds)), ("at", cursor), ("seen", pa.int64())]
    )
    row = st.tuples(
        *(st.none() | KEYS[kind] for kind in kinds), st.none() | KEYS[cursor], st.integers(0, 1)
    )
    files = st.lists(st.lists(row, max_size=8), max_size=3)
    old, new = data.draw(files), data.draw(files)
    by = Ranking(pa.schema([*schema][: len(kinds)]), pa.schema([*schema][len(kinds) :]))
    hashed = room._hash
    few = data.draw(st.sampled_from([1, 3, 2**64 - 1]))
    with (
        TemporaryDirectory() as folder,
        patch.object(room, "_HASHES", data.draw(st.sampled_from([2, 10**6]))),
        patch.object(room, "_KEYS", data.draw(st.sampled_from([1, 10**6]))),
        patch.object(room, "_VERSIONS", data.draw(st.sampled_from([1, 10**6]))),
        # Different keys with the same hash are told apart.
        patch.object(room, "_hash", lambda *given: hashed(*given) % np.uint64(few)),
    ):
        olds = [write(folder, f"old{n}", rows, schema) for n, rows in enumerate(old)]
        news = [write(folder, f"new{n}", rows, schema) for n, rows in enumerate(new)]
        masks = newest_rows(olds, news, by)
    assert [len(mask) for mask in masks] == [len(rows) for rows in old + new]
    stay = {(f, r) for f, mask in enumerate(masks) for r in np.flatnonzero(mask).tolist()}
    must, may = model(old, new, len(kinds))
    assert must <= stay <= may


def test_a_key_column_that_an_old_file_lacks_is_null(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.int64()), ("part", pa.string()), ("seen", pa.int64())])
    old = write(str(tmp_path), "old", [(1, 0), (2, 0)], pa.schema([schema[0], schema[2]]))
    new = write(str(tmp_path), "new", [(1, None, 1), (2, "x", 1)], schema)
    by = Ranking(pa.schema([schema[0], schema[1]]), pa.schema([schema[2]]))
    stays = newest_rows([old], [new], by)
    assert [mask.tolist() for mask in stays] == [[False, True], [True, True]]


@pytest.mark.parametrize("versions", [1, 5])
def test_what_is_held_at_once_is_let_go(
    tmp_path: Path, versions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One key with more versions than are held, another in between."""
    monkeypatch.setattr(room, "_VERSIONS", versions)
    schema = pa.schema([("id", pa.int64()), ("seen", pa.int64())])
    rows = [(7, n) for n in range(40)]
    file = write(str(tmp_path), "new", [*rows, (8, 0), (7, 3)], schema)
    by = Ranking(pa.schema([schema[0]]), pa.schema([schema[1]]))
    (stays,) = newest_rows([], [file], by)
    assert np.flatnonzero(stays).tolist() == [39, 40]
