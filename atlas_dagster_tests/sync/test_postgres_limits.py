"""What Postgres does not allow, or what users have built on a table: no end to all streams."""

from typing import Any

import pytest

from atlas_dagster.errors import DestinationError
from atlas_dagster_tests.sync.fake_source import (
    Warehouse,
    full_refresh,
    incremental,
    line,
    records,
    state,
    status,
    upkeep,
)

pytestmark = pytest.mark.postgres

INTEGER, STRING = {"type": "integer"}, {"type": "string"}
BESIDE = records("b", [1]), state("b", {}), status("b")


def row(**data: Any) -> bytes:
    sent = line("RECORD", record={"stream": "a", "data": data, "emitted_at": 1_700_000_000_000})
    return sent + state("a", {}) + status("a")


def test_more_columns_than_a_table_can_have(warehouse: Warehouse) -> None:
    many = {f"c{number}": INTEGER for number in range(1_700)}
    wide, other = incremental("a", "append", **many), incremental("b", "append")
    with pytest.raises(DestinationError, match=r"1,70\d columns, .* 1,600"):
        warehouse.prepare([wide])
    done = warehouse.sync([wide, other], *BESIDE)
    assert list(done.finished) == ["b"]
    assert "send this connection to a lake" in str(done.failure)


def test_columns_that_come_until_there_are_too_many(warehouse: Warehouse) -> None:
    some = [{f"{letter}{n}": INTEGER for n in range(900)} for letter in "xy"]
    assert warehouse.sync([incremental("a", "append", **some[0])], row(id=1)).failure is None
    with pytest.raises(DestinationError, match=r"1,80\d columns"):
        warehouse.prepare([incremental("a", "append", **some[1])])


def test_a_row_that_is_too_big_for_a_page(warehouse: Warehouse) -> None:
    columns = {f"c{number}": INTEGER for number in range(1_200)}
    wide, other = incremental("a", "append", **columns), incremental("b", "append")
    done = warehouse.sync([wide, other], row(id=1, **dict.fromkeys(columns, 5)), *BESIDE)
    assert list(done.finished) == ["b"]
    assert "(row is too big: size" in str(done.failure)
    assert warehouse.sync([wide, other], row(id=1, c7=5), *BESIDE).failure is None
    assert warehouse.rows("a", columns="id, c7") == [(1, 5)]


def test_a_view_on_a_column_that_changes_its_type(warehouse: Warehouse) -> None:
    """Regression: cannot alter type of a column used by a view or rule, at every sync."""

    def sync(id: int, **columns: Any) -> None:
        x = "one" if columns["x"] is STRING else 1
        assert warehouse.sync([full_refresh("a", **columns)], row(id=id, x=x)).failure is None

    sync(1, x=INTEGER)
    warehouse.do("CREATE VIEW c.seen AS SELECT id, x FROM c.a")
    for id in (2, 3):
        sync(id, x=STRING)
        assert warehouse.rows("a", columns="id, x, x_string") == [(id, None, "one")]
        assert warehouse.rows("seen", columns="id, x") == [(id, None)]
    sync(4, x=INTEGER)
    assert warehouse.rows("seen", columns="id, x") == [(4, 1)]

    stream = full_refresh("a", x=STRING)
    upkeep(warehouse, stream).refresh([stream.descriptor], keep_rows=False)
    sync(5, x=STRING)
    assert warehouse.rows("seen", columns="id, x") == [(5, None)]
    upkeep(warehouse, stream).clear([stream.descriptor])
    assert warehouse.rows("seen", columns="id, x") == []
    warehouse.do("DROP VIEW c.seen")


def test_an_integer_under_a_view_gets_a_number_beside_it(warehouse: Warehouse) -> None:
    number = {"type": "number"}
    warehouse.sync([incremental("a", "append", x=INTEGER)], row(id=1, x=1))
    warehouse.do("CREATE VIEW c.seen AS SELECT x FROM c.a")
    warehouse.sync([incremental("a", "append", x=number)], row(id=2, x=0.5))
    assert warehouse.rows("a", columns="id, x, x_number::float8") == [(1, 1, None), (2, None, 0.5)]
    warehouse.do("DROP VIEW c.seen")


def test_a_column_of_the_users_own(warehouse: Warehouse) -> None:
    """A field of its name gets another column, and nothing of it changes."""
    warehouse.sync([incremental("a", "append")], row(id=1))
    warehouse.do("ALTER TABLE c.a ADD COLUMN note integer DEFAULT 7")
    done = warehouse.sync([incremental("a", "append", note=STRING)], row(id=2, note="x"))
    assert done.failure is None
    (column,) = (c.name for c in done.plan.streams[0].table.schema.columns if c.field == "note")
    assert warehouse.rows("a", columns=f"id, note, {column}") == [(1, 7, None), (2, 7, "x")]
