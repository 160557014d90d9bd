"""``atlas serve``: begun, ended, killed."""

import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import pytest

from atlas_dagster.reading.ad_hoc import reap_adhoc
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.interfaces.http.live_server import ATLAS, ServerProcess
from atlas_dagster_tests.interfaces.waiting import until

HANG = {"connector_name": STANDIN, "stream_name": "events", "config": {"behaviour": "hang"}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path)
    yield server
    if server.process.poll() is None:
        server.process.kill()
        server.process.wait()


def owned(client: docker.DockerClient, server: ServerProcess) -> list[str]:
    """Owners of the server's containers."""
    found = client.api.containers(all=True, filters={"label": "atlas.owner"})
    owners = [each["Labels"]["atlas.owner"] for each in found]
    return [owner for owner in owners if f":{server.process.pid}:" in owner]


def asking(server: ServerProcess, answers: list[httpx.Response]) -> threading.Thread:
    def ask() -> None:
        try:
            answers.append(server.client.post("/read", json=HANG))
        except httpx.TransportError:
            return

    thread = threading.Thread(target=ask)
    thread.start()
    return thread


@pytest.mark.docker
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_stops_its_connectors_first(
    server: ServerProcess, docker_client: docker.DockerClient, number: signal.Signals
) -> None:
    answers: list[httpx.Response] = []
    thread = asking(server, answers)
    until(lambda: owned(docker_client, server), "the connector")
    server.end(number)
    assert owned(docker_client, server) == []
    thread.join()
    assert [(each.status_code, each.json()["code"]) for each in answers] == [(503, "stopping")]


@pytest.mark.docker
def test_what_a_killed_server_leaves_the_reaper_removes(
    server: ServerProcess, docker_client: docker.DockerClient
) -> None:
    thread = asking(server, [])
    until(lambda: owned(docker_client, server), "the connector")
    reap_adhoc()
    (owner,) = owned(docker_client, server)
    assert owner.startswith("request:")
    server.end(signal.SIGKILL)
    thread.join()
    assert owned(docker_client, server) == [owner]
    assert reap_adhoc()
    assert owned(docker_client, server) == []


@pytest.mark.docker
def test_and_so_does_the_next_server(
    server: ServerProcess, docker_client: docker.DockerClient, tmp_path: Path
) -> None:
    thread = asking(server, [])
    until(lambda: owned(docker_client, server), "the connector")
    server.end(signal.SIGKILL)
    thread.join()
    following = ServerProcess(tmp_path)
    until(lambda: not owned(docker_client, server), "its end")
    following.end()


@pytest.mark.slow
def test_its_log_has_nothing_of_a_request(server: ServerProcess) -> None:
    config = {"password": "hunter2secret", "count": "hunter2secret"}
    server.client.ask("/check", config=config)
    server.client.ask("/check", connector="source-x", config=config)
    server.client.post("/check", content=b'{"a": "hunter2secret"')
    server.end()
    assert '"POST /atlas-intelligence/docker/check HTTP/1.1" 422' in server.log.read_text()
    assert "hunter2secret" not in server.log.read_text()


@pytest.mark.slow
def test_open_to_all_it_does_not_start_without_a_token(tmp_path: Path) -> None:
    ran = subprocess.run(
        [*ATLAS, "serve", "--host", "0.0.0.0"], capture_output=True, text=True, cwd=tmp_path
    )
    assert ran.returncode == 3
    assert "ATLAS_TOKEN" in ran.stderr


@pytest.mark.slow
def test_open_to_all_it_wants_the_token(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, "--host", "0.0.0.0", environment={"ATLAS_TOKEN": "tt"})
    assert server.client.get("/categories").status_code == 401
    answer = server.client.get("/categories", headers={"Authorization": "Bearer tt"})
    assert answer.status_code == 200
    server.end()


@pytest.mark.slow
def test_a_wrong_limit_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_EXECUTOR", "{memory_limit: lots}")
    ran = subprocess.run([*ATLAS, "serve"], capture_output=True, text=True, cwd=tmp_path)
    assert ran.returncode == 3
    assert "memory_limit" in ran.stderr
