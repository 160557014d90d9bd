"""One stream while it is read: its rows on their way, its state, its verdict."""

import time
from typing import Literal

import pyarrow as pa
from msgspec import Raw

from atlas_dagster.destinations.base import StreamWriter
from atlas_dagster.destinations.envelope import StreamCommit
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.protocol.messages import Records, StreamDescriptor, TraceError
from atlas_dagster.protocol.state import is_position, same_blob
from atlas_dagster.records.batches import BatchBuilder
from atlas_dagster.records.kept_values import count_rows_without_key
from atlas_dagster.sync.stream_plan import StreamPlan

#: A batch is small enough for its rows, as Python objects, to stay in the processor's cache: with
#: four times as many, a sync takes a third more CPU time.
_BATCH_ROWS = 5_000
_BATCH_BYTES = 4 * 1024 * 1024
_SAMPLE_ROWS = 5

Phase = Literal["reading", "finished", "failed"]


class ActiveStream:
    """Counts, buffers and state of one stream during a sync.

    Rows since the last STATE are not covered by any state yet: :attr:`covered_rows` says how many
    of the rows since the last commit are.
    """

    def __init__(
        self, plan: StreamPlan, writer: StreamWriter, *, sync_id: int, root_run_id: str | None
    ) -> None:
        self.plan = plan
        # A stream that starts from the beginning without having been asked to begins here.
        resume_point = plan.resume_point
        begins = plan.full_refresh or not (resume_point.started_by_run or resume_point.envelope)
        self._started_by_run = root_run_id if begins else resume_point.started_by_run
        self.writer = writer
        #: Whether rows of earlier commits wait to be shown together with the next ones.
        self._waits = plan.extends_unpublished
        self._shown = False
        self.builder = BatchBuilder(
            plan.table.schema,
            sync_id=sync_id,
            generation_id=plan.configured.generation_id,
            key=plan.table.primary_key,
        )
        self.phase: Phase = "reading"
        #: The source's own last word: STARTED, RUNNING, COMPLETE, INCOMPLETE.
        self.status: str | None = None
        #: Why its state must not advance any more.
        self.fault: str | None = None
        self.error: TraceError | None = None
        #: Why the destination does not take its rows.
        self.refusal: AtlasError | None = None
        #: Whether a STATE told another number of records than came, and whether the last told one.
        self.miscounted = False
        self.counted = False
        self.records = 0
        self.bytes = 0
        self.checkpoints = 0
        self.covered_rows = 0
        self.records_since_state = 0
        self.state_seen = False
        #: The newest state, the newest that covers rows before its stream is complete, and the
        #: newest that is committed.
        self.state: Raw | None = plan.state
        self.checkpoint: Raw | None = plan.state
        self.committed_state: Raw | None = plan.state
        self.warnings: list[str] = []
        self.refuses_null_keys = plan.configured.refuses_null_keys
        #: Rows without a value in a field of the key, and the last few of all.
        self.keyless = 0
        self.sample: pa.RecordBatch | None = None
        self._last_commit = time.monotonic()
        self._bytes_at_commit = 0
        self.started = time.monotonic()

    @property
    def descriptor(self) -> StreamDescriptor:
        return self.plan.descriptor

    @property
    def full_refresh(self) -> bool:
        return self.plan.full_refresh

    @property
    def reason(self) -> str | None:
        """Why it failed, as far as that is known of this stream alone."""
        if self.refusal is not None:
            return str(self.refusal)
        return self.fault or (self.error.message if self.error else None)

    @property
    def pending_rows(self) -> int:
        """Rows since the last commit."""
        return self.writer.staged_rows + len(self.builder)

    def refuse(self, error: AtlasError) -> None:
        """The destination does not take its rows: what is committed stays, the rest is lost."""
        self.refusal = self.refusal or error
        self.phase = "failed"

    def add(self, found: Records) -> None:
        self.builder.extend(found.records, found.bytes)
        self.bytes += found.bytes
        self.records += len(found.records)
        self.records_since_state += len(found.records)
        if self.builder.bytes >= _BATCH_BYTES or len(self.builder) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Turn the buffered records into staged rows."""
        if not len(self.builder):
            return
        batch = self.builder.build()
        key = [*map(self.plan.table.column, self.plan.key_columns)]
        keyless = count_rows_without_key(batch, key)
        if keyless and self.refuses_null_keys:
            raise ConfigError(self._no_key(keyless))
        self.keyless += keyless
        # Copied, or it would hold the whole batch in memory.
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
        """Take ``state`` as covering every row so far, if it can be gone on from."""
        self.state = state
        self.state_seen = True
        self.records_since_state = 0
        if not self.plan.unpublished or (self.plan.resumable and is_position(state)):
            self.checkpoint = state
            self.covered_rows = self.pending_rows

    @property
    def is_covered(self) -> bool:
        """Whether a state covers every row so far."""
        return self.covered_rows == self.pending_rows

    def is_due(self, *, seconds: float, size: int) -> bool:
        """Whether enough time has passed or data come since the last commit."""
        elapsed = time.monotonic() - self._last_commit
        return elapsed >= seconds or self.bytes - self._bytes_at_commit >= size

    def drop_uncovered(self) -> None:
        """Forget the rows that no state covers."""
        self.flush()
        if self.writer.staged_rows > self.covered_rows:
            self.writer.rewind(self.covered_rows)

    @property
    def unpublished_rows(self) -> int:
        """Rows of earlier commits that are shown together with the next ones."""
        return self.writer.unpublished_rows if self._waits else 0

    @property
    def has_news(self) -> bool:
        """Whether there is anything to commit."""
        moved = not same_blob(self.state, self.committed_state)
        if self.pending_rows:
            return True
        if self.plan.unpublished:
            # Never a position alone: it would hide that nothing came before it.
            return moved and self.unpublished_rows > 0
        return moved or not (self._waits or self.writer.exists())

    @property
    def needs_publish(self) -> bool:
        """Whether its end is to be committed even without news."""
        waits = self.plan.table.replaces or (self.plan.unpublished and self._waits)
        return not self._shown and (waits or not self.writer.exists())

    @property
    def is_in_no_commit(self) -> bool:
        """Whether it starts over, has failed, and could be in a commit of its shared state."""
        failed = self.phase == "failed" and self.refusal is None and self.is_covered
        return bool(failed and self.plan.resume_point.restarts and not self.checkpoints)

    @property
    def is_accidentally_empty(self) -> bool:
        """Whether old rows would go for nothing, and the source has not said that this is right."""
        came = self.status == "COMPLETE" or self.records or self.unpublished_rows
        return self.plan.table.replaces and self.writer.exists() and not came

    def stage(self, *, complete: bool) -> StreamCommit:
        """Finish what is pending, ready for the envelope."""
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
            continues=self._waits,
            full_refresh=self.plan.full_refresh,
            started_by_run=self._started_by_run,
            cursor_field=None if self.plan.full_refresh else self.plan.configured.cursor_field,
            wiped_at=self.plan.resume_point.wiped_at,
        )

    def committed(self, part: StreamCommit) -> int:
        """Note that everything staged is durable; the bytes of its records."""
        size = self.bytes - self._bytes_at_commit
        self.committed_state = self.checkpoint if part.unpublished else self.state
        self.covered_rows = 0
        self.checkpoints += 1
        self._waits = part.unpublished or bool(part.primary_key)
        self._shown = not part.unpublished
        self._last_commit = time.monotonic()
        self._bytes_at_commit = self.bytes
        return size
