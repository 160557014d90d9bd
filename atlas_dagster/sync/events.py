"""What a READ tells whoever drives it, as it becomes true."""

from collections.abc import Mapping

import pyarrow as pa
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import TableInfo
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.records.issues import ValueChange
from atlas_dagster.sync.stream_plan import StreamPlan


class Checkpoint(Struct, frozen=True):
    """A commit is durable; its streams may not be complete yet.

    ``bytes``: of each stream's records in it, as JSON.
    """

    envelope: Envelope
    plans: tuple[StreamPlan, ...]
    bytes: tuple[int, ...]


class StreamFinished(Struct, frozen=True):
    """A stream is complete and all its rows are durable.

    ``bytes`` are those of the records' JSON; ``seconds`` since the sync began. ``envelope`` is the
    stream's last commit: an older sync's where this one brought nothing new. ``counted``: the
    source said how many records it sent, and so many came. ``keyless``: records that lack a value
    in a field of the primary key. ``late``: versions of rows that came after the newest one of
    their key, so that they are not in the table. ``changes``: how many values are not in their
    columns as the source wrote them. ``sample``: the last few rows.
    """

    plan: StreamPlan
    records: int
    bytes: int
    seconds: float
    checkpoints: int
    cursor_before: Raw | None
    cursor_after: Raw | None
    envelope: Envelope | None
    table: TableInfo
    warnings: tuple[str, ...]
    counted: bool
    keyless: int
    late: int
    changes: Mapping[ValueChange, int]
    sample: pa.RecordBatch | None

    @property
    def data_version(self) -> str:
        """Another one than before if the table's rows may have changed."""
        return str(self.envelope.data_seq(self.plan.descriptor) if self.envelope else 0)


class StreamFailed(Struct, frozen=True):
    """A stream will not complete. ``miscounted``: its STATE says how many records are missing."""

    plan: StreamPlan
    reason: str | None
    miscounted: bool


class ProgressReport(Struct, frozen=True):
    """How far the READ is, now and then: a sentence, and its numbers.

    ``expected``: records in all, where the source estimates them.
    """

    told: str
    records: int
    expected: float | None


SyncEvent = Checkpoint | StreamFinished | StreamFailed | ProgressReport
