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
from atlas_dagster.orchestration.step.run_totals import RunTotals

if TYPE_CHECKING:
    from opentelemetry.metrics import Meter

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
