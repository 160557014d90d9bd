"""A throw-away project: the package in a folder of its own, with the test's own connections.

A code location's connections live inside the package, so the package is copied too. PYTHONPATH puts
the copy before the installed one in every process started here.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from deltalake import DeltaTable, QueryBuilder

from atlas_dagster_tests.commands import run_in

REPOSITORY = Path(__file__).parents[2]
STANDIN_IMAGE = "atlas-test/source-standin:2"
APPEND = [{"name": "events", "sync_mode": "incremental", "destination_sync_mode": "append"}]


class Project:
    """The folder. Its name is also DAGSTER_HOME, and the lake is in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.connections = folder / "atlas_dagster" / "connections"
        for name in ("pyproject.toml", "workspace.yaml", "dagster.yaml"):
            shutil.copy(REPOSITORY / name, folder)
        shutil.copytree(
            REPOSITORY / "atlas_dagster",
            folder / "atlas_dagster",
            ignore=shutil.ignore_patterns("__pycache__", ".local_defs_state", "connections"),
        )
        self.connections.mkdir()
        shutil.copy(REPOSITORY / "atlas_dagster/connections/__init__.py", self.connections)
        demo = REPOSITORY / "atlas_dagster/connections/demo/defs.yaml"
        self.declare("demo", yaml.safe_load(demo.read_text())["attributes"] | {"runner": "docker"})

    @property
    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ATLAS_", "DAGSTER_"))}
        return kept | {"PYTHONPATH": str(self.folder), "DAGSTER_HOME": str(self.folder)}

    @property
    def deployment(self) -> str:
        """What Atlas labels this project's containers with."""
        return f"atlas_dagster {self.folder / 'lake'}"

    def declare(self, connection: str, attributes: dict[str, Any] | str) -> None:
        """Write the connection's folder; a text is taken as the whole file."""
        folder = self.connections / connection
        folder.mkdir(exist_ok=True)
        if not isinstance(attributes, str):
            declaration = {"type": "atlas_dagster.AirbyteConnection", "attributes": attributes}
            attributes = yaml.safe_dump(declaration, sort_keys=False)
        (folder / "defs.yaml").write_text(attributes)

    def declare_standin(
        self,
        connection: str,
        *,
        streams: list[dict[str, Any]] | None = APPEND,
        schedule: str | None = None,
        **config: Any,
    ) -> None:
        """A connection to the stand-in source, appending unless ``streams`` says otherwise."""
        attributes: dict[str, Any] = {"image": STANDIN_IMAGE, "config": config}
        if streams is not None:
            attributes["streams"] = streams
        if schedule is not None:
            attributes["schedule"] = schedule
        self.declare(connection, attributes)

    def atlas(self, *words: str, **variables: str) -> str:
        """Run an ``atlas`` command in the folder; what it printed."""
        environment = self.environment | variables
        return run_in(self.folder, "atlas", *words, environment=environment)

    def table(self, path: str) -> Path:
        return self.folder / "lake" / path

    def query(self, path: str, sql: str) -> list[dict[str, Any]]:
        """Rows of ``SELECT … FROM rows``, the committed version of the table."""
        rows = QueryBuilder().register("rows", DeltaTable(str(self.table(path)))).execute(sql)
        return pa.table(rows).to_pylist()

    def ids(self, path: str) -> list[int]:
        """Ids in the table, sorted, duplicates and all; none where there is no table."""
        if not DeltaTable.is_deltatable(str(self.table(path))):
            return []
        return [row["id"] for row in self.query(path, "SELECT id FROM rows ORDER BY id")]
