"""Sources that refuse, and sources that die: what is kept, what a user reads, how it goes on."""

import time

import docker
import pytest

from atlas_dagster_tests.e2e.containers import containers_of, containers_since
from atlas_dagster_tests.e2e.dev_server import DevServer
from atlas_dagster_tests.e2e.project import Project
from atlas_dagster_tests.e2e.web_server import wait_until

pytestmark = pytest.mark.docker


def steps_started(server: DevServer, run: str) -> list[str]:
    return [event["stepKey"] for event in server.events(run, "ExecutionStepStartEvent")]


def evaluations(server: DevServer, run: str) -> list[tuple[bool, str]]:
    found = server.events(run, "AssetCheckEvaluationEvent")
    return [(each["evaluation"]["success"], each["evaluation"]["description"]) for each in found]


def test_a_failed_check_stops_the_sync_before_it_starts(
    server: DevServer, project: Project, denied_run: str
) -> None:
    [(passed, description)] = evaluations(server, denied_run)
    assert not passed
    assert "bad password" in description
    assert "hunter2" not in description
    assert steps_started(server, denied_run) == ["standin_denied__source_standin_connection"]
    assert not project.table("standin_denied/events").exists()


def test_a_stream_alone_is_checked_first(
    server: DevServer, project: Project, docker_client: docker.DockerClient
) -> None:
    before = time.time()
    run = server.launch("standin_denied/events", checks=[])
    assert server.wait(run) == "FAILURE"
    [sentence] = server.failures(run)
    assert "bad password" in sentence
    [(passed, description)] = evaluations(server, run)
    assert (passed, description) == (False, sentence)
    assert not project.table("standin_denied/events").exists()
    [only] = containers_since(docker_client, project, "standin_denied", before)
    assert only.startswith("atlas-standin_denied-check-")
    assert not containers_of(docker_client, project, "standin_denied")


def test_a_source_that_dies_keeps_what_its_state_covers(
    server: DevServer, project: Project, docker_client: docker.DockerClient, dead_run: str
) -> None:
    [sentence] = server.failures(dead_run)
    assert "upstream went away" in sentence
    assert server.asset("standin_dying/events")["assetMaterializations"] == []
    # It died after 52, two rows after its last STATE.
    assert project.ids("standin_dying/events") == [*range(1, 51)]
    assert not containers_of(docker_client, project, "standin_dying")

    project.declare_standin("standin_dying", behaviour="steady", count=105)
    server.reload()
    server.materialize("standin_dying/events")
    assert project.ids("standin_dying/events") == [*range(1, 106)]


def test_terminating_a_run_that_waits_to_try_again_ends_it(
    server: DevServer, project: Project, docker_client: docker.DockerClient
) -> None:
    run = server.launch("standin_waiting/events")

    def waits() -> bool:
        said = [event.get("message", "") for event in server.events(run, "LogMessageEvent")]
        return any("Trying again in" in message for message in said)

    wait_until("the run waits to try again", waits, seconds=90)
    before = time.time()
    server.terminate(run)
    assert server.wait(run, seconds=15) == "CANCELED"
    assert containers_since(docker_client, project, "standin_waiting", before) == []
