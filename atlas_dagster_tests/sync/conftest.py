"""Where scripted syncs write to: each destination in turn."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from atlas_dagster_tests.sync.fake_source import Lake, Warehouse


@pytest.fixture
def delta_lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


@pytest.fixture
def warehouse(request: pytest.FixtureRequest) -> Iterator[Warehouse]:
    with closing(Warehouse(request.getfixturevalue("postgres_url"))) as warehouse:
        yield warehouse


@pytest.fixture(params=["delta_lake", pytest.param("warehouse", marks=pytest.mark.postgres)])
def lake(request: pytest.FixtureRequest) -> Lake:
    lake = request.getfixturevalue(request.param)
    assert isinstance(lake, Lake)
    return lake
