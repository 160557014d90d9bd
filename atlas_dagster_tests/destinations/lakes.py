"""Writing rows to a destination without a connector, and reading them back."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from msgspec import Raw

from atlas_dagster.destinations.base import StreamWriter, TablePath, TableSpec
from atlas_dagster.destinations.delta import DeltaDestination
from atlas_dagster.protocol.messages import Record, StreamDescriptor
from atlas_dagster.records.batches import BatchBuilder
from atlas_dagster.records.types import TableSchema
from atlas_dagster.state.envelope import Envelope, StreamCommit, WriteMode, now

INTEGER = {"type": "integer"}
STRING = {"type": "string"}
LOCAL = {
    "type": "string",
    "format": "date-time",
    "airbyte_type": "timestamp_without_timezone",
}
T0 = 1_700_000_000_000

Rows = Iterable[Mapping[str, Any]]


def spec(
    mode: WriteMode = "append",
    *,
    table: TablePath = ("c", "t"),
    key: tuple[str, ...] = ("id",),
    cursor: str | None = None,
    replaces: bool = False,
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
    )


class Lake:
    """A :class:`DeltaDestination` and the writers open on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.destination = DeltaDestination(str(root))
        self.seq = 10
        self._specs: dict[int, TableSpec] = {}

    def open(self, wanted: TableSpec) -> StreamWriter:
        writer = self.destination.open("c", wanted)
        self._specs[id(writer)] = wanted
        return writer

    def write(self, writer: StreamWriter, rows: Rows, *, at: int = T0) -> None:
        """Stage ``rows`` as one batch, extracted at ``at``."""
        builder = BatchBuilder(self._specs[id(writer)].schema, sync_id=1, generation_id=0)
        for row in rows:
            builder.append(Record("t", Raw(msgspec.json.encode(row)), at), 1)
        writer.write(builder.build())

    def prepare(self, *writers: StreamWriter) -> Envelope:
        self.seq += 10
        commits = [
            StreamCommit(
                StreamDescriptor(wanted.path[-1]), wanted.path, 0, wanted.replaces, writer.stage()
            )
            for writer in writers
            for wanted in [self._specs[id(writer)]]
        ]
        envelope = Envelope(self.seq, 1, "c", tuple(commits), Raw(b"[]"), now())
        self.destination.prepare(envelope)
        return envelope

    def commit(self, *writers: StreamWriter) -> Envelope:
        envelope = self.prepare(*writers)
        for writer in writers:
            writer.commit(envelope)
        return envelope

    def sync(self, wanted: TableSpec, *batches: Rows, at: int = T0) -> StreamWriter:
        """A whole sync with one checkpoint; each batch is extracted a second after the last."""
        writer = self.open(wanted)
        for number, batch in enumerate(batches):
            self.write(writer, batch, at=at + 1000 * number)
        self.commit(writer)
        writer.finish()
        return writer

    def rows(self, *columns: str, table: TablePath = ("c", "t")) -> list[tuple[Any, ...]]:
        # Not DeltaTable.to_pyarrow_table: the process then aborts when it ends (deltalake 1.6.6).
        query = QueryBuilder().register("t", DeltaTable(self.destination.table_uri(table)))
        names = ", ".join(columns or ("id", "v"))
        found = pa.table(query.execute(f"SELECT {names} FROM t").read_all())
        return sorted((tuple(row.values()) for row in found.to_pylist()), key=repr)

    def committed(self, *table: str) -> int | None:
        return self.destination.committed("c", table or ("c", "t"))

    def parquet_files(self) -> list[str]:
        return sorted(file.name for file in self.root.rglob("*.parquet"))

    def envelopes(self) -> list[int]:
        return sorted(int(file.stem) for file in self.root.glob("_atlas/c/*.json"))
