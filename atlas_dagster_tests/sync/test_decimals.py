"""Numbers in Postgres are numeric: no digit is lost, and tables of doubles become so in place."""

import json
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from atlas_dagster.destinations.postgres.destination import PostgresDestination
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster_tests.sync.fake_source import EAGER, Warehouse, incremental, line, state, status

pytestmark = pytest.mark.postgres
PRICED = incremental("a", price={"type": "number"}, v=None)
MERGED = incremental("a", "append_dedup", price={"type": "number"}, v=None)
#: As sources write them.
NUMBERS = ["0.1", "12345678901234567.89", '"19.99"', "1e3", "-0.0", "9007199254740993", "1e400"]


def priced(*numbers: str) -> bytes:
    rows = [
        b'{"type":"RECORD","record":{"stream":"a","emitted_at":1700000000000,'
        b'"data":{"id":%d,"price":%s}}}\n' % (id, number.encode())
        for id, number in enumerate(numbers)
    ]
    return b"".join(rows) + state("a", {"at": 1}) + status("a")


def prices(warehouse: Warehouse, text: str = "price::text") -> list[Any]:
    found = warehouse.ask(f"SELECT {text} AS p FROM c.a ORDER BY id")
    return [row["p"] for row in found.to_pylist()]


@pytest.mark.parametrize("stream", [PRICED, MERGED], ids=["append", "append_dedup"])
def test_no_digit_is_lost(warehouse: Warehouse, stream: ConfiguredStream) -> None:
    warehouse.sync([stream], priced(*NUMBERS), **EAGER)
    expected = [Decimal(json.loads(n)) if n[0] == '"' else Decimal(n) for n in NUMBERS]
    assert [Decimal(text) for text in prices(warehouse)] == expected
    assert prices(warehouse, "_airbyte_meta->'changes' = '[]'") == [True] * len(NUMBERS)
    assert prices(warehouse, "_airbyte_extra IS NULL") == [True] * len(NUMBERS)


def test_sums_are_exact_and_round_exists(warehouse: Warehouse) -> None:
    warehouse.sync([PRICED], priced("0.1", "0.2", "2.675"), **EAGER)
    found = warehouse.ask("SELECT sum(price)::text s, max(round(price, 2))::text r FROM c.a")
    assert found.to_pylist() == [{"s": "2.975", "r": "2.68"}]


def test_readers_get_doubles(warehouse: Warehouse) -> None:
    warehouse.sync([PRICED], priced("0.1", "-1e400", "1e-400", "null"), **EAGER)
    table = warehouse.destination.read(("c", "a"), ["id", "price"]).read_all()
    assert sorted(table.to_pylist(), key=lambda row: row["id"]) == [
        {"id": 0, "price": 0.1},
        {"id": 1, "price": float("-inf")},
        {"id": 2, "price": 0.0},
        {"id": 3, "price": None},
    ]


@pytest.mark.parametrize("number", ["1e100000", "1e-100000", "1e99999999999999999999"])
def test_what_is_beyond_all_measure_is_kept_beside(warehouse: Warehouse, number: str) -> None:
    warehouse.sync([PRICED], priced(number), **EAGER)
    assert prices(warehouse) == [None]
    assert prices(warehouse, "_airbyte_meta->'changes'->0->>'reason'") == [
        "DESTINATION_FIELD_SIZE_LIMITATION"
    ]


def doubles(
    monkeypatch: pytest.MonkeyPatch, warehouse: Warehouse, stream: ConfiguredStream
) -> None:
    """A table as versions made it that knew no decimals."""
    with monkeypatch.context() as patch:
        patch.setattr(PostgresDestination, "has_decimals", False)
        warehouse.sync([stream], priced("0.1", "12345678901234567", "12345678901234568"), **EAGER)
    assert prices(warehouse, "pg_typeof(price)::text")[0] == "double precision"


@pytest.mark.parametrize("stream", [PRICED, MERGED], ids=["append", "append_dedup"])
def test_a_table_of_doubles_becomes_one_of_decimals(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch, stream: ConfiguredStream
) -> None:
    doubles(monkeypatch, warehouse, stream)
    done = warehouse.sync([stream], status("a"))
    assert done.failure is None
    done = warehouse.sync(
        [stream],
        line(
            "RECORD",
            record={"stream": "a", "emitted_at": 1, "data": {"id": 9, "price": 0.3}},
        ),
        state("a", {"at": 9}),
        status("a"),
    )
    assert done.failure is None
    assert prices(warehouse) == ["0.1", "12345678901234567", "12345678901234568", "0.3"]
    assert prices(warehouse, "pg_typeof(price)::text")[0] == "numeric"


def test_a_view_keeps_doubles(warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles(monkeypatch, warehouse, PRICED)
    warehouse.do("CREATE VIEW c.v AS SELECT price FROM c.a")
    done = warehouse.sync([PRICED], priced("0.5"), **EAGER)
    assert done.failure is None
    assert prices(warehouse, "pg_typeof(price)::text")[0] == "double precision"
    assert sorted(prices(warehouse))[0] == "0.1"


def test_the_key_is_the_number_itself(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two numbers that are one double stay two rows when their column becomes decimal."""
    stream = msgspec.structs.replace(MERGED, primary_key=(("price",),))
    doubles(monkeypatch, warehouse, stream)
    done = warehouse.sync([stream], priced("0.1", "12345678901234567", "12345678901234568"))
    assert done.failure is None
    assert sorted(prices(warehouse)) == ["0.1", "12345678901234567", "12345678901234568"]


def test_a_table_of_doubles_has_each_number_once(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows appended before and after the column became decimal are versions of one key."""
    numbers = "0.1", "12345678901234567", "12345678901234568"
    doubles(monkeypatch, warehouse, PRICED)
    assert warehouse.sync([PRICED], priced(*numbers), **EAGER).failure is None
    stream = msgspec.structs.replace(MERGED, primary_key=(("price",),))
    assert warehouse.sync([stream], priced(*numbers), **EAGER).failure is None
    assert sorted(prices(warehouse)) == [*numbers]
