"""The examples in ``examples/connections`` fit their connectors' SPECs and load as they are."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from atlas_dagster.components.loading import find_project
from atlas_dagster.config.masking import secret_values
from atlas_dagster.config.templates import variables
from atlas_dagster.config.validation import resolve
from atlas_dagster.registry import get_connector_info
from atlas_dagster.runners.manifest import Manifest
from atlas_dagster.runners.packages import open_bare_package
from atlas_dagster.source.connection import Connection
from atlas_dagster_tests.components.connections_project import Project, importable

EXAMPLES = Path(__file__).parents[2] / "examples" / "connections"
NAMES = sorted(folder.name for folder in EXAMPLES.iterdir())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    with importable(tmp_path, monkeypatch) as project:
        yield project


def declared(project: Project, name: str) -> Connection:
    """The example as Atlas loads it."""
    project.write(name, (EXAMPLES / name / "defs.yaml").read_text())
    (component,) = find_project(project.connections).connections(project.connections / name)
    return component.connection


def spec(name: str, tmp_path: Path) -> dict[str, Any]:
    """What the connector's package says; for one in Java its documented fields."""
    written = Path(__file__).parent / "specs" / f"{name}.json"
    if written.exists():
        return json.loads(written.read_text())
    with open_bare_package(f"airbyte-source-{name}", tmp_path) as package:
        for file in package.files or ():
            if file.name == "spec.yaml":
                found = yaml.safe_load(Path(str(package.locate_file(file))).read_text())
                return found["connectionSpecification"]
        for file in package.files or ():
            if file.name == "manifest.yaml":
                content = Path(str(package.locate_file(file))).read_bytes()
                return Manifest(name, content).spec["connectionSpecification"]
    raise AssertionError(f"airbyte-source-{name} holds no SPEC")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("mysql", "postgres") else pytest.mark.pypi)
        for name in NAMES
    ],
)
def test_an_example_fits_its_connectors_spec(project: Project, name: str, tmp_path: Path) -> None:
    connection = declared(project, name)
    assert connection.connector == f"source-{name}"
    assert get_connector_info(connection.connector)
    schema = spec(name, tmp_path)
    needed = variables(connection.config)
    assert needed
    environ = {variable: f"value of {variable}" for variable in needed}

    config = resolve(connection.config, schema=schema, environ=environ, where=name)

    # Nothing but secrets is in variables, and no secret is written out.
    secrets = set(secret_values(config, schema))
    assert secrets <= set(environ.values())
    assert connection.streams


def test_every_example_is_in_the_docs() -> None:
    page = (EXAMPLES.parents[1] / "docs" / "examples.md").read_text()
    assert all(f"examples/connections/{name}/defs.yaml" in page for name in NAMES)
