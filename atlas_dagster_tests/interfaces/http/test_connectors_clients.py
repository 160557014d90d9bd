"""Clients that leave, wait, or come all at once."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from atlas_dagster.interfaces.http import Settings
from atlas_dagster.reading.ad_hoc import adhoc_connection
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.interfaces.http.live_server import ALLOWED, Client, ServerProcess, served
from atlas_dagster_tests.interfaces.waiting import at_work, until

pytestmark = pytest.mark.docker
_LIMIT = 4
HANG = {"behaviour": "hang"}


def containers(client: docker.DockerClient, **config: Any) -> int:
    return at_work(client, adhoc_connection(STANDIN, config).name)


def leave_after(seconds: float, client: Client, config: dict[str, Any], **body: Any) -> None:
    asked = {"connector_name": STANDIN, "stream_name": "events", "config": config, **body}
    with suppress(httpx.TimeoutException):
        client.post("/read", json=asked, timeout=seconds)


# Who leaves


def test_a_client_that_hangs_up_stops_its_connector(
    client: Client, docker_client: docker.DockerClient
) -> None:
    config = {**HANG, "count": 1}
    leaving = threading.Thread(target=leave_after, args=(5, client, config))
    leaving.start()
    until(lambda: containers(docker_client, **config), "the connector")
    leaving.join()
    until(lambda: not containers(docker_client, **config), "its end")
    assert client.read({"count": 2}).status_code == 200


@pytest.mark.parametrize("form", ["ndjson", "arrow"])
def test_one_that_hangs_up_in_the_middle_of_a_stream_does_too(
    client: Client, docker_client: docker.DockerClient, form: str
) -> None:
    config = {**HANG, "password": form}
    asked = {"connector_name": STANDIN, "stream_name": "events", "config": config}
    with client.stream("POST", "/read", json={**asked, "format": form}) as answer:
        next(answer.iter_bytes())
        assert containers(docker_client, **config)
    until(lambda: not containers(docker_client, **config), "the end of the connector")


def test_one_that_stops_reading_is_not_waited_for_ever(
    docker_client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_dagster.interfaces.http.connectors._LINGER_SECONDS", 0.0)
    executor = ExecutorConfig(timeout_seconds=6)
    config = {"count": 2_000_000}
    with served(Settings(allow=ALLOWED, executor=executor)) as client:
        asked = {"connector_name": STANDIN, "stream_name": "events", "config": config}
        with client.stream("POST", "/read", json={**asked, "format": "ndjson"}) as answer:
            next(answer.iter_raw())
            assert containers(docker_client, **config)
            until(lambda: not containers(docker_client, **config), "the end of the connector")


def test_one_that_leaves_the_queue_is_forgotten(docker_client: docker.DockerClient) -> None:
    with served(Settings(allow=ALLOWED, containers=1, waiting=1)) as client:
        busy = threading.Thread(target=leave_after, args=(8, client, {**HANG, "count": 2}))
        busy.start()
        until(lambda: containers(docker_client, **HANG, count=2), "the connector")
        leave_after(1, client, {**HANG, "count": 3})
        assert not containers(docker_client, **HANG, count=3)
        # Its place in the queue is free again, and this one waits there for its turn.
        assert client.read({"count": 2}).json()["records_count"] == 2
        busy.join()


# Who waits


def test_too_many_are_refused(docker_client: docker.DockerClient) -> None:
    with served(Settings(allow=ALLOWED, containers=1, waiting=0)) as client:
        busy = threading.Thread(target=leave_after, args=(6, client, {**HANG, "count": 4}))
        busy.start()
        until(lambda: containers(docker_client, **HANG, count=4), "the connector")
        answer = client.read({"count": 2})
        assert (answer.status_code, answer.json()["code"]) == (503, "busy")
        assert int(answer.headers["retry-after"]) > 0
        busy.join()


def test_nobody_waits_too_long(docker_client: docker.DockerClient) -> None:
    settings = Settings(allow=ALLOWED, containers=1, wait_seconds=0.5)
    with served(settings) as client:
        busy = threading.Thread(target=leave_after, args=(6, client, {**HANG, "count": 5}))
        busy.start()
        until(lambda: containers(docker_client, **HANG, count=5), "the connector")
        answer = client.read({"count": 2})
        assert answer.json()["code"] == "busy"
        assert "0.5 seconds" in answer.json()["detail"]
        busy.join()


def test_requests_with_one_config_take_turns_and_one_place(
    docker_client: docker.DockerClient,
) -> None:
    with served(Settings(allow=ALLOWED, containers=2)) as client:
        config = {**HANG, "count": 6}
        threads = [threading.Thread(target=leave_after, args=(7, client, config)) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: containers(docker_client, **config), "the connector")
        assert client.read({"count": 2}).status_code == 200  # the other place is free
        assert containers(docker_client, **config) == 1
        for thread in threads:
            thread.join()


# Who comes all at once


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path, "--containers", str(_LIMIT))
    yield server
    server.end()


def ours(client: docker.DockerClient, server: ServerProcess) -> int:
    """Containers of the server, whatever state they are in."""
    owner = f":{server.process.pid}:"
    found = client.api.containers(all=True, filters={"label": "atlas.owner"})
    return sum(owner in each["Labels"]["atlas.owner"] for each in found)


@pytest.mark.timeout(600)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_fifty_at_once_run_a_few_at_a_time_and_leave_nothing(
    server: ServerProcess, docker_client: docker.DockerClient
) -> None:
    most, done = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.1):
            most = max(most, ours(docker_client, server))

    def check(number: int) -> bool:
        answer = server.client.ask("/check", config={"count": number})
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["success"])

    def all_at_once(first: int) -> None:
        with ThreadPoolExecutor(50) as pool:
            assert all(pool.map(check, range(first, first + 50)))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        all_at_once(0)
        memory, files = server.resident, server.files
        all_at_once(50)
    finally:
        done.set()
        watching.join()
    assert 2 <= most <= _LIMIT
    until(lambda: not ours(docker_client, server), "the end of all connectors")
    assert server.resident - memory < 16 * 1024 * 1024
    until(lambda: server.files <= files + 5, "the end of all connections")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_long_stream_takes_no_more_memory_than_a_short_one(server: ServerProcess) -> None:
    def read(count: int) -> int:
        asked = {"connector_name": STANDIN, "stream_name": "events", "config": {"count": count}}
        with server.client.stream("POST", "/read", json={**asked, "format": "ndjson"}) as answer:
            return sum(piece.count(b"\n") for piece in answer.iter_bytes()) - 1

    assert read(50_000) == 50_000
    before = server.resident
    assert read(500_000) == 500_000
    assert server.resident - before < 32 * 1024 * 1024


def test_a_request_that_is_cut_off_is_none(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.port)) as half:
        half.sendall(b"POST /atlas-intelligence/docker/check HTTP/1.1\r\nHost: localhost\r\n")
        half.sendall(b"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
        time.sleep(0.2)
    assert client.get("/health").status_code == 200


def test_the_server_has_no_more_threads_than_before(client: Client) -> None:
    before = threading.active_count()
    for number in range(5):
        client.ask("/check", config={"count": number})
    until(lambda: threading.active_count() <= before + 1, "the end of threads")
