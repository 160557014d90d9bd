"""Counting the keys that a table holds more than once, in every destination."""

from typing import Any

from msgspec import Raw

from atlas_dagster_tests.destinations.stores import INTEGER, STRING, Store, spec

OVERWRITE = spec("overwrite")


def row(id: int | None, v: str) -> dict[str, Any]:
    return {"id": id, "v": v}


def count(store: Store, *key: str, **columns: Any) -> int:
    return store.destination.count_duplicates(spec("overwrite", **columns), key)


def test_every_key_once(store: Store) -> None:
    store.sync(OVERWRITE, [row(1, "a"), row(2, "a")], [row(3, "a")])
    assert count(store, "id") == 0


def test_rows_beyond_the_first_of_a_key_count(store: Store) -> None:
    store.sync(OVERWRITE, [row(1, "a"), row(1, "b"), row(2, "c")], [row(1, "a"), row(3, "c")])
    assert count(store, "id") == 2
    assert count(store, "v") == 2
    assert count(store, "id", "v") == 1


def test_only_the_rows_of_the_last_sync_are_there_to_count(store: Store) -> None:
    store.sync(OVERWRITE, [row(1, "a"), row(1, "b")])
    store.sync(OVERWRITE, [row(1, "a")])
    assert count(store, "id") == 0


def test_rows_without_a_key_are_not_the_same(store: Store) -> None:
    store.sync(OVERWRITE, [row(None, "a"), row(None, "b"), row(1, "a"), row(1, "b")])
    assert count(store, "id") == 1
    assert count(store, "id", "v") == 0


def test_keys_that_their_column_does_not_hold_differ_digit_by_digit(store: Store) -> None:
    big = [Raw(b'{"id":1%s,"v":"a"}' % (b"0" * zeros)) for zeros in (30, 31, 30)]
    store.sync(OVERWRITE, big)
    assert count(store, "id") == 1


def test_a_column_name_in_need_of_quotes(store: Store) -> None:
    columns = {"Order": INTEGER, "Select": STRING}
    rows = [{"Order": 1, "Select": "x"}, {"Order": 1, "Select": "X"}]
    store.sync(spec("overwrite", **columns), rows)
    assert count(store, "Order", "Select", **columns) == 0
    assert count(store, "Order", **columns) == 1


def test_an_empty_table_has_none(store: Store) -> None:
    store.sync(OVERWRITE)
    assert count(store, "id") == 0
