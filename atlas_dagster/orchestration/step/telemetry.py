"""What a sync and a CHECK have done, pushed over OTLP where OpenTelemetry's variables say to.

A step's process lives for minutes and may be any one of many, so nobody can come and ask it: it
pushes once, when its work is done. Counts are sent as deltas, which the receiver adds up, for no
process knows the sum. One that was killed pushes nothing; its absence shows in ``last_run``.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg

from atlas_dagster.errors import AtlasError

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter


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


_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
#: Of a sync, in seconds: from one that finds nothing new to one that takes a day.
_DURATIONS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
#: Beside the types of failures, and ``canceled``.
SUCCESS = "success"
Record = Callable[["Meter"], None]


@contextmanager
def measured_sync(
    context: dg.AssetExecutionContext, connection: str, deployment: str, tally: RunTotals
) -> Iterator[None]:
    """Push how the block ended, and what ``tally`` holds by then."""
    began = time.monotonic()
    outcome = SUCCESS
    try:
        yield
    except AtlasError as error:
        outcome = error.failure_type
        raise
    except Exception:
        outcome = "system_error"
        raise
    except BaseException:
        outcome = "canceled"
        raise
    finally:
        seconds = time.monotonic() - began

        def record(meter: "Meter") -> None:
            name = {"connection": connection}
            ended = name | {"outcome": outcome}
            meter.create_counter("atlas.sync.runs").add(1, ended)
            meter.create_counter("atlas.sync.records").add(tally.records, name)
            meter.create_counter("atlas.sync.bytes", unit="By").add(tally.bytes, name)
            meter.create_histogram(
                "atlas.sync.duration", unit="s", explicit_bucket_boundaries_advisory=_DURATIONS
            ).record(seconds, ended)
            meter.create_gauge("atlas.sync.last_run", unit="s").set(time.time(), ended)
            if tally.checked:
                _record_check(meter, connection, tally.checked)

        _push(record, deployment, context.log.warning)


def push_check(connection: str, deployment: str, outcome: str, warn: Callable[[str], None]) -> None:
    """Push how a CHECK ended that was no part of a sync."""
    _push(lambda meter: _record_check(meter, connection, outcome), deployment, warn)


def _record_check(meter: "Meter", connection: str, outcome: str) -> None:
    ended = {"connection": connection, "outcome": outcome}
    meter.create_counter("atlas.check.runs").add(1, ended)
    meter.create_gauge("atlas.check.last_run", unit="s").set(time.time(), ended)


def _push(record: Record, deployment: str, warn: Callable[[str], None]) -> None:
    """Send what ``record`` records; ``warn`` is told where that is not possible. Never raises."""
    if not _is_asked_for(os.environ):
        return
    try:
        wrong = _send(record, deployment)
    except ImportError:
        wrong = "install atlas-dagster[metrics]"
    except Exception as error:  # noqa: BLE001 - whatever it is, the sync matters more
        wrong = f"{type(error).__name__}, with {' or '.join(_ENDPOINTS)}"
    if wrong:
        warn(f"Metrics could not be sent ({wrong}). Nothing depends on them.")


def _is_asked_for(environ: Mapping[str, str]) -> bool:
    disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and any(environ.get(name) for name in _ENDPOINTS)


def _send(record: Record, deployment: str) -> str | None:
    """What went wrong, if anything did."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        InMemoryMetricReader,
        MetricExportResult,
    )
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    delta = AggregationTemporality.DELTA
    cumulative = os.environ.get(_TEMPORALITY, "").lower() == "cumulative"
    reader = InMemoryMetricReader({} if cumulative else {Counter: delta, Histogram: delta})
    # Nothing of the process: the receiver adds up what comes from the same resource.
    resource = Resource({"service.name": deployment}).merge(OTELResourceDetector().detect())
    provider = MeterProvider([reader], resource, shutdown_on_exit=False)
    record(provider.get_meter("atlas_dagster"))
    found = reader.get_metrics_data()
    exporter = OTLPMetricExporter()
    try:
        if found is None or exporter.export(found) is MetricExportResult.SUCCESS:
            return None
        return "the receiver does not take them; the step's log says why"
    finally:
        exporter.shutdown()
        provider.shutdown()
