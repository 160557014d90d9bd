"""Runner kubernetes: the pods that steps are given, and a sync in one."""

from pathlib import Path
from typing import Any

import dagster as dg
import docker
import pytest
from dagster_k8s import k8s_job_executor
from dagster_k8s.job import (
    DagsterK8sJobConfig,
    construct_dagster_k8s_job,
    get_user_defined_k8s_config,
)
from msgspec.structs import replace

from atlas_dagster.orchestration.operations.kubernetes import TAG, pod_executor, pod_tags
from atlas_dagster.registry import get_connector_info
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.pod import AGENT
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.runner_choice import POD_FOLDER_VARIABLE
from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE as STANDIN
from atlas_dagster_tests.orchestration.connections import declare_shop, define
from atlas_dagster_tests.orchestration.instances import sqlite_instance
from atlas_dagster_tests.orchestration.real_connectors import RealConnection

IN_PODS = {"runner": "kubernetes", "executor": ExecutorConfig(memory_limit="3g", pull="always")}


def pod(tags: dict[str, str]) -> dict[str, Any]:
    """The pod that Dagster makes for a step with these tags."""
    job = construct_dagster_k8s_job(
        DagsterK8sJobConfig(job_image="my/atlas:1", dagster_home="/home/atlas"),
        args=["dagster", "api", "execute_step"],
        job_name="step",
        user_defined_k8s_config=get_user_defined_k8s_config(tags),
    )
    made: dict[str, Any] = job.to_dict()["spec"]["template"]["spec"]
    return made


def test_every_step_that_calls_the_connector_has_it_in_its_pod() -> None:
    defs = define(declare_shop(**IN_PODS))
    job = defs.resolve_implicit_global_asset_job_def()
    tagged = [*job.graph.node_defs, *defs.resolve_job_def("shop__discover").graph.node_defs]
    assert {node.name for node in tagged} == {
        "shop__sync",
        "shop__source_shop_connection",
        "shop__source_shop_schema_changes",
        "shop__run_discover",
    }
    for node in tagged:
        spec = pod(dict(node.tags))
        (connector,) = spec["init_containers"]
        (step,) = spec["containers"]
        assert connector["image"] == "my/source-shop:1"
        assert connector["restart_policy"] == "Always"  # a sidecar, not a step before the step
        assert connector["image_pull_policy"] == "Always"
        assert connector["command"] == ["sh", "-c", AGENT]
        assert connector["resources"]["limits"]["memory"] == str(3 * 1024**3)
        assert connector["security_context"]["capabilities"]["drop"] == ["ALL"]
        (shared,) = connector["volume_mounts"]
        assert shared in step["volume_mounts"]
        assert {"name": POD_FOLDER_VARIABLE, "value": shared["mount_path"]} in [
            {"name": each["name"], "value": each["value"]} for each in step["env"]
        ]
        assert [v["name"] for v in spec["volumes"] if v.get("empty_dir")] == [shared["name"]]


def test_the_connector_has_the_limits_of_its_publisher_where_nobody_says_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published = replace(get_connector_info("source-faker"), memory_limit="4Gi", cpu_limit=3.0)
    monkeypatch.setattr(Connection, "entry", lambda self: published)
    own = ExecutorConfig(cpu_limit=1.5)
    faker = Connection(name="faker", connector="source-faker", runner="kubernetes", executor=own)
    (connector,) = pod_tags(faker)[TAG]["pod_spec_config"]["init_containers"]
    assert connector["resources"]["limits"] == {"cpu": "1.5", "memory": str(4 * 1024**3)}


def test_others_are_left_alone() -> None:
    defs = define(declare_shop())
    assert pod_tags(declare_shop()) == {}
    assert pod_executor(defs.assets or ()) is None


def test_steps_get_pods_of_their_own_where_a_connection_asks_for_them() -> None:
    assert pod_executor(define(declare_shop(**IN_PODS)).assets or ()) is k8s_job_executor


@pytest.mark.slow
def test_a_step_outside_of_a_pod_says_what_to_do(tmp_path: Path) -> None:
    defs = define(declare_shop(**IN_PODS), lake=tmp_path)
    with sqlite_instance() as instance:
        ran = defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey(["shop", "users"])],
            raise_on_error=False,
        )
    (failure,) = [e.step_failure_data for e in ran.all_events if e.is_step_failure]
    assert failure.user_failure_data is not None
    assert "has the runner kubernetes, but this process does not run in a pod with it" in str(
        failure.user_failure_data.description
    )


@pytest.mark.docker
def test_a_sync_beside_a_connector_that_only_shares_a_folder(
    docker_client: docker.DockerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a pod, whose two containers share nothing else; a second sync continues."""
    shared = tmp_path / "pod"
    shared.mkdir()
    shared.chmod(0o777)
    known = RealConnection.make(
        tmp_path / "lake",
        "shop",
        STANDIN,
        config={"count": 500},
        streams=[{"name": "events", "sync_mode": "incremental", "destination_sync_mode": "append"}],
    )
    entrypoint = " ".join(docker_client.images.get(STANDIN).attrs["Config"]["Entrypoint"])
    container = docker_client.containers.run(
        STANDIN,
        entrypoint=["sh", "-c", AGENT],
        environment={"ATLAS_FOLDER": str(shared), "AIRBYTE_ENTRYPOINT": entrypoint},
        volumes={str(shared): {"bind": str(shared)}},
        network_mode="none",
        user="0",
        detach=True,
    )
    monkeypatch.setenv(POD_FOLDER_VARIABLE, str(shared))
    inside = known.connection.model_copy(update={"runner": "kubernetes"})
    synced = RealConnection(inside, known.lake, known.discovered)
    try:
        with sqlite_instance() as instance:
            assert synced.sync(instance, "events").success
            assert synced.changed(count=700).sync(instance, "events").success
    finally:
        container.remove(force=True)
    assert [row["id"] for row in synced.rows("events")] == list(range(1, 701))
    assert list(shared.iterdir()) == []
