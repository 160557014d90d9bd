"""Progress of a READ: records so far, the source's estimate, and the rate."""

import time
from collections.abc import Collection

from atlas_dagster.listener import PROGRESS_SECONDS, SILENT, Listener
from atlas_dagster.protocol.messages import Estimate, StreamDescriptor
from atlas_dagster.sync.events import ProgressReport
from atlas_dagster.sync.stream import ActiveStream

_EVERY_SECONDS = 10.0
#: Streams that a report names, those with the most records first.
_MOST_STREAMS = 8
#: Streams whose estimates are kept; a source may invent any number of names.
_MOST_ESTIMATES = 20_000


class Progress:
    """Compares record counts with the source's estimates.

    The latest estimate of a stream replaces earlier ones. If a source estimates both streams and
    the whole sync, Atlas uses neither, as the platform's ``StatsTracker`` does.
    """

    def __init__(self, listener: Listener = SILENT) -> None:
        self._listener = listener
        self._started = time.monotonic()
        self._next = self._started + _EVERY_SECONDS
        self._streams: dict[StreamDescriptor, float] = {}
        self._sync: float | None = None
        self._next_update = 0.0

    def add_estimate(self, estimate: Estimate) -> None:
        """Store an estimate of a stream or of the whole sync."""
        rows = estimate.rows
        if not rows:
            return
        if estimate.type == "SYNC":
            self._sync = rows
        elif estimate.name is not None and len(self._streams) < _MOST_ESTIMATES:
            self._streams[StreamDescriptor(estimate.name, estimate.namespace)] = rows

    def report_if_due(self, streams: Collection[ActiveStream]) -> ProgressReport | None:
        """Report to the listener, and return a report for the log, each at its own interval."""
        now = time.monotonic()
        if now >= self._next_update:
            self._next_update = now + PROGRESS_SECONDS
            count = sum(stream.records for stream in streams)
            self._listener.progress("read", count, self._estimate_total(streams))
        if now < self._next:
            return None
        self._next = now + _EVERY_SECONDS
        records = sum(stream.records for stream in streams)
        expected = self._estimate_total(streams)
        if not records:
            return ProgressReport("No records so far.", 0, expected)
        rate = records / (now - self._started)
        started = sorted((s for s in streams if s.records), key=lambda s: s.records, reverse=True)
        counts = [self._describe_count(stream) for stream in started[:_MOST_STREAMS]]
        if len(started) > _MOST_STREAMS:
            counts.append(f"{len(started) - _MOST_STREAMS} other streams")
        text = f"Records so far: {', '.join(counts)}; {rate:,.0f} a second"
        left = 0.0 if expected is None else expected - records
        return ProgressReport(f"{text}{_describe_time_left(left, rate)}.", records, expected)

    def _describe_count(self, stream: ActiveStream) -> str:
        estimated = None if self._sync else self._streams.get(stream.descriptor)
        count = f"{stream.descriptor} {stream.records:,}"
        return (
            f"{count} of about {estimated:,.0f}"
            if estimated and estimated >= stream.records
            else count
        )

    def _estimate_total(self, streams: Collection[ActiveStream]) -> float | None:
        """Return the estimated records of the whole sync; None without a consistent estimate."""
        if self._sync and self._streams:
            return None
        if not self._sync and any(s.descriptor not in self._streams for s in streams):
            return None
        return self._sync or sum(self._streams[s.descriptor] for s in streams)


def _describe_time_left(records_left: float, rate: float) -> str:
    if records_left <= 0:
        return ""
    minutes = records_left / rate / 60
    return f", about {minutes:,.0f} minutes left" if minutes >= 1.5 else ", almost done"
