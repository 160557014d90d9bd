"""What every destination does with rows, in every mode, and what a table holds at each moment."""

import datetime as dt
import json

import pyarrow as pa
import pytest

from atlas_dagster.destinations.envelope import WriteMode
from atlas_dagster.errors import ConfigError, DestinationError
from atlas_dagster.records.columns import TableColumns, fit
from atlas_dagster.records.types import METADATA_FIELDS, ColumnType, TableSchema
from atlas_dagster_tests.destinations.stores import INTEGER, LOCAL, STRING, T0, Store, T, spec

MODES: list[WriteMode] = ["append", "overwrite", "append_dedup"]


# All modes


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_visible_before_the_commit(store: Store, mode: WriteMode) -> None:
    writer = store.open(spec(mode))
    assert (writer.exists(), store.committed()) == (False, None)
    store.write(writer, [{"id": 1, "v": "x"}])
    assert writer.staged_rows == 1
    assert (writer.exists(), store.committed()) == (False, None)
    envelope = store.commit(writer)
    assert store.committed() == envelope.seq
    assert writer.staged_rows == 0
    writer.merge_committed()
    assert store.committed() == envelope.seq
    assert store.rows() == [(1, "x")]
    assert writer.describe().row_count == 1
    assert writer.describe().uri == store.destination.table_uri(("c", "t"))


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_table(store: Store, mode: WriteMode) -> None:
    writer = store.sync(spec(mode))
    assert store.rows() == []
    assert (writer.exists(), store.committed()) == (True, store.seq)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5])
def test_rewind_keeps_the_first_rows(store: Store, mode: WriteMode, rows: int) -> None:
    writer = store.open(spec(mode))
    store.write(writer, [{"id": 1}, {"id": 2}])
    store.write(writer, [{"id": 3}, {"id": 4}, {"id": 5}])
    writer.rewind(rows)
    assert writer.staged_rows == rows
    store.commit(writer)
    writer.merge_committed()
    assert store.rows("id") == [(number,) for number in range(1, rows + 1)]


@pytest.mark.parametrize("mode", MODES)
def test_discard_leaves_nothing(store: Store, mode: WriteMode) -> None:
    store.sync(spec(mode), [{"id": 1}])
    before = store.left_behind()
    writer = store.open(spec(mode))
    store.write(writer, [{"id": 2}])
    writer.rewind(1)  # Delta writes a file then
    store.write(writer, [{"id": 3}])
    writer.discard()
    assert store.left_behind() == before
    assert store.rows("id") == [(1,)]


@pytest.mark.parametrize("mode", MODES)
def test_a_table_that_is_there_keeps_its_column_names(store: Store, mode: WriteMode) -> None:
    store.sync(spec(mode, **{"a b": STRING, "Größe": INTEGER, "at": LOCAL}), [{"id": 1}])
    known = store.destination.inspect(("c", "t")).columns()
    assert known.typed == {
        ("id", ColumnType.INTEGER): "id",
        ("v", ColumnType.STRING): "v",
        ("a b", ColumnType.STRING): "a_b",
        ("Größe", ColumnType.INTEGER): "Gr__e",
        ("at", ColumnType.LOCAL_TIMESTAMP): "at",
    }
    own = {field.name for field in METADATA_FIELDS}
    assert (known.untyped, known.names - own) == ({}, known.of_fields)
    assert store.destination.inspect(("c", "other")).columns() == TableColumns()


# Columns that come, change and go


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("column", [STRING, LOCAL], ids=["string", "local time"])
@pytest.mark.slow
def test_an_added_column(store: Store, mode: WriteMode, column: dict[str, str]) -> None:
    store.sync(spec(mode), [{"id": 1, "v": "x"}])
    store.sync(spec(mode, w=column), [{"id": 2, "w": "2024-01-02T03:04:05"}])
    old = [] if mode == "overwrite" else [(1, "x", None)]
    moment = dt.datetime(2024, 1, 2, 3, 4, 5)
    new = "2024-01-02T03:04:05" if column is STRING else moment
    assert store.rows("id", "v", "w") == [*old, (2, None, new)]


@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_a_column_that_is_gone_stays_empty(store: Store, mode: WriteMode) -> None:
    store.sync(spec(mode), [{"id": 1, "v": "x"}])
    store.sync(spec(mode, v=None), [{"id": 2}])
    assert store.rows() == [(1, "x"), (2, None)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.slow
def test_a_replaced_table_takes_the_new_columns_only(store: Store, mode: WriteMode) -> None:
    store.sync(spec(mode), [{"id": 1, "v": "x"}])
    store.sync(spec(mode, v=INTEGER, w=STRING, replaces=True), [{"id": 2, "v": 5, "w": "y"}])
    assert store.rows("id", "v", "w") == [(2, 5, "y")]
    store.sync(spec(mode, v=INTEGER, w=STRING), [{"id": 3, "v": 6}])
    assert (3, 6, None) in store.rows("id", "v", "w")


@pytest.mark.parametrize("mode", ["append", "append_dedup"])
@pytest.mark.parametrize("unpublished", [False, True])
def test_rows_that_do_not_fit_their_table_are_refused(
    store: Store, mode: WriteMode, unpublished: bool
) -> None:
    """The last line, where columns were given the wrong names: nobody can read such a file."""
    store.sync(spec(mode), [{"id": 1, "v": "x"}])
    writer = store.open(spec(mode, v=INTEGER))
    store.write(writer, [{"id": 2, "v": 5}])
    if unpublished:
        store.commit(writer, unpublished=True)

    def show() -> None:
        store.commit(writer)
        writer.merge_committed()

    with pytest.raises(DestinationError, match=r"column v .* refresh"):
        show()
    writer.discard()
    assert store.rows() == [(1, "x")]


# Append and overwrite


def test_append_adds(store: Store) -> None:
    store.sync(spec(), [{"id": 1}], [{"id": 1}])
    store.sync(spec(), [{"id": 1}, {"id": 2}])
    assert store.rows("id") == [(1,), (1,), (1,), (2,)]


def test_overwrite_replaces_all_at_once(store: Store) -> None:
    store.sync(spec("overwrite"), [{"id": 1}, {"id": 2}])
    writer = store.open(spec("overwrite"))
    store.write(writer, [{"id": 3}])
    before = writer.describe()
    assert (store.rows("id"), before.row_count) == ([(1,), (2,)], 2)
    store.commit(writer)
    writer.merge_committed()
    assert (store.rows("id"), writer.describe().row_count) == ([(3,)], 1)
    store.sync(spec("overwrite"))
    assert store.rows("id") == []


# The fence


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("columns", [{}, {"w": STRING}], ids=["same columns", "new column"])
def test_a_second_writer_is_refused(
    store: Store, mode: WriteMode, exists: bool, columns: dict[str, object]
) -> None:
    """Regression: adding a column looked past the fence."""
    if exists:
        store.sync(spec(mode), [{"id": 1}])
    stale, fresh = store.open(spec(mode, **columns)), store.open(spec(mode))
    store.write(stale, [{"id": 8}])
    store.write(fresh, [{"id": 9}])
    store.commit(fresh)
    fresh.merge_committed()
    with pytest.raises(DestinationError, match="sync of this connection"):
        store.commit(stale)
    stale.discard()
    expected = [(1,), (9,)] if exists and mode != "overwrite" else [(9,)]
    assert store.rows("id") == expected
    store.sync(spec(mode, **columns), [{"id": 10}])
    assert (10,) in store.rows("id")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("rows", [True, False], ids=["rows", "no rows"])
@pytest.mark.slow
def test_a_commit_between_plan_and_open_is_refused(
    store: Store, mode: WriteMode, exists: bool, rows: bool
) -> None:
    """Regression: Postgres read the state anew when the writer opened, so the row came twice."""
    if exists:
        store.sync(spec(mode), [{"id": 1}])
    planned, own = store.destination.inspect(T), store.destination
    store.destination = store.another()
    store.sync(spec(mode), [{"id": 9}] if rows else [])
    expected = store.rows("id")
    store.destination = own
    with pytest.raises(DestinationError, match="sync of this connection"):
        store.sync(spec(mode), [{"id": 9}], planned=planned)
    assert store.rows("id") == expected
    store.sync(spec(mode), [{"id": 10}])
    assert (10,) in store.rows("id")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("other_mode", MODES)
@pytest.mark.parametrize("unpublished", [False, True])
def test_the_first_commit_is_refused_where_another_was_first_in_any_mode(
    store: Store, mode: WriteMode, other_mode: WriteMode, unpublished: bool
) -> None:
    planned, other = store.destination, store.another()
    writer = store.open(spec(mode))
    store.write(writer, [{"id": 9}])
    store.destination = other
    first = store.open(spec(other_mode))
    store.write(first, [{"id": 1}])
    seq = store.commit(first, unpublished=unpublished).seq
    store.destination = planned
    with pytest.raises(DestinationError, match="sync of this connection"):
        store.commit(writer)
    assert store.another().inspect(T).seq == seq


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("unpublished", [False, True])
@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("before", ["append", "append_dedup", None])
def test_a_users_command_meanwhile_is_not_overwritten(
    store: Store, mode: WriteMode, unpublished: bool, opened: bool, before: WriteMode | None
) -> None:
    """Regression: the first commit of append_dedup did not look at the table that readers see."""
    if before is None:
        store.set_up()
    else:
        store.sync(spec(before), [{"id": 1}])
    other, own = store.another(), store.destination
    planned = own.inspect(T)
    writers = [store.open(spec(mode), planned=planned)] if opened else []
    store.destination = other
    store.commit_without_rows()
    marked = store.committed()
    store.destination = own

    def go_on() -> None:
        writer = (writers or [store.open(spec(mode), planned=planned)])[0]
        store.write(writer, [{"id": 9}])
        store.commit(writer, unpublished=unpublished)

    with pytest.raises(DestinationError, match="sync of this connection"):
        go_on()
    assert store.rows("id") == ([] if before is None else [(1,)])
    assert store.another().inspect(T).seq == marked


def test_many_commits_by_one_writer(store: Store) -> None:
    writer = store.open(spec())
    for number in range(5):
        store.write(writer, [{"id": number}])
        store.commit(writer)
    assert store.rows("id") == [(number,) for number in range(5)]


def test_metadata_columns_are_typed(store: Store) -> None:
    store.sync(spec(), [{"id": 1, "v": "x", "unknown": {"a": 1}}], at=T0)
    ((extracted, generation, extra),) = store.rows(
        "_airbyte_extracted_at", "_airbyte_generation_id", "_airbyte_extra"
    )
    assert extracted == dt.datetime(2023, 11, 14, 22, 13, 20, tzinfo=dt.UTC)
    assert (generation, json.loads(extra)) == (0, {"unknown": {"a": 1}})


def test_the_arrow_schema_round_trips(store: Store) -> None:
    columns = {"b": {"type": "boolean"}, "n": {"type": "number"}, "o": {"type": "object"}}
    wanted = spec("append", **columns, at=LOCAL)
    store.sync(wanted, [{"id": 1, "b": True, "n": 1.5, "o": {"x": [1]}}])
    known = store.destination.inspect(("c", "t")).columns()
    properties = {"id": INTEGER, "v": STRING, **columns, "at": LOCAL}
    again = TableSchema.from_json_schema({"properties": properties})
    assert fit(again, known, replaces=False) == wanted.schema
    ((b, n, o),) = store.rows("b", "n", "o")
    assert (b, n, json.loads(o)) == (True, 1.5, {"x": [1]})


@pytest.mark.parametrize("mode", MODES)
def test_several_tables_in_one_commit(store: Store, mode: WriteMode) -> None:
    tables = [("c", "a"), ("c", "n", "b"), ("c", "empty")]
    writers = [store.open(spec(mode, table=table)) for table in tables]
    for number, writer in enumerate(writers[:2]):
        store.write(writer, [{"id": number}])
    envelope = store.commit(*writers)
    for writer in writers:
        writer.merge_committed()
    assert [store.committed(*table) for table in tables] == [envelope.seq] * 3
    assert [store.rows("id", table=table) for table in tables] == [[(0,)], [(1,)], []]
    assert [commit.rows for commit in envelope.streams] == [1, 1, 0]


@pytest.mark.parametrize("mode", MODES)
def test_a_preview(store: Store, mode: WriteMode) -> None:
    store.sync(spec(mode), [{"id": number, "v": "x"} for number in range(5)])
    preview = store.destination.preview(("c", "t"), 3)
    assert preview.num_rows == 3
    assert preview.column_names[:2] == ["id", "v"]
    assert preview.column("v").to_pylist() == ["x"] * 3


def test_reading_back(store: Store) -> None:
    moment = {"type": "string", "format": "date-time"}
    wanted = spec(w={"type": "array"}, x=moment, y={"type": "boolean"})
    store.sync(
        wanted, [{"id": 1, "v": "a", "w": [1], "x": "2026-01-02T03:04:05+02:00", "y": True}, {}]
    )

    reader = store.destination.read(("c", "t"), ["y", "x", "w", "v", "id"])

    assert reader.schema.names == ["y", "x", "w", "v", "id"]
    assert [reader.schema.field(name).type for name in ("y", "x", "v", "id")] == [
        pa.bool_(),
        pa.timestamp("us", "UTC"),
        pa.string(),
        pa.int64(),
    ]
    rows = sorted(reader.read_all().to_pylist(), key=lambda row: row["id"] or 0)
    then = dt.datetime(2026, 1, 2, 1, 4, 5, tzinfo=dt.UTC)
    assert rows == [
        {"y": None, "x": None, "w": None, "v": None, "id": None},
        {"y": True, "x": then, "w": "[1]", "v": "a", "id": 1},
    ]
    everything = store.destination.read(("c", "t")).read_all()
    assert everything.schema.names == wanted.schema.arrow.names


def test_reading_what_is_not_there(store: Store) -> None:
    with pytest.raises(ConfigError, match="materialize c/t"):
        store.destination.read(("c", "t"))
    store.sync(spec(), [{"id": 1}])
    with pytest.raises(ConfigError, match=r"'w'.* id, v, _airbyte_raw_id"):
        store.destination.read(("c", "t"), ["id", "w"])


def test_text_of_every_kind(store: Store) -> None:
    texts = ["", " ", "\\.", "a\n\\.\nb", "q\"'", "\r\n\t", "é😀", "NULL", "\\N", "x" * 100_000]
    store.sync(spec(), [{"id": number, "v": text} for number, text in enumerate(texts)])
    assert [v for _, v in sorted(store.rows())] == texts


def test_the_ends_of_every_type(store: Store) -> None:
    columns = {"n": {"type": "number"}, "at": {"type": "string", "format": "date-time"}}
    columns |= {"d": {"type": "string", "format": "date"}, "local": LOCAL}
    ends = [
        (2**63 - 1, 1.7976931348623157e308, "9999-12-31T23:59:59.999999Z", "9999-12-31"),
        (-(2**63), 5e-324, "0001-01-01T00:00:00Z", "0001-01-01"),
    ]
    store.sync(
        spec(**columns),
        [{"id": i, "n": n, "at": at, "d": d, "local": at[:-1]} for i, n, at, d in ends],
    )
    utc = dt.UTC
    assert sorted(store.rows("id", "n", "at", "d", "local"), reverse=True) == [
        (
            i,
            n,
            dt.datetime.fromisoformat(at).astimezone(utc),
            dt.date.fromisoformat(d),
            dt.datetime.fromisoformat(at[:-1]),
        )
        for i, n, at, d in ends
    ]
