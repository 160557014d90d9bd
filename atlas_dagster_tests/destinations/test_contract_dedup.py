"""One row per key: which version of it wins, the same in every destination."""

import itertools
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from atlas_dagster_tests.destinations.stores import INTEGER, STRING, T0, Lake, Store, spec

PLAIN = spec("append_dedup")
BY_CURSOR = spec("append_dedup", cursor="at", at=INTEGER)


def row(id: int | None, v: str, **rest: Any) -> dict[str, Any]:
    return {"id": id, "v": v, **rest}


@pytest.mark.parametrize("syncs", [1, 2], ids=["in one sync", "in two syncs"])
@pytest.mark.parametrize(
    ("old", "new", "winner"),
    [
        (row(1, "old", at=1), row(1, "new", at=2), "new"),
        (row(1, "old", at=2), row(1, "new", at=1), "old"),  # an older cursor comes late
        (row(1, "old", at=1), row(1, "new", at=1), "new"),  # same cursor, later extraction
        (row(1, "old"), row(1, "new", at=1), "new"),
        (row(1, "old", at=1), row(1, "new"), "new"),  # one without a cursor replaces all before
        (row(1, "old"), row(1, "new"), "new"),
    ],
)
def test_the_cursor_decides_then_the_extraction(
    store: Store, old: dict[str, Any], new: dict[str, Any], winner: str, syncs: int
) -> None:
    if syncs == 1:
        store.sync(BY_CURSOR, [old], [new])
    else:
        store.sync(BY_CURSOR, [old])
        store.sync(BY_CURSOR, [new], at=T0 + 1000)
    assert store.rows() == [(1, winner)]
    assert store.committed() == store.seq


@pytest.mark.parametrize("syncs", [1, 2], ids=["in one sync", "in two syncs"])
@pytest.mark.parametrize("wanted", [PLAIN, BY_CURSOR], ids=["no cursor", "cursor"])
@pytest.mark.slow
def test_arrival_decides_at_the_same_moment(store: Store, wanted: Any, syncs: int) -> None:
    versions = [row(1, str(number), at=5) for number in range(30)]
    if syncs == 1:
        store.sync(wanted, versions)
    else:
        store.sync(wanted, versions[:-1])
        store.sync(wanted, versions[-1:])
    assert store.rows() == [(1, "29")]


def test_an_older_extraction_loses_without_a_cursor(store: Store) -> None:
    store.sync(PLAIN, [row(1, "new")], at=T0 + 1000)
    store.sync(PLAIN, [row(1, "old")], at=T0)
    assert store.rows() == [(1, "new")]


def test_new_keys_are_added_and_others_stay(store: Store) -> None:
    store.sync(PLAIN, [row(1, "a"), row(2, "b")])
    store.sync(PLAIN, [row(2, "c"), row(3, "d")])
    assert store.rows() == [(1, "a"), (2, "c"), (3, "d")]


def test_rows_without_a_key_are_kept_apart(store: Store) -> None:
    for v in ("a", "b"):
        writer = store.sync(PLAIN, [row(None, "x"), {"v": v}, row(1, v)])
    assert store.rows() == [(1, "b"), (None, "a"), (None, "b"), (None, "x"), (None, "x")]
    assert writer.describe().row_count == 5


def test_composite_keys(store: Store) -> None:
    wanted = spec("append_dedup", key=("id", "k"), k=INTEGER)
    store.sync(wanted, [row(1, "a", k=1), row(1, "b", k=2), row(1, "c"), row(1, "d", k=2)])
    store.sync(wanted, [row(1, "e", k=1), row(2, "f", k=1), row(1, "g")])
    without = [(1, None, "c"), (1, None, "g")]  # a key of which a part is missing is none
    assert store.rows("id", "k", "v") == [(1, 1, "e"), (1, 2, "d"), *without, (2, 1, "f")]


def test_a_column_name_in_need_of_quotes(store: Store) -> None:
    wanted = spec("append_dedup", key=("Order",), cursor="Select", Order=INTEGER, Select=INTEGER)
    store.sync(wanted, [{"Order": 1, "Select": 1, "v": "a"}])
    store.sync(wanted, [{"Order": 1, "Select": 2, "v": "b"}])
    assert store.rows("v") == [("b",)]


def test_a_commit_without_rows(store: Store) -> None:
    """Regression: a merge of nothing commits nothing, so its seq was missed."""
    store.sync(PLAIN, [row(1, "a")])
    store.sync(PLAIN)
    assert store.rows() == [(1, "a")]
    assert store.committed() == store.seq


# An interrupted merge


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.slow
def test_the_next_open_merges_what_waits(store: Store, exists: bool) -> None:
    if exists:
        store.sync(PLAIN, [row(1, "a"), row(2, "b")])
    writer = store.open(PLAIN)
    store.write(writer, [row(1, "c")])
    store.commit(writer)
    assert store.committed() == store.seq
    again = store.open(PLAIN)
    assert store.rows() == ([(1, "c"), (2, "b")] if exists else [(1, "c")])
    store.write(again, [row(1, "d")])
    store.commit(again)
    again.merge_committed()
    assert store.rows() == ([(1, "d"), (2, "b")] if exists else [(1, "d")])


def test_a_replacing_merge_is_finished_as_one(store: Store) -> None:
    store.sync(PLAIN, [row(1, "a")])
    writer = store.open(spec("append_dedup", replaces=True))
    store.write(writer, [row(2, "b")])
    store.commit(writer)
    store.open(PLAIN)
    assert store.rows() == [(2, "b")]


def test_to_append_and_back(store: Store) -> None:
    store.sync(PLAIN, [row(1, "a")])
    store.sync(spec("append"), [row(1, "b"), row(2, "c")])
    assert store.committed() == store.seq
    writer = store.sync(PLAIN, [row(1, "d")])
    assert store.rows() == [(1, "d"), (2, "c")]
    assert writer.describe().row_count == 2
    assert store.committed() == store.seq


def test_of_rows_appended_under_one_key_the_newest_stays(store: Store) -> None:
    appended = spec("append", at=INTEGER)
    store.sync(appended, [row(1, "a", at=1), row(1, "b", at=3), row(1, "c", at=2), row(None, "n")])
    store.sync(appended, [row(7, "e", at=2), row(2**63, "x"), row(2**64, "y"), row(None, "o")])
    # Of a key that gets no new version, too; and a version without a cursor replaces all before.
    store.sync(appended, [row(7, "f", at=1), row(8, "g", at=5), row(9, "i")], at=T0 + 1000)
    store.sync(appended, [row(8, "h"), row(9, "j", at=1), row(9, "k", at=1)], at=T0 + 1500)
    late = [row(1, "d", at=2), row(None, "p"), row(2**64, "z")]
    writer = store.sync(BY_CURSOR, late, at=T0 + 2000)
    keyless = [(None, "n"), (None, "o"), (None, "p")]
    kept = [(1, "b"), (7, "e"), (8, "h"), (9, "k")]
    assert store.rows() == [*kept, *keyless, (None, "x"), (None, "z")]
    assert writer.describe().row_count == 9


def test_a_replaced_table(store: Store) -> None:
    store.sync(PLAIN, [row(1, "a"), row(2, "b")])
    writer = store.open(spec("append_dedup", replaces=True))
    store.write(writer, [row(2, "c"), row(2, "d"), row(3, "e")])
    assert store.rows() == [(1, "a"), (2, "b")]
    store.commit(writer)
    writer.merge_committed()
    assert store.rows() == [(2, "d"), (3, "e")]
    assert writer.describe().row_count == 2


def test_many_checkpoints_in_one_sync(store: Store) -> None:
    store.sync(PLAIN, [row(0, "a")])
    writer = store.open(PLAIN)
    for version in ("b", "c"):
        for number in range(3):
            store.write(writer, [row(number, version)])
            store.commit(writer)
    writer.merge_committed()
    assert store.rows() == [(number, "c") for number in range(3)]
    assert writer.describe().row_count == 3


def test_a_field_that_is_gone_is_null_in_new_versions(store: Store) -> None:
    store.sync(PLAIN, [row(1, "a"), row(2, "b")])
    store.sync(spec("append_dedup", v=None, w=STRING), [{"id": 1, "w": "new"}])
    assert store.rows("id", "v", "w") == [(1, None, "new"), (2, "b", None)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [STRING, {"type": ["string", "integer"]}], ids=["text", "json"])
def test_a_text_cursor_compares_by_its_bytes(store: Store, kind: Any) -> None:
    """As the languages of other servers would not: a < B, é < f, - ignored."""
    wanted = spec("append_dedup", cursor="at", at=kind)
    pairs = [("a", "B"), ("é", "f"), ("b-a", "ba"), ("Z", "a")]
    for number, (one, other) in enumerate(pairs):
        store.sync(wanted, [row(number, one, at=one)])
        store.sync(wanted, [row(number, other, at=other)], at=T0 + 1000)
    assert store.rows() == [(number, max(pair)) for number, pair in enumerate(pairs)]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (STRING, ["", "x" * 5000, "x" * 5000 + "y", "é" * 3000, None]),
        ({"type": "number"}, [1.5, -1.5, None]),
        ({"type": "boolean"}, [True, False, None]),
        ({"type": "string", "format": "date-time"}, ["2024-01-01T00:00:00Z", None]),
        ({"type": "string", "format": "date"}, ["2024-01-01", None]),
        ({"type": ["string", "integer"]}, ["a", 1, "1", None, "z" * 5000]),
        ({"type": "object"}, [{"a": 1}, {"a": 2}, None]),
    ],
    ids=["text", "number", "boolean", "timestamp", "date", "json", "object"],
)
def test_keys_of_every_type(store: Store, kind: Any, values: list[Any]) -> None:
    wanted = spec("append_dedup", key=("k", "id"), k=kind)
    for v in ("a", "b"):
        store.sync(wanted, [row(1, v, k=value) for value in values])
    keyless = values.count(None)
    assert store.rows("v") == [("a",)] * keyless + [("b",)] * len(values)


# Keys that their columns do not hold

DIGITS = ["1.0000000000000001", "1.0000000000000002", "1", "1e400", "2e400", "null"]


def keyed(field: str, texts: list[str], v: str) -> list[Raw]:
    """Rows with ``texts``, as they are written, under ``field``."""
    return [
        Raw(f'{{"{field}":{text},"v":"{v} {place}","undeclared":"{v}"}}'.encode())
        for place, text in enumerate(texts)
    ]


@pytest.mark.parametrize("syncs", [1, 2], ids=["in one sync", "in two syncs"])
@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (INTEGER, [str(2**63), str(2**63 + 1), str(2**64 - 1), "null", "1", '"x"', '"y"']),
        ({"type": "number"}, DIGITS),
        ({"type": "object"}, ['{"a":1}', "1", "2", '"it\'s"']),
        ({"type": "string", "format": "date-time"}, ['"2024-01-01T00:00:00Z"', '"1"', '"2"']),
    ],
    ids=["integer", "number", "object", "timestamp"],
)
@pytest.mark.parametrize("field", ["k", "it's \\\"k"])
def test_keys_that_do_not_fit_stay_apart(
    store: Store, kind: Any, texts: list[str], field: str, syncs: int
) -> None:
    name = field.replace('\\"', '"')
    wanted = spec("append_dedup", id=None, **{name: kind})
    column = wanted.schema.column_of(name)
    wanted = msgspec.structs.replace(wanted, primary_key=(column,))
    first, second = keyed(field, texts, "a"), keyed(field, texts[:-1], "b")
    if syncs == 1:
        store.sync(wanted, first, second)
    else:
        store.sync(wanted, first)
        store.sync(wanted, second, at=T0 + 1000)
    last = len(texts) - 1
    old = {last} | {n for n, text in enumerate(texts) if text == "null"}
    expected = [*(f"a {n}" for n in old), *(f"b {n}" for n in range(last))]
    assert store.rows("v") == sorted((v,) for v in expected)


def test_part_of_a_composite_key_that_does_not_fit(store: Store) -> None:
    wanted = spec("append_dedup", key=("id", "k"), k={"type": "number"})
    keys = [(1, 2**63), (2**63, 1), (2**63, 2**63 + 1), (1, None), (2**63 + 1, 1), (1, 1)]
    for v in ("a", "b"):
        store.sync(wanted, [row(id, f"{v} {n}", k=k) for n, (id, k) in enumerate(keys)])
    assert store.rows("v") == [("a 3",), *((f"b {n}",) for n in range(len(keys)))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["integer", "number"])
def test_any_number_is_a_key(lake: Lake, kind: str) -> None:
    """Whatever its digits, and whatever the source writes that it does not declare."""
    numbers = st.integers(-(2**65), 2**65) | st.integers(2**63 - 2, 2**63 + 2)
    if kind == "number":
        numbers = numbers.map(lambda n: Decimal(n).scaleb(-17))
    keys = st.lists(st.none() | numbers, max_size=8)
    table = itertools.count()

    @settings(max_examples=25, deadline=None)
    @given(st.lists(keys, max_size=3))
    def check(syncs: list[list[Any]]) -> None:
        wanted = spec("append_dedup", table=("c", f"t{next(table)}"), id={"type": kind})
        expected: dict[Any, str] = {}
        for number, values in enumerate(syncs):
            rows = []
            for place, value in enumerate(values):
                v = f"{number}.{place}"
                expected[v if value is None else value] = v
                text = "null" if value is None else format(value, "f" if kind == "number" else "d")
                rows.append(Raw(f'{{"id":{text},"v":"{v}","w":{place}}}'.encode()))
            lake.sync(wanted, rows)
        if syncs:
            found = lake.rows("v", table=wanted.path)
            assert found == sorted((v,) for v in expected.values())

    check()


# Rows that are deleted in the source

DELETED = "_ab_cdc_deleted_at"
CDC = {"at": INTEGER, DELETED: STRING}
SOFT = spec("append_dedup", cursor="at", **CDC)
HARD = spec("append_dedup", cursor="at", deleted_at=DELETED, **CDC)


def tombstone(id: int | None, at: int) -> dict[str, Any]:
    return row(id, "gone", at=at, **{DELETED: "2024-01-01"})


def test_soft_deletes_keep_the_row(store: Store) -> None:
    store.sync(SOFT, [row(1, "a", at=1), row(2, "b", at=1)])
    store.sync(SOFT, [tombstone(1, 2), tombstone(3, 2)])
    assert store.rows("id", "v", DELETED) == [
        (1, "gone", "2024-01-01"),
        (2, "b", None),
        (3, "gone", "2024-01-01"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("syncs", [1, 2], ids=["in one sync", "in two syncs"])
@pytest.mark.parametrize(
    ("versions", "left"),
    [
        ([row(1, "a", at=1), tombstone(1, 2)], []),
        ([row(1, "a", at=1), tombstone(1, 1)], []),  # extracted later
        ([row(1, "a", at=1), tombstone(1, 2), row(1, "b", at=3)], ["b"]),
        ([row(1, "a", at=3), tombstone(1, 2)], ["a"]),  # an older tombstone comes late
        ([row(2, "a", at=3), tombstone(1, 2)], ["a"]),  # of a row never seen
        ([row(None, "a", at=1), row(1, "b", at=1), tombstone(None, 2)], ["a", "b"]),
        ([row(1, "a", at=3), {"id": 1, DELETED: "2024-01-01"}], []),  # nothing but the key
        ([row(1, "a", at=3), {"id": 1, DELETED: "2024-01-01"}, row(1, "b", at=1)], ["b"]),
        ([row(2**63, "a", at=1), row(2**64, "b", at=1), tombstone(2**64, 2)], ["a"]),
        ([tombstone(1, 1)], []),
    ],
)
def test_hard_deletes(
    store: Store, versions: list[dict[str, Any]], left: list[str], syncs: int
) -> None:
    store.sync(HARD, [row(9, "other", at=1)])
    if syncs == 1:
        writer = store.sync(HARD, *([version] for version in versions))
    else:
        for number, version in enumerate(versions):
            writer = store.sync(HARD, [version], at=T0 + 1000 * number)
    assert store.rows("v") == [*((v,) for v in left), ("other",)]
    assert writer.describe().row_count == len(left) + 1


def test_hard_deletes_in_a_replaced_table(store: Store) -> None:
    store.sync(HARD, [row(1, "a", at=1)])
    replacing = msgspec.structs.replace(HARD, replaces=True)
    store.sync(replacing, [row(2, "b", at=1), row(3, "c", at=1), tombstone(3, 2), tombstone(4, 1)])
    assert store.rows() == [(2, "b")]


def test_from_soft_to_hard_deletes(store: Store) -> None:
    store.sync(SOFT, [row(1, "a", at=1), row(2, "b", at=1), tombstone(2, 2)])
    store.sync(HARD, [tombstone(1, 2), tombstone(2, 3)])
    assert store.rows() == []


def test_changes_from_before_the_cursor_was_chosen(store: Store) -> None:
    writer = store.open(PLAIN)
    store.write(writer, [row(1, "a")])
    store.commit(writer)
    store.sync(HARD, [row(1, "b", at=1), row(2, "c", at=1), tombstone(2, 2)])
    assert store.rows() == [(1, "b")]
