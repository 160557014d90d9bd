"""One stream of a sync: its rows on the way to the table, and its state."""

import time
from typing import Literal

import pyarrow as pa
from msgspec import Raw

from atlas_dagster.destinations.base import StreamWriter
from atlas_dagster.destinations.envelope import Envelope, StreamCommit
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.protocol.messages import Records, StreamDescriptor
from atlas_dagster.protocol.state import is_position, same_blob
from atlas_dagster.records.batches import BatchBuilder
from atlas_dagster.records.kept_values import count_rows_without_key
from atlas_dagster.source.read_protocol import StreamRead
from atlas_dagster.sync.events import CommitNumbers, StreamFinished
from atlas_dagster.sync.stream_plan import StreamPlan

#: Small batches keep their rows, as Python objects, in the processor's cache: four times as many
#: rows cost a third more CPU time.
_BATCH_ROWS = 5_000
_BATCH_BYTES = 4 * 1024 * 1024
_SAMPLE_ROWS = 5

Phase = Literal["reading", "finished", "failed"]


class ActiveStream:
    """The rows, counts and state of one stream during a sync.

    A STATE covers all rows before it. :attr:`covered_rows` is the number of rows since the last
    commit that a STATE covers.
    """

    def __init__(
        self, plan: StreamPlan, writer: StreamWriter, *, sync_id: int, root_run_id: str | None
    ) -> None:
        self.plan = plan
        #: The meaning of its messages so far, kept by the session's ReadProtocol.
        self.read = StreamRead.of(plan.configured)
        # A full refresh starts with this run, as does a stream without an earlier commit.
        resume_point = plan.resume_point
        starts = plan.full_refresh or not (resume_point.started_by_run or resume_point.envelope)
        self._started_by_run = root_run_id if starts else resume_point.started_by_run
        self.writer = writer
        #: Whether the next commit extends unpublished rows of earlier commits.
        self._extends_unpublished = plan.extends_unpublished
        self._published = False
        self.builder = BatchBuilder(
            plan.table.schema,
            sync_id=sync_id,
            generation_id=plan.configured.generation_id,
            key=plan.table.primary_key,
        )
        self.phase: Phase = "reading"
        #: Why the destination refuses its rows.
        self.refusal: AtlasError | None = None
        self.records = 0
        self.bytes = 0
        self.commits = 0
        self.covered_rows = 0
        #: The newest state of the source.
        self.state: Raw | None = plan.state
        #: The newest state that a sync can resume from before the stream is complete.
        self.resumable_state: Raw | None = plan.state
        #: The state of the last commit.
        self.committed_state: Raw | None = plan.state
        self.warnings: list[str] = []
        self.refuses_null_keys = plan.configured.refuses_null_keys
        #: Rows without a value in a primary key field.
        self.rows_without_key = 0
        #: The last few rows.
        self.sample: pa.RecordBatch | None = None
        self._last_commit = time.monotonic()
        self._bytes_at_commit = 0
        self.started = time.monotonic()

    @property
    def descriptor(self) -> StreamDescriptor:
        return self.plan.descriptor

    @property
    def reason(self) -> str | None:
        """The reason why this stream failed; None if only a reason for the whole READ is known."""
        if self.refusal is not None:
            return str(self.refusal)
        return self.read.fault or (self.read.error.message if self.read.error else None)

    @property
    def pending_rows(self) -> int:
        """The number of rows since the last commit."""
        return self.writer.staged_rows + len(self.builder)

    def refuse(self, error: AtlasError) -> None:
        """Fail the stream because the destination refuses its rows. Commits so far are kept."""
        self.refusal = self.refusal or error
        self.phase = "failed"
        self.read.skips_records = True

    def add(self, found: Records) -> None:
        self.builder.extend(found.records, found.bytes)
        self.bytes += found.bytes
        self.records += len(found.records)
        if self.builder.bytes >= _BATCH_BYTES or len(self.builder) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Stage the buffered records as rows."""
        if not len(self.builder):
            return
        batch = self.builder.build()
        key = [*map(self.plan.table.column, self.plan.key_columns)]
        rows_without_key = count_rows_without_key(batch, key)
        if rows_without_key and self.refuses_null_keys:
            raise ConfigError(self._no_key(rows_without_key))
        self.rows_without_key += rows_without_key
        # A copy, as a slice would keep the whole batch in memory.
        last = range(max(batch.num_rows - _SAMPLE_ROWS, 0), batch.num_rows)
        self.sample = batch.take(pa.array(last, pa.int64()))
        self.writer.write(batch)

    def _no_key(self, count: int) -> str:
        key = ", ".join(".".join(path) for path in self.plan.configured.primary_key)
        records = f"{count} records" if count > 1 else "a record"
        return (
            f"Stream '{self.descriptor}' sent {records} without a value in its primary key "
            f"({key}), and its null_keys is refuse; have the source fill the key, choose another "
            "primary_key, or declare null_keys: keep."
        )

    def take_state(self, state: Raw | None) -> None:
        """Store a state, which covers all rows so far if a sync can resume from it."""
        self.state = state
        if not self.plan.unpublished or (self.plan.resumable and is_position(state)):
            self.resumable_state = state
            self.covered_rows = self.pending_rows

    @property
    def is_covered(self) -> bool:
        """True if a state covers all rows so far."""
        return self.covered_rows == self.pending_rows

    def is_due(self, *, seconds: float, size: int) -> bool:
        """Return whether the last commit is ``seconds`` or ``size`` bytes of records ago."""
        elapsed = time.monotonic() - self._last_commit
        return elapsed >= seconds or self.bytes - self._bytes_at_commit >= size

    def drop_uncovered(self) -> None:
        """Drop the rows that no state covers."""
        self.flush()
        if self.writer.staged_rows > self.covered_rows:
            self.writer.rewind(self.covered_rows)

    def warn_of_uncovered(self) -> None:
        """Warn if the stream is complete, but its last rows came after its last state."""
        rows = self.pending_rows - self.covered_rows
        if rows and self.read.has_state and not self.plan.full_refresh:
            self.warnings.append(
                f"{rows} records came after the stream's last state; they are kept, and the next "
                "sync may read them again."
            )

    @property
    def unpublished_rows(self) -> int:
        """The number of rows of earlier commits that are published together with the next ones."""
        return self.writer.unpublished_rows if self._extends_unpublished else 0

    @property
    def has_changes(self) -> bool:
        """True if there is anything to commit."""
        has_new_state = not same_blob(self.state, self.committed_state)
        if self.pending_rows:
            return True
        if self.plan.unpublished:
            # Do not commit a state alone, because this would hide that no row came before it.
            return has_new_state and self.unpublished_rows > 0
        return has_new_state or not (self._extends_unpublished or self.writer.exists())

    @property
    def needs_publish(self) -> bool:
        """True if the end of the stream needs a commit, even without anything new."""
        unpublished = self.plan.unpublished and self._extends_unpublished
        is_pending = self.plan.table.replaces or unpublished
        return not self._published and (is_pending or not self.writer.exists())

    @property
    def needs_first_commit(self) -> bool:
        """True if the stream restarted and failed, and may be in a commit of its shared state."""
        failed = self.phase == "failed" and self.refusal is None and self.is_covered
        return bool(failed and self.plan.resume_point.restarts and not self.commits)

    @property
    def is_accidentally_empty(self) -> bool:
        """True if no rows would replace the old rows, and the source has not sent COMPLETE."""
        is_expected = self.read.status == "COMPLETE" or self.records or self.unpublished_rows
        return self.plan.table.replaces and self.writer.exists() and not is_expected

    def stage(self, *, complete: bool) -> StreamCommit:
        """Stage all rows; return their part of the next envelope."""
        self.flush()
        unpublished = self.plan.unpublished and not complete
        return StreamCommit(
            stream=self.descriptor,
            table=self.plan.table.path,
            generation_id=self.plan.configured.generation_id,
            replaces=self.plan.resume_point.replaces if unpublished else self.plan.table.replaces,
            files=self.writer.stage(),
            primary_key=self.plan.key,
            unpublished=unpublished,
            continues=self._extends_unpublished,
            full_refresh=self.plan.full_refresh,
            started_by_run=self._started_by_run,
            cursor_field=None if self.plan.full_refresh else self.plan.configured.cursor_field,
            wiped_at=self.plan.resume_point.wiped_at,
        )

    def mark_committed(self, part: StreamCommit) -> CommitNumbers:
        """Reset the counts after a commit of the staged rows, and return their numbers."""
        numbers = CommitNumbers(
            records_synced=part.rows, bytes_synced=self.bytes - self._bytes_at_commit
        )
        self.committed_state = self.resumable_state if part.unpublished else self.state
        self.covered_rows = 0
        self.commits += 1
        self._extends_unpublished = part.unpublished or bool(part.primary_key)
        self._published = not part.unpublished
        self._last_commit = time.monotonic()
        self._bytes_at_commit = self.bytes
        return numbers

    def build_finished(self, envelope: Envelope | None) -> StreamFinished:
        """Return the event for a complete stream. ``envelope``: the stream's last commit."""
        return StreamFinished(
            plan=self.plan,
            records=self.records,
            bytes=self.bytes,
            seconds=time.monotonic() - self.started,
            commits=self.commits,
            cursor_before=self.plan.state,
            cursor_after=self.committed_state,
            envelope=envelope,
            table=self.writer.describe(),
            warnings=tuple(self.warnings),
            counted=self.read.counted,
            rows_without_key=self.rows_without_key,
            late=self.writer.late_rows,
            changes=self.builder.changes,
            sample=self.sample,
        )
