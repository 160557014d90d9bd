"""One project with one ``dagster dev`` for all end-to-end tests: starting it takes a while."""

import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from atlas_dagster_tests.e2e.containers import containers_of
from atlas_dagster_tests.e2e.dev_server import DevServer
from atlas_dagster_tests.e2e.project import Project


@pytest.fixture(scope="package")
def server(
    tmp_path_factory: pytest.TempPathFactory, docker_client: docker.DockerClient
) -> Iterator[DevServer]:
    project = Project(tmp_path_factory.mktemp("project").resolve())
    # Due once, in 100 to 160 seconds: after the first tick, and while other tests run.
    due = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=160)
    project.declare_standin("standin_scheduled", count=25, schedule=f"{due.minute} * * * *")
    for name in ("stopped", "killed", "killed_step", "killed_run"):
        project.declare_standin(f"standin_{name}", count=5000, rate=12)
    for name in ("beside_step", "beside_run"):
        project.declare_standin(f"standin_{name}", count=10)
    project.declare_standin("standin_watched", count=6000, rate=25, password="hunter2")
    project.declare_standin("standin_wiped", count=30)
    project.declare_standin("standin_denied", fail_check=True, password="hunter2")
    project.declare_standin("standin_dying", behaviour="die", count=105)
    project.declare_standin("standin_waiting", behaviour="die", count=20)
    project.declare_standin("standin_renamed")
    project.atlas("discover")
    running = DevServer(project)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()
        # Only now: the tests themselves assert that nothing is left while the server runs.
        for container in containers_of(docker_client, project):
            container.remove(force=True)


@pytest.fixture(scope="package")
def project(server: DevServer) -> Project:
    return server.project


@pytest.fixture(scope="package")
def denied_run(server: DevServer) -> str:
    """A sync with its CHECK, whose CHECK has failed."""
    checks = [("standin_denied/source_standin", "connection")]
    run = server.launch("standin_denied/events", checks=checks)
    assert server.wait(run) == "FAILURE"
    return run


@pytest.fixture(scope="package")
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
