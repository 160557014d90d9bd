"""Which rows win, against a plain model: any files, any keys, however few hashes fit at once."""

import datetime as dt
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

from atlas_dagster.destinations.delta import newest_rows as room
from atlas_dagster.destinations.delta.data_file import DataFile
from atlas_dagster.destinations.delta.newest_rows import newest_rows
from atlas_dagster.destinations.delta.versions import Ranking
from atlas_dagster.records.types import EXTRACTED_AT, Column, ColumnType

DAYS = st.dates(dt.date(1960, 1, 1), dt.date(1960, 1, 4))
MOMENTS = st.datetimes(
    dt.datetime(1960, 1, 1), dt.datetime(1960, 1, 1, 0, 0, 0, 3), timezones=st.just(dt.UTC)
)
TIMES = st.sampled_from([dt.datetime(2024, 1, day, tzinfo=dt.UTC) for day in (1, 2)])
KEYS: dict[ColumnType, st.SearchStrategy[Any]] = {
    ColumnType.INTEGER: st.integers(-2, 3) | st.sampled_from([2**63 - 1, -(2**63)]),
    ColumnType.STRING: st.sampled_from(["", "a", "b", "ä", "\x00", "0"]),
    ColumnType.NUMBER: st.sampled_from([0.0, -0.0, 0.5, 1e300]),
    ColumnType.BOOLEAN: st.booleans(),
    ColumnType.DATE: DAYS,
    ColumnType.TIMESTAMP: MOMENTS,
}


def column(name: str, kind: ColumnType) -> Column:
    return Column(name, name, kind)


def schema_of(*columns: Column) -> pa.Schema:
    fields = [pa.field(c.name, c.type.arrow) for c in columns]
    return pa.schema([*fields, pa.field(EXTRACTED_AT, ColumnType.TIMESTAMP.arrow)])


ID, SEEN = column("id", ColumnType.INTEGER), column("seen", ColumnType.INTEGER)


def write(folder: str, name: str, rows: list[tuple[Any, ...]], schema: pa.Schema) -> DataFile:
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    pq.write_table(pa.table(arrays, schema=schema), Path(folder, name), row_group_size=3)
    return DataFile(pafs.LocalFileSystem(), folder, name)


Place = tuple[int, int]


def model(old: list[Any], new: list[Any], keys: int, *, unique: bool) -> tuple[set[Any], set[Any]]:
    """The rows, as (file, number), that must stay, and those that may."""
    rows = {(f, r): row for f, rows in enumerate(old + new) for r, row in enumerate(rows)}
    by_key: dict[Any, list[Place]] = {}
    for place, row in rows.items():
        by_key.setdefault((place, None) if None in row[:keys] else row[:keys], []).append(place)
    winners: set[Place] = set()
    for places in by_key.values():
        # Old rows arrived in the order of their extraction.
        places.sort(key=lambda p: (p[0] >= len(old), rows[p][-1] if p[0] < len(old) else None, p))
        resets = [n for n, place in enumerate(places) if rows[place][keys] is None]
        since = places[resets[-1] if resets else 0 :]
        winners.add(
            max(
                since,
                key=lambda p: (
                    rows[p][keys] is not None,
                    rows[p][keys:] if rows[p][keys] is not None else rows[p][-1:],
                    p,
                ),
            )
        )
    changed = {row[:keys] for file in new for row in file}
    if not unique:
        return winners, winners
    return winners, winners | {place for place, row in rows.items() if row[:keys] not in changed}


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(st.data())
def test_the_newest_of_each_key_stays(data: st.DataObject) -> None:
    kinds = data.draw(st.lists(st.sampled_from(list(KEYS)), min_size=1, max_size=2))
    cursor = data.draw(
        st.sampled_from([ColumnType.INTEGER, ColumnType.STRING, ColumnType.TIMESTAMP])
    )
    key = tuple(column(f"k{n}", kind) for n, kind in enumerate(kinds))
    by = Ranking(key, column("at", cursor))
    schema = schema_of(*key, column("at", cursor))
    row = st.tuples(*(st.none() | KEYS[kind] for kind in kinds), st.none() | KEYS[cursor], TIMES)
    files = st.lists(st.lists(row, max_size=8), max_size=3)
    old, new, unique = data.draw(files), data.draw(files), data.draw(st.booleans())
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
        masks = newest_rows(olds, news, by, unique=unique).stay
    assert [len(mask) for mask in masks] == [len(rows) for rows in old + new]
    stay = {(f, r) for f, mask in enumerate(masks) for r in np.flatnonzero(mask).tolist()}
    must, may = model(old, new, len(kinds), unique=unique)
    assert must <= stay <= may


def moments(*days: int) -> list[dt.datetime]:
    return [dt.datetime(2024, 1, day, tzinfo=dt.UTC) for day in days]


def test_a_key_column_that_an_old_file_lacks_is_null(tmp_path: Path) -> None:
    part = column("part", ColumnType.STRING)
    old = write(str(tmp_path), "old", [(1, *moments(1)), (2, *moments(1))], schema_of(ID))
    new = write(
        str(tmp_path), "new", [(1, None, *moments(2)), (2, "x", *moments(2))], schema_of(ID, part)
    )
    stays = newest_rows([old], [new], Ranking((ID, part))).stay
    assert [mask.tolist() for mask in stays] == [[True, True], [True, True]]


@pytest.mark.parametrize("versions", [1, 5])
def test_what_is_held_at_once_is_let_go(
    tmp_path: Path, versions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One key with more versions than are held, another in between."""
    monkeypatch.setattr(room, "_VERSIONS", versions)
    rows = [(7, n, *moments(1)) for n in range(40)]
    rows += [(8, 0, *moments(1)), (7, 3, *moments(1))]
    file = write(str(tmp_path), "new", rows, schema_of(ID, SEEN))
    found = newest_rows([], [file], Ranking((ID,), SEEN))
    assert np.flatnonzero(found.stay[0]).tolist() == [39, 40]
    assert found.late == 1


def test_versions_that_come_late_are_counted(tmp_path: Path) -> None:
    """Those that lose to one that came before them, be it in the table or not."""
    schema = schema_of(ID, SEEN)
    old = write(str(tmp_path), "old", [(1, 5, *moments(1)), (2, 5, *moments(1))], schema)
    rows = [(1, 4), (2, 6), (2, 5), (3, 1), (3, 2), (3, 0), (4, None), (4, 1)]
    new = write(str(tmp_path), "new", [(*row, *moments(2)) for row in rows], schema)
    assert newest_rows([old], [new], Ranking((ID,), SEEN)).late == 3
