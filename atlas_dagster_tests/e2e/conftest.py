"""One project with one ``dagster dev`` for all end-to-end tests: starting it takes a while."""

import datetime as dt
import os
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from dev_server import DevServer
from project import Project

DEPLOYMENT_LABEL = "atlas.deployment"


@pytest.fixture(scope="session")
def server(
    tmp_path_factory: pytest.TempPathFactory, docker_client: docker.DockerClient
) -> Iterator[DevServer]:
    project = Project(tmp_path_factory.mktemp("project").resolve())
    # Due once, after the server's first ticks; what one test waits for, others need not feel.
    due = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=2)
    project.declare_standin("standin_scheduled", count=25, schedule=f"{due.minute} * * * *")
    for name in ("standin_stopped", "standin_killed_step", "standin_killed_run"):
        project.declare_standin(name, count=1500, rate=12)
    project.declare_standin("standin_denied", fail_check=True, password="hunter2")
    project.declare_standin("standin_dying", behaviour="die", count=105)
    project.declare_standin("standin_renamed")
    project.discover()
    running = DevServer(project)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()
        # Only now: the tests themselves assert that nothing is left while the server runs.
        for container in containers_of(docker_client, project):
            container.remove(force=True)


@pytest.fixture(scope="session")
def project(server: DevServer) -> Project:
    return server.project


@pytest.fixture(scope="session")
def denied_run(server: DevServer) -> str:
    """A sync with its CHECK, whose CHECK has failed."""
    checks = [("standin_denied/source_standin", "connection")]
    run = server.launch("standin_denied/events", checks=checks)
    assert server.wait(run) == "FAILURE"
    return run


@pytest.fixture(scope="session")
def dead_run(server: DevServer) -> str:
    """A sync whose source has died half way through 105 events."""
    run = server.launch("standin_dying/events")
    assert server.wait(run) == "FAILURE"
    return run


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures go: the folder that ATLAS_SCREENSHOTS names, to keep them."""
    folder = Path(os.environ.get("ATLAS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def containers_of(
    client: docker.DockerClient, project: Project, connection: str | None = None
) -> list[docker.models.containers.Container]:
    """The project's containers, running or dead."""
    filters = {"label": _labels(project, connection)}
    return client.containers.list(all=True, filters=filters, ignore_removed=True)


def containers_since(
    client: docker.DockerClient, project: Project, connection: str, since: float
) -> list[str]:
    """Names of the containers made since then, also of those that are gone again."""
    filters = {"event": "create", "label": _labels(project, connection)}
    made = client.events(since=since, until=time.time(), filters=filters, decode=True)
    return [event["Actor"]["Attributes"]["name"] for event in made]


def _labels(project: Project, connection: str | None) -> list[str]:
    labels = [f"{DEPLOYMENT_LABEL}={project.deployment}"]
    return labels if connection is None else [*labels, f"atlas.connection={connection}"]
