"""The example project, used as its README says."""

import shutil
from pathlib import Path

import pytest
import yaml
from deltalake import DeltaTable
from pydantic import ValidationError

from atlas_dagster.components.scaffolding import ConnectionParams
from atlas_dagster_tests.commands import run_in

EXAMPLE = Path(__file__).parents[2] / "examples" / "shop_analytics"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "shop_analytics"
    left = shutil.ignore_patterns(".dagster", "lake", ".local_defs_state", "__pycache__")
    shutil.copytree(EXAMPLE, folder, ignore=left)
    return folder


def run(project: Path, *command: str) -> str:
    """Its package is not installed, but stands there."""
    told = {"DAGSTER_HOME": str(project), "PYTHONPATH": str(project)}
    return run_in(project, *command, environment=told)


@pytest.mark.docker
def test_a_project_of_ones_own_from_discovery_to_a_report(project: Path) -> None:
    assert "shop offers" in run(project, "atlas", "discover")
    assert "raw" in run(project, "dg", "list", "defs")
    chosen = "key:raw/* or key:sales_by_make"
    module = "shop_analytics.definitions"
    run(project, "dagster", "asset", "materialize", "-m", module, "--select", chosen)
    bought = DeltaTable(str(project / "lake/shop/purchases")).to_pyarrow_table()
    report = DeltaTable(str(project / "lake/sales_by_make")).to_pyarrow_table()
    assert sum(report["sold"].to_pylist()) == bought.num_rows > 0
    # Another process, from the command line, goes on from there: nothing new, nothing twice.
    run(project, "atlas", "sync", "shop")
    again = DeltaTable(str(project / "lake/shop/purchases")).to_pyarrow_table()
    assert again.num_rows == bought.num_rows


@pytest.mark.slow
def test_a_connection_is_scaffolded_as_dagster_does_it(project: Path) -> None:
    component = "atlas_dagster.AirbyteConnection"
    scaffold = ["dg", "scaffold", "defs", component, "billing", "--connector", "source-stripe"]
    run(project, *scaffold)
    (declared,) = project.rglob("billing/defs.yaml")
    assert yaml.safe_load(declared.read_text())["attributes"]["connector"] == "source-stripe"


def test_a_connector_to_scaffold_that_there_is_not() -> None:
    with pytest.raises(ValidationError, match="did you mean source-stripe"):
        ConnectionParams(connector="source-strip")
