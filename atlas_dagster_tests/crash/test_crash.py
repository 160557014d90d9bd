"""The crash harness with a bounded count; ``make crash KILLS=200`` is the long way."""

import os
import re
import subprocess
import sys

import pytest

_DOCKER, _POSTGRES = pytest.mark.docker, pytest.mark.postgres


def disturbed(count: int, *setups: str, by: str = "kill") -> None:
    """Run the harness, in a process of its own because it forks."""
    options = ["--count", str(count), "--seed", "1", "--by", by, "--setups", *setups]
    command = [sys.executable, "-m", "atlas_dagster_tests.crash", *options]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    last = ended.stdout.splitlines()[-1]
    assert re.fullmatch(rf"\w+={count} lost=0 duplicated=0 leaked_containers=0", last), last


def test_killed_at_any_point() -> None:
    disturbed(5, "delta_sqlite_stream_process")


@pytest.mark.postgres
def test_killed_at_any_point_with_postgres() -> None:
    disturbed(8, "delta_postgres_global_process", "postgres_sqlite_global_process")


@pytest.mark.docker
@pytest.mark.postgres
def test_killed_at_any_point_with_containers() -> None:
    disturbed(4, "postgres_postgres_stream_docker")


def test_the_connector_dies() -> None:
    disturbed(3, "delta_sqlite_global_process", by="connector")


@pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"),
    reason="only root can make a small file system",
)
def test_the_disk_is_full() -> None:
    disturbed(3, "delta_sqlite_global_process", by="full-disk")


@pytest.mark.postgres
def test_postgres_restarts() -> None:
    disturbed(2, "postgres_sqlite_stream_process", by="postgres-restart")
