"""Dagster's daemon dies while a connector runs, and a run is terminated by force."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import docker
import pytest

from atlas_dagster_tests.e2e.containers import containers_of
from atlas_dagster_tests.e2e.dev_server import DevServer
from atlas_dagster_tests.e2e.project import Project
from atlas_dagster_tests.e2e.web_server import wait_until

pytestmark = pytest.mark.docker

COUNT = 240


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path.resolve())
    project.declare_standin("standin", count=COUNT, rate=12)
    project.declare_standin("standin_endless", count=100_000, rate=12)
    project.atlas("discover", "standin", "standin_endless")
    return project


@contextmanager
def dev(project: Project) -> Iterator[DevServer]:
    """A server of its own, for it does not outlive its daemon."""
    server = DevServer(project)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def processes_of(server: DevServer) -> dict[int, bytes]:
    """The commands of what it has started and what is still alive, by pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.getsid(int(folder.name)) == server.pid:
                found[int(folder.name)] = (folder / "cmdline").read_bytes()
    return found


def daemon_of(server: DevServer) -> int:
    (daemon,) = (pid for pid, cmd in processes_of(server).items() if b"dagster._daemon" in cmd)
    return daemon


def test_daemon_killed_and_run_terminated_by_force(
    project: Project, docker_client: docker.DockerClient
) -> None:
    with dev(project) as server:
        run = server.launch("standin/events")
        wait_until(
            "the connector runs",
            lambda: containers_of(docker_client, project, "standin"),
            seconds=60,
        )
        os.kill(daemon_of(server), signal.SIGKILL)
        # `dagster dev` gives up with its daemon; the run does not.
        wait_until("dagster dev ends", server.has_ended, seconds=60)
        wait_until("the run ends", lambda: not any(processes_of(server).values()), seconds=90)

    with dev(project) as server:
        assert server.wait(run, seconds=120) == "SUCCESS"
        assert project.ids("standin/events") == [*range(1, COUNT + 1)]

        endless = server.launch("standin_endless/events")
        wait_until(
            "the connector runs",
            lambda: containers_of(docker_client, project, "standin_endless"),
            seconds=60,
        )
        server.terminate(endless, by_force=True)
        assert server.status(endless) == "CANCELED"
        wait_until(
            "the connector is gone",
            lambda: not containers_of(docker_client, project),
            seconds=90,
        )
