"""Delta tables with one row per primary key.

Checkpoints list their files in a change log beside the real table, which costs no more than an
append; the files stand in the real table's folder already. When the stream ends, they are merged in
one commit: files whose rows are all the newest of their key become part of the table as they are,
and only files with an older row are written anew without it. The real table then holds the ``seq``
of the last change merged, so a merge that was interrupted is simply done at the next opportunity.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from atlas_dagster.destinations.base import TableSpec
from atlas_dagster.destinations.data_file import DataFile
from atlas_dagster.destinations.delta_table import LakeTable
from atlas_dagster.destinations.delta_writer import DeltaWriter
from atlas_dagster.destinations.newest_rows import Mask, Ranking, by_key, newest_rows
from atlas_dagster.destinations.staging import ParquetStage
from atlas_dagster.errors import DestinationError
from atlas_dagster.records.types import EXTRACTED_AT
from atlas_dagster.state.envelope import Envelope, StagedFile

#: Names of files that wait for their merge begin with this; merged ones may keep it.
WAITING = "change"


class DedupWriter(DeltaWriter):
    """Lists files in the change log, merges them at the end."""

    def __init__(
        self,
        spec: TableSpec,
        *,
        table: LakeTable,
        changes: LakeTable,
        stage: ParquetStage,
        open_stage: Callable[[pa.Schema], ParquetStage],
        open_file: Callable[[str], DataFile],
        find_envelope: Callable[[int], Envelope | None],
    ) -> None:
        super().__init__(spec, table=table, stage=stage)
        self.changes = changes
        self._open_stage = open_stage
        self._open_file = open_file
        self._find_envelope = find_envelope
        if self.changes.row_count or (self.table.exists and self.table.seq < self.changes.seq):
            # A dead process left rows, merged already but not cleared or waiting for their merge;
            # or a commit without rows, which may have been to empty the table.
            self._merge()

    def commit(self, envelope: Envelope) -> None:
        schema = self.spec.schema.arrow
        if not self.spec.replaces:
            self.changes.widen(schema)
        # A replacing stream commits once, into an empty change log, with only its own columns.
        files = envelope.commit_to(self.spec.path).files
        self.changes.add(files, envelope, schema, replaces=self.spec.replaces)

    def finish(self) -> None:
        if self.changes.exists and self.changes.seq != self.table.seq:
            self._merge()

    def _merge(self) -> None:
        """Bring all changes into the table, then empty the change log."""
        seq = self.changes.seq
        waiting = [self._open_file(name) for name in self.changes.file_names]
        # Who drops a table drops the files that wait in its folder, too.
        dropped = not self.table.exists and waiting and not any(file.exists() for file in waiting)
        if self.table.seq < seq and not dropped:
            envelope = self._find_envelope(seq)
            if envelope is None:
                raise DestinationError(
                    f"{self.table.uri} has changes of commit {seq} waiting whose envelope is gone "
                    "from the lake's _atlas folder; restore that folder, or refresh the stream."
                )
            self._merge_files(waiting, envelope)
        merged = set(self.table.file_names)
        for file in waiting:
            if file.name not in merged:
                file.delete()
        self.changes.clear()

    def _merge_files(self, new: list[DataFile], envelope: Envelope) -> None:
        schema = self.changes.arrow_schema
        assert schema is not None
        replaces = envelope.commit_to(self.spec.path).replaces
        old: list[DataFile] = []
        if self.table.exists and not replaces:
            # Others may have compacted the table since it was opened; no sync may have written.
            self.table.reload(self.table.seq)
            self.table.refuse_unless_plain()
            self.table.widen(schema)
            schema = self.table.arrow_schema
            assert schema is not None
            near = self.table.files_near(self.changes, self.spec.primary_key)
            old = [self._open_file(name) for name in near]
        stays = newest_rows(old, new, self._ranking(schema))
        if self.spec.deleted_at in schema.names:
            deleted_at = pa.schema([schema.field(self.spec.deleted_at)])
            for file, mask in zip(new, stays[len(old) :], strict=True):
                mask &= _without(file, deleted_at)
        changed = [
            (file, mask) for file, mask in zip([*old, *new], stays, strict=True) if not mask.all()
        ]
        names = {file.name for file, _ in changed}
        files = [file.staged() for file in new if file.name not in names]
        files += self._write_anew(changed, schema)
        removed = [file.name for file in old if file.name in names]
        self.table.add(files, envelope, schema, replaces=replaces, removed=removed)

    def _ranking(self, schema: pa.Schema) -> Ranking:
        # What an interrupted sync left may be from before there was this cursor.
        order = [name for name in (self.spec.cursor, EXTRACTED_AT) if name and name in schema.names]
        key = self.spec.primary_key
        return by_key(schema, key, self.spec.fields_of(key), order)

    def _write_anew(
        self, files: Iterable[tuple[DataFile, Mask]], schema: pa.Schema
    ) -> tuple[StagedFile, ...]:
        """New files with the rows of these that stay."""
        stage = self._open_stage(schema)
        try:
            for file, stays in files:
                row = 0
                for batch in file.batches(schema) if stays.any() else ():
                    stage.write(batch.filter(pa.array(stays[row : row + batch.num_rows])))
                    row += batch.num_rows
            return stage.hand_over()
        except BaseException:
            stage.discard()
            raise


def _without(file: DataFile, column: pa.Schema) -> Mask:
    """Which rows of ``file`` have nothing in ``column``."""
    if file.null_count(column.names[0]) == file.rows:
        return np.ones(file.rows, np.bool_)
    nothing = [batch.column(0).is_null().to_numpy(False) for batch in file.batches(column)]
    return np.concatenate(nothing)
