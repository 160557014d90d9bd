"""Which version of a row is the newest: one rule, wherever commits fall, in every destination.

Versions arrive one after the other; commits and syncs may end after any of them, and the table must
be that of :func:`newest`, the rule in a few lines of Python.
"""

import itertools
from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from atlas_dagster.destinations.base import TableSpec
from atlas_dagster.records.types import ColumnType, TableSchema
from atlas_dagster_tests.destinations.stores import INTEGER, LOCAL, STRING, T0, Lake, Store, spec

DELETED = "_ab_cdc_deleted_at"
MOMENT = {"type": "string", "format": "date-time"}
DATE = {"type": "string", "format": "date"}
MISSING = b""


class Version(NamedTuple):
    """One version of a row: identity and cursor as the rule compares them, and its JSON."""

    key: Any
    cursor: Any
    deleted: bool
    extracted: int
    json: bytes


def newest(versions: Sequence[Version]) -> list[int]:
    """The versions that a table holds, by number: one of each key, all that have no key."""
    by_key: dict[Any, list[int]] = {}
    for number, version in enumerate(versions):
        by_key.setdefault((number,) if version.key is None else version.key, []).append(number)

    def rank(number: int) -> Any:
        cursor = versions[number].cursor
        return (cursor is not None, cursor or 0, versions[number].extracted, number)

    found = []
    for numbers in by_key.values():
        resets = [n for n in numbers if versions[n].cursor is None]
        found.append(max((n for n in numbers if n >= max(resets, default=0)), key=rank))
    return sorted(found)


def number(text: str) -> Fraction:
    return Fraction(Decimal(text))


NOTHING: list[tuple[bytes, Any]] = [(MISSING, None), (b"null", None)]
INTEGERS = [
    b"5",
    b"5.0",
    b'"5"',
    b"-3",
    b"9223372036854775807",
    b"9223372036854775808",
    b"1e30",
    b"18446744073709551616",
    b"-9223372036854775809",
    b"5.5",
    b"1e400",
]
NUMBERS = [
    b"0.1",
    b"0.10",
    b"0.1000000000000000055511151231257827",
    b"1e400",
    b"10e399",
    b"-1e400",
    b"12345678901234567",
    b"12345678901234568",
    b"0",
    b"-0.0",
    b"1e-400",
    b"9",
    b"10",
]
MOMENTS: list[tuple[bytes, Any]] = [
    (b'"2024-01-01T10:00:00Z"', number("1704103200")),
    (b'"2024-01-01T10:00:00+05:00"', number("1704085200")),
    (b'"2024-01-01T06:00:00Z"', number("1704088800")),
    (b'"2024-01-01 10:00:00.0000001"', number("1704103200.0000001")),
    (b'"2024-01-01T10:00:00.0000002Z"', number("1704103200.0000002")),
    (b'"2024-01-01T10:00:00.5Z"', number("1704103200.5")),
    (b'"0000-12-31T00:00:00Z"', number("-62135683200")),
    (b'"10000-01-01T00:00:00Z"', number("253402300800")),
    (b'"2024-01-01"', number("1704067200")),
]
UNREADABLE: list[tuple[bytes, Any]] = [(b'"soon"', None), (b"{}", None)]
#: In text, moments come before all else, and all else compares by its bytes.
TEXTS: list[tuple[bytes, Any]] = [
    *((text, (0, value, b"")) for text, value in MOMENTS if not text.startswith(b'"10000')),
    (b'"9"', (1, 0, b"9")),
    (b'"10"', (1, 0, b"10")),
    (b'"a"', (1, 0, b"a")),
    (b'"B"', (1, 0, b"B")),
    ('"é"'.encode(), (1, 0, "é".encode())),
    (b'""', (1, 0, b"")),
]
MIXED: list[tuple[bytes, Any]] = [
    (b"9", (0, 9, b"")),
    (b"10", (0, 10, b"")),
    (b"1e1", (0, 10, b"")),
    (b"18446744073709551616", (0, 2**64, b"")),
    *((text, (1, value, b"")) for text, value in MOMENTS if not text.startswith(b'"10000')),
    (b'"a"', (2, 0, b"a")),
    (b'"B"', (2, 0, b"B")),
]


def numbers(texts: Iterable[bytes]) -> list[tuple[bytes, Any]]:
    return [(text, number(text.strip(b'"').decode())) for text in texts]


#: Of each type of column: cursors as a source may write them, and what they compare as.
CURSORS: dict[str, tuple[Any, list[tuple[bytes, Any]]]] = {
    "integer": (INTEGER, [*numbers(INTEGERS), *UNREADABLE]),
    "number": ({"type": "number"}, [*numbers(NUMBERS), *UNREADABLE]),
    "timestamp": (MOMENT, [*MOMENTS, *UNREADABLE]),
    "local": (LOCAL, [*MOMENTS, *UNREADABLE]),
    "date": (DATE, [*MOMENTS, *UNREADABLE]),
    "text": (STRING, TEXTS),
    "text or integer": ({"type": ["string", "integer"]}, MIXED),
    "union": ({"type": ["string", "integer", "object"]}, MIXED),
}
#: Of each type: keys as a source may write them, and what tells them apart.
KEYS: dict[str, tuple[Any, list[tuple[bytes, Any]]]] = {
    "integer": (
        INTEGER,
        [
            (b"1", 1),
            (b"1.0", 1),
            *((b"%d" % n, n) for n in (2**63, 2**64)),
            (b'"x"', "x"),
            (b"1.5", 1.5),
        ],
    ),
    "number": ({"type": "number"}, numbers(NUMBERS)),
    "text": (
        STRING,
        [
            (b'"1"', "1"),
            (b"1", 1),
            (b'"true"', "true"),
            (b"true", True),
            (b'{"a":1}', "{}"),
            (b'"{\\"a\\":1}"', '"{}"'),
            (b'"a\xff"', "ff"),
            (b'"a\xfe"', "fe"),
            (b'"a\xed\xa0\x80"', "surrogate"),
            (b'"a\\u0000"', "nul"),
            (b'"a"', "a"),
            (b'"a\\u0000\\u0000"', "nuls"),
        ],
    ),
    "text or integer": (
        {"type": ["string", "integer"]},
        [(b"1", 1), (b'"1"', "1"), (b'"a"', "a"), (b"-1", -1), (b'"-1"', "-1"), (b"10", 10)],
    ),
    "timestamp": (MOMENT, [(text, value) for text, value in MOMENTS]),
    "date": (
        DATE,
        [
            (b'"2024-01-01"', 0),
            (b'"2024-01-01T00:00:00Z"', 0),
            (b'"2024-01-01T10:00:00Z"', 1),
            (b'"2024-01-01T00:00:00+02:00"', 2),
        ],
    ),
    "object": (
        {"type": "object"},
        [
            (b'{"a":1,"b":2}', 0),
            (b'{ "b":2.0, "a":1 }', 0),
            (b'{"a":1}', 1),
            (b"[1]", 2),
            (b'"x"', 3),
        ],
    ),
}


def version(number: int, key: Any, cursor: Any, *, deleted: bool, extracted: int) -> Version:
    """``key`` and ``cursor``: as in the tables above."""
    fields = [
        (b"id", key[0]),
        (b"at", cursor[0]),
        (b"v", b'"%d"' % number),
        (b"extra", b"%d" % number),
    ]
    if deleted:
        fields.append((DELETED.encode(), b'"2024-01-01"'))
    written = b",".join(b'"%s":%s' % field for field in fields if field[1] != MISSING)
    return Version(key[1], cursor[1], deleted, extracted, b"{%s}" % written)


@st.composite
def histories(draw: st.DrawFn) -> tuple[str, str, list[Version], list[str]]:
    """The types of key and cursor, versions in order of arrival, and what ends after each."""
    key, cursor = draw(st.sampled_from(sorted(KEYS))), draw(st.sampled_from(sorted(CURSORS)))
    few = draw(st.lists(st.sampled_from([*KEYS[key][1], *NOTHING]), min_size=1, max_size=3))
    cursors = st.sampled_from([*CURSORS[cursor][1], *NOTHING, *NOTHING])
    versions = [
        version(
            number,
            draw(st.sampled_from(few)),
            draw(cursors),
            deleted=draw(st.integers(0, 3)) == 0,
            extracted=draw(st.integers(0, 1)),
        )
        for number in range(draw(st.integers(1, 8)))
    ]
    ends = draw(st.lists(st.sampled_from(["", "", "commit", "sync"]), min_size=8, max_size=8))
    return key, cursor, versions, ends


def bring(
    store: Store, wanted: TableSpec, versions: Sequence[Version], ends: Sequence[str]
) -> None:
    writer = store.open(wanted)
    for found, end in zip(versions, ends, strict=False):
        store.write(writer, [Raw(found.json)], at=T0 + 1000 * found.extracted)
        if end:
            store.commit(writer)
        if end == "sync":
            writer.merge_committed()
            writer.discard()
            writer = store.open(wanted)
    store.commit(writer)
    writer.merge_committed()
    writer.discard()


def stored(store: Store, wanted: TableSpec, *, decimals: bool) -> TableSpec:
    """``wanted`` with numbers as decimals, where the store has them; older tables have doubles."""
    if not (decimals and store.destination.has_decimals):
        return wanted
    columns = tuple(
        msgspec.structs.replace(column, type=ColumnType.DECIMAL)
        if column.type is ColumnType.NUMBER
        else column
        for column in wanted.schema.columns
    )
    return msgspec.structs.replace(wanted, schema=TableSchema(columns))


@pytest.mark.slow
@pytest.mark.parametrize("deletes", ["soft", "hard"])
def test_the_newest_version_wins_wherever_commits_fall(store: Store, deletes: str) -> None:
    tables = itertools.count()
    examples = 40 if isinstance(store, Lake) else 80

    @settings(max_examples=examples, deadline=None)
    @given(histories())
    def check(history: tuple[str, str, list[Version], list[str]]) -> None:
        key, cursor, versions, ends = history
        hard = deletes == "hard"
        wanted = spec(
            "append_dedup",
            table=("c", f"t{next(tables)}"),
            cursor="at",
            deleted_at=DELETED if hard else None,
            **{"id": KEYS[key][0], "at": CURSORS[cursor][0], DELETED: STRING},
        )
        if hard:  # a tombstone is kept as long as its sync takes
            ends = ["commit" if end == "sync" else end for end in ends]
        bring(store, stored(store, wanted, decimals=len(versions) % 3 > 0), versions, ends)
        expected = [n for n in newest(versions) if not (hard and versions[n].deleted)]
        assert sorted(int(v) for (v,) in store.rows("v", table=wanted.path)) == expected

    check()


@st.composite
def appended(draw: st.DrawFn) -> tuple[str, list[Version], int]:
    """The type of the cursor, versions of one or two keys, and how many are appended at first."""
    cursor = draw(st.sampled_from(sorted(CURSORS)))
    keys = st.sampled_from([(b"1", 1), (b"18446744073709551616", 2**64)])
    versions = [
        version(
            number,
            draw(keys),
            draw(st.sampled_from([*CURSORS[cursor][1], *NOTHING])),
            deleted=False,
            extracted=number,
        )
        for number in range(draw(st.integers(2, 6)))
    ]
    return cursor, versions, draw(st.integers(1, len(versions) - 1))


@pytest.mark.slow
def test_rows_that_were_appended_count_as_they_came(store: Store) -> None:
    """A stream that goes over to one row per key loses the twins of keys without news, too."""
    tables = itertools.count()

    @settings(max_examples=20 if isinstance(store, Lake) else 40, deadline=None)
    @given(appended())
    def check(history: tuple[str, list[Version], int]) -> None:
        cursor, versions, first = history
        table = ("c", f"a{next(tables)}")
        kind = {"at": CURSORS[cursor][0], DELETED: STRING}
        old = stored(store, spec("append", table=table, **kind), decimals=first > 1)
        bring(store, old, versions[:first], [""] * len(versions))
        merged = spec("append_dedup", table=table, cursor="at", **kind)
        merged = stored(store, merged, decimals=True)
        bring(store, merged, versions[first:], [""] * len(versions))
        assert sorted(int(v) for (v,) in store.rows("v", table=table)) == newest(versions)

    check()


# The smallest inputs that once failed


def written(**fields: bytes) -> Version:
    """A version with these fields, as JSON."""
    texts = (b'"%s":%s' % (field.encode(), text) for field, text in fields.items())
    return Version(None, None, False, 0, b"{%s}" % b",".join(texts))


@pytest.mark.slow
@pytest.mark.parametrize("ends", [["", ""], ["commit", ""], ["sync", ""]], ids=repr)
@pytest.mark.parametrize(
    ("kind", "older", "newer"),
    [
        (INTEGER, b"5", b"9223372036854775808"),
        ({"type": ["integer", "number"]}, b"9", b"10"),
        ({"anyOf": [INTEGER, STRING]}, b"9", b"10"),
        ({"type": "number"}, b"12345678901234567", b"12345678901234568"),
        (MOMENT, b'"2024-01-01T00:00:00.000000001Z"', b'"2024-01-01T00:00:00.000000002Z"'),
        (MOMENT, b'"9999-12-31T00:00:00Z"', b'"10000-01-01T00:00:00Z"'),
        (STRING, b'"2024-01-01T10:00:00+05:00"', b'"2024-01-01T06:00:00Z"'),
        ({"anyOf": [MOMENT, STRING]}, b'"2024-01-01T10:00:00+05:00"', b'"2024-01-01T06:00:00Z"'),
    ],
)
def test_the_cursor_counts_as_the_source_wrote_it(
    store: Store, kind: Any, older: bytes, newer: bytes, ends: list[str]
) -> None:
    wanted = spec("append_dedup", cursor="at", at=kind)
    new, old = written(id=b"1", v=b'"new"', at=newer), written(id=b"1", v=b'"old"', at=older)
    bring(store, wanted, [old, new], ends)
    assert store.rows("v") == [("new",)]
    bring(store, wanted, [new, old], ends)
    assert store.rows("v") == [("new",)]


@pytest.mark.parametrize("ends", [["", ""], ["commit", ""], ["sync", ""]], ids=repr)
@pytest.mark.parametrize("newer", [{"at": b"null"}, {}, {"at": b'"soon"'}, {"at": b"[]"}], ids=repr)
def test_a_version_without_a_cursor_replaces_all_before_it(
    store: Store, newer: dict[str, bytes], ends: list[str]
) -> None:
    wanted = spec("append_dedup", cursor="at", at=MOMENT)
    old = written(id=b"1", v=b'"old"', at=b'"2024-01-01T00:00:00Z"')
    bring(store, wanted, [old, written(id=b"1", v=b'"new"', **newer)], ends)
    assert store.rows("v") == [("new",)]


@pytest.mark.parametrize("ends", [["", ""], ["commit", ""], ["sync", ""]], ids=repr)
@pytest.mark.parametrize(
    ("kind", "one", "other"),
    [
        (STRING, b'"a\xff"', b'"a\xfe"'),
        (STRING, b'"a\xed\xa0\x80"', b'"a\xed\xa0\x81"'),
        (STRING, rb'"a\u0000"', b'"a"'),
        (STRING, b"1", b'"1"'),
        (STRING, b"true", b'"true"'),
        (STRING, b'{"a":1}', rb'"{\"a\":1}"'),
        (MOMENT, b'"2024-01-01T00:00:00.000000001Z"', b'"2024-01-01T00:00:00.000000002Z"'),
        (DATE, b'"2024-01-01T10:00:00Z"', b'"2024-01-01T11:00:00Z"'),
        (INTEGER, b"null", b"null"),
    ],
)
def test_keys_that_differ_as_they_were_written_stay_apart(
    store: Store, kind: Any, one: bytes, other: bytes, ends: list[str]
) -> None:
    wanted = spec("append_dedup", id=kind)
    bring(store, wanted, [written(id=one, v=b'"one"'), written(id=other, v=b'"other"')], ends)
    assert store.rows("v") == [("one",), ("other",)]


@pytest.mark.parametrize("ends", [["", ""], ["sync", ""]], ids=repr)
def test_objects_as_keys_count_by_their_value(store: Store, ends: list[str]) -> None:
    one, other = written(id=b'{"a":1,"b":2}', v=b'"1"'), written(id=b'{"b":2,"a":1}', v=b'"2"')
    bring(store, spec("append_dedup", id={"type": "object"}), [one, other], ends)
    assert store.rows("v") == [("2",)]


@pytest.mark.parametrize("ends", [["", "", ""], ["commit", "commit", ""], ["sync", "commit", ""]])
def test_a_version_older_than_a_hard_delete_stays_deleted(store: Store, ends: list[str]) -> None:
    wanted = spec("append_dedup", cursor="at", deleted_at=DELETED, at=INTEGER, **{DELETED: STRING})
    gone = {"id": b"1", "at": b"3", DELETED: b'"2024-01-01"'}
    versions = [written(id=b"1", at=b"1"), written(**gone), written(id=b"1", at=b"2")]
    bring(store, wanted, versions, ends)
    assert store.rows("v") == []
