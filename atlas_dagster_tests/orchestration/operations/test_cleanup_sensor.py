"""The sensor that removes left-over connectors: itself, or by a run where there is no engine."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.operations.cleanup import reap_job, reaper_sensor
from atlas_dagster_tests.orchestration.instances import sqlite_instance

pytestmark = pytest.mark.slow

ELSEWHERE = {
    "run_launcher": {"module": "dagster._core.test_utils", "class": "MockedRunLauncher"},
}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with sqlite_instance(**ELSEWHERE) as instance:
        yield instance


def tick(instance: dg.DagsterInstance, lake: Path, cursor: str | None = None) -> Any:
    resources = {"atlas": AtlasResource(destination=str(lake))}
    with dg.build_sensor_context(instance, cursor=cursor, resources=resources) as context:
        return reaper_sensor.evaluate_tick(context)


def ended(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, job: str = "shop") -> None:
    run = create_run_for_test(instance, job_name=job)
    report = {
        dg.DagsterRunStatus.FAILURE: instance.report_run_failed,
        dg.DagsterRunStatus.CANCELED: instance.report_run_canceled,
    }
    report[status](run)  # type: ignore[operator]


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED])
def test_where_runs_are_elsewhere_one_that_ended_badly_has_a_run_look(
    instance: dg.DagsterInstance, tmp_path: Path, status: dg.DagsterRunStatus
) -> None:
    ended(instance, status)
    first = tick(instance, tmp_path)
    assert first.run_requests == []  # what was before is none of its business
    ended(instance, status)
    second = tick(instance, tmp_path, first.cursor)
    assert len(second.run_requests) == 1
    third = tick(instance, tmp_path, second.cursor)
    assert third.run_requests == []
    assert third.skip_message == "No run has failed or was canceled."


def test_a_reaping_that_fails_does_not_ask_for_the_next(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    first = tick(instance, tmp_path)
    ended(instance, dg.DagsterRunStatus.FAILURE, job=reap_job.name)
    assert tick(instance, tmp_path, first.cursor).run_requests == []


def test_the_run_removes_what_is_left(tmp_path: Path) -> None:
    with sqlite_instance() as instance:
        atlas = AtlasResource(destination=str(tmp_path))
        done = reap_job.execute_in_process(instance=instance, resources={"atlas": atlas})
        assert done.success


def test_where_runs_are_here_the_sensor_does_it(tmp_path: Path) -> None:
    with sqlite_instance() as instance:
        assert tick(instance, tmp_path).skip_message == "There are no connectors of killed runs."
