"""Delta Lake tables, locally or on an object store; the default destination.

Tables stand at ``<connection>/[<namespace>/]<stream>`` under the lake; what Atlas itself keeps
(stored envelopes, changes that wait for their merge) under ``_atlas/<connection>``.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import DeltaTable, QueryBuilder

from atlas_dagster.destinations import delta_owner
from atlas_dagster.destinations.base import Destination, StreamWriter, TablePath, TableSpec
from atlas_dagster.destinations.delta_append import AppendWriter
from atlas_dagster.destinations.delta_dedup import DedupWriter
from atlas_dagster.destinations.delta_history import foreign_change
from atlas_dagster.destinations.delta_table import LakeTable
from atlas_dagster.destinations.staging import ParquetStage
from atlas_dagster.errors import DestinationError
from atlas_dagster.records.types import SOURCE_NAME_KEY
from atlas_dagster.state.envelope import Envelope, StreamCommit

#: Folder of the lake that holds Atlas's own bookkeeping; Delta readers never look into it.
BOOKKEEPING = "_atlas"


class DeltaDestination(Destination):
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

    def committed(self, connection: str, table: TablePath) -> int | None:
        main, changes = self._tables(connection, table)
        if not main.exists and not changes.row_count:
            # Without rows waiting to be merged, a change table alone is what a dropped table left.
            return None
        return max(main.seq, changes.seq) or None

    def foreign_change(self, connection: str, table: TablePath) -> str | None:
        main, changes = self._tables(connection, table)
        if main.exists and not max(main.seq, changes.seq):
            raise DestinationError(
                f"{main.uri} is a table that Atlas did not make for connection '{connection}': "
                "move or delete it, and the stream is read from the beginning."
            )
        return foreign_change(main, self._filesystem, "/".join((self._base, *table)))

    def claim(self, connection: str, deployment: str) -> str:
        return delta_owner.claim(self._owner_uri(connection), deployment)

    def adopt(self, connection: str, deployment: str) -> None:
        delta_owner.adopt(self._owner_uri(connection), deployment)

    def _owner_uri(self, connection: str) -> str:
        return self.table_uri((BOOKKEEPING, connection, "owner"))

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

    def mark(self, envelope: Envelope, since: Mapping[TablePath, int | None]) -> None:
        self.prepare(envelope)
        for commit in envelope.streams:
            if self.committed(envelope.connection, commit.table) != since[commit.table]:
                raise DestinationError(
                    f"{self.table_uri(commit.table)} was written by a sync of this connection "
                    "meanwhile; once that has ended, do it again."
                )
            self._roll_forward(envelope, commit)
            main, _ = self._tables(envelope.connection, commit.table)
            if main.seq < envelope.seq and main.arrow_schema is not None:
                # A dedup table takes it, too, so that its log shows a commit of ours.
                main.add((), envelope, main.arrow_schema, replaces=False)

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
            # Where a stream's syncs commit to, so that one which is running is refused.
            table = changes if changes.exists else main
            if table.arrow_schema is not None:
                table.add((), envelope, table.arrow_schema, replaces=commit.replaces)
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
