"""The sensor of a connection with a schedule, ticking in the daemon."""

import pytest

from atlas_dagster_tests.e2e.dev_server import DevServer
from atlas_dagster_tests.e2e.project import Project
from atlas_dagster_tests.e2e.web_server import wait_until

pytestmark = pytest.mark.docker


def test_one_run_when_it_is_due(server: DevServer, project: Project) -> None:
    sensor = "standin_scheduled__schedule"
    assert server.sensor(sensor)["status"] == "RUNNING"
    requested = lambda: [run for tick in server.sensor(sensor)["ticks"] for run in tick["runIds"]]  # noqa: E731
    [run] = wait_until("the schedule is due", requested, seconds=180)
    assert server.wait(run, seconds=60) == "SUCCESS", server.failures(run)

    ticks = server.sensor(sensor)["ticks"]
    assert not [tick["error"] for tick in ticks if tick["error"]]
    first = min(ticks, key=lambda tick: tick["timestamp"])
    assert first["status"] == "SKIPPED"
    assert first["skipReason"].startswith("The schedule starts now; next at ")

    started = [event["stepKey"] for event in server.events(run, "ExecutionStepStartEvent")]
    assert len(started) == 2
    assert started[0] == "standin_scheduled__source_standin_connection"
    checks = server.events(run, "AssetCheckEvaluationEvent")
    assert len(checks) == 4  # of the source, and three that the sync makes of its stream
    assert all(check["evaluation"]["success"] for check in checks)
    assert project.ids("standin_scheduled/events") == [*range(1, 26)]
