"""What the tests need from the machine, and what happens when it is not there.

A test marked ``docker``, ``postgres``, ``browser`` or ``pypi`` is skipped, with the reason, where
that part is missing. The environment variable ``ATLAS_REQUIRE`` names the parts that must be there
(``ATLAS_REQUIRE=docker,postgres,browser,pypi``, as in ``.ci/run``): a missing one then fails the
test.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import docker
import pytest

from atlas_dagster.errors import AtlasError
from atlas_dagster.runners.packages import newest_version
from atlas_dagster.runners.process_tags import DEPLOYMENT_LABEL
from atlas_dagster_tests.postgres_server import postgres_binaries, postgres_server
from atlas_dagster_tests.secret_watch import in_files

CONNECTORS = Path(__file__).parent / "connectors"
_VERSIONS = dict(
    re.findall(r"^(\w+)_VERSION=(\S+)$", (CONNECTORS / "build.sh").read_text(), re.MULTILINE)
)
SOURCE_FAKER_IMAGE = f"airbyte/source-faker:{_VERSIONS['FAKER']}"
SOURCE_FILE_IMAGE = f"airbyte/source-file:{_VERSIONS['FILE']}"
SOURCE_STANDIN_IMAGE = f"atlas-test/source-standin:{_VERSIONS['STANDIN']}"
SOURCE_CHAOS_IMAGE = f"atlas-test/source-chaos:{_VERSIONS['CHAOS']}"
SOURCE_LEDGER_IMAGE = f"atlas-test/source-ledger:{_VERSIONS['LEDGER']}"
POSTGRES_IMAGE = f"atlas-test/postgres:{_VERSIONS['POSTGRES']}"
HAPROXY_IMAGE = f"atlas-test/haproxy:{_VERSIONS['HAPROXY']}"
_IMAGES = (
    SOURCE_FAKER_IMAGE,
    SOURCE_FILE_IMAGE,
    SOURCE_STANDIN_IMAGE,
    SOURCE_CHAOS_IMAGE,
    SOURCE_LEDGER_IMAGE,
    POSTGRES_IMAGE,
    HAPROXY_IMAGE,
    f"airbyte/source-declarative-manifest:{_VERSIONS['MANIFEST']}",
)

#: How the stacks of tests are called.
STACK_PREFIX = "atlas_stack_"
#: The label on every container that Atlas starts for a connection.
CONTAINER_LABEL = "atlas.connection"


# A script in the background ignores SIGINT, and so would we and all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


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


def _missing_postgres() -> str | None:
    if postgres_binaries() is None:
        return "no Postgres server binaries in PATH or /usr/lib/postgresql (Debian: postgresql-15)"
    return None


@cache
def _chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


def _missing_browser() -> str | None:
    return None if _chromium() else "no chromium or google-chrome in PATH"


@cache
def _missing_pypi() -> str | None:
    try:
        newest_version("airbyte-source-faker")
    except AtlasError as error:
        return f"PyPI cannot be reached: {error}"
    return None


_MISSING: dict[str, Callable[[], str | None]] = {
    "docker": _missing_docker,
    "postgres": _missing_postgres,
    "browser": _missing_browser,
    "pypi": _missing_pypi,
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


# --- Secrets


_WATCH = pytest.StashKey[subprocess.Popen[str]]()
_SEEN = pytest.StashKey[str]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Watch for secrets of tests in processes' arguments and containers' settings.

    Only in CI, and once for all processes of xdist: the watch sees the whole machine, and costs a
    tenth of a second of every second.
    """
    in_ci = "CI" in os.environ or _required()
    if not in_ci or hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    command = [sys.executable, "-m", "atlas_dagster_tests.secret_watch"]
    watch = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    assert watch.stdout.readline() == "watching\n"
    session.config.stash[_WATCH] = watch


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if a secret was seen meanwhile, or is in a file of the tests now."""
    watch = session.config.stash.get(_WATCH, None)
    if watch is None:
        return
    watch.terminate()
    seen, _ = watch.communicate()
    if watch.returncode != 0:
        seen += "the watch ended before the tests\n"
    factory: pytest.TempPathFactory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    seen += "".join(f"{each}\n" for each in in_files(factory.getbasetemp()))
    session.config.stash[_SEEN] = seen
    if seen:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if seen := config.stash.get(_SEEN, ""):
        terminalreporter.section("secrets of tests were seen", red=True)
        terminalreporter.write(seen)


# --- Docker


@pytest.fixture(scope="session")
def docker_client() -> Iterator[docker.DockerClient]:
    _need("docker")
    with closing(docker.from_env(timeout=60)) as client:
        yield client


def _connection_containers() -> dict[str, str]:
    """Of each container that Atlas started, its id and what it is.

    A stack's are not counted, for its tests may run beside others; it counts them itself.
    """
    with closing(docker.from_env(timeout=60)) as client:
        containers = client.api.containers(all=True, filters={"label": CONTAINER_LABEL})
    return {
        each["Id"]: f"{each['Names'][0]} ({each['Image']}, {each['Status']}, {each['Labels']})"
        for each in containers
        if not each["Labels"].get(DEPLOYMENT_LABEL, "").startswith(STACK_PREFIX)
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


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[dict[str, Any]]:
    """A Postgres of our own; the fields are those of Dagster's ``postgres_db``."""
    _need("postgres")
    with postgres_server() as server:
        yield server.settings


# --- Browser


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program."""
    _need("browser")
    path = _chromium()
    assert path
    return path
