"""What the tests need from the machine, and what happens when it is not there.

A test marked ``docker``, ``postgres`` or ``browser`` is skipped, with the reason, where that part
is missing. The environment variable ``ATLAS_REQUIRE`` names the parts that must be there
(``ATLAS_REQUIRE=docker,postgres,browser``, as in ``.ci/run``): a missing one then fails the test.
"""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import docker
import pytest

CONNECTORS = Path(__file__).parent / "connectors"
_VERSIONS = dict(
    re.findall(r"^(\w+)_VERSION=(\S+)$", (CONNECTORS / "build.sh").read_text(), re.MULTILINE)
)
SOURCE_FAKER_IMAGE = f"airbyte/source-faker:{_VERSIONS['FAKER']}"
SOURCE_FILE_IMAGE = f"airbyte/source-file:{_VERSIONS['FILE']}"
SOURCE_STANDIN_IMAGE = f"atlas-test/source-standin:{_VERSIONS['STANDIN']}"
SOURCE_CHAOS_IMAGE = f"atlas-test/source-chaos:{_VERSIONS['CHAOS']}"
_IMAGES = (
    SOURCE_FAKER_IMAGE,
    SOURCE_FILE_IMAGE,
    SOURCE_STANDIN_IMAGE,
    SOURCE_CHAOS_IMAGE,
    f"airbyte/source-declarative-manifest:{_VERSIONS['MANIFEST']}",
)

#: The label on every container that Atlas starts for a connection.
CONTAINER_LABEL = "atlas.connection"


# --- What a marker needs: each function answers with what is missing, or None.


@cache
def _missing_docker() -> str | None:
    try:
        with closing(docker.from_env(timeout=10)) as client:
            for image in _IMAGES:
                client.images.get(image)
    except docker.errors.ImageNotFound:
        return f"the image {image} is missing: run `make images`"
    except (docker.errors.DockerException, OSError) as error:
        return f"no Docker engine answers: {error}"
    return None


@cache
def _postgres_binaries() -> Path | None:
    """The folder of ``initdb`` and ``pg_ctl``, of the newest version that is installed."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    return newest.parent if newest else None


def _missing_postgres() -> str | None:
    if _postgres_binaries() is None:
        return "no Postgres server binaries in PATH or /usr/lib/postgresql (Debian: postgresql-15)"
    return None


@cache
def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def _missing_browser() -> str | None:
    return None if _chromium() else "no chromium or google-chrome in PATH"


_MISSING: dict[str, Callable[[], str | None]] = {
    "docker": _missing_docker,
    "postgres": _missing_postgres,
    "browser": _missing_browser,
}


def _required() -> set[str]:
    return set(os.environ.get("ATLAS_REQUIRE", "").replace(",", " ").split())


def _need(part: str) -> None:
    """Skip, or fail where ``ATLAS_REQUIRE`` says so, when ``part`` is missing."""
    missing = _MISSING[part]()
    if missing and part in _required():
        pytest.fail(f"{part} is required by ATLAS_REQUIRE, but {missing}", pytrace=False)
    if missing:
        pytest.skip(missing)


def pytest_configure(config: pytest.Config) -> None:
    unknown = _required() - set(_MISSING)
    if unknown:
        raise pytest.UsageError(f"ATLAS_REQUIRE may name {list(_MISSING)}, not {sorted(unknown)}")
    # Tests make Dagster instances of their own and never touch the user's.
    os.environ.pop("DAGSTER_HOME", None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for part in _MISSING:
        if item.get_closest_marker(part):
            _need(part)


# --- Docker


@pytest.fixture(scope="session")
def docker_client() -> Iterator[docker.DockerClient]:
    _need("docker")
    with closing(docker.from_env(timeout=60)) as client:
        yield client


def _connection_containers() -> dict[str, str]:
    """Of each container that Atlas started, its id and what it is."""
    with closing(docker.from_env(timeout=60)) as client:
        containers = client.api.containers(all=True, filters={"label": CONTAINER_LABEL})
    return {
        each["Id"]: f"{each['Names'][0]} ({each['Image']}, {each['Status']}, {each['Labels']})"
        for each in containers
    }


@pytest.fixture(scope="session", autouse=True)
def _no_container_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the docker tests, not one container that they started is left, running or dead."""
    uses_docker = any(item.get_closest_marker("docker") for item in request.session.items)
    if not uses_docker or _missing_docker():
        yield
        return
    before = _connection_containers()
    yield
    deadline = time.monotonic() + 10  # a removal may still be under way
    while left := {
        key: what for key, what in _connection_containers().items() if key not in before
    }:
        if time.monotonic() > deadline:
            names = "\n  ".join(left.values())
            pytest.fail(f"the tests left containers behind:\n  {names}", pytrace=False)
        time.sleep(0.5)


# --- Postgres


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[dict[str, Any]]:
    """A Postgres of our own, on this machine's loopback only, gone after the tests.

    The fields are those of Dagster's ``postgres_db``; any password is accepted.
    """
    _need("postgres")
    binaries = _postgres_binaries()
    assert binaries
    # Not under pytest's own folder: that one is closed to the postgres user, and too deep for a
    # socket's path.
    home = Path(tempfile.mkdtemp(prefix="atlas-postgres-"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # Postgres refuses to run as root
        shutil.chown(home, "postgres", "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}

    def run(program: str, *arguments: str) -> None:
        command = [f"{binaries / program}", f"--pgdata={home / 'data'}", *arguments]
        # Into a file: the server inherits it, and would keep a pipe open for ever.
        with (home / "log").open("ab") as log:
            ended = subprocess.run(command, cwd=home, stdout=log, stderr=log, check=False, **user)
        if ended.returncode:
            pytest.fail(f"{program} failed:\n{(home / 'log').read_text()}", pytrace=False)

    port = _free_port()
    options = f"-h 127.0.0.1 -p {port} -k {home} -F"  # -F: no fsync, the data is not worth it
    try:
        run("initdb", "--username=atlas", "--auth=trust", "--encoding=UTF8", "--locale=C", "-N")
        run("pg_ctl", "start", "--wait", "--timeout=60", "--options", options)
        try:
            yield {
                "hostname": "127.0.0.1",
                "port": port,
                "username": "atlas",
                "password": "atlas",
                "db_name": "postgres",
            }
        finally:
            run("pg_ctl", "stop", "--wait", "--mode=immediate")
    finally:
        shutil.rmtree(home, ignore_errors=True)


# --- Browser


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program."""
    _need("browser")
    path = _chromium()
    assert path
    return path
