"""The commit tables in Postgres, in the schema of each connection.

``_atlas_state`` has a row for each table, with the ``seq`` of its last commit, and one for its
unpublished rows, which are in a table of their own. ``_atlas_envelopes`` has the envelopes. Both
change in the transaction that changes the rows. ``relation`` tells our table from another one of
the same name; as a ``regclass`` it survives dump and restore. ``_atlas_owner`` names the deployment
that owns the tables.
"""

import contextlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Struct

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.destinations.postgres.columns import quote, schema_name, table_name
from atlas_dagster.destinations.postgres.connection import Database
from atlas_dagster.errors import DestinationError
from atlas_dagster.format_versions import refuse_newer
from atlas_dagster.records.names import assign

_STATE = "_atlas_state"
_ENVELOPES = "_atlas_envelopes"
_OWNER = "_atlas_owner"
#: Version of the three tables; later ones must be stored as a comment on ``_atlas_envelopes``.
VERSION = 1
_FORMAT = re.compile(r"atlas format (\d+)")
_NO_COLUMNS = pa.schema([])


class TableState(Struct, frozen=True):
    """A table and its last commit. ``fields``: the columns of the stream's fields, in Arrow types.

    ``seq`` stays when the table is dropped.
    """

    schema: str
    table: str
    exists: bool = False
    seq: int = 0
    row_count: int = 0
    fields: pa.Schema = _NO_COLUMNS

    @property
    def relation(self) -> str:
        return f"{quote(self.schema)}.{quote(self.table)}"


class TableStates(Struct, frozen=True):
    """The states of a table and of its unpublished rows, at one time."""

    main: TableState
    unpublished: TableState

    @property
    def exists(self) -> bool:
        return self.main.exists or self.unpublished.exists

    @property
    def seq(self) -> int:
        """The ``seq`` of the last commit; 0 before the first."""
        return max(self.main.seq, self.unpublished.seq)

    def check_fence(self, before: "TableStates") -> None:
        """Compare with an earlier look at the table.

        Raises:
            DestinationError: another sync has committed since then, or the table was dropped.
        """
        if (self.main.seq, self.unpublished.seq) != (before.main.seq, before.unpublished.seq):
            raise DestinationError(
                f"{self.main.relation} was written by another sync of this connection at the same "
                "time; this one stops. Sync again once the other has ended."
            )
        if self.main.exists != before.main.exists:
            raise DestinationError(
                f"{self.main.relation} was dropped during this sync; sync again: the stream is "
                "then read from the beginning."
            )


class CommitTables:
    """Reads and writes ``_atlas_state`` and ``_atlas_envelopes``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ready_schemas: set[str] = set()

    def find(self, path: TablePath, *, lock: bool = False) -> TableState:
        """Return the state of a table, existing or not; ``lock`` it until the commit.

        Raises:
            DestinationError: a table that Atlas did not create has its name.
        """
        schema = schema_name(path[0])
        known = self._load(schema, ".".join(path), lock=lock)
        if known is None:
            known = TableState(schema, table_name(path, self._table_names(schema))), None
        return self._verify(*known, path)

    def find_unpublished(self, path: TablePath) -> TableState:
        """Return the state of a table's unpublished rows, which :meth:`find` locks, too."""
        schema = schema_name(path[0])
        known = self._load(schema, _unpublished(path))
        if known is None:
            return TableState(schema, "")
        return self._verify(*known, path)

    def states(self, path: TablePath, *, lock: bool = False) -> TableStates:
        """:meth:`find` and :meth:`find_unpublished` together."""
        return TableStates(self.find(path, lock=lock), self.find_unpublished(path))

    def register(self, path: TablePath) -> None:
        """Create the schema, the commit tables and the table's row, if they are missing."""
        state = self.find(path)
        if not self._is_set_up(state.schema):
            self._create(state.schema)
        self._insert(".".join(path), state)

    def register_unpublished(self, path: TablePath) -> TableState:
        """Create the row for a table's unpublished rows, if it is missing."""
        state = self.find_unpublished(path)
        if not state.table:
            schema, taken = state.schema, self._table_names(state.schema)
            name = f"_atlas_held_{'__'.join(path[1:])}"
            state = TableState(schema, assign([name], reserved=taken)[name])
            self._insert(_unpublished(path), state)
        return state

    def _insert(self, key: str, state: TableState) -> None:
        self._database.run(
            f"INSERT INTO {_in(state.schema, _STATE)} (path, table_name) VALUES ($1, $2) "
            "ON CONFLICT (path) DO NOTHING",
            key,
            state.table,
        )

    def _load(
        self, schema: str, key: str, *, lock: bool = False
    ) -> tuple[TableState, int | None] | None:
        """Return the stored state of a table, and its ``relation`` when it was stored."""
        if not self._is_set_up(schema):
            return None
        found = self._database.rows(
            "SELECT table_name, seq, row_count, fields, relation::oid::bigint AS held "
            f"FROM {_in(schema, _STATE)} WHERE path = $1" + (" FOR UPDATE" if lock else ""),
            key,
        )
        if not found:
            return None
        (row,) = found
        fields = _NO_COLUMNS
        if row["fields"] is not None:
            fields = pa.ipc.read_schema(pa.py_buffer(row["fields"]))
        state = TableState(
            schema, row["table_name"], seq=row["seq"], row_count=row["row_count"], fields=fields
        )
        return state, row["held"]

    def _table_names(self, schema: str) -> list[str]:
        if not self._is_set_up(schema):
            return []
        rows = self._database.rows(f"SELECT table_name FROM {_in(schema, _STATE)}")
        return [row["table_name"] for row in rows]

    def advance(self, path: TablePath, state: TableState) -> None:
        """Store ``state`` as the table's own."""
        self._update(".".join(path), state)

    def advance_unpublished(self, path: TablePath, state: TableState) -> None:
        """Store ``state`` as that of the table's unpublished rows."""
        self._update(_unpublished(path), state)

    def _update(self, key: str, state: TableState) -> None:
        self._database.run(
            f"UPDATE {_in(state.schema, _STATE)} SET relation = $1::text::regclass, "
            "seq = $2, row_count = $3, fields = $4 WHERE path = $5",
            state.relation,
            state.seq,
            state.row_count,
            state.fields.serialize().to_pybytes(),
            key,
        )

    def commit_without_rows(self, path: TablePath, seq: int) -> None:
        """Store a commit without rows, and drop unpublished rows."""
        state, unpublished = self.find(path), self.find_unpublished(path)
        if state.exists:
            self.drop_unpublished(path, unpublished)
            self.advance(path, msgspec.structs.replace(state, seq=seq))
        elif unpublished.exists:
            self._database.run(f"TRUNCATE {unpublished.relation}")
            self.advance_unpublished(
                path, msgspec.structs.replace(unpublished, seq=seq, row_count=0)
            )

    def drop_unpublished(self, path: TablePath, unpublished: TableState) -> None:
        """Drop a table's unpublished rows and their state."""
        if unpublished.exists:
            self._database.run(f"DROP TABLE {unpublished.relation}")
        if unpublished.table:
            self._database.run(
                f"DELETE FROM {_in(unpublished.schema, _STATE)} WHERE path = $1", _unpublished(path)
            )

    def columns(self, state: TableState) -> dict[str, str]:
        """Return the table's columns as ``dict[name, Postgres type]``, in the table's order."""
        rows = self._database.rows(
            "SELECT attname::text AS name, format_type(atttypid, atttypmod) AS type "
            "FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 "
            "AND NOT attisdropped ORDER BY attnum",
            state.relation,
        )
        return {row["name"]: row["type"] for row in rows}

    def column_count(self, state: TableState) -> int:
        """Return the number of columns the table has ever had, dropped ones included."""
        (row,) = self._database.rows(
            "SELECT count(*) AS columns FROM pg_attribute "
            "WHERE attrelid = $1::text::regclass AND attnum > 0",
            state.relation,
        )
        return int(row["columns"])

    def viewed_columns(self, state: TableState) -> dict[str, str]:
        """Return the columns whose type is fixed by a view, as ``dict[column name, view]``."""
        rows = self._database.rows(
            "SELECT a.attname::text AS name, min(r.ev_class::regclass::text) AS view "
            "FROM pg_depend AS d JOIN pg_rewrite AS r ON r.oid = d.objid "
            "JOIN pg_attribute AS a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid "
            "WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass "
            "AND d.refobjid = $1::text::regclass AND a.attnum > 0 GROUP BY a.attname",
            state.relation,
        )
        return {row["name"]: row["view"] for row in rows}

    def store(self, envelope: Envelope) -> None:
        self._database.run(
            f"INSERT INTO {_in(schema_name(envelope.connection), _ENVELOPES)} "
            "(seq, envelope) VALUES ($1, $2) "
            "ON CONFLICT (seq) DO UPDATE SET envelope = excluded.envelope",  # if damaged
            envelope.seq,
            envelope.encode().decode(),
        )

    def envelope(self, connection: str, seq: int) -> Envelope | None:
        schema = schema_name(connection)
        if not self._is_set_up(schema):
            return None
        rows = self._database.rows(
            f"SELECT envelope FROM {_in(schema, _ENVELOPES)} WHERE seq = $1",
            seq,
        )
        return next(iter(_decode_envelopes(rows)), None)

    def envelopes(self, connection: str) -> list[Envelope]:
        schema = schema_name(connection)
        if not self._is_set_up(schema):
            return []
        rows = self._database.rows(f"SELECT envelope FROM {_in(schema, _ENVELOPES)}")
        return list(_decode_envelopes(rows))

    def prune_envelopes(self, connection: str, seqs: Collection[int]) -> None:
        schema = schema_name(connection)
        if seqs and self._is_set_up(schema):
            listed = ", ".join(str(int(seq)) for seq in seqs)
            self._database.run(f"DELETE FROM {_in(schema, _ENVELOPES)} WHERE seq IN ({listed})")

    def claim_ownership(self, connection: str, deployment: str) -> str:
        """Make ``deployment`` the owner unless there is one; return the owner."""
        schema = schema_name(connection)
        owner = self._owner(schema)
        if owner is None:
            with self._database.transaction():
                # IF NOT EXISTS alone fails if two processes create a table at once.
                self._database.run("SELECT pg_advisory_xact_lock(hashtext($1))", f"atlas.{schema}")
                self._create(schema)
                self._database.run(
                    f"INSERT INTO {_in(schema, _OWNER)} (deployment) VALUES ($1) "
                    "ON CONFLICT DO NOTHING",
                    deployment,
                )
                owner = self._owner(schema)
        return str(owner)

    def transfer_ownership(self, connection: str, deployment: str) -> None:
        """Make ``deployment`` the owner."""
        self.claim_ownership(connection, deployment)
        owner = _in(schema_name(connection), _OWNER)
        self._database.run(f"UPDATE {owner} SET deployment = $1", deployment)

    def _owner(self, schema: str) -> str | None:
        name = _in(schema, _OWNER)
        (row,) = self._database.rows("SELECT to_regclass($1) IS NOT NULL AS found", name)
        found = self._database.rows(f"SELECT deployment FROM {name}") if row["found"] else []
        return found[0]["deployment"] if found else None

    def _verify(self, state: TableState, known_oid: int | None, path: TablePath) -> TableState:
        there = self._database.rows(
            "SELECT c.oid::bigint AS oid FROM pg_class AS c "
            "JOIN pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE n.nspname = $1 AND c.relname = $2",
            state.schema,
            state.table,
        )
        if there and there[0]["oid"] != known_oid:
            raise DestinationError(
                f"{self._database.uri} has a table {state.relation} that Atlas did not create for "
                f"stream '{path[-1]}'; drop or rename it, then sync: the stream is read again "
                "from the beginning."
            )
        return msgspec.structs.replace(state, exists=bool(there))

    def _is_set_up(self, schema: str) -> bool:
        """Return whether ``schema`` has the commit tables.

        Raises:
            ConfigError: a newer Atlas created them.
        """
        if schema not in self._ready_schemas:
            (row,) = self._database.rows(
                "SELECT to_regclass($1) IS NOT NULL AS found, "
                "obj_description(to_regclass($1), 'pg_class') AS comment",
                _in(schema, _ENVELOPES),
            )
            if row["found"]:
                if version := _FORMAT.fullmatch(row["comment"] or ""):
                    what = f"The state of the tables in {self._database.uri}, schema {schema},"
                    refuse_newer(int(version[1]), known=VERSION, what=what)
                self._ready_schemas.add(schema)
        return schema in self._ready_schemas

    def _create(self, schema: str) -> None:
        there = self._database.rows("SELECT 1 AS one FROM pg_namespace WHERE nspname = $1", schema)
        if not there:
            # Checked first, because IF NOT EXISTS still needs the privilege to create schemas.
            self._database.run(f"CREATE SCHEMA IF NOT EXISTS {quote(schema)}")
        self._database.run(
            f"CREATE TABLE IF NOT EXISTS {_in(schema, _STATE)} ("
            "path text PRIMARY KEY, table_name text NOT NULL UNIQUE, relation regclass, "
            "seq bigint NOT NULL DEFAULT 0, row_count bigint NOT NULL DEFAULT 0, fields bytea)"
        )
        self._database.run(
            f"CREATE TABLE IF NOT EXISTS {_in(schema, _ENVELOPES)} ("
            "seq bigint PRIMARY KEY, envelope text NOT NULL)"
        )
        self._database.run(
            f"CREATE TABLE IF NOT EXISTS {_in(schema, _OWNER)} ("
            "deployment text NOT NULL, is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only))"
        )
        self._ready_schemas.add(schema)


def _decode_envelopes(rows: Iterable[Mapping[str, Any]]) -> Iterator[Envelope]:
    """Yield the envelopes in ``rows``; skip unreadable ones, as the event log may have them."""
    for row in rows:
        with contextlib.suppress(msgspec.MsgspecError):
            yield Envelope.decode(row["envelope"])


def _unpublished(path: TablePath) -> str:
    """Return the path that stands for a table's unpublished rows; no table has such a path."""
    return f"{'.'.join(path)} (held)"


def _in(schema: str, table: str) -> str:
    return f"{quote(schema)}.{quote(table)}"
