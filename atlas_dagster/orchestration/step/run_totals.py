"""What one run has brought of each stream, over all its tries."""

import time

from msgspec import Raw, Struct

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.sync.events import Checkpoint
from atlas_dagster.sync.plan import SyncPlan


class StreamTotals(Struct):
    """What was committed of one stream; ``cursor_before`` is where its first try began."""

    cursor_before: Raw | None
    records: int = 0
    bytes: int = 0
    checkpoints: int = 0


class RunTotals:
    """Counts what is committed: rows of a failed try that a later one reads again count once."""

    def __init__(self) -> None:
        #: How the CHECK that the run did first ended: ``success``, or the type of its failure.
        self.checked: str | None = None
        self._started: float | None = None
        self._streams: dict[TablePath, StreamTotals] = {}

    def begin(self, plan: SyncPlan) -> None:
        """A try begins."""
        self._started = self._started or time.monotonic()
        for stream in plan.streams:
            known = self._streams.get(stream.table.path)
            # One that starts from the beginning brings all of it again.
            if known is None or stream.state is None:
                self._streams[stream.table.path] = StreamTotals(stream.state)

    def add(self, checkpoint: Checkpoint) -> None:
        commits = checkpoint.envelope.streams
        for commit, size in zip(commits, checkpoint.bytes, strict=True):
            counts = self._streams[commit.table]
            counts.records += commit.rows
            counts.bytes += size
            counts.checkpoints += 1

    def of(self, table: TablePath) -> StreamTotals:
        return self._streams[table]

    @property
    def records(self) -> int:
        return sum(counts.records for counts in self._streams.values())

    @property
    def bytes(self) -> int:
        return sum(counts.bytes for counts in self._streams.values())

    @property
    def seconds(self) -> float:
        """Since the first try began to read."""
        return 0.0 if self._started is None else time.monotonic() - self._started
