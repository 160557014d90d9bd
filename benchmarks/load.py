"""A code location of 100 connections with 50 streams each, loaded in a fresh process.

Beside it dagster-airbyte with as many assets, in an environment of its own: its API's answers are
in memory, so it waits for no network. Both make what a code server makes before the web UI shows
anything: the definitions, and the snapshot of them that it sends. ``definitions_s`` is the first
part alone, which every step process does, too. No container is started and nothing is fetched.

Run as a program, this file is one such process (``atlas`` or ``dagster-airbyte``), or writes the
project that it loads (``write``).
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import environments
from measuring import Figures, medians, ratios, report_and_exit, run

RIVAL = "dagster-airbyte==0.29.27"
CONNECTIONS, STREAMS, FIELDS = 100, 50, 20
_TYPES: list[dict[str, Any]] = [
    {"type": ["null", "string"]},
    {"type": ["null", "integer"]},
    {"type": ["null", "number"]},
    {"type": ["null", "string"], "format": "date-time"},
    {"type": ["null", "boolean"]},
    {"type": ["null", "object"], "properties": {"id": {"type": "string"}}},
]
_PROJECT = """
[tool.dg]
directory_type = "project"
[tool.dg.project]
root_module = "many"
"""
_DECLARATION = """
type: atlas_dagster.AirbyteConnection
attributes:
  connector: source-faker
  config: {count: 1000}
  schedule: "*/15 * * * *"
"""


def measure(runs: int) -> dict[str, Figures]:
    """Seconds and memory of both, and ours divided by theirs."""
    ours, rival = str(environments.atlas()), environments.environment("dagster-airbyte", RIVAL)
    samples: dict[str, list[Figures]] = {"atlas": [], "dagster_airbyte": []}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        run([ours, __file__, "write", folder])
        for _ in range(runs):
            samples["atlas"].append(run([ours, __file__, "atlas", folder]))
            command = [str(rival), __file__, "dagster-airbyte", folder]
            samples["dagster_airbyte"].append(run(command))
            print(f"load: {samples['atlas'][-1]}, {samples['dagster_airbyte'][-1]}", flush=True)
    figures = {name: medians(each) for name, each in samples.items()}
    atlas, rival_figures = figures["atlas"], figures["dagster_airbyte"]
    return figures | {"of_dagster_airbyte": ratios(atlas, rival_figures)}


def names() -> Iterator[str]:
    return (f"connection_{number:03}" for number in range(CONNECTIONS))


def streams(connection: str) -> list[dict[str, Any]]:
    """What a source offers: no two streams alike."""
    return [
        {
            "name": f"stream_{number:02}",
            "json_schema": {
                "type": "object",
                "properties": {"id": {"type": "integer"}, "updated_at": _TYPES[3]}
                | {
                    f"field_{field:02}": _TYPES[(number + field) % len(_TYPES)]
                    | {"description": f"Field {field} of stream {number} of {connection}."}
                    for field in range(FIELDS - 2)
                },
            },
            "supported_sync_modes": ["full_refresh", "incremental"],
            "source_defined_cursor": True,
            "default_cursor_field": ["updated_at"],
            "source_defined_primary_key": [["id"]],
        }
        for number in range(STREAMS)
    ]


def write(folder: Path) -> None:
    """The project, and the API's answers for the rival."""
    from dagster.components.utils.project_paths import get_local_state_path

    from atlas_dagster.protocol.catalog import Catalog
    from atlas_dagster.protocol.messages import Spec
    from atlas_dagster.source.discovered_catalog import build_discovered

    defs = folder / "many" / "defs"
    defs.mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PROJECT)
    for package in (defs, defs.parent):
        (package / "__init__.py").touch()
    sys.path.insert(0, str(folder))
    for name in names():
        (defs / name).mkdir()
        (defs / name / "defs.yaml").write_text(_DECLARATION)
        found = build_discovered(
            name,
            connector="airbyte/source-faker:7.2.1",
            config={"count": 1000},
            spec=Spec({"type": "object", "properties": {"count": {"type": "integer"}}}),
            catalog=Catalog.from_json(streams(name)),
            reserved="source_faker",
            previous=None,
        )
        state = get_local_state_path(f"AirbyteConnection[{name}]", folder)
        state.parent.mkdir(parents=True, exist_ok=True)
        state.write_bytes(found.encode())
    answers = {
        name: {
            "connectionId": name,
            "name": name,
            "prefix": f"{name}_",  # else streams of one name would be one asset
            "destinationId": "warehouse",
            "syncCatalog": {
                "streams": [
                    {"stream": each | {"jsonSchema": each["json_schema"]}, "config": SELECTED}
                    for each in streams(name)
                ]
            },
        }
        for name in names()
    }
    (folder / "answers.json").write_text(json.dumps(answers))


SELECTED = {"selected": True}


def atlas(folder: Path) -> Any:
    from atlas_dagster import load_from_defs_folder

    return load_from_defs_folder(path_within_project=folder)


def dagster_airbyte(folder: Path) -> Any:
    import dagster as dg
    from dagster_airbyte import AirbyteWorkspace, build_airbyte_assets_definitions
    from dagster_airbyte.resources import AirbyteClient

    answers = json.loads((folder / "answers.json").read_text())
    warehouse = {"destinationId": "warehouse", "destinationType": "postgres"}
    warehouse |= {"configuration": {"database": "db", "schema": "public"}}

    def answer(
        self: Any, method: str, url: str, data: Any = None, params: Any = None, **_: Any
    ) -> Any:
        if url.endswith("/connections/get"):
            return answers[data["connectionId"]]
        if "/destinations/" in url:
            return warehouse
        return {"data": [{"connectionId": name} for name in answers]}

    AirbyteClient._single_request = answer
    workspace = AirbyteWorkspace(
        rest_api_base_url="http://airbyte/api/public/v1",
        configuration_api_base_url="http://airbyte/api/v1",
        workspace_id="workspace",
    )
    assets = build_airbyte_assets_definitions(workspace=workspace)
    return dg.Definitions(assets=assets, resources={"airbyte": workspace})


def _serve(defs: Any, started: float) -> None:
    from dagster._core.definitions.reconstruct import repository_def_from_target_def
    from dagster._core.remote_representation.external_data import RepositorySnap
    from dagster._serdes import serialize_value

    repository = repository_def_from_target_def(defs)
    assert repository is not None
    repository.load_all_definitions()
    seconds = round(time.perf_counter() - started, 2)
    assets = repository.asset_graph.materializable_asset_keys
    assert len(assets) == CONNECTIONS * STREAMS, f"{len(assets)} assets"
    serialize_value(RepositorySnap.from_def(repository))
    report_and_exit(definitions_s=seconds)


if __name__ == "__main__":
    start = time.perf_counter()
    what, where = sys.argv[1], Path(sys.argv[2])
    if what == "write":
        write(where)
        report_and_exit()
    _serve(atlas(where) if what == "atlas" else dagster_airbyte(where), start)
