"""The watch of all the tests sees what it is for."""

import subprocess
import sys
import threading
from pathlib import Path

import docker
import pytest

from atlas_dagster_tests.conftest import SOURCE_STANDIN_IMAGE
from atlas_dagster_tests.e2e.web_server import wait_until
from atlas_dagster_tests.secret_watch import in_arguments, in_containers, in_files

#: Another than that which the watch looks for, or it would tell of these tests.
MARK = "seen-by-the-watch"


def test_a_process_is_seen() -> None:
    command = [sys.executable, "-c", "input()", MARK]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        # The kernel may show them a moment after it has started the program.
        wait_until("the process is seen", lambda: in_arguments(MARK), seconds=10)
        process.communicate(b"\n")
    assert in_arguments(MARK) == set()


def test_a_file_is_seen(tmp_path: Path) -> None:
    log = tmp_path / "storage" / "a" / "step.err"
    log.parent.mkdir(parents=True)
    log.write_text(f"password {MARK}")
    (tmp_path / "defs.yaml").write_text(MARK)  # a test's own
    assert list(in_files(tmp_path, MARK)) == [f"file: {log}"]


@pytest.mark.docker
def test_a_container_is_seen(docker_client: docker.DockerClient) -> None:
    found: set[str] = set()
    watch = threading.Thread(target=in_containers, args=(docker_client, found, MARK), daemon=True)
    watch.start()

    def started() -> bool:
        docker_client.containers.run(
            SOURCE_STANDIN_IMAGE, "spec", environment={"PASSWORD": MARK}, remove=True
        )
        return bool(found)

    wait_until("the watch has seen one", started, seconds=30)
