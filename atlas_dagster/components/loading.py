"""Loads a folder of connections one by one, so that a broken one stands alone.

Dagster itself fails the whole code location when one component does. A folder of Python files holds
assets of the user's own, such as those downstream of a stream.
"""

import difflib
import importlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import yaml
from dagster.components.core.defs_module import find_defs_or_component_yaml
from dagster_shared.error import DagsterUnresolvableSymbolError
from dagster_shared.record import replace
from dagster_shared.utils.config import discover_config_file
from pydantic import BaseModel, ValidationError

from atlas_dagster.components.airbyte_connection import AirbyteConnection
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.orchestration.assets import build_broken_defs
from atlas_dagster.orchestration.io_manager import IO_MANAGER_KEY, common_resources
from atlas_dagster.orchestration.maintenance import MaintenanceConfig
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.records.names import assign
from atlas_dagster.runners.executor import ExecutorConfig
from atlas_dagster.sync.connection import StreamSelection

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_]+")
#: How Dagster words the place of a field: its path, then file and line.
_PLACED = re.compile(r"(?P<path>.*) at .+:(?P<line>\d+)", re.DOTALL)
#: The types that pydantic tried, between the parts of a path.
_TRIED = re.compile(r"(?<=\.)(?:[a-z-]+\[[^.]*\]|str|none)(?=\.|$)")

#: Fields of a connection that have fields themselves.
_NESTED: Mapping[str, type[BaseModel]] = {
    "streams": StreamSelection,
    "executor": ExecutorConfig,
    "maintenance": MaintenanceConfig,
}


def connection_folders(package: str) -> list[Path]:
    """The folders of ``package`` that declare a connection each, in order of their names."""
    return [folder for folder in _folders(package) if not _holds_python(folder)]


def _folders(package: str) -> list[Path]:
    parent = Path(next(iter(importlib.import_module(package).__path__)))
    return [
        child
        for child in sorted(parent.iterdir())
        if child.is_dir() and not child.name.startswith((".", "__"))
    ]


def _holds_python(folder: Path) -> bool:
    """Whether ``folder`` holds definitions in Python, which count where there is no YAML."""
    return find_defs_or_component_yaml(folder) is None and any(folder.glob("*.py"))


def component_tree(package: str, folder: Path) -> dg.ComponentTree:
    """What ``folder`` declares, not loaded yet.

    Raises:
        ConfigError: the folder cannot be a connection.
    """
    if not _PLAIN_NAME.fullmatch(folder.name):
        raise ConfigError(
            f"The folder name '{folder.name}' becomes part of asset keys and table paths; "
            "use letters, digits and underscores only."
        )
    if find_defs_or_component_yaml(folder) is None and not _holds_python(folder):
        raise ConfigError(f"The folder {folder.name} holds no defs.yaml; add one or remove it.")
    module = importlib.import_module(f"{package}.{folder.name}")
    return dg.ComponentTree(defs_module=module, project_root=_project_root(folder.parent))


def load_connections(package: str) -> list[dg.Definitions]:
    """Definitions of every folder; a placeholder that says why for each broken one."""
    loaded = []
    folders = _folders(package)
    valid_names = assign([folder.name for folder in folders])
    for folder in folders:
        try:
            # Dagster merges no definitions that both hold a tree, and a reload through one
            # connection's tree would lose the others.
            defs = replace(build_quietly(component_tree(package, folder)), component_tree=None)
            # Definitions resolve lazily; an error must surface here, where it can be contained.
            resources = dg.Definitions(resources=common_resources(AtlasResource()))
            whole = dg.Definitions.merge(defs, resources, _upstream([defs]))
            with _no_beta_warnings():
                dg.Definitions.validate_loadable(whole)
        except Exception as error:  # noqa: BLE001 - whatever a user's folder raises
            sentence = explain(error, folder)
            dg.get_dagster_logger().error("Connection %s: %s", folder.name, sentence)
            defs = build_broken_defs(valid_names[folder.name], sentence)
        loaded.append(defs)
    return [*loaded, _upstream(loaded)]


def _upstream(loaded: Sequence[dg.Definitions]) -> dg.Definitions:
    """Stand-ins for the streams that ``loaded`` takes as arguments and does not define.

    Dagster would refuse everything for the sake of a connection that is broken or not discovered
    yet; the rows of its last sync are still there.
    """
    taken: set[dg.AssetKey] = set()
    defined: set[dg.AssetKey] = set()
    for asset in (asset for defs in loaded for asset in defs.assets or ()):
        match asset:
            case dg.AssetsDefinition():
                taken.update(asset.keys_by_input_name.values())
                defined.update(asset.keys)
            case dg.AssetSpec():
                defined.add(asset.key)
    stand_ins = [dg.AssetSpec(key) for key in sorted(taken - defined)]
    return dg.Definitions(assets=[spec.with_io_manager_key(IO_MANAGER_KEY) for spec in stand_ins])


def build_quietly(tree: dg.ComponentTree) -> dg.Definitions:
    """The tree's definitions, without Dagster's warnings about its own beta features."""
    with _no_beta_warnings():
        return tree.build_defs()


@contextmanager
def _no_beta_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        yield


def find_component(tree: dg.ComponentTree) -> AirbyteConnection | None:
    """The connection a tree declares, if that is what it declares."""
    found = tree.get_all_components(of_type=AirbyteConnection)
    return found[0] if found else None


def explain(error: BaseException, folder: Path) -> str:
    """One sentence for a user, from whatever loading raised."""
    file = find_defs_or_component_yaml(folder)
    where = f"{folder.name}/{file.name}" if file else folder.name
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case AtlasError():
                return str(cause)
            case ValidationError():
                return f"{where}{_explain_field(cause)}"
            case yaml.MarkedYAMLError() if cause.problem_mark is not None:
                mark = cause.problem_mark
                return f"{where}, line {mark.line + 1}: this is not valid YAML ({cause.problem})."
            case ImportError() | DagsterUnresolvableSymbolError():
                what = str(cause).removesuffix(".")
                return f"{where}: {what}; check the type and that its package is installed."
        if cause.__cause__ is None and cause.__context__ is None:
            break
        cause = cause.__cause__ or cause.__context__
    if file is not None and not file.read_text().strip():
        return f"{where}: the file is empty; give it a type and attributes."
    return f"{where}: {type(cause).__name__}: {cause}"


def _explain_field(error: ValidationError) -> str:
    first = error.errors()[0]
    path, line = _place(".".join(str(part) for part in first["loc"]))
    where = f", line {line}: " if line else ": "
    field = path[-1] if path else ""
    if first["type"] == "extra_forbidden":
        known = list(AirbyteConnection.model().model_fields)
        nested = [_NESTED[part] for part in path[:-1] if part in _NESTED]
        if nested:
            known = list(nested[0].model_fields)
        elif "attributes" not in path[:-1]:
            known = ["type", "attributes", "requirements", "post_processing"]
        near = difflib.get_close_matches(field, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the fields are {', '.join(known)}."
        return f"{where}there is no field '{field}'; {hint}"
    if first["type"] == "missing":
        return f"{where}the field '{field}' is missing."
    path = path[1:] if path[:1] == ["attributes"] else path
    named = f"field '{'.'.join(path)}'" if path else ""
    if first["type"] == "string_type" and isinstance(first["input"], int | float):
        return f"{where}{named} must be text; put it in quotes."
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}{named}{': ' if named else ''}{message[0].lower()}{message[1:]}."


def _place(text: str) -> tuple[list[str], str | None]:
    """The path of a field, without the types pydantic tried on the way, and its line."""
    placed = _PLACED.fullmatch(text)
    path = _TRIED.sub("", placed["path"] if placed else text).split(".")
    return [part for part in path if part], placed["line"] if placed else None


def _project_root(folder: Path) -> Path:
    """The nearest folder above that Dagster recognises as a project."""
    config = discover_config_file(folder)
    return folder if config is None else config.parent
