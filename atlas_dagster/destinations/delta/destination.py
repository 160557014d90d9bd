"""Delta Lake tables, in a folder or an object store; the default destination.

A table is at ``<connection>/[<namespace>/]<stream>`` under the lake. Stored envelopes and change
logs are under ``_atlas/<connection>``.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.fs as pafs
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import DeltaError

from atlas_dagster.destinations.base import (
    Destination,
    Maintainable,
    Maintained,
    Recovered,
    StoresTables,
    StreamWriter,
    TableInfo,
    TablePath,
    TableSnapshot,
    TableSpec,
    read_columns,
)
from atlas_dagster.destinations.delta import owner as delta_owner
from atlas_dagster.destinations.delta.change_log import StreamTables, changes_path
from atlas_dagster.destinations.delta.data_file import DataFile
from atlas_dagster.destinations.delta.filesystem import Store, explained, unusable
from atlas_dagster.destinations.delta.history import find_external_change
from atlas_dagster.destinations.delta.maintenance import maintain
from atlas_dagster.destinations.delta.newest_rows import newest_rows
from atlas_dagster.destinations.delta.parquet_stage import ParquetStage, RowGroupBudget
from atlas_dagster.destinations.delta.table import LakeTable
from atlas_dagster.destinations.delta.versions import Ranking
from atlas_dagster.destinations.delta.writer import DedupWriter, DeltaWriter
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import AtlasError, ConfigError, DestinationError
from atlas_dagster.records.columns import TableColumns
from atlas_dagster.records.types import SOURCE_NAME_KEY, TYPE_KEY

#: The folder of the lake for stored envelopes and change logs. It holds no user tables.
ATLAS_FOLDER = "_atlas"


class DeltaSnapshot(TableSnapshot):
    """The two Delta tables of a stream as they are now; ``find_envelope`` finds one by its seq."""

    def __init__(
        self,
        path: TablePath,
        tables: StreamTables,
        *,
        store: Store,
        budget: RowGroupBudget,
        find_envelope: Callable[[int], Envelope | None],
    ) -> None:
        self.path = path
        self.tables = tables
        self._store = store
        self._budget = budget
        self._find_envelope = find_envelope
        with explained(self._uri):
            self.seq = tables.seq or None if tables.exists else None

    @property
    def _uri(self) -> str:
        return self.tables.main.uri

    def find_external_change(self) -> str | None:
        if self.tables.main.exists and not self.tables.seq:
            raise DestinationError(
                f"{self._uri} is a table that Atlas did not create for connection "
                f"'{self.path[0]}'; move or delete it, then sync the stream from the beginning."
            )
        with explained(self._uri):
            return find_external_change(
                self.tables.main, self._store.filesystem, self._store.path(*self.path)
            )

    def columns(self) -> TableColumns:
        return TableColumns.of(self.tables.main.arrow_schema)

    def unpublished_columns(self) -> TableColumns | None:
        if not self.tables.is_behind:
            return None
        folder = pafs.FileSelector(self._store.path(*self.path), allow_not_found=True)
        with explained(self._uri):
            present = {info.base_name for info in self._store.filesystem.get_file_info(folder)}
        if not present.issuperset(self.tables.changes.file_names):
            return None
        return TableColumns.of(self.tables.changes.arrow_schema)

    def require_fit(self, spec: TableSpec) -> None:
        if self.tables.main.exists:
            self.tables.main.require_plain_table(
                replaces=spec.replaces, removes=spec.replaces or spec.mode == "append_dedup"
            )

    def open(self, spec: TableSpec) -> StreamWriter:
        parts: dict[str, Any] = {
            "tables": self.tables,
            "stage": self._stage(spec.schema.arrow, after=self.tables.changes.file_names),
            "find_envelope": self._find_envelope,
        }
        with explained(self._uri):
            if spec.mode == "append_dedup":
                return DedupWriter(spec, open_stage=self._stage, **parts)
            return DeltaWriter(spec, **parts)

    def _stage(self, schema: pa.Schema, *, after: Collection[str] = ()) -> ParquetStage:
        folder = self._store.path(*self.path)
        return ParquetStage(self._store, folder, schema, budget=self._budget, after=after)


class DeltaDestination(Destination, StoresTables, Maintainable):
    """A lake with one Delta table per stream; ``root`` is a folder or an object store's address."""

    kind = "deltalake"

    def __init__(self, root: str) -> None:
        self._store = Store(root)
        self.root = self._store.root
        self._budget = RowGroupBudget()

    def table_uri(self, table: TablePath) -> str:
        return "/".join((self.root, *table))

    def read(self, table: TablePath, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        main = self._table(table)
        if main.handle is None or main.arrow_schema is None:
            raise ConfigError(f"There is no table {main.uri} yet; materialize {'/'.join(table)}.")
        present = main.arrow_schema
        chosen = read_columns(columns, present=present.names, where=main.uri)
        schema = pa.schema([present.field(name) for name in chosen])
        listed = ", ".join('"' + name.replace('"', '""') + '"' for name in schema.names)
        # With DeltaTable.to_pyarrow_table, the process aborts at its end (deltalake 1.6.6).
        with explained(main.uri):
            query = QueryBuilder().register("rows", main.handle)
            rows = query.execute(f"SELECT {listed} FROM rows")  # noqa: S608 - column names, quoted
            return pa.RecordBatchReader.from_stream(rows).cast(schema)

    def store(self, table: TablePath, rows: pa.RecordBatchReader) -> TableInfo:
        uri = self.table_uri(table)
        if table[0] == ATLAS_FOLDER or self._table(table).seq:
            raise ConfigError(f"{uri} is written by Atlas; give the asset another key.")
        try:
            write_deltalake(uri, rows, mode="overwrite", schema_mode="overwrite")
        except (DeltaError, pa.ArrowException) as error:
            raise ConfigError(f"{uri} cannot store the asset's rows: {error}") from error
        return TableInfo(uri, self._table(table).row_count)

    def inspect(self, table: TablePath) -> DeltaSnapshot:
        changes = self.table_uri(changes_path(ATLAS_FOLDER, table))
        tables = StreamTables(
            self._table(table),
            LakeTable(changes, connection=table[0]),
            lambda name: self._file(table, name),
        )
        return DeltaSnapshot(
            table,
            tables,
            store=self._store,
            budget=self._budget,
            find_envelope=lambda seq: self.envelope(table[0], seq),
        )

    def claim_ownership(self, connection: str, deployment: str) -> str:
        with explained(self._owner_uri(connection)):
            return delta_owner.claim_ownership(self._owner_uri(connection), deployment)

    def transfer_ownership(self, connection: str, deployment: str) -> None:
        with explained(self._owner_uri(connection)):
            delta_owner.transfer_ownership(self._owner_uri(connection), deployment)

    def _owner_uri(self, connection: str) -> str:
        return self.table_uri((ATLAS_FOLDER, connection, "owner"))

    def prepare(self, envelope: Envelope) -> None:
        folder = self._envelope_folder(envelope.connection)
        with explained(self.table_uri((ATLAS_FOLDER, envelope.connection))):
            self._store.make_folder(folder)
            self._store.put(f"{folder}/{envelope.seq}.json", envelope.encode())

    def commit_without_rows(
        self, envelope: Envelope, expected_seqs: Mapping[TablePath, int | None]
    ) -> None:
        self.prepare(envelope)
        snapshots = [self.inspect(commit.table) for commit in envelope.streams]
        for snapshot in snapshots:
            if snapshot.seq != expected_seqs[snapshot.path]:
                raise DestinationError(
                    f"A sync of this connection has written to {self.table_uri(snapshot.path)} "
                    "meanwhile; wait until it has ended, then try again."
                )
        for snapshot in snapshots:
            self._roll_forward(envelope, snapshot)

    def envelope(self, connection: str, seq: int) -> Envelope | None:
        path = f"{self._envelope_folder(connection)}/{seq}.json"
        try:
            with (
                explained(path),
                contextlib.suppress(FileNotFoundError),
                self._store.filesystem.open_input_file(path) as source,
            ):
                return Envelope.decode(source.read())
        except msgspec.MsgspecError:
            return None  # unreadable; the event log may have it
        return None

    def recover(self, connection: str) -> Recovered:
        stored = [self.envelope(connection, seq) for seq in self._stored_seqs(connection)]
        envelopes = [envelope for envelope in stored if envelope is not None]
        refused: dict[TablePath, AtlasError] = {}
        for envelope in envelopes:
            if len(envelope.streams) < 2:
                continue  # one table: its transaction was atomic
            snapshots: list[DeltaSnapshot] = []
            for commit in envelope.streams:
                try:
                    snapshots.append(self.inspect(commit.table))
                except AtlasError as error:
                    refused[commit.table] = error
            if all(snapshot.seq != envelope.seq for snapshot in snapshots):
                continue
            for snapshot in snapshots:
                if (snapshot.seq or 0) < envelope.seq:
                    try:
                        self._roll_forward(envelope, snapshot)
                    except AtlasError as error:
                        refused[snapshot.path] = error
        return Recovered(envelopes, refused)

    def _roll_forward(self, envelope: Envelope, snapshot: DeltaSnapshot) -> None:
        """Commit the table's part of ``envelope``."""
        tables, commit = snapshot.tables, envelope.commit_to(snapshot.path)
        if not commit.files and not tables.exists:
            return  # the table was dropped; only its change log is left
        with explained(tables.main.uri):
            schema = tables.arrow_schema
            if commit.files:
                try:
                    schema = self._schema_of(self._file(commit.table, commit.files[0].path))
                except FileNotFoundError:
                    if not tables.main.exists:
                        return  # the table was dropped, and its files with it
                    raise DestinationError(
                        f"{tables.main.uri} lacks commit {envelope.seq}, which other tables of "
                        f"{envelope.connection} have, and the files of that commit are missing; "
                        f"run `atlas refresh {envelope.connection}`."
                    ) from None
            if schema is not None:
                tables.commit(envelope, commit, schema)

    def _schema_of(self, file: DataFile) -> pa.Schema:
        """Return the columns of a staged file."""
        keys = (SOURCE_NAME_KEY.encode(), TYPE_KEY.encode())
        return pa.schema(
            field.with_metadata({k: v for k, v in (field.metadata or {}).items() if k in keys})
            for field in file.metadata.schema.to_arrow_schema()
        )

    def prune_envelopes(self, connection: str, seqs: Collection[int]) -> None:
        folder = self._envelope_folder(connection)
        with explained(self.table_uri((ATLAS_FOLDER, connection))):
            for seq in seqs:
                with contextlib.suppress(FileNotFoundError):
                    self._store.filesystem.delete_file(f"{folder}/{seq}.json")

    def maintain(self, table: TablePath, *, retain_hours: int) -> Maintained:
        snapshot = self.inspect(table)
        tables = snapshot.tables
        # Unpublished and unmerged files are in this folder, but only the change log lists them.
        keep = self._uncommitted_files(snapshot).union(tables.changes.file_names)
        folder = self._store.path(*table)
        with explained(tables.main.uri):
            return maintain(
                tables.main, self._store.filesystem, folder, retain_hours=retain_hours, keep=keep
            )

    def _uncommitted_files(self, snapshot: DeltaSnapshot) -> set[str]:
        """Return the files that envelopes list for a table and that it has not committed yet."""
        connection, last = snapshot.path[0], snapshot.seq or 0
        envelopes = (self.envelope(connection, seq) for seq in self._stored_seqs(connection))
        return {
            file.path
            for envelope in envelopes
            if envelope is not None and envelope.seq > last
            for commit in envelope.streams
            if commit.table == snapshot.path
            for file in commit.files
        }

    def count_duplicates(self, spec: TableSpec, key: Sequence[str]) -> int:
        table = self._table(spec.path)
        files = [self._file(spec.path, name) for name in table.file_names]
        with explained(table.uri):
            found = newest_rows([], files, Ranking(tuple(map(spec.column, key))))
        return sum(int(mask.size - mask.sum()) for mask in found.stay)

    def preview(self, table: TablePath, rows: int) -> pa.Table:
        with explained(self.table_uri(table)):
            query = QueryBuilder().register("rows", DeltaTable(self.table_uri(table)))
            return pa.table(query.execute(f"SELECT * FROM rows LIMIT {rows}"))  # noqa: S608

    def close(self) -> None:
        """Do nothing: no connection is open."""

    def _table(self, path: TablePath) -> LakeTable:
        return LakeTable(self.table_uri(path), connection=path[0])

    def _file(self, table: TablePath, name: str) -> DataFile:
        return DataFile(self._store.filesystem, self._store.path(*table), name)

    def _envelope_folder(self, connection: str) -> str:
        return self._store.path(ATLAS_FOLDER, connection)

    def _stored_seqs(self, connection: str) -> list[int]:
        """Return the ``seq`` of each stored envelope, newest last."""
        folder = pafs.FileSelector(self._envelope_folder(connection), allow_not_found=True)
        try:
            names = [info.base_name for info in self._store.filesystem.get_file_info(folder)]
        except OSError as error:
            raise unusable(self.root, error) from error
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isdigit())
