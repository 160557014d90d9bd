"""What Postgres does in a way of its own: names, values it refuses, other people's hands."""

import base64
import json
from contextlib import closing
from typing import Any

import pytest
from adbc_driver_postgresql import dbapi
from msgspec import Raw

from atlas_dagster.destinations.envelope import WriteMode
from atlas_dagster.destinations.postgres.destination import PostgresDestination
from atlas_dagster.errors import DestinationError
from atlas_dagster_tests.destinations.stores import INTEGER, STRING, Database, spec

pytestmark = pytest.mark.postgres

OBJECT = {"type": "object"}
MODES: list[WriteMode] = ["append", "overwrite", "append_dedup"]


def types(database: Database, table: str = "c.t") -> dict[str, str]:
    found = database.ask(
        "SELECT attname::text AS name, format_type(atttypid, atttypmod) AS type FROM pg_attribute "
        f"WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    return {row["name"]: row["type"] for row in found}


# Types and names


def test_columns_are_of_postgres_own_types(database: Database) -> None:
    text = {"type": "string"}
    columns: dict[str, Any] = {
        "n": {"type": "number"},
        "b": {"type": "boolean"},
        "d": text | {"format": "date"},
        "at": text | {"format": "date-time"},
        "local": text | {"format": "date-time", "airbyte_type": "timestamp_without_timezone"},
        "o": OBJECT,
        "l": {"type": "array"},
        "u": {"type": ["string", "integer"]},
    }
    database.sync(spec(**columns))
    assert types(database) == {
        "id": "bigint",
        "v": "text",
        "n": "double precision",
        "b": "boolean",
        "d": "date",
        "at": "timestamp with time zone",
        "local": "timestamp without time zone",
        "o": "jsonb",
        "l": "jsonb",
        "u": "jsonb",
        "_airbyte_raw_id": "text",
        "_airbyte_extracted_at": "timestamp with time zone",
        "_airbyte_meta": "jsonb",
        "_airbyte_generation_id": "bigint",
        "_airbyte_extra": "jsonb",
    }


@pytest.mark.parametrize("mode", MODES)
def test_names_that_postgres_has_taken(database: Database, mode: WriteMode) -> None:
    columns = dict.fromkeys(("ctid", "xmin", "Select", "_atlas_arrival", "user"), STRING)
    for version in ("a", "b"):
        database.sync(spec(mode, **columns), [{"id": 1, **dict.fromkeys(columns, version)}])
    known = database.destination.inspect(("c", "t")).columns()
    names = {field: name for (field, _), name in known.typed.items()}
    assert set(names) == {"id", "v", *columns}
    assert (names["Select"], names["user"]) == ("Select", "user")
    assert set(names.values()) <= set(types(database))
    assert database.rows(*(names[name] for name in columns))[-1] == ("b",) * 5


def test_long_names_stay_apart(database: Database) -> None:
    long = "stream_" * 9
    paths = [
        ("c", f"{long}a"),
        ("c", f"{long}b"),
        ("c", long, long),
        ("c", "n", "s"),
        ("c", "n__s"),
    ]
    for number, path in enumerate(paths):
        database.sync(spec(table=path), [{"id": number}])
    uris = [database.destination.table_uri(path) for path in paths]
    assert len(set(uris)) == len(paths)
    again = PostgresDestination(database.address)
    with closing(again):
        assert [again.table_uri(path) for path in paths] == uris
    for number, uri in enumerate(uris):
        schema, table = uri.split("/")[-2:]
        assert len(table) <= 63
        assert database.rows("id", table=(schema, table)) == [(number,)]


@pytest.mark.parametrize("connection", ["pg_shop", "information_schema", "Shop", "x" * 80])
def test_connections_of_any_name(database: Database, connection: str) -> None:
    path = (connection, "t")
    database.sync(spec(table=path), [{"id": 1}])
    schema = database.destination.table_uri(path).split("/")[-2]
    assert database.rows("id", table=(schema, "t")) == [(1,)]


def test_a_stream_named_like_the_bookkeeping(database: Database) -> None:
    for name in ("_atlas_state", "_atlas_envelopes"):
        database.sync(spec(table=("c", name)), [{"id": 1}])
        assert database.committed("c", name) == database.seq


# Values


@pytest.mark.parametrize("mode", MODES)
def test_text_that_postgres_cannot_hold(database: Database, mode: WriteMode) -> None:
    rows = [{"id": 1, "v": "a\0b\0"}, {"id": 2, "v": "plain"}, {"id": 3, "w": "\0"}]
    database.sync(spec(mode, w=STRING), rows)
    assert database.rows("id", "v", "w") == [(1, "ab", None), (2, "plain", None), (3, None, "")]
    metas = [json.loads(meta) for _, meta in database.rows("id", "_airbyte_meta")]
    cut = {"change": "TRUNCATED", "reason": "DESTINATION_SERIALIZATION_ERROR"}
    assert [meta["changes"] for meta in metas] == [
        [{"field": "v", **cut}],
        [],
        [{"field": "w", **cut}],
    ]
    extras = [json.loads(extra or "{}") for _, extra in database.rows("id", "_airbyte_extra")]
    assert [base64.b64decode(kept["base64"]) for extra in extras for kept in extra.values()] == [
        rb'"a\u0000b\u0000"',
        rb'"\u0000"',
    ]


@pytest.mark.parametrize("mode", MODES)
def test_json_that_postgres_cannot_hold(database: Database, mode: WriteMode) -> None:
    objects = [
        rb'{"a":"x\u0000y","c":"\ud83d\ude00","d":"\\u0000"}',
        b'{"n":1e999999}',
        rb'{"fine":"\u00e9"}',
        b"null",
    ]
    rows = [Raw(b'{"id":%d,"o":%s}' % pair) for pair in enumerate(objects)]
    database.sync(spec(mode, o=OBJECT), [*rows, Raw(rb'{"id":4,"unknown":"\u0000","fine":[1]}')])
    found = database.rows("id", "o", "_airbyte_meta", "_airbyte_extra")
    assert [json.loads(o) if o else o for _, o, _, _ in found] == [
        {"a": "xy", "c": "😀", "d": "\\u0000"},
        None,
        {"fine": "é"},
        None,
        None,
    ]
    changes = [json.loads(meta)["changes"] for _, _, meta, _ in found]
    assert [[(c["field"], c["change"]) for c in each] for each in changes] == [
        [("o", "TRUNCATED")],
        [("o", "NULLED")],
        [],
        [],
        [("unknown", "TRUNCATED")],
    ]
    extras = [json.loads(extra or "{}") for _, _, _, extra in found]
    assert extras[4].pop("fine") == [1]
    assert [
        {field: base64.b64decode(kept["base64"]) for field, kept in extra.items()}
        for extra in extras
    ] == [{"o": objects[0]}, {"o": objects[1]}, {}, {}, {"unknown": rb'"\u0000"'}]


# Columns that change


@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_text_and_json_share_a_column(database: Database, mode: WriteMode) -> None:
    """For the plan they are one type, so the column's name stays."""
    database.sync(spec(mode, o=OBJECT), [{"id": 1, "o": {"a": 1}}])
    database.sync(spec(mode, o=STRING), [{"id": 2, "o": "text"}])
    assert database.rows("id", "o") == [(1, '{"a": 1}'), (2, '"text"')]
    database.sync(spec(mode, v=OBJECT), [{"id": 3, "v": {"a": 1}}])
    assert database.rows()[-1] == (3, '{"a":1}')


def test_a_replaced_table_takes_the_new_types(database: Database) -> None:
    database.sync(spec("overwrite", w=STRING), [{"id": 1, "w": "x"}])
    database.sync(spec("overwrite", v=OBJECT, w=INTEGER), [{"id": 2, "v": {}, "w": 5}])
    assert database.rows("id", "v", "w") == [(2, "{}", 5)]
    assert (types(database)["v"], types(database)["w"]) == ("jsonb", "bigint")


# Readers and owners


@pytest.mark.parametrize("mode", MODES)
def test_readers_never_wait_and_views_stay(database: Database, mode: WriteMode) -> None:
    database.sync(spec(mode), [{"id": 1}])
    database.do("CREATE VIEW c.seen AS SELECT id FROM c.t")
    with closing(dbapi.connect(database.address)) as reader, reader.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT id FROM c.t")
        assert cursor.fetchall() == [(1,)]
        database.sync(spec(mode, replaces=True), [{"id": 2}])
        cursor.execute("SELECT id FROM c.t")
        assert cursor.fetchall() == [(1,)]
    assert database.rows("id", table=("c", "seen")) == [(2,)]


@pytest.mark.parametrize("mode", MODES)
def test_two_processes(database: Database, mode: WriteMode) -> None:
    database.sync(spec(mode), [{"id": 1}])
    stale, fresh = PostgresDestination(database.address), database.destination
    with closing(stale):
        database.destination = stale
        writer = database.open(spec(mode))
        database.write(writer, [{"id": 2}])
        database.destination = fresh
        database.sync(spec(mode), [{"id": 3}])
        database.destination = stale
        with pytest.raises(DestinationError, match="written by another sync"):
            database.commit(writer)
    database.destination = fresh
    assert (2,) not in database.rows("id")
    assert database.committed() == database.seq - 10


def test_a_table_of_someone_else(database: Database) -> None:
    database.do("CREATE SCHEMA c")
    database.do("CREATE TABLE c.t (id text)")
    with pytest.raises(DestinationError, match=r'"c"\."t"'):
        database.committed()
    database.do("DROP TABLE c.t")
    database.sync(spec(), [{"id": 1}])
    database.do("CREATE TABLE c.copy AS TABLE c.t")
    database.do("DROP TABLE c.t")
    assert database.committed() is None
    database.do("ALTER TABLE c.copy RENAME TO t")
    with pytest.raises(DestinationError, match="drop or rename"):
        database.open(spec())


def test_a_table_dropped_during_a_sync(database: Database) -> None:
    writer = database.sync(spec(), [{"id": 1}])
    database.do("DROP TABLE c.t")
    database.write(writer, [{"id": 2}])
    with pytest.raises(DestinationError, match="dropped"):
        database.commit(writer)
    assert database.committed() is None


def test_a_column_dropped_by_hand_comes_back_empty(database: Database) -> None:
    database.sync(spec(), [{"id": 1, "v": "x"}])
    database.do("ALTER TABLE c.t DROP COLUMN v")
    database.sync(spec(), [{"id": 2, "v": "y"}])
    assert database.rows() == [(1, None), (2, "y")]
