"""Rows that are committed and not shown yet, in every destination."""

import pytest

from atlas_dagster.destinations.base import StreamWriter
from atlas_dagster.destinations.envelope import WriteMode
from atlas_dagster.errors import DestinationError
from atlas_dagster_tests.destinations.stores import INTEGER, STRING, Lake, Store, spec

MODES: list[WriteMode] = ["append", "overwrite", "append_dedup"]
BY_MODE = pytest.mark.parametrize("mode", MODES)


def hold(store: Store, writer: StreamWriter, *ids: int) -> int:
    """Commit rows that are not shown; the ``seq``."""
    store.write(writer, [{"id": id} for id in ids])
    return store.commit(writer, unpublished=True).seq


def show(store: Store, writer: StreamWriter, *ids: int) -> None:
    store.write(writer, [{"id": id} for id in ids])
    store.commit(writer)
    writer.merge_committed()


def after(mode: WriteMode, *ids: int, old: int = 1) -> list[tuple[int]]:
    """The rows of a table that had the row ``old``."""
    return [(id,) for id in (ids if mode == "overwrite" else (old, *ids))]


@BY_MODE
@pytest.mark.slow
def test_held_rows_are_shown_all_at_once(store: Store, mode: WriteMode) -> None:
    store.sync(spec(mode), [{"id": 1}])
    writer = store.open(spec(mode))
    for number in (2, 3):
        seq = hold(store, writer, number)
        writer.merge_committed()
        assert (store.rows("id"), writer.describe().row_count) == ([(1,)], 1)
        assert (store.committed(), writer.staged_rows) == (seq, 0)
        assert writer.unpublished_rows == number - 1
    show(store, writer, 4)
    assert store.rows("id") == after(mode, 2, 3, 4)
    assert (writer.unpublished_rows, store.committed()) == (0, store.seq)
    assert writer.describe().row_count == len(store.rows("id"))


@BY_MODE
def test_a_table_that_was_never_shown(store: Store, mode: WriteMode) -> None:
    writer = store.open(spec(mode))
    seq = hold(store, writer, 1)
    assert (writer.exists(), store.committed()) == (False, seq)
    assert store.destination.inspect(("c", "t")).columns().names == frozenset()
    show(store, writer)
    assert store.rows("id") == [(1,)]


@BY_MODE
@pytest.mark.slow
def test_another_writer_goes_on(store: Store, mode: WriteMode) -> None:
    store.sync(spec(mode), [{"id": 1}])
    hold(store, store.open(spec(mode)), 2)
    hold(store, store.open(spec(mode), continues=True), 3)
    writer = store.open(spec(mode), continues=True)
    assert writer.unpublished_rows == 2
    show(store, writer, 4)
    assert store.rows("id") == after(mode, 2, 3, 4)


@BY_MODE
@pytest.mark.parametrize("unpublished", [True, False])
@pytest.mark.slow
def test_another_writer_begins_anew(store: Store, mode: WriteMode, unpublished: bool) -> None:
    store.sync(spec(mode), [{"id": 1}])
    hold(store, store.open(spec(mode)), 2)
    writer = store.open(spec(mode))
    if unpublished:
        hold(store, writer, 3)
        show(store, writer)
    else:
        show(store, writer, 3)
    assert store.rows("id") == after(mode, 3)
    assert store.destination.inspect(("c", "t")).unpublished_columns() is None


@BY_MODE
def test_new_columns_in_the_middle(store: Store, mode: WriteMode) -> None:
    store.sync(spec(mode), [{"id": 1}])
    hold(store, store.open(spec(mode)), 2)
    wider = store.open(spec(mode, w=STRING), continues=True)
    store.write(wider, [{"id": 3, "w": "x"}])
    store.commit(wider, unpublished=True)
    known = store.destination.inspect(("c", "t")).unpublished_columns()
    assert known is not None
    assert known.of_fields == {"id", "v", "w"}
    show(store, wider)
    old = [] if mode == "overwrite" else [(1, None)]
    assert store.rows("id", "w") == [*old, (2, None), (3, "x")]


@BY_MODE
def test_columns_of_other_types_begin_anew(store: Store, mode: WriteMode) -> None:
    """What was held before had another type."""
    hold(store, store.open(spec(mode)), 2)
    writer = store.open(spec(mode, v=INTEGER))
    store.write(writer, [{"id": 3, "v": 5}])
    store.commit(writer, unpublished=True)
    show(store, writer)
    assert store.rows() == [(3, 5)]


def test_of_the_versions_of_a_row_the_newest_is_shown(store: Store) -> None:
    wanted = spec("append_dedup", cursor="at", at=INTEGER)
    store.sync(wanted, [{"id": 1, "v": "old", "at": 5}])
    for v, at in (("a", 6), ("b", 7), ("c", 6)):
        writer = store.open(wanted, continues=v != "a")
        store.write(writer, [{"id": 1, "v": v, "at": at}, {"id": at, "v": v, "at": 0}])
        store.commit(writer, unpublished=True)
    show(store, store.open(wanted, continues=True))
    assert store.rows() == [(1, "b"), (6, "c"), (7, "b")]


@BY_MODE
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("stale_holds", [True, False])
def test_a_stale_writer_is_refused(
    store: Store, mode: WriteMode, exists: bool, stale_holds: bool
) -> None:
    """Whatever it had in mind, once another one has held or shown rows."""
    if exists:
        store.sync(spec(mode), [{"id": 1}])
    hold(store, store.open(spec(mode)), 2)
    stale, fresh = (store.open(spec(mode), continues=True) for _ in range(2))
    hold(store, fresh, 3)
    store.write(stale, [{"id": 99}])
    with pytest.raises(DestinationError, match="sync of this connection"):
        store.commit(stale, unpublished=stale_holds)
    last = store.open(spec(mode), continues=True)
    show(store, fresh, 4)
    store.write(last, [{"id": 99}])
    with pytest.raises(DestinationError, match="sync of this connection"):
        store.commit(last, unpublished=stale_holds)
    ids = (2, 3, 4)
    assert store.rows("id") == (after(mode, *ids) if exists else [(id,) for id in ids])


@BY_MODE
def test_what_a_failed_commit_staged_is_not_held(store: Store, mode: WriteMode) -> None:
    writer = store.open(spec(mode))
    hold(store, writer, 1)
    store.write(writer, [{"id": 2}])
    writer.discard()
    show(store, store.open(spec(mode), continues=True), 3)
    assert store.rows("id") == [(1,), (3,)]


# Delta


@BY_MODE
def test_files_are_shown_as_they_are(lake: Lake, mode: WriteMode) -> None:
    """Nothing is written twice."""
    writer = lake.open(spec(mode))
    hold(lake, writer, 1)
    hold(lake, writer, 2)
    files = lake.parquet_files()
    show(lake, writer, 3)
    assert set(files) < set(lake.parquet_files())
    assert len(lake.parquet_files()) == 3


@pytest.mark.slow
def test_many_files(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_dagster.destinations.delta.parquet_stage._GROUP_BYTES", 1)
    monkeypatch.setattr("atlas_dagster.destinations.delta.parquet_stage._FILE_BYTES", 1)
    wanted = spec("append_dedup")
    ids = iter(range(200))
    for number in range(4):
        writer = lake.open(wanted, continues=number > 0)
        for _ in range(5):
            for _ in range(3):
                lake.write(writer, [{"id": next(ids) % 7, "v": str(number)}])
            lake.commit(writer, unpublished=True)
    show(lake, lake.open(wanted, continues=True))
    assert lake.rows() == [(id, "3") for id in range(7)]
