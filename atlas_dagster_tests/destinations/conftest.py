"""Every store, for the tests of what all destinations promise."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from atlas_dagster_tests.destinations.stores import Database, Lake, Store


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    with closing(Database(request.getfixturevalue("postgres_url"))) as database:
        yield database


@pytest.fixture(params=["lake", pytest.param("database", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest) -> Store:
    store = request.getfixturevalue(request.param)
    assert isinstance(store, Store)
    return store
