"""Delta Lake tables, locally or on an object store; the default destination.

Tables stand at ``<connection>/[<namespace>/]<stream>`` under the lake; what Atlas itself keeps
(stored envelopes, changes that wait for their merge) under ``_atlas/<connection>``.
"""

from collections.abc import Collection, Mapping

import pyarrow as pa
import pyarrow.fs as pafs
from deltalake import DeltaTable, QueryBuilder

from atlas_dagster.destinations.base import Destination, StreamWriter, TablePath, TableSpec
from atlas_dagster.destinations.data_file import DataFile
from atlas_dagster.destinations.delta_append import AppendWriter
from atlas_dagster.destinations.delta_dedup import WAITING, DedupWriter
from atlas_dagster.destinations.delta_table import LakeTable
from atlas_dagster.destinations.staging import ParquetStage, Waiting
from atlas_dagster.destinations.store import Store, unusable
from atlas_dagster.errors import DestinationError
from atlas_dagster.records.types import SOURCE_NAME_KEY
from atlas_dagster.state.envelope import Envelope, StreamCommit

#: Folder of the lake that holds Atlas's own bookkeeping; Delta readers never look into it.
BOOKKEEPING = "_atlas"


class DeltaDestination(Destination):
    """A lake: a folder, or an object store's address, with a table per stream."""

    kind = "deltalake"

    def __init__(self, root: str) -> None:
        self._store = Store(root)
        self.root = self._store.root
        self._waiting = Waiting()
        # Opened when a sync was planned, for its writers: what comes between is refused, too.
        self._planned: dict[TablePath, tuple[LakeTable, LakeTable]] = {}

    def table_uri(self, table: TablePath) -> str:
        return "/".join((self.root, *table))

    def committed(self, connection: str, table: TablePath) -> int | None:
        main, changes = self._planned[table] = self._tables(connection, table)
        if not main.exists and not self._has_waiting(table, changes):
            # Without files waiting to be merged, a change log alone is what a dropped table left.
            return None
        return max(main.seq, changes.seq) or None

    def known_columns(self, table: TablePath) -> Mapping[tuple[str, pa.DataType], str]:
        planned = self._planned.get(table)
        main = planned[0] if planned else LakeTable(self.table_uri(table), connection="")
        known = {}
        for field in main.arrow_schema or ():
            original = (field.metadata or {}).get(SOURCE_NAME_KEY.encode())
            if original is not None:
                known[original.decode(), field.type] = field.name
        return known

    def open(self, connection: str, spec: TableSpec) -> StreamWriter:
        main, changes = self._take_tables(connection, spec.path)
        if spec.mode == "append_dedup":
            return DedupWriter(
                spec,
                table=main,
                changes=changes,
                stage=self._stage(spec.path, spec.schema.arrow, prefix=WAITING),
                open_stage=lambda schema: self._stage(spec.path, schema),
                open_file=lambda name: self._file(spec.path, name),
                find_envelope=lambda seq: self.envelope(connection, seq),
            )
        if not spec.replaces and self._has_waiting(spec.path, changes):
            raise DestinationError(
                f"{self.table_uri(spec.path)} has rows of an interrupted append_dedup sync that "
                "are not merged yet; run it once more as append_dedup before changing its mode."
            )
        return AppendWriter(spec, table=main, stage=self._stage(spec.path, spec.schema.arrow))

    def prepare(self, envelope: Envelope) -> None:
        folder = self._envelope_folder(envelope.connection)
        self._store.make_folder(folder)
        self._store.put(f"{folder}/{envelope.seq}.json", envelope.encode())

    def envelope(self, connection: str, seq: int) -> Envelope | None:
        path = f"{self._envelope_folder(connection)}/{seq}.json"
        try:
            with self._store.filesystem.open_input_file(path) as source:
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
        main, changes = self._take_tables(envelope.connection, commit.table)
        if not commit.files:
            table = changes if changes.exists else main
            if table.arrow_schema is not None:
                table.add((), envelope, table.arrow_schema, replaces=False)
            return
        table = changes if commit.files[0].path.startswith(WAITING) else main
        try:
            schema = self._schema_of(self._file(commit.table, commit.files[0].path))
        except FileNotFoundError:
            raise DestinationError(
                f"{main.uri} lacks commit {envelope.seq}, which other tables of "
                f"{envelope.connection} have, and its files are gone; refresh the connection."
            ) from None
        table.widen(schema)
        table.add(commit.files, envelope, schema, replaces=False)

    def _schema_of(self, file: DataFile) -> pa.Schema:
        """The columns a staged file was written with."""
        written = file.metadata.schema.to_arrow_schema()
        names = [(field.metadata or {}).get(SOURCE_NAME_KEY.encode()) for field in written]
        return pa.schema(
            field.with_metadata(None if name is None else {SOURCE_NAME_KEY: name})
            for field, name in zip(written, names, strict=True)
        )

    def forget(self, connection: str, keep: Collection[int]) -> None:
        for seq in self._stored_seqs(connection):
            if keep and seq < max(keep) and seq not in keep:
                self._store.filesystem.delete_file(
                    f"{self._envelope_folder(connection)}/{seq}.json"
                )

    def _has_waiting(self, table: TablePath, changes: LakeTable) -> bool:
        """Whether rows of an interrupted dedup sync are there to be merged."""
        return any(self._file(table, name).exists() for name in changes.file_names)

    def _take_tables(self, connection: str, path: TablePath) -> tuple[LakeTable, LakeTable]:
        """The tables to write to, as they were when the sync was planned."""
        return self._planned.pop(path, None) or self._tables(connection, path)

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

    def _stage(self, table: TablePath, schema: pa.Schema, *, prefix: str = "part") -> ParquetStage:
        folder = self._store.path(*table)
        return ParquetStage(self._store, folder, schema, waiting=self._waiting, prefix=prefix)

    def _file(self, table: TablePath, name: str) -> DataFile:
        return DataFile(self._store.filesystem, self._store.path(*table), name)

    def _envelope_folder(self, connection: str) -> str:
        return self._store.path(BOOKKEEPING, connection)

    def _stored_seqs(self, connection: str) -> list[int]:
        """Newest last."""
        folder = pafs.FileSelector(self._envelope_folder(connection), allow_not_found=True)
        try:
            names = [info.base_name for info in self._store.filesystem.get_file_info(folder)]
        except OSError as error:
            raise unusable(self.root, error) from error
        stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isdigit())


def changes_path(table: TablePath) -> TablePath:
    """Where the changes of a dedup table wait for their merge."""
    connection, *rest = table
    return (BOOKKEEPING, connection, "changes", *rest)
