"""Delta Lake tables, locally or on an object store; the default destination.

Tables stand at ``<connection>/[<namespace>/]<stream>`` under the lake; what Atlas itself keeps
(stored envelopes, changes that wait for their merge) under ``_atlas/<connection>``.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import DeltaError

from atlas_dagster.destinations.base import (
    Destination,
    StreamWriter,
    TableInfo,
    TablePath,
    TableSpec,
    read_columns,
)
from atlas_dagster.destinations.capabilities import Maintainable, Maintained, StoresTables
from atlas_dagster.destinations.delta_append import AppendWriter
from atlas_dagster.destinations.delta_dedup import DedupWriter
from atlas_dagster.destinations.delta_maintenance import maintain
from atlas_dagster.destinations.delta_table import LakeTable
from atlas_dagster.destinations.staging import ParquetStage
from atlas_dagster.errors import ConfigError, DestinationError
from atlas_dagster.records.types import SOURCE_NAME_KEY
from atlas_dagster.state.envelope import Envelope, StreamCommit

#: Folder of the lake that holds Atlas's own bookkeeping; Delta readers never look into it.
BOOKKEEPING = "_atlas"


class DeltaDestination(Destination, StoresTables, Maintainable):
    """A lake: a folder, or an object store's address, with a table per stream."""

    kind = "deltalake"

    def __init__(self, root: str) -> None:
        self.root = root if "://" in root else str(Path(root).absolute())
        if "://" in root:
            self._filesystem, self._base = pafs.FileSystem.from_uri(root)
        else:
            self._filesystem, self._base = pafs.LocalFileSystem(), self.root

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
        query = QueryBuilder().register("rows", main.handle)
        rows = query.execute(f"SELECT {listed} FROM rows")  # noqa: S608 - column names, quoted
        return pa.RecordBatchReader.from_stream(rows).cast(schema)

    def store(self, table: TablePath, rows: pa.RecordBatchReader) -> TableInfo:
        uri = self.table_uri(table)
        if table[0] == BOOKKEEPING or LakeTable(uri, connection=table[0]).seq:
            raise ConfigError(f"{uri} is written by Atlas; give the asset another key.")
        try:
            write_deltalake(uri, rows, mode="overwrite", schema_mode="overwrite")
        except (DeltaError, pa.ArrowException) as error:
            raise ConfigError(f"{uri} cannot hold what the asset returned: {error}") from error
        stored = LakeTable(uri, connection="")
        return TableInfo(uri, stored.row_count, str(stored.version))

    def committed(self, connection: str, table: TablePath) -> int | None:
        main, changes = self._tables(connection, table)
        if not main.exists and not changes.row_count:
            # Without rows waiting to be merged, a change table alone is what a dropped table left.
            return None
        return max(main.seq, changes.seq) or None

    def known_columns(self, table: TablePath) -> Mapping[tuple[str, pa.DataType], str]:
        main = LakeTable(self.table_uri(table), connection="")
        known = {}
        for field in main.arrow_schema or ():
            original = (field.metadata or {}).get(SOURCE_NAME_KEY.encode())
            if original is not None:
                known[original.decode(), field.type] = field.name
        return known

    def open(self, connection: str, spec: TableSpec) -> StreamWriter:
        main, changes = self._tables(connection, spec.path)
        if spec.mode == "append_dedup":
            return DedupWriter(
                spec,
                table=main,
                changes=changes,
                open_main_stage=lambda schema: self._stage(spec.path, schema),
                open_changes_stage=lambda schema: self._stage(changes_path(spec.path), schema),
                find_envelope=lambda seq: self.envelope(connection, seq),
            )
        if changes.row_count and not spec.replaces:
            raise DestinationError(
                f"{self.table_uri(spec.path)} has rows of an interrupted append_dedup sync that "
                "are not merged yet; run it once more as append_dedup before changing its mode."
            )
        return AppendWriter(spec, table=main, stage=self._stage(spec.path, spec.schema.arrow))

    def prepare(self, envelope: Envelope) -> None:
        folder = self._envelope_folder(envelope.connection)
        self._filesystem.create_dir(folder, recursive=True)
        unfinished = f"{folder}/.{envelope.seq}.json"
        with self._filesystem.open_output_stream(unfinished) as sink:
            sink.write(envelope.encode())
        self._filesystem.move(unfinished, f"{folder}/{envelope.seq}.json")

    def envelope(self, connection: str, seq: int) -> Envelope | None:
        path = f"{self._envelope_folder(connection)}/{seq}.json"
        try:
            with self._filesystem.open_input_file(path) as source:
                return Envelope.decode(source.read())
        except FileNotFoundError:
            return None

    def recover(self, connection: str) -> None:
        for seq in self._stored_seqs(connection):
            envelope = self.envelope(connection, seq)
            if envelope is None or len(envelope.streams) < 2:
                continue  # one table: its transaction was all or nothing
            seqs = {c.table: self.committed(connection, c.table) or 0 for c in envelope.streams}
            if seq not in seqs.values():
                continue
            for commit in envelope.streams:
                if seqs[commit.table] < seq:
                    self._roll_forward(envelope, commit)

    def _roll_forward(self, envelope: Envelope, commit: StreamCommit) -> None:
        main, changes = self._tables(envelope.connection, commit.table)
        if not commit.files:
            table = changes if changes.exists else main
            if table.arrow_schema is not None:
                table.add((), envelope, table.arrow_schema, replaces=False)
            return
        for table, path in ((changes, changes_path(commit.table)), (main, commit.table)):
            schema = self._schema_of("/".join((self._base, *path, commit.files[0].path)))
            if schema is not None:
                table.widen(schema)
                table.add(commit.files, envelope, schema, replaces=False)
                return
        raise DestinationError(
            f"{main.uri} lacks commit {envelope.seq}, which other tables of {envelope.connection} "
            "have, and its files are gone; refresh the connection."
        )

    def _schema_of(self, file: str) -> pa.Schema | None:
        """The columns a staged file was written with; None where there is no such file."""
        try:
            with self._filesystem.open_input_file(file) as source:
                written = pq.read_schema(source)
        except FileNotFoundError:
            return None
        names = [(field.metadata or {}).get(SOURCE_NAME_KEY.encode()) for field in written]
        return pa.schema(
            field.with_metadata(None if name is None else {SOURCE_NAME_KEY: name})
            for field, name in zip(written, names, strict=True)
        )

    def forget(self, connection: str, keep: Collection[int]) -> None:
        for seq in self._stored_seqs(connection):
            if keep and seq < max(keep) and seq not in keep:
                self._filesystem.delete_file(f"{self._envelope_folder(connection)}/{seq}.json")

    def maintain(self, connection: str, table: TablePath, *, retain_hours: int) -> Maintained:
        keep = self._uncommitted_files(connection, table)
        tables = zip(self._tables(connection, table), (table, changes_path(table)), strict=True)
        done = Maintained()
        for part, path in tables:
            folder = "/".join((self._base, *path))
            done += maintain(part, self._filesystem, folder, retain_hours=retain_hours, keep=keep)
        return done

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

    def preview(self, table: TablePath, rows: int) -> pa.Table:
        query = QueryBuilder().register("rows", DeltaTable(self.table_uri(table)))
        return pa.table(query.execute(f"SELECT * FROM rows LIMIT {rows}"))  # noqa: S608 - a number

    def close(self) -> None:
        """Nothing is held open."""

    def _tables(self, connection: str, path: TablePath) -> tuple[LakeTable, LakeTable]:
        """The table readers see and the one its changes wait in."""
        return (
            LakeTable(self.table_uri(path), connection),
            LakeTable(self.table_uri(changes_path(path)), connection),
        )

    def _stage(self, table: TablePath, schema: pa.Schema) -> ParquetStage:
        return ParquetStage(self._filesystem, "/".join((self._base, *table)), schema)

    def _envelope_folder(self, connection: str) -> str:
        return f"{self._base}/{BOOKKEEPING}/{connection}"

    def _stored_seqs(self, connection: str) -> list[int]:
        """Newest last."""
        folder = pafs.FileSelector(self._envelope_folder(connection), allow_not_found=True)
        names = (info.base_name for info in self._filesystem.get_file_info(folder))
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isdigit())


def changes_path(table: TablePath) -> TablePath:
    """Where the changes of a dedup table wait for their merge."""
    connection, *rest = table
    return (BOOKKEEPING, connection, "changes", *rest)
