"""A project's definitions, loaded folder by folder, so that a broken connection stands alone.

Dagster itself fails the whole code location when one component does.
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
    """Everything below the project's defs folder, like ``dagster.load_from_defs_folder``.

    But a folder or file that cannot be loaded becomes an asset that says why. With it come the
    resources that all connections share and the sensor that removes what killed runs left.
    """
    return find_project(path_within_project).build_defs()


#: What this process has built for itself, by name: ``atlas`` finds connections here, too.
BUILT: dict[str, AirbyteConnection] = {}


def build_airbyte_assets(
    *connections: AirbyteConnection,
    definitions: dg.Definitions | None = None,
    path_within_project: Path | None = None,
) -> dg.Definitions:
    """Definitions of connections declared in Python, to merge with others of the project.

    Args:
        definitions: Yours that take streams as arguments, merged in. A stream that is not
            discovered yet has a stand-in, without which Dagster would refuse them.
        path_within_project: The project, whose file says ``[tool.dg.project]``, is around it; by
            default, around the file that calls. It keeps what DISCOVER finds.

    Raises:
        ConfigError: a connection is wrong, or there is no project.
    """
    calling = sys._getframe(1).f_globals.get("__file__")
    place = path_within_project or (Path(calling).absolute() if calling else Path.cwd())
    context = find_project(place).context_in_python
    with _no_beta_warnings():
        made = [each.build_defs(context) for each in connections]
        if definitions is not None:
            made.append(definitions)
        defs = dg.Definitions.merge(*made, _upstream(made))
    BUILT.update({connection.name or "": connection for connection in connections})
    return defs


def built_connections(tree: "ProjectTree") -> Mapping[str, AirbyteConnection]:
    """By name, those that the definitions of a project build in Python.

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
    """The project around the first of some paths that is in one; its package can be imported.

    Raises:
        ConfigError: none of them is.
    """
    config = next(filter(None, map(discover_config_file, paths_within_project)), None)
    if config is None:
        raise ConfigError(
            f"There is no Dagster project around {paths_within_project[0]}, to declare connections "
            "in and to keep what is discovered: add [tool.dg.project] to its pyproject.toml, with "
            'root_module = "the name of your package".'
        )
    # As `dagster dev` does; a package need not be installed.
    for folder in (config.parent / "src", config.parent):
        if folder.is_dir() and str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    try:
        return ProjectTree.for_project(config.parent)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"The Dagster project in {config.parent} has no package {error.name}, to declare "
            "connections in and to keep what is discovered: make that folder, or name another one "
            f"as defs_module under [tool.dg.project] in {config.name}."
        ) from error


class ProjectTree(dg.ComponentTree):
    """A project's components. Each of its parts, folders and Python files, loads for itself."""

    def parts(self) -> list[Path]:
        """Folders that declare something, in YAML or Python, and Python files beside them."""
        root = self.defs_module_path
        return [root] if find_defs_or_component_yaml(root) else list(_parts(root))

    @property
    def context_in_python(self) -> dg.ComponentLoadContext:
        """That of a component which no file below the defs folder declares."""
        nothing = ComponentRootDecl(
            context=self.decl_load_context, loc=ComponentRootLoc(), decls=[]
        )
        return dg.ComponentLoadContext.from_decl_load_context(self.decl_load_context, nothing)

    def build_defs(self, loc: ResolvableToComponentLoc | None = None) -> dg.Definitions:
        """All definitions; or those of the part ``loc`` alone, and whatever it raises."""
        if loc is not None:
            if isinstance(loc, Path):
                self.declaration(loc)
            with _no_beta_warnings():
                return super().build_defs(loc)
        with _no_garbage():
            whole = _merged(self._apart(self.build_defs))
            if not _is_loadable(whole):
                # Definitions resolve lazily; whose fault it is shows when each is resolved alone.
                whole = _merged(self._apart(self._validated))
            return dg.Definitions.merge(whole, self._descriptions())

    def declaration(self, part: Path) -> ComponentDecl:  # type: ignore[type-arg]
        """What ``part`` declares, read but not loaded.

        Raises:
            ConfigError: it declares nothing.
        """
        loc = ComponentPath.from_path(part)
        known = self.state_tracker.get_cache_data(loc).component_decl
        if known is None:
            context = self.decl_load_context.for_component_loc(loc)
            known = build_filesystem_component_decl_from_context(context)
            if known is None:
                raise ConfigError(
                    f"The folder {part.name} holds no defs.yaml; add one or remove it."
                )
            for each, declared in known.iterate_loc_component_decl_pairs():
                self.state_tracker.set_cache_data(each, component_decl=declared)
        return known

    def connections(self, part: Path) -> list[AirbyteConnection]:
        """The connections that ``part`` declares. Raises whatever loading them does."""
        found = []
        for loc, declared in self.declaration(part).iterate_loc_component_decl_pairs():
            made = isinstance(declared, ComponentLoaderDecl)
            if made or safe_is_subclass(declared.component_type, AirbyteConnection):
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
        """Let errors pass as they are: a placeholder or a sentence tells them.

        Dagster's own method draws the whole tree into the message. To draw it, it loads all
        components, and draws the tree again for each of them that fails.
        """
        yield

    def _get_filesystem_decl(self) -> ComponentDecl:  # type: ignore[type-arg]
        # Dagster's own reads all files, and none if one of them cannot be read. The code server
        # loads the components of what is listed here, so those that cannot be loaded are not.
        root = self.defs_module_path
        if find_defs_or_component_yaml(root):
            return self.declaration(root)
        readable = {}
        for part in self.parts():
            with suppress(Exception):  # said by the asset that stands for it
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

    def _apart(self, build: Callable[[Path], dg.Definitions]) -> list[dg.Definitions]:
        """What ``build`` makes of each part; a placeholder for one that defines another's asset."""
        loaded = []
        owners: dict[dg.AssetKey, Path] = {}
        for part in self.parts():
            defs = self._contained(part, build)
            keys = _defined_keys([defs])
            twice = min(keys & owners.keys(), default=None)
            if twice is not None:
                defs = self._placeholder(
                    part,
                    f"{part.name}: {owners[twice].name} defines the asset "
                    f"{twice.to_user_string()}, too; give one of the two another name.",
                )
                keys = _defined_keys([defs])
            owners.update(dict.fromkeys(keys, part))
            loaded.append(defs)
        return loaded

    def _contained(self, part: Path, build: Callable[[Path], dg.Definitions]) -> dg.Definitions:
        """What ``build`` makes of ``part``; a placeholder that says why where it raises."""
        try:
            return build(part)
        except Exception as error:  # noqa: BLE001 - whatever a user's folder raises
            return self._placeholder(part, describe_error(error, part))

    def _placeholder(self, part: Path, sentence: str) -> dg.Definitions:
        dg.get_dagster_logger().error("%s: %s", part.name, sentence)
        return build_broken_defs(self._names[part], sentence)

    def _validated(self, part: Path) -> dg.Definitions:
        defs = self.build_defs(part)
        _validate(_merged([defs]))
        return defs

    @cached_property
    def _names(self) -> dict[Path, str]:
        """A valid name for each part."""
        parts = {part: str(part.relative_to(self.defs_module_path)) for part in self.parts()}
        names = assign(parts.values())
        return {part: names[path] for part, path in parts.items()}

    def _descriptions(self) -> dg.Definitions:
        """What the UI shows of component types. Runs have no use for it, and it takes time."""
        if DefinitionsLoadContext.get().load_type is DefinitionsLoadType.RECONSTRUCTION:
            return dg.Definitions(component_tree=self)
        return get_library_json_enriched_defs(self)


def _parts(folder: Path) -> Iterator[Path]:
    for child in sorted(folder.iterdir()):
        if child.name.startswith((".", "__")):
            continue
        if child.suffix == ".py":
            yield child
        elif child.is_dir():
            inner = list(_parts(child))
            declares = find_defs_or_component_yaml(child) or any(child.glob("*.py"))
            yield from [child] if declares or not inner else inner


def _merged(loaded: Sequence[dg.Definitions]) -> dg.Definitions:
    """With what all connections share."""
    shared = dg.Definitions(
        resources=default_resources(),
        sensors=[reaper_sensor],
        executor=None if any(defs.executor for defs in loaded) else _executor(loaded),
    )
    return dg.Definitions.merge(*loaded, _upstream(loaded), shared)


def _executor(loaded: Sequence[dg.Definitions]) -> dg.ExecutorDefinition:
    """Of all runs: in pods, where a connection has its connector in the pods of its steps."""
    return pod_executor(_assets(loaded)) or connection_executor


def _assets(loaded: Sequence[dg.Definitions]) -> Iterator[Any]:
    return (asset for defs in loaded for asset in defs.assets or ())


def _defined_keys(loaded: Sequence[dg.Definitions]) -> set[dg.AssetKey]:
    keys: set[dg.AssetKey] = set()
    for asset in _assets(loaded):
        match asset:
            case dg.AssetsDefinition():
                keys.update(asset.keys)
            case dg.AssetSpec():
                keys.add(asset.key)
    return keys


def _upstream(loaded: Sequence[dg.Definitions]) -> dg.Definitions:
    """Stand-ins for the streams that ``loaded`` takes as arguments and does not define.

    Dagster would refuse everything for the sake of a connection that is broken or not discovered
    yet; the rows of its last sync are still there.
    """
    taken: set[dg.AssetKey] = set()
    for asset in _assets(loaded):
        if isinstance(asset, dg.AssetsDefinition):
            taken.update(asset.keys_by_input_name.values())
    stand_ins = [dg.AssetSpec(key) for key in sorted(taken - _defined_keys(loaded))]
    return dg.Definitions(assets=[spec.with_io_manager_key(IO_MANAGER_KEY) for spec in stand_ins])


def _validate(defs: dg.Definitions) -> None:
    with _no_beta_warnings():
        dg.Definitions.validate_loadable(defs)


def _is_loadable(defs: dg.Definitions) -> bool:
    try:
        _validate(defs)
    except Exception:  # noqa: BLE001 - whatever a user's definitions raise
        return False
    return True


@contextmanager
def _no_garbage() -> Iterator[None]:
    """For a while that makes millions of objects which stay as long as the process.

    The garbage collector would look at them again and again, then and ever after, which takes as
    long as making them.
    """
    gc.unfreeze()  # those of a load before are garbage now
    # At the end of the process some libraries complain of what was not collected.
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
def _no_beta_warnings() -> Iterator[None]:
    """Without Dagster's warnings about its own features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        yield
