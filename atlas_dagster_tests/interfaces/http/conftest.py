from collections.abc import Iterator
from pathlib import Path

import pytest

from atlas_dagster.interfaces.http import Settings
from atlas_dagster_tests.interfaces.http.live_server import ALLOWED, Client, served


@pytest.fixture(scope="module")
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of locks and renewals, for as long as a server of a module lives."""
    folder = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def client(_state: Path) -> Iterator[Client]:
    """Of a server that runs what the tests have images of."""
    with served(Settings(allow=ALLOWED)) as client:
        yield client


@pytest.fixture(scope="module")
def registry_client(_state: Path) -> Iterator[Client]:
    """Of a server as it is by default: all of the registry, and no images."""
    with served(Settings()) as client:
        yield client
