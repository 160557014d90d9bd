"""The numbers of a run, and their push over OTLP if OpenTelemetry's variables name a receiver.

A step's process lives for minutes, so it cannot be scraped: it pushes once, at its end. It sends
counts as deltas, which the receiver adds up. A killed process pushes nothing; ``last_run`` shows
that it is missing.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dagster as dg
from msgspec import Raw, Struct
from msgspec.structs import asdict

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.errors import AtlasError
from atlas_dagster.sync.events import CommitNumbers, StreamsCommitted
from atlas_dagster.sync.plan import SyncPlan

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter


class StreamTotals(Struct):
    """The numbers of one stream in one run, over all its attempts.

    Each is the metadata ``atlas/<name>`` of the materialization, and a plot in the UI. Only what a
    commit carries is counted, in the field of the same name of ``CommitNumbers``.
    """

    records_synced: int = 0
    #: Of the records' JSON. A float, because the UI plots no integer beyond 32 bits.
    bytes_synced: float = 0.0
    #: The number of commits.
    checkpoints: int = 0

    def add(self, numbers: CommitNumbers) -> None:
        """Count a commit."""
        for name, number in asdict(numbers).items():
            setattr(self, name, getattr(self, name) + number)
        self.checkpoints += 1


class RunTotals:
    """The numbers of a run. Rows that a second attempt reads again count once."""

    def __init__(self) -> None:
        #: How the CHECK of this run ended: ``success``, or the type of its failure.
        self.check_outcome: str | None = None
        self._started: float | None = None
        self._streams: dict[TablePath, StreamTotals] = {}
        self._first_states: dict[TablePath, Raw | None] = {}

    def begin(self, plan: SyncPlan) -> None:
        """Start an attempt."""
        self._started = self._started or time.monotonic()
        for stream in plan.streams:
            # A stream that starts from the beginning reads all its records again.
            if stream.table.path not in self._streams or stream.state is None:
                self._streams[stream.table.path] = StreamTotals()
                self._first_states[stream.table.path] = stream.state

    def add(self, committed: StreamsCommitted) -> None:
        """Count a commit."""
        for commit, numbers in zip(committed.envelope.streams, committed.numbers, strict=True):
            self._streams[commit.table].add(numbers)

    def of(self, table: TablePath) -> StreamTotals:
        """Return the numbers of one stream."""
        return self._streams[table]

    def first_state(self, table: TablePath) -> Raw | None:
        """Return the state that the first attempt at a stream started from."""
        return self._first_states[table]

    @property
    def records(self) -> int:
        return sum(totals.records_synced for totals in self._streams.values())

    @property
    def bytes(self) -> int:
        return round(sum(totals.bytes_synced for totals in self._streams.values()))

    @property
    def seconds(self) -> float:
        """Seconds since the first attempt began."""
        return 0.0 if self._started is None else time.monotonic() - self._started


_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
#: Bounds of the histogram, in seconds: from a sync without news to one that takes a day.
_DURATIONS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)
#: An outcome, besides the types of failures and ``canceled``.
SUCCESS = "success"
Record = Callable[["Meter"], None]


@contextmanager
def measured_sync(
    context: dg.AssetExecutionContext, connection: str, deployment: str, totals: RunTotals
) -> Iterator[None]:
    """Push how the block ended, with the numbers of the run."""
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
            meter.create_counter("atlas.sync.records").add(totals.records, name)
            meter.create_counter("atlas.sync.bytes", unit="By").add(totals.bytes, name)
            meter.create_histogram(
                "atlas.sync.duration", unit="s", explicit_bucket_boundaries_advisory=_DURATIONS
            ).record(seconds, ended)
            meter.create_gauge("atlas.sync.last_run", unit="s").set(time.time(), ended)
            if totals.check_outcome:
                _record_check(meter, connection, totals.check_outcome)

        _push(record, deployment, context.log.warning)


def push_check(connection: str, deployment: str, outcome: str, warn: Callable[[str], None]) -> None:
    """Push how a CHECK outside of a sync ended."""
    _push(lambda meter: _record_check(meter, connection, outcome), deployment, warn)


def _record_check(meter: "Meter", connection: str, outcome: str) -> None:
    ended = {"connection": connection, "outcome": outcome}
    meter.create_counter("atlas.check.runs").add(1, ended)
    meter.create_gauge("atlas.check.last_run", unit="s").set(time.time(), ended)


def _push(record: Record, deployment: str, warn: Callable[[str], None]) -> None:
    """Send what ``record`` records. Never raises: a failure is a warning."""
    if not _is_asked_for(os.environ):
        return
    try:
        wrong = _send(record, deployment)
    except ImportError:
        wrong = "install atlas-dagster[metrics]"
    except Exception as error:  # noqa: BLE001 - no failure of metrics may fail a sync
        wrong = f"{type(error).__name__}, with {' or '.join(_ENDPOINTS)}"
    if wrong:
        warn(f"Metrics could not be sent ({wrong}). The sync is not affected.")


def _is_asked_for(environ: Mapping[str, str]) -> bool:
    disabled = environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    return not disabled and any(environ.get(name) for name in _ENDPOINTS)


def _send(record: Record, deployment: str) -> str | None:
    """Return what went wrong, or None."""
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
    # Without the process: the receiver adds up deltas of the same resource.
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
