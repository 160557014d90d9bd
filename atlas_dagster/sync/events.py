"""Events that a sync session yields."""

from collections.abc import Mapping

import pyarrow as pa
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import TableInfo
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.records.issues import ValueChange
from atlas_dagster.sync.stream_plan import StreamPlan


class CommitNumbers(Struct, frozen=True):
    """The numbers of one stream in one commit.

    Each is added to the field of the same name in ``StreamTotals``, and so to the metadata
    ``atlas/<name>`` of the materialization. ``bytes_synced``: JSON of the records that arrived
    since the commit before.
    """

    records_synced: int
    bytes_synced: int


class StreamsCommitted(Struct, frozen=True):
    """A commit is durable; its streams may be incomplete.

    ``numbers``: one for each stream, in the order of the envelope's streams.
    """

    envelope: Envelope
    numbers: tuple[CommitNumbers, ...]


class StreamFinished(Struct, frozen=True):
    """A stream is complete, and all its rows are durable.

    ``records``: received by this sync. ``bytes``: of their JSON. ``seconds``: since the sync
    started. ``commits``: those of the stream. ``envelope``: its last commit, which is
    of an older sync if this one read nothing new. ``counted``: the source declared a record count,
    and it matches. ``rows_without_key``: records without a value in a primary key field. ``late``:
    records that arrived after a newer version of their key, so they are not in the table.
    ``changes``: counts of values that their columns could not hold as the source wrote them.
    ``sample``: the last few rows.
    """

    plan: StreamPlan
    records: int
    bytes: int
    seconds: float
    commits: int
    cursor_before: Raw | None
    cursor_after: Raw | None
    envelope: Envelope | None
    table: TableInfo
    warnings: tuple[str, ...]
    counted: bool
    rows_without_key: int
    late: int
    changes: Mapping[ValueChange, int]
    sample: pa.RecordBatch | None

    @property
    def data_version(self) -> str:
        """A text that changes whenever the table's rows may have changed."""
        return str(self.envelope.data_seq(self.plan.descriptor) if self.envelope else 0)


class StreamFailed(Struct, frozen=True):
    """A stream did not complete. ``miscounted``: the record count of a STATE did not match."""

    plan: StreamPlan
    reason: str | None
    miscounted: bool


class ProgressReport(Struct, frozen=True):
    """The progress of the READ, from time to time, as a sentence and as numbers.

    ``expected``: all records of the sync; None without an estimate by the source.
    """

    text: str
    records: int
    expected: float | None


SyncEvent = StreamsCommitted | StreamFinished | StreamFailed | ProgressReport
