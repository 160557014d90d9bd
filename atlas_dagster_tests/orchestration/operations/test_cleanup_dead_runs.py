"""Runs whose process was killed, or whose machine was restarted."""

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from atlas_dagster.orchestration.operations.cleanup import PROCESS_TAG, end_dead_runs, note_process
from atlas_dagster.runners.owner import identify, this_process

pytestmark = pytest.mark.slow


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def running(instance: dg.DagsterInstance, **tags: str) -> dg.DagsterRun:
    return create_run_for_test(instance, status=dg.DagsterRunStatus.STARTED, tags=tags)


def status(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status.value


def test_a_run_whose_process_is_gone_has_failed(instance: dg.DagsterInstance) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = running(instance)
    tag = {PROCESS_TAG: f"{run.run_id} {identify(child.pid)}"}
    instance.add_run_tags(run.run_id, tag)
    retry = running(instance, **tag)
    assert end_dead_runs(instance) == []
    child.kill()
    child.wait()

    assert end_dead_runs(instance) == [run.run_id]

    assert status(instance, run) == "FAILURE"
    assert status(instance, retry) == "STARTED"
    assert end_dead_runs(instance) == []


@pytest.mark.parametrize(
    "process",
    [
        None,
        this_process(),
        "command:another-host:1:1",
        f"command:{socket.gethostname()}:{2**22}:1:this-boot/1/1/",
        "nonsense",
    ],
    ids=["none", "this one", "another host's", "a clone's or another container's", "nonsense"],
)
def test_other_runs_are_left_alone(instance: dg.DagsterInstance, process: str | None) -> None:
    run = running(instance)
    if process is not None:
        instance.add_run_tags(run.run_id, {PROCESS_TAG: f"{run.run_id} {process}"})
    assert end_dead_runs(instance) == []
    assert status(instance, run) == "STARTED"


def noted(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    of_run, _, process = found.tags[PROCESS_TAG].partition(" ")
    assert of_run == run.run_id
    return process


def test_a_step_notes_the_process_of_its_run(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running(instance)
    note_process(instance, run.run_id)
    assert noted(instance, run) == this_process()

    class Parent:
        pid = 1

    monkeypatch.setattr(multiprocessing, "parent_process", Parent)
    another = running(instance)
    note_process(instance, another.run_id)
    assert noted(instance, another) == identify(1)


def test_what_the_run_itself_has_noted_stays(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process of a run may have a parent that is none of its own: the code server."""
    run = running(instance)
    instance.add_run_tags(run.run_id, {PROCESS_TAG: "of-another-run x:1:1"})  # inherited
    note_process(instance, run.run_id, os.getpid())

    class Parent:
        pid = 1

    monkeypatch.setattr(multiprocessing, "parent_process", Parent)
    note_process(instance, run.run_id)
    assert noted(instance, run) == this_process()
