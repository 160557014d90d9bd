"""Loads a folder of connections one by one, so that a broken one stands alone.

Dagster itself fails the whole code location when one component does.
"""

import difflib
import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import yaml
from dagster.components.core.defs_module import find_defs_or_component_yaml
from dagster_shared.utils.config import discover_config_file
from pydantic import ValidationError

from atlas_dagster.components.airbyte_connection import AirbyteConnection
from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.assets import build_broken_defs
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.sync.connection import StreamSelection


def connection_trees(package: str) -> Iterator[tuple[str, dg.ComponentTree]]:
    """A component tree for each folder of ``package`` that holds a connection, by name."""
    folder = Path(next(iter(importlib.import_module(package).__path__)))
    project = _project_root(folder)
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith((".", "__")):
            module = importlib.import_module(f"{package}.{child.name}")
            yield child.name, dg.ComponentTree(defs_module=module, project_root=project)


def load_connections(package: str) -> list[dg.Definitions]:
    """Definitions of every connection; a placeholder that says why for each broken one."""
    loaded = []
    for name, tree in connection_trees(package):
        try:
            defs = build_quietly(tree)
            # Definitions resolve lazily; an error must surface here, where it can be contained.
            resources = dg.Definitions(resources={"atlas": AtlasResource()})
            dg.Definitions.validate_loadable(dg.Definitions.merge(defs, resources))
        except Exception as error:  # noqa: BLE001 - whatever a user's folder raises
            sentence = explain(error, tree.defs_module_path)
            dg.get_dagster_logger().error("Connection %s: %s", name, sentence)
            defs = build_broken_defs(name, sentence)
        loaded.append(defs)
    return loaded


def build_quietly(tree: dg.ComponentTree) -> dg.Definitions:
    """The tree's definitions, without Dagster's warnings about its own beta features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        return tree.build_defs()


def find_component(tree: dg.ComponentTree) -> AirbyteConnection | None:
    """The connection a tree declares, if that is what it declares."""
    found = tree.get_all_components(of_type=AirbyteConnection)
    return found[0] if found else None


def explain(error: BaseException, folder: Path) -> str:
    """One sentence for a user, from whatever loading raised."""
    file = find_defs_or_component_yaml(folder)
    where = f"{folder.name}/{file.name if file else 'defs.yaml'}"
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case AtlasError():
                return str(cause)
            case ValidationError():
                return f"{where}: {_explain_field(cause)}"
            case yaml.MarkedYAMLError() if cause.problem_mark is not None:
                mark = cause.problem_mark
                return f"{where}: line {mark.line + 1} is not valid YAML ({cause.problem})."
            case ModuleNotFoundError() | ImportError():
                return f"{where}: {cause}; check the type and that its package is installed."
        if cause.__cause__ is None and cause.__context__ is None:
            return f"{where}: {type(cause).__name__}: {cause}"
        cause = cause.__cause__ or cause.__context__
    return f"{where}: {error}"


def _explain_field(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    field = path[-1] if path else ""
    if first["type"] == "extra_forbidden":
        known = list(AirbyteConnection.model().model_fields)
        if len(path) > 1 and "streams" in path:
            known = list(StreamSelection.model_fields)
        near = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"the fields are {', '.join(known)}."
        return f"there is no field '{field}'; {hint}"
    if first["type"] == "missing":
        return f"the field '{field}' is missing."
    message = first["msg"].removeprefix("Value error, ")
    plain = [part for part in path if not part[:1].isupper() and part not in ("str", "none")]
    named = f"field '{'.'.join(plain)}': " if plain else ""
    return f"{named}{message[0].lower()}{message[1:]}."


def _project_root(folder: Path) -> Path:
    """The nearest folder above that Dagster recognises as a project."""
    config = discover_config_file(folder)
    return folder if config is None else config.parent
