"""Delta Lake tables, locally or on an object store; the default destination.

Tables stand at ``<connection>/[<namespace>/]<stream>`` under the lake; what Atlas itself keeps
(stored envelopes, changes that wait for their merge) under ``_atlas/<connection>``.
"""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.fs as pafs
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import DeltaError

from atlas_dagster.destinations.base import (
    Destination,
    Recovered,
    StreamWriter,
    TableInfo,
    TablePath,
    TableSpec,
    read_columns,
)
from atlas_dagster.destinations.capabilities import Maintainable, Maintained, StoresTables
from atlas_dagster.destinations.delta import owner as delta_owner
from atlas_dagster.destinations.delta.change_log import StreamTables, changes_path
from atlas_dagster.destinations.delta.data_file import DataFile
from atlas_dagster.destinations.delta.dedup_writer import DedupWriter
from atlas_dagster.destinations.delta.filesystem import Store, explained, unusable
from atlas_dagster.destinations.delta.history import external_change
from atlas_dagster.destinations.delta.maintenance import maintain
from atlas_dagster.destinations.delta.newest_rows import newest_rows
from atlas_dagster.destinations.delta.parquet_stage import ParquetStage, Waiting
from atlas_dagster.destinations.delta.table import LakeTable
from atlas_dagster.destinations.delta.versions import Ranking
from atlas_dagster.destinations.delta.writer import DeltaWriter
from atlas_dagster.destinations.envelope import Envelope, StreamCommit
from atlas_dagster.errors import AtlasError, ConfigError, DestinationError
from atlas_dagster.records.columns import TableColumns
from atlas_dagster.records.types import SOURCE_NAME_KEY, TYPE_KEY

#: Folder of the lake that holds Atlas's own bookkeeping; Delta readers never look into it.
ATLAS_FOLDER = "_atlas"


class DeltaDestination(Destination, StoresTables, Maintainable):
    """A lake: a folder, or an object store's address, with a table per stream."""

    kind = "deltalake"

    def __init__(self, root: str) -> None:
        self._store = Store(root)
        self.root = self._store.root
        self._waiting = Waiting()
        # Opened when a sync was planned, for its writers: what comes between is refused, too.
        self._planned: dict[TablePath, StreamTables] = {}

    def table_uri(self, table: TablePath) -> str:
        return "/".join((self.root, *table))

    def read(self, table: TablePath, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        main = LakeTable(self.table_uri(table), connection="")
        if main.handle is None or main.arrow_schema is None:
            raise ConfigError(f"There is no table {main.uri} yet; materialize {'/'.join(table)}.")
        present = main.arrow_schema
        chosen = read_columns(columns, present=present.names, where=main.uri)
        schema = pa.schema([present.field(name) for name in chosen])
        listed = ", ".join('"' + name.replace('"', '""') + '"' for name in schema.names)
        # Not DeltaTable.to_pyarrow_table: the process then aborts when it ends (deltalake 1.6.6).
        with explained(main.uri):
            query = QueryBuilder().register("rows", main.handle)
            rows = query.execute(f"SELECT {listed} FROM rows")  # noqa: S608 - column names, quoted
            return pa.RecordBatchReader.from_stream(rows).cast(schema)

    def store(self, table: TablePath, rows: pa.RecordBatchReader) -> TableInfo:
        uri = self.table_uri(table)
        if table[0] == ATLAS_FOLDER or LakeTable(uri, connection=table[0]).seq:
            raise ConfigError(f"{uri} is written by Atlas; give the asset another key.")
        try:
            write_deltalake(uri, rows, mode="overwrite", schema_mode="overwrite")
        except (DeltaError, pa.ArrowException) as error:
            raise ConfigError(f"{uri} cannot hold what the asset returned: {error}") from error
        stored = LakeTable(uri, connection="")
        return TableInfo(uri, stored.row_count)

    def committed(self, connection: str, table: TablePath) -> int | None:
        tables = self._planned[table] = self._tables(connection, table)
        with explained(tables.main.uri):
            return tables.seq or None if tables.exists else None

    def external_change(self, connection: str, table: TablePath) -> str | None:
        tables = self._planned.get(table) or self._tables(connection, table)
        if tables.main.exists and not tables.seq:
            raise DestinationError(
                f"{tables.main.uri} is a table that Atlas did not make for connection "
                f"'{connection}': move or delete it, and the stream is read from the beginning."
            )
        with explained(tables.main.uri):
            return external_change(tables.main, self._store.filesystem, self._store.path(*table))

    def claim_ownership(self, connection: str, deployment: str) -> str:
        with explained(self._owner_uri(connection)):
            return delta_owner.claim_ownership(self._owner_uri(connection), deployment)

    def transfer_ownership(self, connection: str, deployment: str) -> None:
        with explained(self._owner_uri(connection)):
            delta_owner.transfer_ownership(self._owner_uri(connection), deployment)

    def _owner_uri(self, connection: str) -> str:
        return self.table_uri((ATLAS_FOLDER, connection, "owner"))

    def known_columns(self, table: TablePath) -> TableColumns:
        planned = self._planned.get(table)
        main = planned.main if planned else LakeTable(self.table_uri(table), connection="")
        return TableColumns.of(main.arrow_schema)

    def unpublished_columns(self, connection: str, table: TablePath) -> TableColumns | None:
        tables = self._planned.get(table) or self._tables(connection, table)
        if not tables.is_behind:
            return None
        folder = pafs.FileSelector(self._store.path(*table), allow_not_found=True)
        with explained(tables.main.uri):
            there = {info.base_name for info in self._store.filesystem.get_file_info(folder)}
        if not there.issuperset(tables.changes.file_names):
            return None
        return TableColumns.of(tables.changes.arrow_schema)

    def refuse_unfit(self, connection: str, spec: TableSpec) -> None:
        main = (self._planned.get(spec.path) or self._tables(connection, spec.path)).main
        if main.exists:
            main.require_plain_table(
                replaces=spec.replaces, removes=spec.replaces or spec.mode == "append_dedup"
            )

    def open(self, connection: str, spec: TableSpec) -> StreamWriter:
        tables = self._take_tables(connection, spec.path)
        parts: dict[str, Any] = {
            "tables": tables,
            "stage": self._stage(spec.path, spec.schema.arrow, after=tables.changes.file_names),
            "find_envelope": lambda seq: self.envelope(connection, seq),
        }
        with explained(tables.main.uri):
            if spec.mode != "append_dedup":
                return DeltaWriter(spec, **parts)
            open_stage = lambda schema: self._stage(spec.path, schema)  # noqa: E731
            return DedupWriter(spec, open_stage=open_stage, **parts)

    def prepare(self, envelope: Envelope) -> None:
        folder = self._envelope_folder(envelope.connection)
        with explained(self.table_uri((ATLAS_FOLDER, envelope.connection))):
            self._store.make_folder(folder)
            self._store.put(f"{folder}/{envelope.seq}.json", envelope.encode())

    def commit_without_rows(
        self, envelope: Envelope, since: Mapping[TablePath, int | None]
    ) -> None:
        self.prepare(envelope)
        for commit in envelope.streams:
            if self.committed(envelope.connection, commit.table) != since[commit.table]:
                raise DestinationError(
                    f"{self.table_uri(commit.table)} was written by a sync of this connection "
                    "meanwhile; once that has ended, do it again."
                )
        for commit in envelope.streams:
            self._roll_forward(envelope, commit)

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
            return None  # as good as gone; the event log may know it
        return None

    def recover(self, connection: str) -> Recovered:
        stored = [self.envelope(connection, seq) for seq in self._stored_seqs(connection)]
        envelopes = [envelope for envelope in stored if envelope is not None]
        refused: dict[TablePath, AtlasError] = {}
        for envelope in envelopes:
            if len(envelope.streams) < 2:
                continue  # one table: its transaction was all or nothing
            seqs: dict[TablePath, int] = {}
            for commit in envelope.streams:
                try:
                    seqs[commit.table] = self.committed(connection, commit.table) or 0
                except AtlasError as error:
                    refused[commit.table] = error
            if envelope.seq not in seqs.values():
                continue
            for commit in envelope.streams:
                if seqs.get(commit.table, envelope.seq) < envelope.seq:
                    try:
                        self._roll_forward(envelope, commit)
                    except AtlasError as error:
                        refused[commit.table] = error
        return Recovered(envelopes, refused)

    def _roll_forward(self, envelope: Envelope, commit: StreamCommit) -> None:
        tables = self._take_tables(envelope.connection, commit.table)
        if not commit.files and not tables.exists:
            return  # dropped, and only its log is left
        with explained(tables.main.uri):
            schema = tables.arrow_schema
            if commit.files:
                try:
                    schema = self._schema_of(self._file(commit.table, commit.files[0].path))
                except FileNotFoundError:
                    if not tables.main.exists:
                        return  # dropped, and its files with it
                    raise DestinationError(
                        f"{tables.main.uri} lacks commit {envelope.seq}, which other tables of "
                        f"{envelope.connection} have, and its files are gone; run "
                        f"`atlas refresh {envelope.connection}`."
                    ) from None
            if schema is not None:
                tables.take(envelope, commit, schema)

    def _schema_of(self, file: DataFile) -> pa.Schema:
        """The columns a staged file was written with."""
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

    def _take_tables(self, connection: str, path: TablePath) -> StreamTables:
        """The tables to write to, as they were when the sync was planned."""
        return self._planned.pop(path, None) or self._tables(connection, path)

    def maintain(self, connection: str, table: TablePath, *, retain_hours: int) -> Maintained:
        tables = self._tables(connection, table)
        # Changes that wait are files of this folder, listed in their log only.
        keep = self._uncommitted_files(connection, table).union(tables.changes.file_names)
        folder = self._store.path(*table)
        with explained(tables.main.uri):
            return maintain(
                tables.main, self._store.filesystem, folder, retain_hours=retain_hours, keep=keep
            )

    def _uncommitted_files(self, connection: str, table: TablePath) -> set[str]:
        """Files that stored envelopes list for ``table``, whose commit it has not taken yet."""
        last = self.committed(connection, table) or 0
        envelopes = (self.envelope(connection, seq) for seq in self._stored_seqs(connection))
        return {
            file.path
            for envelope in envelopes
            if envelope is not None and envelope.seq > last
            for commit in envelope.streams
            if commit.table == table
            for file in commit.files
        }

    def count_duplicates(self, spec: TableSpec, key: Sequence[str]) -> int:
        table = LakeTable(self.table_uri(spec.path), connection="")
        files = [self._file(spec.path, name) for name in table.file_names]
        with explained(table.uri):
            found = newest_rows([], files, Ranking(tuple(map(spec.column, key))))
        return sum(int(mask.size - mask.sum()) for mask in found.stay)

    def preview(self, table: TablePath, rows: int) -> pa.Table:
        with explained(self.table_uri(table)):
            query = QueryBuilder().register("rows", DeltaTable(self.table_uri(table)))
            return pa.table(query.execute(f"SELECT * FROM rows LIMIT {rows}"))  # noqa: S608

    def close(self) -> None:
        """Nothing is held open."""

    def _tables(self, connection: str, path: TablePath) -> StreamTables:
        return StreamTables(
            LakeTable(self.table_uri(path), connection),
            LakeTable(self.table_uri(changes_path(ATLAS_FOLDER, path)), connection),
            lambda name: self._file(path, name),
        )

    def _stage(
        self, table: TablePath, schema: pa.Schema, *, after: Collection[str] = ()
    ) -> ParquetStage:
        folder = self._store.path(*table)
        return ParquetStage(self._store, folder, schema, waiting=self._waiting, after=after)

    def _file(self, table: TablePath, name: str) -> DataFile:
        return DataFile(self._store.filesystem, self._store.path(*table), name)

    def _envelope_folder(self, connection: str) -> str:
        return self._store.path(ATLAS_FOLDER, connection)

    def _stored_seqs(self, connection: str) -> list[int]:
        """Newest last."""
        folder = pafs.FileSelector(self._envelope_folder(connection), allow_not_found=True)
        try:
            names = [info.base_name for info in self._store.filesystem.get_file_info(folder)]
        except OSError as error:
            raise unusable(self.root, error) from error
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isdigit())
