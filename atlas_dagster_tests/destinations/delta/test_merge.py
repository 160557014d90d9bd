"""Which files a merge reads, adopts, writes anew and leaves behind."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from atlas_dagster.destinations.delta import parquet_stage as staging
from atlas_dagster.destinations.delta.data_file import DataFile
from atlas_dagster.destinations.envelope import WriteMode
from atlas_dagster.errors import DestinationError
from atlas_dagster_tests.destinations.stores import INTEGER, STRING, Lake, spec

PLAIN = spec("append_dedup")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def table(lake: Lake) -> DeltaTable:
    return DeltaTable(lake.destination.table_uri(("c", "t")))


def files(lake: Lake) -> set[str]:
    """The files of the table's current version."""
    return set(pa.table(table(lake).get_add_actions(flatten=True))["path"].to_pylist())


def keys(first: int, last: int, v: str = "x") -> list[dict[str, object]]:
    return [{"id": number, "v": v} for number in range(first, last + 1)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose rows are read."""
    found: list[str] = []
    original = DataFile.batches

    def noting(self: DataFile, schema: pa.Schema) -> object:
        found.append(self.name)
        return original(self, schema)

    monkeypatch.setattr(DataFile, "batches", noting)
    return found


def test_new_rows_are_adopted_as_they_are_written(lake: Lake) -> None:
    writer = lake.open(PLAIN)
    lake.write(writer, keys(1, 9))
    (staged,) = lake.prepare(writer).streams[0].files
    (written,) = lake.root.rglob("*.parquet")
    before = written.stat()
    lake.destination.recover("c")
    again = lake.sync(PLAIN, keys(1, 9))
    assert staged.path not in files(lake)
    (adopted,) = files(lake)
    assert again.describe().row_count == 9
    assert before == written.stat()
    lake.sync(PLAIN, keys(10, 19))
    assert adopted in files(lake)
    assert len(files(lake)) == 2


def test_files_without_changed_keys_are_left_alone(lake: Lake, read: list[str]) -> None:
    lake.sync(PLAIN, keys(1, 10))
    lake.sync(PLAIN, keys(11, 20))
    (old,) = [f for f in files(lake) if f in read[:1]]
    read.clear()
    lake.sync(PLAIN, keys(15, 25, "new"))
    assert old not in read
    assert old in files(lake)
    assert len(lake.rows()) == 25
    assert {(14, "x"), (15, "new")} <= set(lake.rows())


def test_a_key_that_does_not_fit_looks_where_there_are_others(lake: Lake, read: list[str]) -> None:
    lake.sync(PLAIN, [{"id": 1}, {"id": 2**64, "v": "old"}])
    lake.sync(PLAIN, [{"id": 2}])
    lake.sync(PLAIN, [{"id": 9}, {"id": 2**64, "v": "new"}])
    assert lake.rows() == [(1, None), (2, None), (9, None), (None, "new")]


def test_text_keys_have_no_bounds_to_go_by(lake: Lake) -> None:
    wanted = spec("append_dedup", id=STRING)
    lake.sync(wanted, [{"id": "a", "v": "1"}, {"id": "b", "v": "1"}])
    lake.sync(wanted, [{"id": "b", "v": "2"}, {"id": "c", "v": "2"}])
    assert lake.rows() == [("a", "1"), ("b", "2"), ("c", "2")]


def test_a_merge_leaves_no_file_that_nothing_needs(lake: Lake) -> None:
    lake.sync(PLAIN, keys(1, 3), keys(2, 5, "y"))
    assert set(lake.parquet_files()) == files(lake)
    assert lake.rows() == [(1, "x"), (2, "y"), (3, "y"), (4, "y"), (5, "y")]


def test_changes_that_all_lose_change_nothing(lake: Lake) -> None:
    wanted = spec("append_dedup", cursor="at", at=INTEGER)
    lake.sync(wanted, [{"id": 1, "v": "new", "at": 5}])
    before = files(lake)
    lake.sync(wanted, [{"id": 1, "v": "old", "at": 4}])
    assert files(lake) == before == set(lake.parquet_files())
    assert lake.committed() == lake.seq


def test_columns_that_an_old_file_lacks(lake: Lake) -> None:
    """It is written anew, with NULL where it had no column."""
    lake.sync(PLAIN, keys(1, 3))
    lake.sync(spec("append_dedup", w=STRING), [{"id": 2, "w": "new"}])
    assert lake.rows("id", "v", "w") == [(1, "x", None), (2, None, "new"), (3, "x", None)]


def test_a_table_that_somebody_compacts_meanwhile(lake: Lake) -> None:
    lake.sync(PLAIN, keys(1, 3))
    lake.sync(PLAIN, keys(4, 6))
    writer = lake.open(PLAIN)
    lake.write(writer, keys(2, 5, "new"))
    lake.commit(writer)
    assert table(lake).optimize.compact()["numFilesRemoved"] == 2
    writer.merge_committed()
    assert [row for row in lake.rows() if row[1] == "new"] == [(n, "new") for n in range(2, 6)]
    assert len(lake.rows()) == 6


def test_a_compaction_in_the_middle_of_a_merge(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: Delta would remove files that are gone, and rows came twice."""
    lake.sync(PLAIN, keys(1, 3))
    lake.sync(PLAIN, keys(4, 6))
    writer = lake.open(PLAIN)
    lake.write(writer, keys(2, 5, "new"))
    lake.commit(writer)
    original = type(writer.tables.main).files_near  # type: ignore[attr-defined]

    def compacting(*arguments: object) -> list[str]:
        found = original(*arguments)
        table(lake).optimize.compact()
        return list(found)

    with monkeypatch.context() as patch:
        patch.setattr(type(writer.tables.main), "files_near", compacting)  # type: ignore[attr-defined]
        with pytest.raises(DestinationError, match="refused the commit"):
            writer.merge_committed()
    lake.open(PLAIN)
    assert lake.rows() == [(1, "x"), *((n, "new") for n in range(2, 6)), (6, "x")]


def test_a_table_that_is_no_longer_plain(lake: Lake) -> None:
    lake.sync(PLAIN, keys(1, 3))
    handle = table(lake)
    handle.alter.set_table_properties(
        {"delta.enableDeletionVectors": "true", "delta.minReaderVersion": "3"},
        raise_if_not_exists=False,
    )
    with pytest.raises(DestinationError, match=r"deletionVectors.*refresh the stream"):
        lake.sync(PLAIN, keys(2, 2))


def test_a_table_dropped_while_changes_wait(lake: Lake) -> None:
    """Its waiting rows are gone with it, so the stream starts anew."""
    writer = lake.open(PLAIN)
    lake.write(writer, keys(1, 3))
    lake.commit(writer)
    shutil.rmtree(lake.root / "c")
    assert lake.committed() is None
    lake.open(spec("append")).discard()
    lake.sync(PLAIN, keys(7, 8))
    assert lake.rows("id") == [(7,), (8,)]


@pytest.mark.parametrize("mode", ["overwrite", "append_dedup"])
def test_a_replaced_table_that_somebody_compacts_meanwhile(lake: Lake, mode: WriteMode) -> None:
    lake.sync(spec(mode), keys(1, 3))
    lake.sync(spec("append"), keys(4, 6))
    writer = lake.open(spec(mode, replaces=True))
    lake.write(writer, keys(7, 8))
    table(lake).optimize.compact()
    lake.commit(writer)
    writer.merge_committed()
    assert lake.rows("id") == [(7,), (8,)]


# Staging


def test_what_waits_for_its_row_group_is_bounded_over_all_tables(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_BUFFERED_BYTES", 2000)
    writers = [lake.open(spec(table=("c", f"t{number}"))) for number in range(5)]
    for _ in range(3):
        for writer in writers:
            lake.write(writer, keys(1, 3))
    stages = [writer._stage for writer in writers]  # type: ignore[attr-defined]
    assert 0 < sum(stage._group_bytes for stage in stages) <= 2000
    lake.commit(*writers)
    for number in range(5):
        assert len(lake.rows(table=("c", f"t{number}"))) == 9


def test_what_keys_do_not_need_is_not_read(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """``_airbyte_extra`` may be big; it is looked at only where a note says that a key is there."""
    found: set[str] = set()
    original = DataFile.batches

    def noting(self: DataFile, schema: pa.Schema) -> object:
        found.update(schema.names)
        return original(self, schema)

    monkeypatch.setattr(DataFile, "batches", noting)
    lake.sync(PLAIN, [{"id": 1, "undeclared": "a"}, {"id": 2, "undeclared": "b"}])
    lake.sync(PLAIN, [{"id": 3, "undeclared": "c"}, {"id": None, "v": 5}])
    assert found == {"id"}
    lake.sync(PLAIN, [{"id": 2**63}])
    assert found == {"id", "_airbyte_meta", "_airbyte_extra"}
