"""``atlas connectors``, as text and as JSON."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from atlas_dagster.interfaces.cli import connectors, output
from atlas_dagster.registry import ConnectorCategory, get_connector_info, list_connectors
from atlas_dagster.registry.catalogue import clear_cache, listing, shipped_listing
from atlas_dagster_tests.commands import run_in
from atlas_dagster_tests.interfaces.cli.command import atlas
from atlas_dagster_tests.registry.live_registry import LiveRegistry, serving, wire
from atlas_dagster_tests.runners.wheels import write_wheel


def asked(*arguments: str) -> Any:
    result = atlas(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    clear_cache()
    yield
    clear_cache()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveRegistry]:
    with serving(LiveRegistry()) as registry:
        monkeypatch.setenv("ATLAS_REGISTRY_URL", registry.url)
        yield registry


def test_all_connectors_are_listed() -> None:
    listed = asked("connectors", "list")
    assert [each["name"] for each in listed] == [info.name for info in list_connectors()]
    (postgres,) = [each for each in listed if each["name"] == "source-postgres"]
    assert postgres["docker_image"] == f"airbyte/source-postgres:{postgres['tag']}"
    assert postgres["category"] == "database"
    assert postgres["pypi_package"] is None


def test_one_category_is_listed() -> None:
    result = atlas("connectors", "list", "--category", "crm")
    assert "source-hubspot" in result.stdout
    assert "source-postgres" not in result.stdout
    assert all(
        "crm" in each["categories"] for each in asked("connectors", "list", "--category", "crm")
    )


def test_the_best_are_found_first() -> None:
    found = asked("connectors", "search", "gogle", "analytics")
    assert found[0]["name"] == "source-google-analytics-data-api"
    result = atlas("connectors", "search", "crm", "--limit", "2")
    assert "39 more" in result.stderr
    assert "atlas spec source-" in result.stderr


def test_what_is_found_by_a_detour_is_explained() -> None:
    result = atlas("connectors", "search", "neo4j")
    assert result.exit_code == 0
    assert "Neo4j" in result.stderr
    assert "source-mongodb-v2" in result.stdout
    assert atlas("connectors", "search", "postgres").stderr.startswith("Try one")


def test_nothing_found_is_no_failure() -> None:
    result = atlas("connectors", "search", "zzzzzz")
    assert (result.exit_code, result.stdout) == (0, "")
    assert asked("connectors", "search", "zzzzzz") == []


def test_the_categories_are_counted() -> None:
    told = asked("connectors", "categories")
    assert [each["id"] for each in told] == list(ConnectorCategory)
    assert {each["id"]: each["count"] for each in told} == {
        category: len(list_connectors(category)) for category in ConnectorCategory
    }
    assert {"id": "crm", "name": "CRM", "count": len(list_connectors("crm"))} in told


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What there is in place of PyPI."""
    shelf = tmp_path / "wheels"
    shelf.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_DEFAULT_INDEX", shelf.as_uri())
    monkeypatch.setenv("UV_FIND_LINKS", str(shelf))
    return shelf


@pytest.mark.slow
def test_whether_a_connector_can_be_installed_is_looked_up(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> str:
        shown = atlas("connectors", "info", "source-faker").stdout
        return " ".join(shown.partition("without Docker")[2].partition("category")[0].split())

    package, version = "airbyte-source-faker", get_connector_info("source-faker").tag
    assert said() == (f"no: There is no package {package} on PyPI; run this connector with Docker.")
    write_wheel(shelf, package, version)
    assert said() == "from its Python package"
    write_wheel(shelf, package, version, requires="airbyte-faker==0")
    write_wheel(shelf, package, "0.1.0")
    assert said().startswith(f"{version} cannot be installed, because airbyte-faker was not found")
    assert said().endswith("; 0.1.0 can: set version: auto")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    assert said() == "from its Python package (not checked: PyPI cannot be reached)"


def test_what_is_known_of_one(shelf: Path) -> None:
    faker = get_connector_info("source-faker")
    shown = atlas("connectors", "info", "source-faker").stdout
    assert faker.docker_image in shown
    assert f"airbyte-source-faker=={faker.tag}" in shown
    assert asked("connectors", "info", "source-faker")["definition_id"] == faker.definition_id


def test_an_unknown_one_is_an_error_for_people_and_machines() -> None:
    result = atlas("connectors", "info", "posgres", "--json")
    assert result.exit_code == 3
    answer = json.loads(result.stdout)
    assert answer["failure_type"] == "config_error"
    assert "source-postgres" in answer["error"]
    assert result.stderr.startswith("Error: ")


def test_the_list_is_refreshed(registry: LiveRegistry) -> None:
    faker = next(info for info in shipped_listing().connectors if info.name == "source-faker")
    breaking = {
        "8.0.0": {
            "message": "Users have another key.",
            "migrationDocumentationUrl": "https://example.com/guide",
            "scopedImpact": [{"scopeType": "stream", "impactedScopes": ["users"]}],
        }
    }
    newer = wire(replace(faker, tag="8.0.0"), releases={"breakingChanges": breaking})
    registry.publish(newer)

    result = atlas("connectors", "refresh")

    assert result.exit_code == 0
    assert "591 connectors, as of 20" in result.stdout
    assert f"source-faker {faker.tag} → 8.0.0 is a breaking change" in result.stdout
    assert f"`version: {faker.tag}` in defs.yaml keeps the old one." in result.stdout
    assert (
        "8.0.0: Users have another key. Streams: users. Migration guide: https://example.com/guide"
        in result.stdout
    )
    again = asked("connectors", "refresh")
    assert (again["total_connectors"], again["upgrades"]) == (591, [])
    shown = atlas("connectors", "info", "source-faker").stdout
    assert "airbyte/source-faker:8.0.0" in shown
    assert "Breaking change 8.0.0: Users have another key." in shown


@pytest.mark.slow
def test_within_a_project_the_list_is_written_down_for_sql(
    registry: LiveRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    registry.publish()
    assert atlas("connectors", "refresh").exit_code == 0
    with closing(sqlite3.connect(tmp_path / "pipeline.db")) as books:
        query = "SELECT count(*), min(listed_on) FROM airbyte_connector_registry"
        assert books.execute(query).fetchone() == (591, listing().date)


def test_a_refresh_that_fails_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATLAS_REGISTRY_URL", "http://127.0.0.1:9")
    result = atlas("connectors", "refresh")
    assert result.exit_code == 4
    assert "stays in use" in result.stderr


@pytest.mark.slow
def test_in_a_pipe_each_connector_is_one_line(tmp_path: Path) -> None:
    lines = run_in(tmp_path, "atlas", "connectors", "list", environment={"COLUMNS": "40"})

    heading, *rows = lines.splitlines()
    assert heading.split() == ["name", "title", "category", "version", "support", "runs", "from"]
    assert [row.split()[0] for row in rows] == [info.name for info in list_connectors()]


def test_names_do_not_break_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "source-google-analytics-data-api"
    narrow = output.LineConsole(width=80, force_terminal=True, color_system=None)
    with narrow.capture() as captured:
        monkeypatch.setattr(connectors, "console", narrow)
        connectors._print_connectors([get_connector_info(name)], as_json=False)
    assert name in captured.get()
