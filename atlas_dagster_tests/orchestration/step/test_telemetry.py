"""What a sync pushes over OTLP, as a receiver gets it; and that nothing depends on one."""

import time
from collections.abc import Iterator

import pytest

from atlas_dagster.orchestration.definitions.connection_check import check_key
from atlas_dagster.orchestration.step import telemetry
from atlas_dagster_tests.orchestration.fake_runs import FakeRuns
from atlas_dagster_tests.orchestration.step.otlp_receiver import Receiver, receiving
from atlas_dagster_tests.sync.fake_source import line, records, status

pytestmark = pytest.mark.slow

OUTPUT = (records("events", [1, 2, 3]), status("events"))
DELTA = 1


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with receiving() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=shown")
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
        yield receiver


def test_a_sync_pushes_what_it_did_once(runs: FakeRuns, receiver: Receiver) -> None:
    began = time.time()
    assert runs.run(*OUTPUT).success
    shop = {"connection": "shop"}
    assert receiver.counts("atlas.sync.runs") == [(shop | {"outcome": "success"}, 1)]
    assert receiver.counts("atlas.sync.records") == [(shop, 3)]
    ((_, size),) = receiver.counts("atlas.sync.bytes")
    assert size > 0
    ((labels, took),) = receiver.points("atlas.sync.duration")
    assert labels == shop | {"outcome": "success"}
    assert (took.count, 0 < took.sum < time.time() - began) == (1, True)
    for metric in ("atlas.sync.last_run", "atlas.check.last_run"):
        ((labels, ended),) = receiver.points(metric)
        assert labels == shop | {"outcome": "success"}
        assert began < ended.as_double < time.time()
    assert receiver.counts("atlas.check.runs") == [(shop | {"outcome": "success"}, 1)]
    assert len(receiver.came) == 1
    counters = [metric for metric in receiver.metrics if metric.WhichOneof("data") == "sum"]
    assert {metric.sum.aggregation_temporality for metric in counters} == {DELTA}


def test_headers_and_resource_are_those_of_the_standard_variables(
    runs: FakeRuns, receiver: Receiver
) -> None:
    assert runs.run(*OUTPUT).success
    assert {key for key, _ in receiver.came} == {"shown"}
    resources = [r.resource for _, sent in receiver.came for r in sent.resource_metrics]
    found = [{each.key: each.value.string_value for each in r.attributes} for r in resources]
    # The same from every process, or its counts could not be added up.
    same = {"service.name": "atlas_dagster", "deployment.environment.name": "test"}
    assert found == [same] * len(found)


def test_a_failed_sync_says_how_it_failed(runs: FakeRuns, receiver: Receiver) -> None:
    trace = line(
        "TRACE",
        trace={
            "type": "ERROR",
            "emitted_at": 0,
            "error": {"message": "No such table.", "failure_type": "config_error"},
        },
    )
    assert not runs.run(records("events", [1]), trace, 1).success
    ((labels, count),) = receiver.counts("atlas.sync.runs")
    assert (labels["outcome"], count) == ("config_error", 1)
    ((labels, _),) = receiver.points("atlas.sync.last_run")
    assert labels["outcome"] == "config_error"


def test_a_failed_check_is_counted(
    runs: FakeRuns, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = {"status": "FAILED", "message": "wrong password"}
    runs.runner.script = lambda _: [line("CONNECTION_STATUS", connectionStatus=refused)]
    assert not runs.run().success
    ((labels, count),) = receiver.counts("atlas.check.runs")
    assert (labels, count) == ({"connection": "shop", "outcome": "config_error"}, 1)
    ((labels, _),) = receiver.counts("atlas.sync.runs")
    assert labels["outcome"] == "config_error"


def test_a_check_alone_is_counted(runs: FakeRuns, receiver: Receiver) -> None:
    job = runs.definitions.resolve_implicit_global_asset_job_def()
    key = check_key(runs.connection)
    job.get_subset(asset_selection=set(), asset_check_selection={key}).execute_in_process(
        instance=runs.instance
    )
    ((labels, count),) = receiver.counts("atlas.check.runs")
    assert (labels, count) == ({"connection": "shop", "outcome": "success"}, 1)
    assert receiver.points("atlas.sync.runs") == []


def test_a_dry_run_counts_for_nothing(runs: FakeRuns, receiver: Receiver) -> None:
    assert runs.run(*OUTPUT, dry_run=True).success
    assert receiver.points("atlas.sync.runs") == []


def test_a_receiver_that_is_away_costs_a_warning(
    runs: FakeRuns, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://127.0.0.1:9/v1/metrics")
    ran = runs.run(*OUTPUT)
    assert ran.success
    assert (
        "Metrics could not be sent (the receiver does not take them; the step's log says why). "
        "The sync is not affected." in ran.log
    )


def test_a_receiver_that_refuses_costs_a_warning(runs: FakeRuns, receiver: Receiver) -> None:
    receiver.answer = 401
    ran = runs.run(*OUTPUT)
    assert ran.success
    assert any("the receiver does not take them" in told for told in ran.log)


def test_an_address_that_is_none_costs_a_warning(
    runs: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "user:secret@nowhere")
    ran = runs.run(*OUTPUT)
    assert ran.success
    warnings = [told for told in ran.log if told.startswith("Metrics could not be sent")]
    assert warnings
    assert "secret" not in str(warnings)


def test_without_the_extra_it_says_what_to_install(
    runs: FakeRuns, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ImportError("opentelemetry")

    monkeypatch.setattr(telemetry, "_send", missing)
    ran = runs.run(*OUTPUT)
    assert ran.success
    assert any("(install atlas-dagster[metrics])" in told for told in ran.log)


def test_nothing_is_sent_unless_it_is_asked_for(
    runs: FakeRuns, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert runs.run(*OUTPUT).success
    monkeypatch.delenv("OTEL_SDK_DISABLED")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    assert runs.run(*OUTPUT).success
    assert receiver.came == []
