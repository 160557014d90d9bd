"""Connectors in Docker, in the terms of the protocol."""

import asyncio
import gc
import json
import logging
from collections import Counter
from typing import Any

import docker
import pytest
from airbyte_protocol.models import (
    AirbyteCatalog,
    AirbyteConnectionStatus,
    AirbyteMessage,
    ConfiguredAirbyteCatalog,
    Status,
    SyncMode,
    Type,
)

from atlas_dagster.airbyte import (
    AirbyteDockerExecutor,
    ExecutorConfig,
    check_docker_available,
    get_docker_executor,
    pull_image,
)
from atlas_dagster.errors import AtlasError, ConfigError, ConnectorFailedError, InvalidConfigError
from atlas_dagster.interfaces.python import protocol_models
from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.protocol.messages import ConnectionStatus, Spec, Unreadable
from atlas_dagster.reading.ad_hoc import adhoc_connection
from atlas_dagster_tests.conftest import SOURCE_CHAOS_IMAGE as CHAOS
from atlas_dagster_tests.conftest import SOURCE_FAKER_IMAGE as FAKER
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.interfaces.waiting import at_work, until

pytestmark = pytest.mark.usefixtures("own_state")
in_docker = pytest.mark.docker


@in_docker
def test_the_answers_are_the_protocols_models() -> None:
    async def asked() -> None:
        executor = get_docker_executor(ExecutorConfig(memory_limit="1g", timeout_seconds=600))
        assert isinstance(executor, AirbyteDockerExecutor)
        spec = await executor.spec(FAKER)
        assert "count" in spec.connectionSpecification["properties"]
        assert str(spec.documentationUrl).startswith("https://docs.airbyte.com/")
        status = await executor.check(FAKER, {"count": 5})
        assert (status.status, status.status.value) == (Status.SUCCEEDED, "SUCCEEDED")
        catalog = await executor.discover(FAKER, {"count": 5})
        assert isinstance(catalog, AirbyteCatalog)
        users = next(stream for stream in catalog.streams if stream.name == "users")
        assert SyncMode.incremental in users.supported_sync_modes
        counts = Counter(
            [m.record.stream async for m in executor.read(FAKER, {"count": 5}, catalog) if m.record]
        )
        assert counts["users"] == 5
        assert set(counts) <= {"users", "products", "purchases"}

    asyncio.run(asked())


@in_docker
def test_a_name_of_the_registry_does_too() -> None:
    sync = get_docker_executor().sync
    assert sync.spec("source-faker").connectionSpecification


@in_docker
def test_a_failed_check_is_an_answer() -> None:
    status = get_docker_executor().sync.check(STANDIN, {"fail_check": True})
    assert (status.status, status.message) == (Status.FAILED, "bad password")


@in_docker
def test_a_config_that_does_not_fit_is_none() -> None:
    with pytest.raises(InvalidConfigError, match=r"'count' .*integer"):
        get_docker_executor().sync.check(STANDIN, {"count": "x"})


@in_docker
def test_a_read_goes_on_from_the_states_it_gave() -> None:
    sync = get_docker_executor().sync
    offered = sync.discover(STANDIN, {}).streams[0].model_dump(mode="json", exclude_none=True)
    catalog = ConfiguredAirbyteCatalog.model_validate(
        {
            "streams": [
                {
                    "stream": offered,
                    "sync_mode": "incremental",
                    "destination_sync_mode": "append",
                    "cursor_field": ["id"],
                }
            ]
        }
    )
    first = list(sync.read(STANDIN, {"count": 25}, catalog))
    kinds = Counter(message.type for message in first)
    assert kinds[Type.RECORD] == 25
    assert all(isinstance(message, AirbyteMessage) for message in first)
    assert [m.trace.stream_status.status.value for m in first if m.trace][-1] == "COMPLETE"
    states = [message.state for message in first if message.state]
    more = sync.read(STANDIN, {"count": 28}, catalog, state=states[-1:])
    assert [m.record.data["id"] for m in more if m.record] == [26, 27, 28]


@in_docker
def test_what_came_before_a_failure_comes() -> None:
    sync = get_docker_executor().sync
    catalog = sync.discover(STANDIN, {})
    found: list[AirbyteMessage] = []
    with pytest.raises(ConnectorFailedError, match="upstream went away"):
        found.extend(sync.read(STANDIN, {"behaviour": "die", "count": 40}, catalog))
    assert sum(message.record is not None for message in found) == 20


@in_docker
def test_leaving_the_loop_stops_the_connector(docker_client: docker.DockerClient) -> None:
    config = {"behaviour": "hang", "count": 11}
    name = adhoc_connection(STANDIN, config).name

    async def left() -> None:
        executor = get_docker_executor()
        async for message in executor.read(STANDIN, config, await executor.discover(STANDIN, {})):
            if message.record:
                assert at_work(docker_client, name)
                break

    asyncio.run(left())
    gc.collect()
    until(lambda: not at_work(docker_client, name), "the end of the connector")


@in_docker
def test_secrets_are_in_no_log_and_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "atlas_dagster")
    config = {"scenario": "secrets-everywhere", "password": "hunter2secret"}
    sync = get_docker_executor().sync
    catalog = sync.discover(CHAOS, {"scenario": "well-behaved"})
    with pytest.raises(ConnectorFailedError, match="login with ") as caught:
        list(sync.read(CHAOS, config, catalog))
    assert "stderr" in caplog.text
    assert "hunter2secret" not in str(caught.value) + caplog.text


@in_docker
def test_a_pull_that_fails_is_none() -> None:
    """No registry has this image, though the engine does."""

    async def pulled() -> bool:
        with pytest.raises(AtlasError, match=f" {STANDIN} "):
            await pull_image(STANDIN)
        return await check_docker_available()

    assert asyncio.run(pulled())


def test_no_engine_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    assert asyncio.run(check_docker_available()) is False
    assert "There is no Docker engine here" in caplog.text


# The models, without an engine


def test_a_status_is_the_text_and_the_protocols_own() -> None:
    status = protocol_models.connection_status(ConnectionStatus("SUCCEEDED", "fine"))
    assert isinstance(status, AirbyteConnectionStatus)
    assert status.status == "SUCCEEDED"
    assert status.status == Status.SUCCEEDED
    assert status.status == Status.SUCCEEDED
    assert status.status != "FAILED"
    assert status.status != Status.FAILED
    assert {"SUCCEEDED": 1}[status.status] == {Status.SUCCEEDED: 1}[status.status] == 1
    assert status.status.value == str(status.status) == "SUCCEEDED"
    assert json.loads(status.model_dump_json()) == {"status": "SUCCEEDED", "message": "fine"}
    again = AirbyteConnectionStatus.model_validate(status.model_dump(mode="json"))
    assert again.status is Status.SUCCEEDED


def test_fields_that_are_only_handed_on_are() -> None:
    spec = protocol_models.specification(Spec({"type": "object"}, protocol_version="0.2.0"))
    assert (spec.protocol_version, spec.documentationUrl) == ("0.2.0", None)


def test_what_the_protocol_does_not_allow_is_handed_on_too() -> None:
    spec = protocol_models.specification(Spec({"a": 1}, documentationUrl="no address"))
    assert str(spec.documentationUrl) == "no address"


def test_a_stream_that_says_no_modes_is_read_as_a_whole() -> None:
    found = Catalog.from_json([{"name": "users", "json_schema": {}}])
    (stream,) = protocol_models.catalog(found).streams
    assert stream.supported_sync_modes == [SyncMode.full_refresh]


def test_what_newer_connectors_require_is_added_to_a_catalog() -> None:
    given = {"streams": [{"stream": {"name": "u"}, "sync_mode": "full_refresh", "sync_id": 7}]}
    (stream,) = json.loads(protocol_models.catalog_file(given))["streams"]
    assert (stream["sync_id"], stream["generation_id"]) == (7, 0)


@pytest.mark.parametrize("given", [{}, {"streams": 5}, {"streams": ["users"]}])
def test_what_is_no_catalog_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match="catalog is not valid"):
        protocol_models.catalog_file(given)


def test_what_could_not_be_read_is_an_error() -> None:
    with pytest.raises(Exception, match="RECORD"):
        list(protocol_models.messages(Unreadable("RECORD", "{nonsense")))
