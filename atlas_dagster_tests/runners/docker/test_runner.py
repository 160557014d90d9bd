"""Connectors in real containers."""

import json
import time
from collections.abc import Mapping
from typing import Any

import docker
import pytest

from atlas_dagster.runners.base import ConnectorCommand, ExitStatus
from atlas_dagster.runners.cleanup import reap
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process_tags import DEPLOYMENT_LABEL, OWNER_LABEL
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN

pytestmark = pytest.mark.docker

LABELS = {"atlas.connection": "runner_test", DEPLOYMENT_LABEL: "runner tests"}
SECRET = "hunter2-in-the-config"
CATALOG = {
    "streams": [
        {
            "stream": {
                "name": "events",
                "json_schema": {},
                "supported_sync_modes": ["incremental"],
            },
            "sync_mode": "incremental",
            "destination_sync_mode": "append",
        }
    ]
}


def read(config: Mapping[str, Any], **changes: Any) -> ConnectorCommand:
    files = {"config": json.dumps(config).encode(), "catalog": json.dumps(CATALOG).encode()}
    return ConnectorCommand("read", files, **{"labels": LABELS} | changes)


def ours(client: docker.DockerClient) -> list[Any]:
    filters = {"label": "atlas.connection=runner_test"}
    return client.containers.list(all=True, filters=filters)


def wait_for_records(process: Any, count: int) -> None:
    seen = 0
    for channel, piece in process.output():
        seen += piece.count(b'"RECORD"') if channel == "stdout" else 0
        if seen >= count:
            return
    raise AssertionError(f"only {seen} records came")


def test_output_and_exit_code(docker_client: docker.DockerClient) -> None:
    runner = DockerRunner(STANDIN, client=docker_client)
    with runner.start(read({"count": 50})) as process:
        printed = b"".join(piece for channel, piece in process.output() if channel == "stdout")
        assert process.wait() == ExitStatus(0)
    messages = [json.loads(line) for line in printed.splitlines()]
    rows = [m["record"]["data"]["id"] for m in messages if m["type"] == "RECORD"]
    assert rows == list(range(1, 51))
    assert ours(docker_client) == []


def test_a_failing_connector_says_so(docker_client: docker.DockerClient) -> None:
    runner = DockerRunner(STANDIN, client=docker_client)
    with runner.start(read({"behaviour": "die", "count": 20})) as process:
        for _ in process.output():
            pass
        assert process.wait() == ExitStatus(1)


def test_what_the_engine_is_told(docker_client: docker.DockerClient) -> None:
    executor = ExecutorConfig(memory_limit="256m", cpu_limit=0.5, pids_limit=64)
    runner = DockerRunner(STANDIN, client=docker_client, executor=executor)
    command = read({"behaviour": "hang", "password": SECRET})
    with runner.start(command) as process:
        wait_for_records(process, 1)
        [container] = ours(docker_client)
        told = container.attrs["HostConfig"]
        assert told["LogConfig"]["Type"] == "none"
        assert told["Memory"] == 256 * 1024**2
        assert told["NanoCpus"] == 500_000_000
        assert told["PidsLimit"] == 64
        assert told["Init"] is True
        assert told["CapDrop"] == ["ALL"]
        assert told["SecurityOpt"] == ["no-new-privileges"]
        assert not told["Binds"]
        assert SECRET not in json.dumps(container.attrs)
        assert container.labels.items() >= LABELS.items()
        as_user = container.exec_run("stat -c %U:%a /atlas /atlas/config.json").output.decode()
        assert as_user.split() == ["airbyte:700", "airbyte:600"]
        assert container.exec_run("sh -c 'echo {} > /atlas/config.json'").exit_code == 0
    assert ours(docker_client) == []


def test_closing_stops_a_connector_that_ignores_sigterm(
    docker_client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_dagster.runners.docker.runner.STOP_GRACE_SECONDS", 1)
    runner = DockerRunner(STANDIN, client=docker_client)
    process = runner.start(read({"behaviour": "hang", "ignore_sigterm": True}))
    wait_for_records(process, 1)
    started = time.monotonic()
    process.close()
    process.close()
    assert time.monotonic() - started < 8
    assert ours(docker_client) == []


def test_silence_is_told(docker_client: docker.DockerClient) -> None:
    runner = DockerRunner(STANDIN, client=docker_client)
    with runner.start(read({"behaviour": "hang"})) as process:
        assert next(channel for channel, _ in process.output() if channel == "idle") == "idle"


def test_the_reaper_takes_only_what_is_ours_and_ended(docker_client: docker.DockerClient) -> None:
    runner = DockerRunner(STANDIN, client=docker_client)
    owners = {"ended": "run:1", "alive": "run:2"}
    processes = {
        name: runner.start(read({"behaviour": "hang"}, labels={**LABELS, OWNER_LABEL: owner}))
        for name, owner in owners.items()
    }
    stranger = runner.start(
        read(
            {"behaviour": "hang"},
            labels={**LABELS, DEPLOYMENT_LABEL: "other", OWNER_LABEL: "run:1"},
        )
    )
    try:
        removed = reap(
            docker_client, deployment="runner tests", has_ended=lambda owner: owner == "run:1"
        )
        assert len(removed) == 1
        left = {container.labels[OWNER_LABEL] for container in ours(docker_client)}
        assert left == {"run:1", "run:2"}
        assert len(ours(docker_client)) == 2
    finally:
        for process in (*processes.values(), stranger):
            process.close()
    assert ours(docker_client) == []
