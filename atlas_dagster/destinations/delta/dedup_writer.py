"""Delta tables with one row per primary key.

Checkpoints list their files in the change log beside the real table, which costs no more than an
append; the files stand in the real table's folder already. When the stream ends, they are merged in
one commit: files whose rows are all the newest of their key become part of the table as they are,
and only files with an older row are written anew without it. The real table then holds the ``seq``
of the last change merged, so a merge that was interrupted is simply done at the next opportunity.
The first merge into a table that was appended to looks at all its keys, which may be there twice.
"""

from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from atlas_dagster.destinations.delta.data_file import DataFile
from atlas_dagster.destinations.delta.filesystem import explained
from atlas_dagster.destinations.delta.newest_rows import newest_rows
from atlas_dagster.destinations.delta.parquet_stage import ParquetStage
from atlas_dagster.destinations.delta.versions import Ranking, has_value
from atlas_dagster.destinations.delta.writer import DeltaWriter
from atlas_dagster.destinations.envelope import Envelope, StagedFile
from atlas_dagster.errors import DestinationError
from atlas_dagster.records.kept_values import Mask


class DedupWriter(DeltaWriter):
    """Lists files in the change log, merges them at the end."""

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
        waiting = self.tables.waiting
        missing = [file.name for file in waiting if not file.exists()]
        if missing and self.spec.replaces:
            return  # the next commit drops them
        if missing:
            raise DestinationError(
                f"{self.tables.main.uri} lacks {len(missing)} of the files that wait for their "
                f"merge, such as {missing[0]}: someone has deleted them, perhaps by a VACUUM. "
                "Restore them, or have the stream read again with `atlas refresh`."
            )
        self._merge(waiting, last)
        self.tables.tidy()

    def _merge(self, new: list[DataFile], envelope: Envelope) -> None:
        main, changes = self.tables.main, self.tables.changes
        schema = changes.arrow_schema
        assert schema is not None
        replaces = envelope.commit_to(self.spec.path).replaces
        old: list[DataFile] = []
        unique = True
        if main.exists and not replaces:
            # Others may have compacted the table since it was opened; no sync may have written.
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
        # What an interrupted sync left may be from before there was this cursor.
        cursor = self.spec.cursor
        known = cursor is not None and cursor in schema.names
        return Ranking(
            tuple(map(self.spec.column, self.spec.primary_key)),
            self.spec.column(cursor) if known and cursor else None,
        )

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
            return stage.take_files()
        except BaseException:
            stage.discard()
            raise
