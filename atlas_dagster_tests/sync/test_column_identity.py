"""Which column a field gets: its own, for the life of the table, whatever else comes and goes."""

from typing import Any

import pyarrow as pa
import pytest

from atlas_dagster.errors import BreakingChangeError
from atlas_dagster.records.types import SOURCE_NAME_KEY, Column, TableSchema
from atlas_dagster_tests.sync.fake_source import (
    Lake,
    Outcome,
    full_refresh,
    incremental,
    line,
    state,
    status,
    upkeep,
)

BOOLEAN, INTEGER, NUMBER, STRING = ({"type": t} for t in ("boolean", "integer", "number", "string"))
MIXED, PLAIN = {"type": ["object", "string"]}, {"type": ["string", "integer", "boolean"]}
MODES = ("append", "append_dedup", "overwrite")


def sync(lake: Lake, mode: str, columns: dict[str, Any], id: int = 1, **data: Any) -> Outcome:
    """One row, which is all that a full refresh brings."""
    make = full_refresh if mode == "overwrite" else incremental
    message = {"stream": "a", "data": {"id": id, **data}, "emitted_at": 1_700_000_000_000 + id}
    output = line("RECORD", record=message), state("a", {"at": id}), status("a")
    done = lake.sync([make("a", mode, **{"v": None, **columns})], *output)
    assert done.failure is None
    return done


def names(done: Outcome) -> dict[str, str]:
    return {column.field: column.name for column in done.plan.streams[0].table.schema.columns}


@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_a_new_field_never_gets_the_column_of_one_that_is_gone(lake: Lake, mode: str) -> None:
    """Regression: no reader could open the table any more."""
    sync(lake, mode, {"order id": INTEGER}, 1, **{"order id": 7})
    column = names(sync(lake, mode, {"order_id": STRING}, 2, order_id="seven"))["order_id"]
    sync(
        lake, mode, {"order id": INTEGER, "order_id": STRING}, 3, **{"order id": 8, "order_id": "x"}
    )
    assert lake.rows("a", columns=f"id, order_id, {column}") == [
        (1, 7, None),
        (2, None, "seven"),
        (3, 8, "x"),
    ]


@pytest.mark.parametrize("mode", MODES)
def test_names_that_differ_in_case_only(lake: Lake, mode: str) -> None:
    """Regression: Duplicate field name (case-insensitive)."""
    sync(lake, mode, {"User_Id": INTEGER}, 1, User_Id=1)
    column = names(sync(lake, mode, {"user_id": INTEGER}, 2, user_id=2))["user_id"]
    assert mode == "overwrite" or column.lower() != "user_id"
    sync(lake, mode, {"User_Id": INTEGER, "user_id": INTEGER}, 3, User_Id=3, user_id=4)
    assert len({c.lower() for c in lake.read(("a",), "*").column_names}) == 8


@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_a_field_called_like_the_column_of_a_changed_one(lake: Lake, mode: str) -> None:
    """Regression: both had one column."""
    sync(lake, mode, {"n": INTEGER}, 1, n=1)
    sync(lake, mode, {"n": STRING}, 2, n="two")
    done = sync(lake, mode, {"n": STRING, "n_string": STRING}, 3, n="three", n_string="own")
    assert names(done)["n"] == "n_string"
    column = names(done)["n_string"]
    found = lake.rows("a", columns=f"id, n, n_string, {column}")
    assert found == [(1, 1, None, None), (2, None, "two", None), (3, None, "three", "own")]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_a_type_that_comes_back_finds_its_column(lake: Lake, mode: str) -> None:
    """Regression: x_string_boolean."""
    values = [1, "two", True, "four", 5]
    kinds = [INTEGER, STRING, BOOLEAN, STRING, INTEGER]
    for id, (kind, value) in enumerate(zip(kinds, values, strict=True)):
        sync(lake, mode, {"x": kind}, id, x=value)
    assert lake.rows("a", columns="id, x, x_string, x_boolean") == [
        (0, 1, None, None),
        (1, None, "two", None),
        (2, None, None, True),
        (3, None, "four", None),
        (4, 5, None, None),
    ]


@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_types_are_told_apart_though_both_are_text(lake: Lake, mode: str) -> None:
    sync(lake, mode, {"x": STRING}, 1, x="a")
    done = sync(lake, mode, {"x": MIXED}, 2, x="b")
    assert names(done)["x"] == "x_json"
    sync(lake, mode, {"x": STRING}, 3, x="c")
    assert lake.rows("a", columns="id, x") == [(1, "a"), (2, None), (3, "c")]


def test_a_key_may_not_change_between_types_of_text(lake: Lake) -> None:
    """Regression: one key was two rows, with and without quotes."""
    sync(lake, "append_dedup", {"id": STRING})
    with pytest.raises(BreakingChangeError, match="key 'id'"):
        lake.prepare([incremental("a", "append_dedup", v=None, id=MIXED)])


def test_an_integer_becomes_a_number_in_place_where_it_can(lake: Lake) -> None:
    exact = 2**53 + 1
    sync(lake, "append", {"x": INTEGER}, 1, x=exact)
    done = sync(lake, "append", {"x": NUMBER}, 2, x=0.5)
    column = names(done)["x"]
    assert column == ("x" if hasattr(lake, "ask") else "x_number")
    text = "CAST(x AS VARCHAR)"
    found = dict(lake.rows("a", columns=f"id, {text} AS x"))
    assert found == {1: str(exact), 2: "0.5" if column == "x" else None}
    sync(lake, "append", {"x": NUMBER}, 3, x=1.5)


def test_all_rows_replaced_leave_no_old_type(lake: Lake) -> None:
    sync(lake, "overwrite", {"x": INTEGER, "order id": INTEGER}, 1, x=1)
    done = sync(lake, "overwrite", {"x": STRING, "order_id": STRING}, 2, x="two", order_id="o")
    assert names(done) == {"id": "id", "x": "x", "order_id": "order_id"}
    assert lake.rows("a", columns="id, x, order_id") == [(2, "two", "o")]


# Unions


def test_a_union_of_plain_values_is_plain_text(lake: Lake) -> None:
    """Regression: strings had quotes around them, and joins found nothing."""
    values = ["b1", 5, True, None, 'a "quote"\n', "", "null", 1.50]
    for id, value in enumerate(values):
        sync(lake, "append", {"u": PLAIN}, id, u=value)
    assert [u for _, u in lake.rows("a", columns="id, u")] == [
        "b1",
        "5",
        "true",
        None,
        'a "quote"\n',
        "",
        "null",
        "1.5",
    ]


def test_a_key_that_is_a_union_stays_json(lake: Lake) -> None:
    stream = incremental("a", "append_dedup", v=None, id=PLAIN, u=PLAIN)
    for u in "xy":
        sent = [line("RECORD", record={"stream": "a", "data": {"id": id, "u": u}, "emitted_at": 1})
                for id in (1, "1", True, "true")]  # fmt: skip
        assert lake.sync([stream], *sent, state("a", {}), status("a")).failure is None
    assert lake.rows("a", columns="CAST(id AS VARCHAR) AS id, u") == [
        ('"1"', "y"), ('"true"', "y"), ("1", "y"), ("true", "y")]  # fmt: skip


# Tables of versions that did not record the type of a column


def _without_type(self: Column) -> pa.Field:
    return pa.field(self.name, self.type.arrow, metadata={SOURCE_NAME_KEY: self.field})


@pytest.fixture
def old_lake(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """With a row of an old table: ``s`` is text, and so is the union ``u``, as JSON."""
    with monkeypatch.context() as patch:
        patch.setattr(Column, "arrow", property(_without_type))
        patch.setattr(TableSchema, "of", lambda stream, **_: TableSchema.of_rows(stream))
        sync(lake, "append", {"s": STRING, "u": PLAIN, "n": INTEGER}, 1, s="a", u="b", n=1)
    assert lake.destination.inspect(("c", "a")).columns().untyped == {"s": "s", "u": "u"}
    return lake


def test_an_old_table_goes_on_and_learns_its_types(old_lake: Lake) -> None:
    for id in (2, 3):
        sync(old_lake, "append", {"s": STRING, "u": PLAIN, "n": INTEGER}, id, s="c", u="d", n=2)
    found = old_lake.rows("a", columns="id, s, CAST(u AS VARCHAR) AS u, n")
    assert found == [(1, "a", '"b"', 1), (2, "c", '"d"', 2), (3, "c", '"d"', 2)]
    assert old_lake.destination.inspect(("c", "a")).columns().untyped == {}
    done = sync(old_lake, "append", {"s": MIXED, "u": PLAIN, "n": INTEGER}, 4, s="e")
    assert names(done)["s"] == "s_json"


# Upkeep


def test_a_refresh_cleans_up_after_it_all(lake: Lake) -> None:
    sync(lake, "append", {"order id": INTEGER}, 1, **{"order id": 7})
    sync(lake, "append", {"order_id": STRING}, 2, order_id="seven")
    stream = incremental("a", "append", v=None, order_id=STRING)
    upkeep(lake, stream).refresh([stream.descriptor], keep_rows=False)
    column = names(sync(lake, "append", {"order_id": STRING}, 3, order_id="x"))["order_id"]
    assert lake.rows("a", columns=f"id, {column}") == [(3, "x")]
