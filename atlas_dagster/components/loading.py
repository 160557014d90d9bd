"""Load a project's definitions folder by folder, so that a broken connection affects no other.

Dagster fails the whole code location if one component fails.
"""

import atexit
import gc
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from atlas_dagster.components.airbyte_connection import AirbyteConnection
from atlas_dagster.components.declaration_errors import describe_error
from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.dagster_internals import (
    ComponentDecl,
    ComponentLoaderDecl,
    ComponentPath,
    ComponentRootDecl,
    ComponentRootLoc,
    DefinitionsLoadContext,
    DefinitionsLoadType,
    DefsFolderDecl,
    LazyDefinitions,
    ResolvableToComponentLoc,
    build_filesystem_component_decl_from_context,
    discover_config_file,
    find_defs_or_component_yaml,
    get_library_json_enriched_defs,
    safe_is_subclass,
)
from atlas_dagster.orchestration.definitions.assets import build_broken_defs
from atlas_dagster.orchestration.definitions.io_manager import IO_MANAGER_KEY, default_resources
from atlas_dagster.orchestration.operations.cleanup import reaper_sensor
from atlas_dagster.orchestration.operations.kubernetes import pod_executor
from atlas_dagster.orchestration.step.in_process_executor import connection_executor
from atlas_dagster.records.names import assign


def load_from_defs_folder(*, path_within_project: Path) -> dg.Definitions:
    """Load all definitions below the project's defs folder, like ``dagster.load_from_defs_folder``.

    A folder or file that cannot be loaded becomes an asset whose description gives the reason. The
    result includes the shared resources, and the sensor that cleans up after killed runs.
    """
    return find_project(path_within_project).build_defs()


#: The connections that this process has built in Python, by name, for ``atlas``.
BUILT: dict[str, AirbyteConnection] = {}


def build_airbyte_assets(
    *connections: AirbyteConnection,
    definitions: dg.Definitions | None = None,
    path_within_project: Path | None = None,
) -> dg.Definitions:
    """Return definitions of connections declared in Python, to merge with others of the project.

    Args:
        definitions: definitions to merge in, whose assets take streams as arguments. A stream
            that is not discovered yet gets a stand-in, because Dagster needs one.
        path_within_project: a path inside of the project, whose pyproject.toml has
            ``[tool.dg.project]``; by default the calling file. The project stores the catalogs.

    Raises:
        ConfigError: a connection is not valid, or there is no project.
    """
    calling = sys._getframe(1).f_globals.get("__file__")
    place = path_within_project or (Path(calling).absolute() if calling else Path.cwd())
    context = find_project(place).context_in_python
    with _suppress_beta_warnings():
        built = [each.build_defs(context) for each in connections]
        if definitions is not None:
            built.append(definitions)
        defs = dg.Definitions.merge(*built, _make_stand_ins(built))
    BUILT.update({connection.name or "": connection for connection in connections})
    return defs


def find_built_connections(tree: "ProjectTree") -> Mapping[str, AirbyteConnection]:
    """Return the connections that a project's definitions build in Python, by name.

    Raises:
        ConfigError: the definitions cannot be loaded.
    """
    name = f"{tree.defs_module_name.partition('.')[0]}.definitions"
    if importlib.util.find_spec(name) is None:
        return {}
    try:
        for each in vars(importlib.import_module(name)).values():
            if isinstance(each, LazyDefinitions) and not each.has_context_arg:
                each()
    except Exception as error:
        raise ConfigError(f"{name} cannot be loaded: {error}") from error
    return BUILT


def find_project(*paths_within_project: Path) -> "ProjectTree":
    """Return the project of the first path that is inside of one, and make it importable.

    Raises:
        ConfigError: no path is inside of a project.
    """
    config = next(filter(None, map(discover_config_file, paths_within_project)), None)
    if config is None:
        raise ConfigError(
            f"{paths_within_project[0]} is not in a Dagster project, which holds connections and "
            "their catalogs: add [tool.dg.project] to its pyproject.toml, with "
            'root_module = "the name of your package".'
        )
    # As in `dagster dev`; the package need not be installed.
    for folder in (config.parent / "src", config.parent):
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    try:
        return ProjectTree.for_project(config.parent)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The Dagster project in {config.parent} has no package {error.name} for "
            "connections and their catalogs: create that folder, or set another one "
            f"as defs_module under [tool.dg.project] in {config.name}."
        ) from error


class ProjectTree(dg.ComponentTree):
    """A project's components. Each of its parts (folders and Python files) loads separately."""

    def parts(self) -> list[Path]:
        """Return the folders with declarations, in YAML or Python, and Python files beside them."""
        root = self.defs_module_path
        return [root] if find_defs_or_component_yaml(root) else list(_find_parts(root))

    @property
    def context_in_python(self) -> dg.ComponentLoadContext:
        """The context of a component that no file below the defs folder declares."""
        empty = ComponentRootDecl(context=self.decl_load_context, loc=ComponentRootLoc(), decls=[])
        return dg.ComponentLoadContext.from_decl_load_context(self.decl_load_context, empty)

    def build_defs(self, loc: ResolvableToComponentLoc | None = None) -> dg.Definitions:
        """Return all definitions, or only those of the part ``loc``, which may raise."""
        if loc is not None:
            if isinstance(loc, Path):
                self.declaration(loc)
            with _suppress_beta_warnings():
                return super().build_defs(loc)
        with _exclude_from_collection():
            merged = _merge(self._build_separately(self.build_defs))
            if not _is_loadable(merged):
                # Definitions resolve lazily: resolve each part alone to find the broken one.
                merged = _merge(self._build_separately(self._build_and_validate))
            return dg.Definitions.merge(merged, self._describe_types())

    def declaration(self, part: Path) -> ComponentDecl:  # type: ignore[type-arg]
        """Return the declaration of ``part``, read but not loaded.

        Raises:
            ConfigError: the part declares nothing.
        """
        loc = ComponentPath.from_path(part)
        found = self.state_tracker.get_cache_data(loc).component_decl
        if found is None:
            context = self.decl_load_context.for_component_loc(loc)
            found = build_filesystem_component_decl_from_context(context)
            if found is None:
                raise ConfigError(
                    f"The folder {part.name} has no defs.yaml; add one, or remove the folder."
                )
            for each, declared in found.iterate_loc_component_decl_pairs():
                self.state_tracker.set_cache_data(each, component_decl=declared)
        return found

    def connections(self, part: Path) -> list[AirbyteConnection]:
        """Return the connections that ``part`` declares. Raises any error of loading them."""
        found = []
        for loc, declared in self.declaration(part).iterate_loc_component_decl_pairs():
            is_function = isinstance(declared, ComponentLoaderDecl)
            if is_function or safe_is_subclass(declared.component_type, AirbyteConnection):
                component = self.load_component(loc)
                if isinstance(component, AirbyteConnection):
                    component.set_location(loc)
                    found.append(component)
        return found

    @contextmanager
    def augment_component_tree_exception(
        self,
        loc: ResolvableToComponentLoc,  # noqa: ARG002
        msg_for_key: Callable[[str], str],  # noqa: ARG002
    ) -> Iterator[None]:
        """Let errors pass unchanged; a placeholder describes them.

        Dagster's method adds a drawing of the whole tree to the message of each error, and loads
        all components for it.
        """
        yield

    def _get_filesystem_decl(self) -> ComponentDecl:  # type: ignore[type-arg]
        # Dagster's method fails if one file cannot be read. The code server loads all components
        # of the result, so it has only those that can be loaded.
        root = self.defs_module_path
        if find_defs_or_component_yaml(root):
            return self.declaration(root)
        readable = {}
        for part in self.parts():
            with suppress(Exception):  # the part's placeholder describes the error
                declared = self.declaration(part)
                for each, _ in declared.iterate_loc_component_decl_pairs():
                    self.load_component(each)
                readable[part] = declared
        loc = ComponentPath.from_path(root)
        return DefsFolderDecl(
            context=self.decl_load_context.for_component_loc(loc),
            loc=loc,
            children=readable,
            source_tree=None,
            component_file_model=None,
        )

    def _build_separately(self, build: Callable[[Path], dg.Definitions]) -> list[dg.Definitions]:
        """Build each part; a part that defines an asset of another part becomes a placeholder."""
        loaded = []
        owners: dict[dg.AssetKey, Path] = {}
        for part in self.parts():
            defs = self._build_or_placeholder(part, build)
            keys = _defined_keys([defs])
            twice = min(keys & owners.keys(), default=None)
            if twice is not None:
                defs = self._placeholder(
                    part,
                    f"{part.name}: {owners[twice].name} defines the asset "
                    f"{twice.to_user_string()}, too; rename one of them.",
                )
                keys = _defined_keys([defs])
            owners.update(dict.fromkeys(keys, part))
            loaded.append(defs)
        return loaded

    def _build_or_placeholder(
        self, part: Path, build: Callable[[Path], dg.Definitions]
    ) -> dg.Definitions:
        """Build ``part``; if that raises, return a placeholder with the reason."""
        try:
            return build(part)
        except Exception as error:  # noqa: BLE001 - a user's folder may raise anything
            return self._placeholder(part, describe_error(error, part))

    def _placeholder(self, part: Path, sentence: str) -> dg.Definitions:
        dg.get_dagster_logger().error("%s: %s", part.name, sentence)
        return build_broken_defs(self._placeholder_names[part], sentence)

    def _build_and_validate(self, part: Path) -> dg.Definitions:
        defs = self.build_defs(part)
        _validate(_merge([defs]))
        return defs

    @cached_property
    def _placeholder_names(self) -> dict[Path, str]:
        """The names of the placeholders, by part."""
        parts = {part: str(part.relative_to(self.defs_module_path)) for part in self.parts()}
        names = assign(parts.values())
        return {part: names[path] for part, path in parts.items()}

    def _describe_types(self) -> dg.Definitions:
        """Return the component types for the UI. Runs skip them, because they take time."""
        if DefinitionsLoadContext.get().load_type is DefinitionsLoadType.RECONSTRUCTION:
            return dg.Definitions(component_tree=self)
        return get_library_json_enriched_defs(self)


def _find_parts(folder: Path) -> Iterator[Path]:
    for child in sorted(folder.iterdir()):
        if child.name.startswith((".", "__")):
            continue
        if child.suffix == ".py":
            yield child
        elif child.is_dir():
            inner = list(_find_parts(child))
            declares = find_defs_or_component_yaml(child) or any(child.glob("*.py"))
            yield from [child] if declares or not inner else inner


def _merge(loaded: Sequence[dg.Definitions]) -> dg.Definitions:
    """Merge definitions with the resources, sensor and executor that all connections share."""
    shared = dg.Definitions(
        resources=default_resources(),
        sensors=[reaper_sensor],
        executor=None if any(defs.executor for defs in loaded) else _choose_executor(loaded),
    )
    return dg.Definitions.merge(*loaded, _make_stand_ins(loaded), shared)


def _choose_executor(loaded: Sequence[dg.Definitions]) -> dg.ExecutorDefinition:
    """Return the executor of all runs. It starts pods if a connection has runner: kubernetes."""
    return pod_executor(_iterate_assets(loaded)) or connection_executor


def _iterate_assets(loaded: Sequence[dg.Definitions]) -> Iterator[Any]:
    return (asset for defs in loaded for asset in defs.assets or ())


def _defined_keys(loaded: Sequence[dg.Definitions]) -> set[dg.AssetKey]:
    keys: set[dg.AssetKey] = set()
    for asset in _iterate_assets(loaded):
        match asset:
            case dg.AssetsDefinition():
                keys.update(asset.keys)
            case dg.AssetSpec():
                keys.add(asset.key)
    return keys


def _make_stand_ins(loaded: Sequence[dg.Definitions]) -> dg.Definitions:
    """Return stand-ins for streams that ``loaded`` takes as arguments but does not define.

    Without them, Dagster would reject all definitions because of one connection that is broken or
    not discovered yet. The rows of its last sync can still be read.
    """
    taken: set[dg.AssetKey] = set()
    for asset in _iterate_assets(loaded):
        if isinstance(asset, dg.AssetsDefinition):
            taken.update(asset.keys_by_input_name.values())
    stand_ins = [dg.AssetSpec(key) for key in sorted(taken - _defined_keys(loaded))]
    return dg.Definitions(assets=[spec.with_io_manager_key(IO_MANAGER_KEY) for spec in stand_ins])


def _validate(defs: dg.Definitions) -> None:
    with _suppress_beta_warnings():
        dg.Definitions.validate_loadable(defs)


def _is_loadable(defs: dg.Definitions) -> bool:
    try:
        _validate(defs)
    except Exception:  # noqa: BLE001 - a user's definitions may raise anything
        return False
    return True


@contextmanager
def _exclude_from_collection() -> Iterator[None]:
    """Exclude the objects that the block creates from garbage collection.

    Millions of them live as long as the process. To traverse them takes as long as to create them.
    """
    gc.unfreeze()  # objects of an earlier load are garbage now
    # Some libraries warn at exit about objects that are not collected.
    atexit.register(gc.unfreeze)
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def _suppress_beta_warnings() -> Iterator[None]:
    """Suppress Dagster's warnings about beta and preview features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        yield
