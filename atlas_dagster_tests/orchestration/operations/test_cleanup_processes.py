"""What a killed Atlas leaves behind without Docker, and whose it is."""

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from atlas_dagster.errors import RunnerUnavailableError
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.operations import cleanup as reaping
from atlas_dagster.orchestration.operations.cleanup import reap_ended
from atlas_dagster.runners.process_tags import tagged_processes
from atlas_dagster_tests.e2e.web_server import wait_until

#: Starts a connector whose child leaves the group and holds the FIFO, then waits to be killed.
PARENT = """
import sys, time
from atlas_dagster.runners.owner import this_process
from atlas_dagster.runners.base import ConnectorCommand
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.runners.process import start_process
deployment, lifeline, run = sys.argv[1:]
child = f"import time; held = open({lifeline!r}, 'wb'); time.sleep(100)"
connector = (
    "import subprocess, sys, time;"
    "subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True);"
    "time.sleep(100)"
)
labels = {
    "atlas.connection": "shop",
    "atlas.deployment": deployment,
    "atlas.owner": run + this_process("request"),
}
process = start_process(
    [sys.executable, "-c", connector, child],
    ConnectorCommand("read", {}, labels),
    executor=ExecutorConfig(),
)
print(run + this_process("request"), flush=True)
time.sleep(100)
"""


@pytest.fixture
def atlas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AtlasResource:
    """A deployment of its own, where there is no Docker."""

    def refuse(_: str | None) -> None:
        raise RunnerUnavailableError("No Docker engine answers")

    monkeypatch.setattr(reaping, "connect", refuse)
    return AtlasResource(destination=str(tmp_path), deployment="tests")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("run", ["", "run:deleted-from-dagster:"])
def test_what_a_killed_atlas_started_is_killed(
    atlas: AtlasResource, tmp_path: Path, run: str
) -> None:
    lifeline = tmp_path / "lifeline"
    os.mkfifo(lifeline)
    words = [sys.executable, "-c", PARENT, atlas.deployment_label(), str(lifeline), run]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    try:
        name = parent.stdout.readline().strip()
        with lifeline.open("rb") as end, dg.DagsterInstance.ephemeral() as instance:
            assert reap_ended(instance, atlas) == []
            parent.kill()
            parent.wait()
            foreign = AtlasResource(destination=str(tmp_path / "other"), deployment="tests")
            assert reap_ended(instance, foreign) == []
            removed = reap_ended(instance, atlas)
            assert end.read() == b""
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert removed
    assert all(sentence.endswith(" of shop") for sentence in removed)

    def is_gone() -> bool:
        return all(tags.get("ATLAS_OWNER") != name for _, tags in tagged_processes())

    wait_until("the last of its processes is gone", is_gone, seconds=10)


def test_without_proc_no_process_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_dagster.runners.process_tags._PROCESSES", tmp_path / "nothing")
    assert list(tagged_processes()) == []
