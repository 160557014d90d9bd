"""Writing rows to a destination without a connector, and reading them back."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from adbc_driver_postgresql import dbapi
from deltalake import DeltaTable, QueryBuilder
from msgspec import Raw

from atlas_dagster.destinations.base import (
    Destination,
    StreamWriter,
    TablePath,
    TableSnapshot,
    TableSpec,
)
from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.envelope import Action, Envelope, StreamCommit, WriteMode, now
from atlas_dagster.destinations.postgres.destination import PostgresDestination
from atlas_dagster.protocol.messages import Record, StreamDescriptor
from atlas_dagster.records.batches import BatchBuilder
from atlas_dagster.records.types import TableSchema

INTEGER = {"type": "integer"}
STRING = {"type": "string"}
LOCAL = {
    "type": "string",
    "format": "date-time",
    "airbyte_type": "timestamp_without_timezone",
}
T0 = 1_700_000_000_000

T: TablePath = ("c", "t")

Rows = Iterable[Mapping[str, Any]]


def spec(
    mode: WriteMode = "append",
    *,
    table: TablePath = ("c", "t"),
    key: tuple[str, ...] = ("id",),
    cursor: str | None = None,
    replaces: bool = False,
    deleted_at: str | None = None,
    **columns: Any,
) -> TableSpec:
    """A table with the columns ``id`` and ``v``, and those of ``columns``; None drops one."""
    properties = {"id": INTEGER, "v": STRING} | columns
    kept = {name: column for name, column in properties.items() if column is not None}
    return TableSpec(
        path=table,
        schema=TableSchema.from_json_schema({"properties": kept}),
        mode=mode,
        primary_key=key if mode == "append_dedup" else (),
        cursor=cursor,
        replaces=replaces or mode == "overwrite",
        deleted_at=deleted_at,
    )


class Store(ABC):
    """A destination and the writers open on it."""

    destination: Destination

    def __init__(self) -> None:
        self.seq = 10
        self._specs: dict[int, TableSpec] = {}
        self._continues: set[int] = set()

    def open(
        self, wanted: TableSpec, *, continues: bool = False, planned: TableSnapshot | None = None
    ) -> StreamWriter:
        """Open a writer, from the ``planned`` snapshot or a new one.

        Unpublished rows are part of its first commit if it ``continues`` them, or are dropped.
        """
        writer = (planned or self.destination.inspect(wanted.path)).open(wanted)
        self._specs[id(writer)] = wanted
        self._continues.discard(id(writer))
        if continues:
            self._continues.add(id(writer))
        return writer

    def write(self, writer: StreamWriter, rows: Rows, *, at: int = T0) -> None:
        """Stage ``rows`` as one batch, extracted at ``at``."""
        wanted = self._specs[id(writer)]
        builder = BatchBuilder(wanted.schema, sync_id=1, generation_id=0, key=wanted.primary_key)
        for row in rows:
            data = row if isinstance(row, Raw) else Raw(msgspec.json.encode(row))
            builder.extend([Record("t", data, at)], 1)
        writer.write(builder.build())

    def envelope(self, *writers: StreamWriter, unpublished: bool = False) -> Envelope:
        """The envelope of a commit of ``writers``, which are staged for it."""
        self.seq += 10
        commits = [
            StreamCommit(
                StreamDescriptor(wanted.path[-1]),
                wanted.path,
                0,
                wanted.replaces,
                writer.stage(),
                tuple((column,) for column in wanted.primary_key),
                unpublished=unpublished,
                continues=id(writer) in self._continues,
            )
            for writer in writers
            for wanted in [self._specs[id(writer)]]
        ]
        waiting = {id(w) for w in writers if unpublished or self._specs[id(w)].primary_key}
        self._continues = self._continues.difference(map(id, writers)) | waiting
        connection = commits[0].table[0]
        return Envelope(self.seq, 1, connection, tuple(commits), Raw(b"[]"), now())

    def commit(self, *writers: StreamWriter, unpublished: bool = False) -> Envelope:
        envelope = self.envelope(*writers, unpublished=unpublished)
        self.destination.commit(envelope, writers)
        return envelope

    def sync(
        self, wanted: TableSpec, *batches: Rows, at: int = T0, planned: TableSnapshot | None = None
    ) -> StreamWriter:
        """A whole sync with one checkpoint; each batch is extracted a second after the last."""
        writer = self.open(wanted, planned=planned)
        for number, batch in enumerate(batches):
            self.write(writer, batch, at=at + 1000 * number)
        self.commit(writer)
        writer.merge_committed()
        writer.discard()
        return writer

    def commit_without_rows(self) -> None:
        """What a command about the state does to the table: a commit without rows."""
        since = self.committed()
        self._command(
            "refresh", lambda envelope: self.destination.commit_without_rows(envelope, {T: since})
        )

    def set_up(self) -> None:
        """The table is made by a command that sets a state."""
        writer = self.destination.inspect(T).open(spec())
        self._command("set", lambda envelope: self.destination.commit(envelope, [writer]))

    def _command(self, action: Action, commit: Callable[[Envelope], None]) -> None:
        self.seq += 10
        part = StreamCommit(StreamDescriptor("t"), T, 0, replaces=False)
        commit(Envelope(self.seq, 1, "c", (part,), Raw(b"[]"), now(), action=action))

    def rows(self, *columns: str, table: TablePath = ("c", "t")) -> list[tuple[Any, ...]]:
        found = self.read(columns or ("id", "v"), table)
        return sorted((tuple(row.values()) for row in found.to_pylist()), key=repr)

    def committed(self, *table: str) -> int | None:
        return self.destination.inspect(table or T).seq

    @abstractmethod
    def another(self) -> Destination:
        """The same tables, as another process opens them."""

    @abstractmethod
    def read(self, columns: tuple[str, ...], table: TablePath) -> pa.Table: ...

    @abstractmethod
    def left_behind(self) -> list[str]:
        """What is staged and belongs to no table."""

    @abstractmethod
    def envelopes(self) -> list[int]:
        """The ``seq`` of each that is stored."""


class Lake(Store):
    """Delta tables."""

    destination: Destination

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root
        self.destination = DeltaDestination(str(root))

    def another(self) -> Destination:
        return DeltaDestination(str(self.root))

    def prepare(self, *writers: StreamWriter) -> Envelope:
        """All of a commit that comes before the tables."""
        envelope = self.envelope(*writers)
        self.destination.prepare(envelope)
        return envelope

    def read(self, columns: tuple[str, ...], table: TablePath) -> pa.Table:
        # Not DeltaTable.to_pyarrow_table: the process then aborts when it ends (deltalake 1.6.6).
        query = QueryBuilder().register("t", DeltaTable(self.destination.table_uri(table)))
        return pa.table(query.execute(f"SELECT {', '.join(columns)} FROM t").read_all())

    def parquet_files(self) -> list[str]:
        return sorted(file.name for file in self.root.rglob("*.parquet"))

    def left_behind(self) -> list[str]:
        files = {str(file) for file in self.root.rglob("*.parquet")}
        for log in self.root.rglob("_delta_log"):
            files -= {str(file) for file in log.glob("*.parquet")}
            files -= set(DeltaTable(str(log.parent)).file_uris())
        return sorted(files)

    def envelopes(self) -> list[int]:
        return sorted(int(file.stem) for file in self.root.glob("_atlas/c/*.json"))


class Database(Store):
    """Postgres tables. ``look`` is a connection of another user than Atlas."""

    destination: Destination

    def __init__(self, server: Mapping[str, Any]) -> None:
        super().__init__()
        self.address = address(server)
        self.look = dbapi.connect(self.address, autocommit=True)
        for row in self.ask("SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|info|pub)'"):
            self.do(f'DROP SCHEMA "{row["nspname"]}" CASCADE')
        self.destination = PostgresDestination(self.address)
        self._others: list[Destination] = []

    def close(self) -> None:
        for destination in (self.destination, *self._others):
            destination.close()
        self.look.close()

    def another(self) -> Destination:
        self._others.append(PostgresDestination(self.address))
        return self._others[-1]

    def ask(self, sql: str) -> list[dict[str, Any]]:
        with self.look.cursor() as cursor:
            cursor.execute(sql)
            found: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
            return found

    def do(self, sql: str) -> None:
        with self.look.cursor() as cursor:
            cursor.execute(sql)

    def read(self, columns: tuple[str, ...], table: TablePath) -> pa.Table:
        names = ", ".join(name if '"' in name else f'"{name}"' for name in columns)
        relation = f'"{table[0]}"."{"__".join(table[1:])}"'
        with self.look.cursor() as cursor:
            cursor.execute(f"SELECT {names} FROM {relation}")
            return cursor.fetch_arrow_table()

    def left_behind(self) -> list[str]:
        staged = self.ask("SELECT relname FROM pg_class WHERE relname LIKE '\\_atlas\\_stage%'")
        return [row["relname"] for row in staged]

    def envelopes(self) -> list[int]:
        return [row["seq"] for row in self.ask('SELECT seq FROM c."_atlas_envelopes" ORDER BY 1')]


def address(server: Mapping[str, Any], **changes: Any) -> str:
    """Of the fixture ``postgres_url``."""
    fields = {**server, **changes}
    login = f"{fields['username']}:{fields['password']}"
    return f"postgresql://{login}@{fields['hostname']}:{fields['port']}/{fields['db_name']}"
