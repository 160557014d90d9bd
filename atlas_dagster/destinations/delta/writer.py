"""Writes one stream's rows to a Delta table, as files in the table's own folder."""

import contextlib
from collections.abc import Callable

import pyarrow as pa

from atlas_dagster.destinations.base import StreamWriter, TableInfo, TableSpec
from atlas_dagster.destinations.delta.change_log import StreamTables
from atlas_dagster.destinations.delta.filesystem import explained
from atlas_dagster.destinations.delta.parquet_stage import ParquetStage
from atlas_dagster.destinations.envelope import Envelope, StagedFile
from atlas_dagster.errors import DestinationError


class DeltaWriter(StreamWriter):
    """Rows are added, or replace all others in one swap of all files.

    ``find_envelope`` looks up the commit of a ``seq``.
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
        self._settle()

    def _settle(self) -> None:
        """Finish what a dead process left: changes to be shown, or shown and still listed."""
        if not self.tables.is_behind:
            self.tables.tidy()
        elif self.tables.exists:
            last = self._last_commit()
            if last is not None and not last.commit_to(self.spec.path).unpublished:
                self._catch_up(last)

    def _last_commit(self) -> Envelope | None:
        """The last commit that waits; None where it is not known and does not matter."""
        seq = self.tables.changes.seq
        envelope = self._find_envelope(seq)
        if envelope is None and not self.spec.replaces:
            raise DestinationError(
                f"{self.tables.main.uri} has changes of commit {seq} waiting whose envelope is "
                "gone from the lake's _atlas folder; restore that folder, or have the stream read "
                "again with `atlas refresh`."
            )
        return envelope

    def _catch_up(self, last: Envelope) -> None:
        """Bring what waits, up to the commit ``last``, into the table."""
        main = self.tables.main
        if self.tables.waiting:
            if not self.spec.replaces:
                raise DestinationError(
                    f"{main.uri} has rows of an interrupted append_dedup sync that are not merged "
                    "yet; run it once more as append_dedup before changing its mode, or refresh "
                    "the stream with `atlas refresh`."
                )
        elif main.arrow_schema is not None:
            replaces = last.commit_to(self.spec.path).replaces
            main.add((), last, main.arrow_schema, replaces=replaces)

    @property
    def staged_rows(self) -> int:  # type: ignore[override]
        return self._stage.rows

    @property
    def unpublished_rows(self) -> int:  # type: ignore[override]
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
            self.tables.take(envelope, envelope.commit_to(self.spec.path), self.spec.schema.arrow)

    def merge_committed(self) -> None:
        """A commit that is not held has shown everything already."""

    def discard(self) -> None:
        # The next maintenance deletes what cannot be deleted now.
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
