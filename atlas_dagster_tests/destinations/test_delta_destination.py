"""What every mode does with rows, and what a table holds at each moment."""

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from lakes import INTEGER, LOCAL, STRING, T0, Lake, spec

from atlas_dagster.errors import DestinationError
from atlas_dagster.records.types import TableSchema
from atlas_dagster.state.envelope import WriteMode

MODES: list[WriteMode] = ["append", "overwrite", "append_dedup"]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


# All modes


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_visible_before_the_commit(lake: Lake, mode: WriteMode) -> None:
    writer = lake.open(spec(mode))
    assert (writer.exists(), lake.committed()) == (False, None)
    lake.write(writer, [{"id": 1, "v": "x"}])
    assert writer.staged_rows == 1
    assert (writer.exists(), lake.committed()) == (False, None)
    envelope = lake.commit(writer)
    assert lake.committed() == envelope.seq
    assert writer.staged_rows == 0
    writer.finish()
    assert lake.committed() == envelope.seq
    assert lake.rows() == [(1, "x")]
    assert writer.describe().row_count == 1
    assert writer.describe().uri == lake.destination.table_uri(("c", "t"))


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_table(lake: Lake, mode: WriteMode) -> None:
    writer = lake.sync(spec(mode))
    assert lake.rows() == []
    assert (writer.exists(), lake.committed()) == (True, lake.seq)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5])
def test_rewind_keeps_the_first_rows(lake: Lake, mode: WriteMode, rows: int) -> None:
    writer = lake.open(spec(mode))
    lake.write(writer, [{"id": 1}, {"id": 2}])
    lake.write(writer, [{"id": 3}, {"id": 4}, {"id": 5}])
    writer.rewind(rows)
    assert writer.staged_rows == rows
    lake.commit(writer)
    writer.finish()
    assert lake.rows("id") == [(number,) for number in range(1, rows + 1)]


def test_rewind_over_several_files(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_dagster.destinations.staging._GROUP_BYTES", 1)
    monkeypatch.setattr("atlas_dagster.destinations.staging._FILE_BYTES", 1)
    writer = lake.open(spec())
    for number in range(0, 8, 2):
        lake.write(writer, [{"id": number}, {"id": number + 1}])
    assert len(lake.parquet_files()) == 4
    writer.rewind(5)
    lake.write(writer, [{"id": 99}])
    lake.commit(writer)
    assert lake.rows("id") == [(0,), (1,), (2,), (3,), (4,), (99,)]


@pytest.mark.parametrize("mode", MODES)
def test_discard_leaves_no_files(lake: Lake, mode: WriteMode) -> None:
    lake.sync(spec(mode), [{"id": 1}])
    before = lake.parquet_files()
    writer = lake.open(spec(mode))
    lake.write(writer, [{"id": 2}])
    writer.rewind(1)  # writes the file
    lake.write(writer, [{"id": 3}])
    writer.discard()
    assert lake.parquet_files() == before
    assert lake.rows("id") == [(1,)]


@pytest.mark.parametrize("mode", MODES)
def test_discard_leaves_alone_what_an_envelope_lists(lake: Lake, mode: WriteMode) -> None:
    """A commit that seems to have failed may have come through."""
    writer = lake.open(spec(mode))
    lake.write(writer, [{"id": 1}])
    envelope = lake.prepare(writer)
    writer.discard()
    writer.commit(envelope)
    writer.finish()
    assert lake.rows("id") == [(1,)]


@pytest.mark.parametrize("mode", MODES)
def test_a_table_that_is_there_keeps_its_column_names(lake: Lake, mode: WriteMode) -> None:
    lake.sync(spec(mode, **{"a b": STRING, "Größe": INTEGER, "at": LOCAL}), [{"id": 1}])
    known = lake.destination.known_columns(("c", "t"))
    assert {field: name for (field, _), name in known.items()} == {
        "id": "id",
        "v": "v",
        "a b": "a_b",
        "Größe": "Gr__e",
        "at": "at",
    }
    assert known["a b", pa.string()] == "a_b"
    assert known["id", pa.int64()] == "id"
    assert known["at", pa.timestamp("us")] == "at"
    assert lake.destination.known_columns(("c", "other")) == {}


# Columns that come, change and go


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("column", [STRING, LOCAL], ids=["string", "local time"])
def test_an_added_column(lake: Lake, mode: WriteMode, column: dict[str, str]) -> None:
    lake.sync(spec(mode), [{"id": 1, "v": "x"}])
    lake.sync(spec(mode, w=column), [{"id": 2, "w": "2024-01-02T03:04:05"}])
    old = [] if mode == "overwrite" else [(1, "x", None)]
    moment = dt.datetime(2024, 1, 2, 3, 4, 5)
    new = "2024-01-02T03:04:05" if column is STRING else moment
    assert lake.rows("id", "v", "w") == [*old, (2, None, new)]


@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_a_column_that_is_gone_stays_empty(lake: Lake, mode: WriteMode) -> None:
    lake.sync(spec(mode), [{"id": 1, "v": "x"}])
    lake.sync(spec(mode, v=None), [{"id": 2}])
    assert lake.rows() == [(1, "x"), (2, None)]


@pytest.mark.parametrize("mode", MODES)
def test_a_replaced_table_takes_the_new_columns_only(lake: Lake, mode: WriteMode) -> None:
    lake.sync(spec(mode), [{"id": 1, "v": "x"}])
    lake.sync(spec(mode, v=INTEGER, w=STRING, replaces=True), [{"id": 2, "v": 5, "w": "y"}])
    assert lake.rows("id", "v", "w") == [(2, 5, "y")]
    lake.sync(spec(mode, v=INTEGER, w=STRING), [{"id": 3, "v": 6}])
    assert (3, 6, None) in lake.rows("id", "v", "w")


# Append and overwrite


def test_append_adds(lake: Lake) -> None:
    lake.sync(spec(), [{"id": 1}], [{"id": 1}])
    lake.sync(spec(), [{"id": 1}, {"id": 2}])
    assert lake.rows("id") == [(1,), (1,), (1,), (2,)]


def test_overwrite_swaps_in_one_version(lake: Lake) -> None:
    lake.sync(spec("overwrite"), [{"id": 1}, {"id": 2}])
    before = DeltaTable(lake.destination.table_uri(("c", "t"))).version()
    writer = lake.sync(spec("overwrite"), [{"id": 3}])
    assert lake.rows("id") == [(3,)]
    assert writer.describe().version == str(before + 1)
    lake.sync(spec("overwrite"))
    assert lake.rows("id") == []


def test_statistics_let_readers_skip_files(lake: Lake) -> None:
    lake.sync(spec(), [{"id": 7, "v": "x"}, {"id": -3}, {"id": None}])
    table = DeltaTable(lake.destination.table_uri(("c", "t")))
    (file,) = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    assert (file["num_records"], file["min.id"], file["max.id"]) == (3, -3, 7)
    assert (file["null_count.id"], file["null_count.v"]) == (1, 2)


# The fence


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("columns", [{}, {"w": STRING}], ids=["same columns", "new column"])
def test_a_second_writer_is_refused(
    lake: Lake, mode: WriteMode, exists: bool, columns: dict[str, object]
) -> None:
    """Regression: adding a column looked past the fence."""
    if exists:
        lake.sync(spec(mode), [{"id": 1}])
    stale, fresh = lake.open(spec(mode, **columns)), lake.open(spec(mode))
    lake.write(stale, [{"id": 8}])
    lake.write(fresh, [{"id": 9}])
    lake.commit(fresh)
    fresh.finish()
    with pytest.raises(DestinationError, match="sync of this connection"):
        lake.commit(stale)
    stale.discard()
    expected = [(1,), (9,)] if exists and mode != "overwrite" else [(9,)]
    assert lake.rows("id") == expected
    lake.sync(spec(mode, **columns), [{"id": 10}])
    assert (10,) in lake.rows("id")


def test_many_commits_by_one_writer(lake: Lake) -> None:
    writer = lake.open(spec())
    for number in range(5):
        lake.write(writer, [{"id": number}])
        lake.commit(writer)
    assert lake.rows("id") == [(number,) for number in range(5)]


def test_metadata_columns_are_typed(lake: Lake) -> None:
    lake.sync(spec(), [{"id": 1, "v": "x", "unknown": {"a": 1}}], at=T0)
    ((extracted, generation, extra),) = lake.rows(
        "_airbyte_extracted_at", "_airbyte_generation_id", "_airbyte_extra"
    )
    assert extracted == dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC)
    assert (generation, extra) == (0, '{"unknown":{"a":1}}')


def test_the_arrow_schema_round_trips(lake: Lake) -> None:
    columns = {"b": {"type": "boolean"}, "n": {"type": "number"}, "o": {"type": "object"}}
    wanted = spec("append", **columns, at=LOCAL)
    lake.sync(wanted, [{"id": 1, "b": True, "n": 1.5, "o": {"x": [1]}}])
    known = {field: name for (field, _), name in lake.destination.known_columns(("c", "t")).items()}
    properties = {"id": INTEGER, "v": STRING, **columns, "at": LOCAL}
    again = TableSchema.from_json_schema({"properties": properties}, known_names=known)
    assert again == wanted.schema
    assert lake.rows("b", "n", "o") == [(True, 1.5, '{"x":[1]}')]
