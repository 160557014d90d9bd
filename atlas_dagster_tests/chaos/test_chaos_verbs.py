"""SPEC, CHECK and DISCOVER that do not answer as they should."""

import time
from collections.abc import Iterator

import docker
import pytest

from atlas_dagster.errors import CheckFailedError, ConnectorFailedError
from atlas_dagster.runners.base import Runner
from atlas_dagster.runners.docker.runner import DockerRunner
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.python import CommandRunner
from atlas_dagster.source.connector import Connector
from atlas_dagster_tests.chaos.chaotic import Chaos, script
from atlas_dagster_tests.conftest import SOURCE_CHAOS_IMAGE


def test_check_failed_with_exit_0(chaos: Chaos) -> None:
    connector = chaos.connector("check-failed-and-exit-0", password="hunter22")
    with pytest.raises(CheckFailedError) as failure:
        connector.check()
    assert str(failure.value) == "CHECK of source-x failed: wrong password **********"


def test_of_two_answers_the_last_counts(chaos: Chaos) -> None:
    chaos.connector("two-connection-statuses", last="SUCCEEDED").check()
    with pytest.raises(CheckFailedError, match="second thought"):
        chaos.connector("two-connection-statuses", last="FAILED").check()


def test_check_that_crashes(chaos: Chaos) -> None:
    with pytest.raises(ConnectorFailedError) as failure:
        chaos.connector("check-crash").check()
    assert not isinstance(failure.value, CheckFailedError)
    assert str(failure.value) == (
        "source-x ended with exit code 1 and reported no error; see its log in the run's output. "
        "Its last output: KeyError: 'host'"
    )


@pytest.mark.slow
def test_a_catalog_of_many_megabytes(chaos: Chaos) -> None:
    streams = chaos.connector("big-catalog", megabytes=8).discover().streams
    assert sum(len(bytes(stream.raw)) for stream in streams) > 7_500_000
    assert len({stream.descriptor for stream in streams}) == len(streams)


@pytest.fixture
def silent(runner: Runner, request: pytest.FixtureRequest) -> Iterator[Runner]:
    """SPEC is given no config, so the image's tag names the scenario."""
    image = ":".join([SOURCE_CHAOS_IMAGE.partition(":")[0], "spec-never-comes"])
    if isinstance(runner, CommandRunner):
        yield script("env", f"WORKER_CONNECTOR_IMAGE={image}")
        return
    client: docker.DockerClient = request.getfixturevalue("docker_client")
    client.images.get(SOURCE_CHAOS_IMAGE).tag(image)
    yield DockerRunner(image, client=client)
    client.images.remove(image)


@pytest.mark.slow
def test_a_spec_that_never_comes(silent: Runner) -> None:
    silent.executor = ExecutorConfig(check_timeout_seconds=1)
    started = time.monotonic()
    with pytest.raises(ConnectorFailedError) as failure:
        Connector(silent, name="source-x").spec()
    assert str(failure.value) == (
        "source-x did not finish spec within 1 seconds; check that the source is reachable, or "
        "raise executor.check_timeout_seconds."
    )
    assert failure.value.failure_type == "transient_error"
    assert time.monotonic() - started < 10
