"""Catalogs in Dagster's versioned storage, written by several at once."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.storage.defs_state import UPathDefsStateStorage

from atlas_dagster.components.loading import ProjectTree, find_project
from atlas_dagster_tests.components.connections_project import Project, importable
from atlas_dagster_tests.orchestration.instances import new_database

pytestmark = pytest.mark.dagster

NAMES = [f"shop{number}" for number in range(6)]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def project(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    settings: dict[str, Any] = {
        "telemetry": {"enabled": False},
        "defs_state_storage": {
            "module": "dagster._core.storage.defs_state.blob_storage_state_storage",
            "class": "UPathDefsStateStorage",
            "config": {"base_path": str(tmp_path / "catalogs")},
        },
    }
    if request.param == "postgres":
        database = new_database(request.getfixturevalue("postgres_url"))
        settings["storage"] = {"postgres": {"postgres_db": database}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("ATLAS_DEFS_STATE", "VERSIONED_STATE_STORAGE")
    with importable(tmp_path, monkeypatch) as project:
        yield project


@pytest.mark.slow
def test_catalogs_that_are_stored_at_once_are_all_there(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster's own update of their versions reads, and later writes, those of all."""
    read = UPathDefsStateStorage.get_latest_defs_state_info

    def read_slowly(storage: UPathDefsStateStorage) -> Any:
        found = read(storage)
        time.sleep(0.2)
        return found

    for name in NAMES:
        project.declare(name, "connector: source-faker")
    with dg.DagsterInstance.get():  # makes its tables
        tree = find_project(project.root)
    monkeypatch.setattr(UPathDefsStateStorage, "get_latest_defs_state_info", read_slowly)

    def keep(name: str) -> None:
        with dg.DagsterInstance.get():
            component(tree, name).store(project.found(name, {}), project.root)

    with ThreadPoolExecutor(len(NAMES)) as threads:
        list(threads.map(keep, NAMES))
    with dg.DagsterInstance.get():
        known = [component(tree, name).stored_catalog(project.root) for name in NAMES]
    assert [name for name, found in zip(NAMES, known, strict=True) if found is None] == []


@pytest.mark.slow
def test_a_catalog_that_is_lost_counts_as_not_discovered(project: Project, tmp_path: Path) -> None:
    """Dagster's database, where it alone was restored, still names it."""
    project.declare("shop", "connector: source-faker")
    with dg.DagsterInstance.get():
        component(project.tree(), "shop").store(project.found("shop", {}), project.root)
    with dg.DagsterInstance.get():
        assert "shop/users" in project.descriptions()
    shutil.rmtree(tmp_path / "catalogs")
    with dg.DagsterInstance.get():
        assert "shop/discover" in project.descriptions()
        lost = component(project.tree(), "shop")
        assert lost.stored_catalog(project.root) is None
        lost.store(project.found("shop", {}), project.root)
    with dg.DagsterInstance.get():
        assert "shop/users" in project.descriptions()


def component(tree: ProjectTree, name: str) -> Any:
    part = next(part for part in tree.parts() if part.stem == name)
    (found,) = tree.connections(part)
    return found
