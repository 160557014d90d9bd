"""Syncs that are stopped or killed in the middle of a READ, after their first commit."""

import json
from typing import Any

import docker
import pytest

from atlas_dagster_tests.e2e.containers import containers_of
from atlas_dagster_tests.e2e.dev_server import DevServer
from atlas_dagster_tests.e2e.project import Project
from atlas_dagster_tests.e2e.web_server import wait_until

pytestmark = pytest.mark.docker

COUNT = 5000
#: With what is synced in the same run: the steps of one connection share the run's own process,
#: those of several have a process each.
CONNECTIONS = {
    "standin_stopped": (),
    "standin_killed": (),
    "standin_killed_step": ("standin_beside_step/events",),
    "standin_killed_run": ("standin_beside_run/events",),
}


@pytest.fixture(scope="module")
def reading(server: DevServer) -> dict[str, str]:
    """The run of each connection, all reading at 12 rows a second, with one commit made."""
    runs = {name: server.launch(f"{name}/events", *beside) for name, beside in CONNECTIONS.items()}
    for name, run in runs.items():
        committed = lambda name=name, run=run: commits(server, name, run)  # noqa: E731
        wait_until("a commit", committed, seconds=120)
    # What follows need not be slow.
    for name in CONNECTIONS:
        server.project.declare_standin(name, count=COUNT)
    server.reload()
    return runs


def commits(server: DevServer, name: str, run: str) -> list[dict[str, Any]]:
    return server.events(run, "ObservationEvent", syncing=name)


def cursor(server: DevServer, name: str, run: str) -> int:
    """The id that the run's last commit reaches."""
    entries: dict[str, Any] = {}
    for event in commits(server, name, run):
        entries |= {each["label"]: each for each in event["metadataEntries"]}
    return int(json.loads(entries["atlas/cursor_after"]["jsonString"])["id"])


def records_synced(server: DevServer, connection: str, run: str) -> int:
    asset = server.asset(f"{connection}/events")
    assert asset is not None
    [made] = [each for each in asset["assetMaterializations"] if each["runId"] == run]
    values = {entry["label"]: entry.get("intValue") for entry in made["metadataEntries"]}
    return int(values["atlas/records_synced"])


def test_terminated(
    server: DevServer,
    project: Project,
    docker_client: docker.DockerClient,
    reading: dict[str, str],
) -> None:
    name, run = "standin_stopped", reading["standin_stopped"]
    assert containers_of(docker_client, project, name)
    server.terminate(run)
    assert server.wait(run, seconds=15) == "CANCELED"
    assert not containers_of(docker_client, project, name)
    reached = cursor(server, name, run)
    assert project.ids(f"{name}/events") == [*range(1, reached + 1)]

    again = server.materialize(f"{name}/events")
    assert records_synced(server, name, again) == COUNT - reached
    assert project.ids(f"{name}/events") == [*range(1, COUNT + 1)]


@pytest.mark.parametrize(
    ("name", "event"),
    [("standin_killed", "EngineEvent"), ("standin_killed_step", "StepWorkerStartedEvent")],
)
def test_killed(
    server: DevServer,
    project: Project,
    docker_client: docker.DockerClient,
    reading: dict[str, str],
    name: str,
    event: str,
) -> None:
    run = reading[name]
    [orphan] = containers_of(docker_client, project, name)
    has_process = bool(server.events(run, "StepWorkerStartedEvent", syncing=name))
    assert has_process == (event == "StepWorkerStartedEvent")
    server.kill(run, event, syncing=name if has_process else None)
    assert server.wait(run, seconds=60) == "FAILURE"
    reached = cursor(server, name, run)
    assert project.ids(f"{name}/events") == [*range(1, reached + 1)]

    again = server.retry_of(run)
    assert server.wait(again) == "SUCCESS", server.failures(again)
    assert not containers_of(docker_client, project, name), f"{orphan.name} or its successor"
    assert records_synced(server, name, again) == COUNT - reached
    assert project.ids(f"{name}/events") == [*range(1, COUNT + 1)]


def test_run_killed_while_its_step_lives_on(
    server: DevServer,
    project: Project,
    docker_client: docker.DockerClient,
    reading: dict[str, str],
) -> None:
    name, run = "standin_killed_run", reading["standin_killed_run"]
    server.kill(run, "EngineEvent")
    assert server.wait(run, seconds=30) == "FAILURE"
    # Dagster lets go of the pool's slot some minutes later by itself.
    server.free_slots(run)
    again = server.retry_of(run)
    if server.wait(again) != "SUCCESS":
        # The orphan committed once more while the retry was starting, so the retry gave way.
        [sentence] = server.failures(again)
        assert "another sync of this connection" in sentence
        server.materialize(f"{name}/events")
    assert not containers_of(docker_client, project, name)
    assert project.ids(f"{name}/events") == [*range(1, COUNT + 1)]
