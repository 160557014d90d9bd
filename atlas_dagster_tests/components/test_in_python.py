"""Connections declared in Python, in a project that uses no components."""

import re
from pathlib import Path

import dagster as dg
import pytest
from deltalake import DeltaTable

from atlas_dagster import AirbyteConnection, build_airbyte_assets
from atlas_dagster.errors import ConfigError
from atlas_dagster_tests.commands import run_in
from atlas_dagster_tests.interfaces.cli.conftest import NUMBERS_SOURCE

pytestmark = pytest.mark.dagster

DEFINITIONS = """
import sys
import re
from pathlib import Path

import dagster as dg
from atlas_dagster import AirbyteConnection, build_airbyte_assets

SOURCE = str(Path(__file__).parent / "source.py")

@dg.asset(deps=[dg.AssetKey(["numbers", "numbers"])])
def report(): ...

defs = dg.Definitions.merge(
    build_airbyte_assets(
        AirbyteConnection(name="numbers", command=[sys.executable, SOURCE], config={}),
        path_within_project=Path(__file__),
    ),
    dg.Definitions(assets=[report]),
)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    package = tmp_path / "analytics"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "defs").mkdir()
    (package / "defs" / "__init__.py").touch()
    (package / "definitions.py").write_text(DEFINITIONS)
    (package / "source.py").write_text(NUMBERS_SOURCE)
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "analytics"\n'
    )
    return tmp_path


@pytest.mark.slow
def test_the_command_finds_discovers_and_syncs_them(project: Path) -> None:
    assert "numbers offers" in run_in(project, "atlas", "discover")
    run_in(project, "atlas", "sync", "numbers")
    (table,) = (project / "lake" / "numbers").iterdir()
    first = len(DeltaTable(str(table)).to_pyarrow_table())
    run_in(project, "atlas", "sync", "numbers")
    assert len(DeltaTable(str(table)).to_pyarrow_table()) == first > 0


def test_before_they_are_discovered_an_asset_says_how(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(project)
    made = build_airbyte_assets(
        AirbyteConnection(name="shop", connector="source-faker", config={}),
        path_within_project=project,
    )
    assert made.resolve_asset_graph().get_all_asset_keys() == {dg.AssetKey(["shop", "discover"])}


def test_a_connection_needs_a_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(project)
    with pytest.raises(ConfigError, match="AirbyteConnection"):
        build_airbyte_assets(
            AirbyteConnection(connector="source-faker"), path_within_project=project
        )


def test_outside_of_a_project_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[tool.dg.project\].* pyproject.toml"):
        build_airbyte_assets(path_within_project=tmp_path)


def snippets() -> tuple[str, str]:
    """The project's file and its definitions, as docs/dagster.md shows them."""
    text = (Path(__file__).parents[2] / "docs" / "dagster.md").read_text()
    part = text[text.index("Without components") :]
    found = dict(re.findall(r"```(toml|python)[^\n]*\n(.*?)```", part, re.DOTALL))
    return found["toml"], found["python"]


@pytest.mark.slow
def test_the_docs_snippet_runs_as_written(tmp_path: Path) -> None:
    """Before anything is discovered, from another folder than Dagster's home."""
    config, definitions = snippets()
    (tmp_path / "pyproject.toml").write_text(config)
    (tmp_path / "analytics" / "defs").mkdir(parents=True)
    (tmp_path / "analytics" / "definitions.py").write_text(definitions)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    show = (
        "import dagster as dg; from analytics.definitions import defs; "
        "dg.Definitions.validate_loadable(defs); "
        "keys = defs.resolve_asset_graph().get_all_asset_keys(); "
        "print(*sorted(key.to_user_string() for key in keys))"
    )
    told = run_in(
        elsewhere,
        "python",
        "-W",
        "ignore",
        "-c",
        show,
        environment={"PYTHONPATH": str(tmp_path), "DAGSTER_HOME": str(elsewhere)},
    )
    assert told.split() == ["customers", "shop/discover", "shop/users"]
    found = run_in(
        tmp_path, "atlas", "doctor", "--json", environment={"DAGSTER_HOME": str(elsewhere)}
    )
    assert "run: atlas discover shop" in found
