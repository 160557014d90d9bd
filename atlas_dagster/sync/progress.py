"""What is said while a READ runs: records so far, of how many, at what rate."""

import time
from collections.abc import Callable, Collection
from contextvars import ContextVar

from atlas_dagster.protocol.messages import Estimate, StreamDescriptor
from atlas_dagster.sync.stream import ActiveStream

_EVERY_SECONDS = 10.0
#: Often enough for a moving bar.
WATCHED_EVERY_SECONDS = 0.2

#: Is told the records so far, of about how many where the source says, and the rate per second.
Watcher = Callable[[int, float | None, float], None]

#: Who in this context draws the progress of a READ.
sync_watcher: ContextVar[Watcher | None] = ContextVar("sync_watcher", default=None)


class Progress:
    """Counts against the source's estimates.

    The latest estimate of a stream replaces the ones before; a source that estimates both streams
    and the whole sync contradicts itself, so then none counts (platform ``StatsTracker``).
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._next = self._started + _EVERY_SECONDS
        self._streams: dict[StreamDescriptor, float] = {}
        self._sync: float | None = None
        self._watched = 0.0

    def estimate(self, estimate: Estimate) -> None:
        rows = estimate.row_estimate
        if rows is None or rows <= 0:
            return
        if estimate.type == "SYNC":
            self._sync = rows
        elif estimate.name is not None:
            self._streams[StreamDescriptor(estimate.name, estimate.namespace)] = rows

    def due(self, streams: Collection[ActiveStream]) -> str | None:
        """The sentence, when it is time for one."""
        now = time.monotonic()
        if (watch := sync_watcher.get()) and now >= self._watched:
            self._watched = now + WATCHED_EVERY_SECONDS
            count = sum(stream.records for stream in streams)
            watch(count, self._expected(streams), count / max(now - self._started, 1e-3))
        if now < self._next:
            return None
        self._next = now + _EVERY_SECONDS
        records = sum(stream.records for stream in streams)
        if not records:
            return "No records so far."
        rate = records / (now - self._started)
        counts = ", ".join(self._of(stream) for stream in streams if stream.records)
        return f"Records so far: {counts}; {rate:,.0f} a second{self._rest(streams, rate)}."

    def _of(self, stream: ActiveStream) -> str:
        about = None if self._sync else self._streams.get(stream.descriptor)
        count = f"{stream.descriptor} {stream.records:,}"
        return f"{count} of about {about:,.0f}" if about and about >= stream.records else count

    def _rest(self, streams: Collection[ActiveStream], rate: float) -> str:
        expected = self._expected(streams)
        left = (expected or 0.0) - sum(stream.records for stream in streams)
        if left <= 0:
            return ""
        minutes = left / rate / 60
        return f", about {minutes:,.0f} minutes left" if minutes >= 1.5 else ", almost done"

    def _expected(self, streams: Collection[ActiveStream]) -> float | None:
        """Records of all streams, where the source says so without contradiction."""
        if self._sync and self._streams:
            return None
        if self._sync or not all(s.descriptor in self._streams for s in streams):
            return self._sync
        return sum(self._streams[s.descriptor] for s in streams)
