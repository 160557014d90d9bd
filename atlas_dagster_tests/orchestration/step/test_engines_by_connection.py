"""Connections whose connectors run on different Docker engines."""

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.owner import this_process
from atlas_dagster.runners.process_tags import CONNECTION_LABEL, DEPLOYMENT_LABEL, OWNER_LABEL
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.orchestration.instances import sqlite_instance
from atlas_dagster_tests.orchestration.real_connectors import RealConnection, verbs_run
from atlas_dagster_tests.runners.docker.engines import SecondEngine, second_engine

pytestmark = pytest.mark.docker

APPEND = [{"name": "events", "sync_mode": "incremental", "destination_sync_mode": "append"}]


@pytest.fixture
def other_engine() -> Iterator[SecondEngine]:
    with second_engine(STANDIN) as engine:
        yield engine


def test_each_connection_runs_where_it_says(
    tmp_path: Path, docker_client: docker.DockerClient, other_engine: SecondEngine
) -> None:
    def make(name: str, executor: ExecutorConfig) -> RealConnection:
        config = {"count": 5}
        return RealConnection.make(
            tmp_path, name, STANDIN, config=config, streams=APPEND, executor=executor
        )

    here = make("here", ExecutorConfig(network="none"))
    there = make("there", ExecutorConfig(network="none", docker_host=other_engine.host))
    kind, host, pid, _start, *place = this_process().split(":")
    earlier = ":".join([kind, host, pid, "0", *place])  # this pid, long ago
    labels = {
        CONNECTION_LABEL: "there",
        DEPLOYMENT_LABEL: AtlasResource(destination=str(tmp_path)).deployment_label(),
    }
    left, of_deleted_run, kept = [
        other_engine.client().containers.create(
            STANDIN, "spec", network_mode="none", labels={**labels, OWNER_LABEL: owner}
        )
        for owner in (earlier, f"run:deleted:{earlier}", f"run:elsewhere:{this_process()}")
    ]
    with (
        sqlite_instance() as instance,
        verbs_run(docker_client, "here") as ran_here,
        verbs_run(other_engine.client(), "there") as ran_there,
        verbs_run(docker_client, "there") as strays,
    ):
        for connection in (here, there):
            connection.sync(instance)
    for connection in (here, there):
        assert [row["id"] for row in connection.rows("events")] == [1, 2, 3, 4, 5]
    assert (ran_here["read"], ran_there["read"], strays.total()) == (1, 1, 0)
    for container in (left, of_deleted_run):  # removed by the sync
        with pytest.raises(docker.errors.NotFound):
            container.reload()
    kept.reload()


def test_an_engine_that_is_away_is_named(tmp_path: Path) -> None:
    nowhere = ExecutorConfig(docker_host="tcp://127.0.0.1:1")
    with pytest.raises(Exception, match=r"tcp://127\.0\.0\.1:1\b"):
        RealConnection.make(tmp_path, "away", STANDIN, executor=nowhere)
    unknown = ExecutorConfig(docker_host="moon")
    with pytest.raises(Exception, match="context 'moon'"):
        RealConnection.make(tmp_path, "away", STANDIN, executor=unknown)
