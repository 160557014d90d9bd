"""Docker when it can, Python when it must, and the reason said."""

from pathlib import Path

import docker
import pytest

from atlas_dagster.config.renewable_config import FileConfigStore
from atlas_dagster.errors import ConfigError
from atlas_dagster.listener import SILENT
from atlas_dagster.reading.ad_hoc import AdHocConnection
from atlas_dagster.runners.docker.engine import connect
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.source import runner_choice as choose
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector_ref import ConnectorRef
from atlas_dagster.source.discovered_catalog import discover
from atlas_dagster.source.open_connector import open_connector, read_spec
from atlas_dagster.source.run_context import RunContext
from atlas_dagster.source.runner_choice import choose_runner
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.listening import CallbackListener

ABSENT = {"name": "x", "connector": "source-faker", "version": "0.0.1"}


@pytest.mark.docker
def test_an_image_that_cannot_be_had() -> None:
    executor, told = ExecutorConfig(pull="never"), list[str]()
    runner = choose_runner(
        ConnectorRef.resolve(Connection(**ABSENT)), executor, CallbackListener(told.append)
    )
    assert runner.kind == "python"
    assert told == [
        "source-faker runs from its Python package airbyte-source-faker 0.0.1, because Docker "
        "cannot run it: The image airbyte/source-faker:0.0.1 is not on the Docker engine and "
        "executor.pull is never; run `docker pull airbyte/source-faker:0.0.1`, or set "
        "executor.pull to missing."
    ]
    with pytest.raises(ConfigError, match=r"executor\.pull is never"):
        choose_runner(
            ConnectorRef.resolve(Connection(**ABSENT, runner="docker")),
            executor,
            CallbackListener(told.append),
        )


def test_a_context_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONTEXT", "nowhere")
    told: list[str] = []
    runner = choose_runner(
        ConnectorRef.resolve(Connection(**ABSENT)), ExecutorConfig(), CallbackListener(told.append)
    )
    assert runner.kind == "python"
    assert "because Docker cannot run it: There is no Docker context 'nowhere'" in told[0]
    with pytest.raises(ConfigError, match="context 'nowhere'"):
        choose_runner(
            ConnectorRef.resolve(Connection(**ABSENT, runner="docker")),
            ExecutorConfig(),
            told.append,
        )


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[docker.DockerClient]:
    """The clients of engines that are opened."""
    opened: list[docker.DockerClient] = []

    def noted(engine: str | None) -> docker.DockerClient:
        opened.append(connect(engine))
        return opened[-1]

    monkeypatch.setattr(choose, "connect", noted)
    return opened


def is_open(client: docker.DockerClient) -> bool:
    """Whether a connection to the engine is kept."""
    adapter = client.api.get_adapter(f"{client.api.base_url}/x")
    return len(adapter.pools) > 0


@pytest.mark.docker
def test_whoever_opens_a_runner_closes_its_client(
    clients: list[docker.DockerClient], tmp_path: Path
) -> None:
    connection = AdHocConnection(name="shop", image=STANDIN, config={"count": 1})
    caller = RunContext(
        deployment="tests",
        owner="run:1",
        environ={},
        configs=FileConfigStore(tmp_path),
    )
    spec = read_spec(connection, caller)
    with open_connector(connection, caller, spec=spec) as connector:
        connector.check()
        assert is_open(clients[-1])
    assert discover(connection, caller, None).catalog.streams
    assert len(clients) == 3
    assert not any(map(is_open, clients))


@pytest.mark.docker
def test_a_client_of_an_image_that_cannot_be_had_is_closed(
    clients: list[docker.DockerClient],
) -> None:
    with pytest.raises(ConfigError, match=r"executor\.pull is never"):
        choose_runner(
            ConnectorRef.resolve(Connection(**ABSENT, runner="docker")),
            ExecutorConfig(pull="never"),
            SILENT,
        )
    assert [is_open(client) for client in clients] == [False]
