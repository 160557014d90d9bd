"""The Docker engine dies in the middle of a READ, and comes back."""

import json
from collections.abc import Iterator

import pytest

from atlas_dagster.errors import RunnerUnavailableError
from atlas_dagster.runners.base import ConnectorCommand, ConnectorProcess, Output
from atlas_dagster.runners.cleanup import reap
from atlas_dagster.runners.docker.engine import connect
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.process_tags import CONNECTION_LABEL, DEPLOYMENT_LABEL, OWNER_LABEL
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.runners.docker.engines import SecondEngine, second_engine

pytestmark = pytest.mark.docker

LABELS = {CONNECTION_LABEL: "restarted", DEPLOYMENT_LABEL: "tests", OWNER_LABEL: "run:1"}


@pytest.fixture
def engine() -> Iterator[SecondEngine]:
    with second_engine(STANDIN) as engine:
        yield engine


def to_the_end(process: ConnectorProcess, output: Iterator[Output]) -> None:
    for _ in output:
        pass
    process.wait()


def test_killed_in_a_read(engine: SecondEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    config = json.dumps({"count": 10**6, "rate": 1000}).encode()
    catalog = json.dumps({"streams": [{"stream": {"name": "events"}}]}).encode()
    runner = DockerRunner(STANDIN, client=connect())
    command = ConnectorCommand("read", {"config": config, "catalog": catalog}, LABELS)
    with runner.start(command) as process:
        output = process.output()
        while b"RECORD" not in next(output)[1]:
            pass
        engine.kill()
        with pytest.raises(RunnerUnavailableError) as failure:
            to_the_end(process, output)
    said = str(failure.value)
    assert said.startswith(f"The connection to the Docker engine broke while {STANDIN} ran (")
    assert said.endswith(", then sync again.")
    assert "\n" not in said
    with pytest.raises(RunnerUnavailableError, match=r"Docker engine .*unix://"):
        connect()

    engine.start()
    client = connect()
    [left] = client.containers.list(all=True)
    assert reap(client, deployment="tests", has_ended=lambda owner: owner == "run:1") == [left.name]
    assert client.containers.list(all=True) == []
    with DockerRunner(STANDIN, client=client).start(ConnectorCommand("spec", {}, LABELS)) as again:
        assert b"SPEC" in b"".join(piece for _, piece in again.output())
    assert client.containers.list(all=True) == []
