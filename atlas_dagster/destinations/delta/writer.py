"""Writers of Delta tables: files are staged in the table's own folder, then listed by a commit.

With one row per primary key, a checkpoint lists its files in the change log beside the table, which
costs no more than an append. When the stream ends, one commit merges them: a file whose rows are
all the newest of their key becomes part of the table as it is, and only a file with an older row is
written again without it. The table then holds the ``seq`` of the last merged change, so an
interrupted merge is simply repeated. The first merge into an appended table reads all its keys,
because a key may be there twice.
"""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from atlas_dagster.destinations.base import StreamWriter, TableInfo, TableSpec
from atlas_dagster.destinations.delta.change_log import StreamTables
from atlas_dagster.destinations.delta.data_file import DataFile
from atlas_dagster.destinations.delta.filesystem import explained
from atlas_dagster.destinations.delta.newest_rows import newest_rows
from atlas_dagster.destinations.delta.parquet_stage import ParquetStage
from atlas_dagster.destinations.delta.versions import Ranking, has_value
from atlas_dagster.destinations.envelope import Envelope, StagedFile
from atlas_dagster.errors import DestinationError
from atlas_dagster.records.kept_values import Mask


class DeltaWriter(StreamWriter):
    """Appends rows, or replaces all rows in one commit.

    ``find_envelope`` returns the stored envelope of a ``seq``.
    """

    def __init__(
        self,
        spec: TableSpec,
        *,
        tables: StreamTables,
        stage: ParquetStage,
        find_envelope: Callable[[int], Envelope | None],
    ) -> None:
        self.spec = spec
        self.tables = tables
        self._stage = stage
        self._find_envelope = find_envelope
        self._recover_interrupted()

    def _recover_interrupted(self) -> None:
        """Finish the publish or merge of a dead process, or clean up behind it."""
        if not self.tables.is_behind:
            self.tables.tidy()
        elif self.tables.exists:
            last = self._last_commit()
            if last is not None and not last.commit_to(self.spec.path).unpublished:
                self._catch_up(last)

    def _last_commit(self) -> Envelope | None:
        """Return the last commit of the change log; None if it is gone and its rows go, too."""
        seq = self.tables.changes.seq
        envelope = self._find_envelope(seq)
        if envelope is None and not self.spec.replaces:
            raise DestinationError(
                f"{self.tables.main.uri} has unpublished changes of commit {seq}, but their "
                "envelope is missing in the lake's _atlas folder; restore that folder, or read "
                "the stream again with `atlas refresh`."
            )
        return envelope

    def _catch_up(self, last: Envelope) -> None:
        """Bring the table up to the commit ``last`` of the change log."""
        main = self.tables.main
        if self.tables.pending_files:
            if not self.spec.replaces:
                raise DestinationError(
                    f"{main.uri} has unmerged rows of an interrupted append_dedup sync; sync the "
                    "stream once more as append_dedup before you change its mode, or refresh it "
                    "with `atlas refresh`."
                )
        elif main.arrow_schema is not None:
            replaces = last.commit_to(self.spec.path).replaces
            main.add((), last, main.arrow_schema, replaces=replaces)

    @property
    def staged_rows(self) -> int:
        return self._stage.rows

    @property
    def unpublished_rows(self) -> int:
        return self.tables.changes.row_count if self.tables.is_behind else 0

    def write(self, batch: pa.RecordBatch) -> None:
        with explained(self._uri):
            self._stage.write(batch)

    def rewind(self, rows: int) -> None:
        with explained(self._uri):
            self._stage.rewind(rows)

    def stage(self) -> tuple[StagedFile, ...]:
        with explained(self._uri):
            return self._stage.take_files()

    def commit(self, envelope: Envelope) -> None:
        with explained(self._uri):
            self.tables.commit(envelope, envelope.commit_to(self.spec.path), self.spec.schema.arrow)

    def merge_committed(self) -> None:
        """Do nothing: commits publish their rows themselves."""

    def discard(self) -> None:
        # If it fails, the next maintenance deletes the files.
        with contextlib.suppress(OSError, pa.ArrowException):
            self._stage.discard()

    def exists(self) -> bool:
        return self.tables.main.exists

    def describe(self) -> TableInfo:
        with explained(self._uri):
            return TableInfo(self._uri, self.tables.main.row_count)

    @property
    def _uri(self) -> str:
        return self.tables.main.uri


class DedupWriter(DeltaWriter):
    """Keeps one row per primary key: lists files in the change log, and merges them at the end."""

    def __init__(self, *args: Any, open_stage: Callable[[pa.Schema], ParquetStage], **kwargs: Any):
        self._open_stage = open_stage
        self._last: Envelope | None = None
        super().__init__(*args, **kwargs)

    def commit(self, envelope: Envelope) -> None:
        super().commit(envelope)
        self._last = envelope

    def merge_committed(self) -> None:
        last = self._last
        if last and self.tables.is_behind and not last.commit_to(self.spec.path).unpublished:
            with explained(self.tables.main.uri):
                self._catch_up(last)

    def _catch_up(self, last: Envelope) -> None:
        pending = self.tables.pending_files
        missing = [file.name for file in pending if not file.exists()]
        if missing and self.spec.replaces:
            return  # the next commit replaces them anyway
        if missing:
            raise DestinationError(
                f"Unmerged files of {self.tables.main.uri} are missing ({len(missing)}, such as "
                f"{missing[0]}): another program deleted them, perhaps with VACUUM. Restore them, "
                "or read the stream again with `atlas refresh`."
            )
        self._merge(pending, last)
        self.tables.tidy()

    def _merge(self, new: list[DataFile], envelope: Envelope) -> None:
        main, changes = self.tables.main, self.tables.changes
        schema = changes.arrow_schema
        assert schema is not None
        replaces = envelope.commit_to(self.spec.path).replaces
        old: list[DataFile] = []
        unique = True
        if main.exists and not replaces:
            # The table may have been compacted since it was opened, but not synced.
            main.reload(main.seq)
            main.require_plain_table(replaces=False, removes=True)
            main.widen(schema)
            schema = main.arrow_schema
            assert schema is not None
            unique = main.is_unique_by(self.spec.primary_key)
            near = main.files_near(changes, self.spec.primary_key) if unique else main.file_names
            old = [self.tables.open_file(name) for name in near]
        found = newest_rows(old, new, self._ranking(schema), unique=unique)
        stays = found.stay
        self.late_rows += found.late
        if self.spec.deleted_at is not None and self.spec.deleted_at in schema.names:
            deleted_at = self.spec.column(self.spec.deleted_at)
            for file, mask in zip(new, stays[len(old) :], strict=True):
                mask &= ~has_value(file, deleted_at)
        changed = [
            (file, mask) for file, mask in zip([*old, *new], stays, strict=True) if not mask.all()
        ]
        names = {file.name for file, _ in changed}
        files = [file.staged() for file in new if file.name not in names]
        files += self._write_anew(changed, schema)
        removed = [file.name for file in old if file.name in names]
        main.add(
            files,
            envelope,
            schema,
            replaces=replaces,
            removed=removed,
            unique_by=self.spec.primary_key,
        )

    def _ranking(self, schema: pa.Schema) -> Ranking:
        # Files of an interrupted sync may be older than this cursor column.
        cursor = self.spec.cursor
        known = cursor is not None and cursor in schema.names
        return Ranking(
            tuple(map(self.spec.column, self.spec.primary_key)),
            self.spec.column(cursor) if known and cursor else None,
        )

    def _write_anew(
        self, files: Iterable[tuple[DataFile, Mask]], schema: pa.Schema
    ) -> tuple[StagedFile, ...]:
        """Write the rows of ``files`` that stay to new files."""
        stage = self._open_stage(schema)
        try:
            for file, stays in files:
                row = 0
                for batch in file.batches(schema) if stays.any() else ():
                    stage.write(batch.filter(pa.array(stays[row : row + batch.num_rows])))
                    row += batch.num_rows
            return stage.take_files()
        except BaseException:
            stage.discard()
            raise
