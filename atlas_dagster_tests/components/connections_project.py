"""A Dagster project of its own for a test, with a package of connections."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster.components.utils.project_paths import get_local_state_path
from dagster_shared.record import replace

from atlas_dagster.components.loading import ProjectTree
from atlas_dagster.orchestration.dagster_internals import DefinitionsLoadContext
from atlas_dagster.orchestration.definitions.io_manager import common_resources
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.protocol.catalog import Catalog
from atlas_dagster.protocol.messages import Spec
from atlas_dagster.source.discovered_catalog import Discovered, build_discovered

_numbers = count()
STREAMS = [
    {"name": name, "json_schema": {}, "supported_sync_modes": ["full_refresh"]}
    for name in ("users", "orders")
]
SPEC = {
    "type": "object",
    "required": ["count"],
    "properties": {
        "count": {"type": "integer"},
        "password": {"type": "string", "airbyte_secret": True},
    },
}


class Project:
    """A Dagster project with a package of connections, importable."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.package = f"a_project_{next(_numbers)}"
        self.connections_package = f"{self.package}.connections"
        self.connections = root / self.package / "connections"
        self.connections.mkdir(parents=True)
        (root / self.package / "__init__.py").touch()
        (self.connections / "__init__.py").touch()
        (root / "pyproject.toml").write_text(
            '[tool.dg]\ndirectory_type = "project"\n'
            f'[tool.dg.project]\nroot_module = "{self.package}"\n'
            f'defs_module = "{self.connections_package}"\n'
        )

    def write(self, folder: str, content: str) -> None:
        (self.connections / folder).mkdir()
        (self.connections / folder / "defs.yaml").write_text(content)

    def declare(self, folder: str, *attributes: str) -> None:
        """A connection, its attributes from line 3 on."""
        lines = ["type: atlas_dagster.AirbyteConnection", "attributes:"]
        self.write(folder, "\n".join([*lines, *(f"  {line}" for line in attributes)]) + "\n")

    def discover(
        self, name: str, config: dict[str, Any], streams: Sequence[dict[str, Any]] = STREAMS
    ) -> None:
        """As if DISCOVER had run."""
        path = self.state_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.found(name, config, streams).encode())

    def found(
        self, name: str, config: dict[str, Any], streams: Sequence[dict[str, Any]] = STREAMS
    ) -> Discovered:
        """What DISCOVER finds."""
        return build_discovered(
            name,
            connector="source-faker:1",
            config=config,
            spec=Spec(connectionSpecification=SPEC),
            catalog=Catalog.from_json(list(streams)),
            reserved="source_faker",
            previous=None,
        )

    def state_path(self, name: str) -> Path:
        return get_local_state_path(f"AirbyteConnection[{name}]", self.root)

    def definitions(self) -> dg.Definitions:
        defs = self.tree().build_defs()
        resources = common_resources(AtlasResource(destination=str(self.root / "lake")))
        return replace(defs, resources={**(defs.resources or {}), **resources})

    def tree(self) -> ProjectTree:
        """Not loaded yet."""
        return ProjectTree.for_project(self.root)

    def descriptions(self) -> dict[str, str]:
        return {
            spec.key.to_user_string(): spec.description or ""
            for spec in self.definitions().resolve_all_asset_specs()
        }


@contextmanager
def importable(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """A new project in ``root``; nothing of it, and of what loading adds, stays in this process."""
    project = Project(root)
    monkeypatch.syspath_prepend(root)
    # Dagster keeps the context of whatever this process loaded last, with its versions of catalogs.
    monkeypatch.setattr(DefinitionsLoadContext, "_instance", None)
    yield project
    for module in [name for name in sys.modules if name.startswith(project.package)]:
        del sys.modules[module]
