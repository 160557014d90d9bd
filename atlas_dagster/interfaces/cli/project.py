"""The project that ``atlas`` works in, and the connections that it declares.

Functions that need Dagster import it themselves: the import takes seconds, and many verbs do not
need it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem
from dotenv import load_dotenv

from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.interfaces.cli.output import print_note
from atlas_dagster.listener import Listener
from atlas_dagster.registry import list_connectors
from atlas_dagster.registry.catalogue import connectors_by_name, listing
from atlas_dagster.wording import closest_match

if TYPE_CHECKING:
    import dagster as dg

    from atlas_dagster.components.airbyte_connection import AirbyteConnection
    from atlas_dagster.components.loading import ProjectTree
    from atlas_dagster.orchestration.automation.cron import Schedule
    from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
    from atlas_dagster.orchestration.operations.doctor import Subject
    from atlas_dagster.source.connection import Connection
    from atlas_dagster.source.discovered_catalog import Discovered, Discovery
    from atlas_dagster.source.run_context import RunContext

_CONNECTIONS = "atlas_dagster.connections"


def find_project_folder() -> Path | None:
    """Return DAGSTER_HOME, or else the nearest folder above with a dagster.yaml."""
    here = Path.cwd()
    home = os.environ.get("DAGSTER_HOME")
    folders = [Path(home)] if home else [here, *here.parents]
    return next((folder for folder in folders if (folder / "dagster.yaml").exists()), None)


def calling_folder() -> Path:
    """Return the folder in which the user called the command."""
    context = click.get_current_context(silent=True)
    return (context and context.find_root().obj) or Path.cwd()


def enter_project() -> None:
    """Change to the project's folder, the base of Dagster's relative paths; load its ``.env``.

    As with ``dagster dev``, variables that are set already keep their values.

    Raises:
        ConfigError: there is no project folder.
    """
    context = click.get_current_context(silent=True)
    if context is not None:
        context.find_root().obj = calling_folder()
    folder = find_project_folder()
    if folder is None:
        raise ConfigError(
            "There is no dagster.yaml in this folder or a parent; run atlas in the project, or set "
            "DAGSTER_HOME."
        )
    os.environ["DAGSTER_HOME"] = str(folder)
    os.chdir(folder)
    load_dotenv(folder / ".env")


# Completion of names in the shell, without Dagster


def complete_connections(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    """Return the declared connections that begin with ``incomplete``."""
    spec = find_spec(_CONNECTIONS)
    folders = map(Path, (spec and spec.submodule_search_locations) or ())
    files = (file for folder in folders for file in sorted(folder.glob("*/defs.yaml")))
    return [file.parent.name for file in files if file.parent.name.startswith(incomplete)]


def complete_connectors(
    _: click.Context, __: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    """Return the connectors of the registry that begin with ``incomplete``."""
    return [
        CompletionItem(info.name, help=info.title)
        for info in list_connectors()
        if info.name.startswith(incomplete)
    ]


def complete_sources(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem | str]:
    """Return the connections and connectors that begin with ``incomplete``."""
    declared = complete_connections(context, parameter, incomplete)
    return declared + complete_connectors(context, parameter, incomplete)


# Declared connections


@dataclass(frozen=True)
class ProjectConnection:
    """One connection of the project: its component, or the reason why it does not load.

    ``part`` is the folder that declares it; None if it is built in Python.
    """

    name: str
    tree: ProjectTree
    part: Path | None
    loaded: AirbyteConnection | ConfigError

    @property
    def component(self) -> AirbyteConnection:
        """The component. Raises ConfigError if the declaration does not load."""
        if isinstance(self.loaded, ConfigError):
            raise self.loaded
        return self.loaded

    @property
    def connection(self) -> Connection:
        """The validated declaration. Raises ConfigError if it is wrong."""
        with self._explain_errors():
            return self.component.connection

    def parse_schedule(self) -> Schedule | None:
        """Return the schedule. Raises ConfigError if it or the connector's name is wrong."""
        with self._explain_errors():
            return self.component.parse_schedule()

    def assets(self, discovered: Discovered | None = None) -> ConnectionAssets:
        """Return its assets for the catalog ``discovered``, by default the stored one.

        Raises:
            ConfigError: the declaration is wrong, or no catalog is stored.
        """
        discovered = discovered or self.discovered
        if discovered is None:
            raise ConfigError(
                f"The streams of '{self.name}' are not known yet; run: atlas discover {self.name}"
            )
        with self._explain_errors():
            assets = self.component.define(discovered)
        if assets.problem is not None:
            raise ConfigError(assets.problem)
        return assets

    def definitions(self) -> dg.Definitions:
        """Return the definitions of its part of the project. Raises ConfigError."""
        with self._explain_errors(), self._state_storage():
            if self.part is not None:
                return self.tree.build_defs(self.part)
            return self.component.build_defs(self.tree.context_in_python)

    @property
    def discovered(self) -> Discovered | None:
        """The stored catalog."""
        with self._state_storage():
            return self.component.stored_catalog(self.tree.project_root)

    def store_catalog(self, found: Discovered) -> None:
        """Store the catalog ``found``."""
        with self._state_storage():
            self.component.store(found, self.tree.project_root)

    def discover(self, listener: Listener) -> Discovery:
        """Run DISCOVER, store the catalog with all changes, and record the result of the check."""
        from atlas_dagster.orchestration.definitions.discovery import check_result, make_evaluation
        from atlas_dagster.orchestration.step.projections import project_discovery

        _ = self.connection  # report a wrong declaration before anything runs
        with open_context(listener) as (instance, context):
            discovery = self.component.refresh_catalog(self.tree.project_root, context)
            project_discovery(instance, self.connection, discovery.found, listener.info)
            result = check_result(discovery)
            instance.report_runless_asset_event(make_evaluation(self.connection, result))
        return discovery

    def preview(self, listener: Listener) -> Discovery:
        """Run DISCOVER and store nothing."""
        from atlas_dagster.source.discovered_catalog import Discovery, discover

        with open_context(listener) as (_, context):
            known, connection = self.discovered, self.connection
            return Discovery.since(known, discover(connection, context, known), connection)

    @contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except AtlasError:
            raise
        except Exception as error:
            raise _config_error(error, self.part or Path(self.name)) from error

    @contextmanager
    def _state_storage(self) -> Iterator[None]:
        """Open Dagster's instance if catalogs are in its state storage."""
        import dagster as dg

        from atlas_dagster.orchestration.dagster_internals import DefsStateManagementType

        config = self.component.defs_state_config
        if config.management_type is DefsStateManagementType.LOCAL_FILESYSTEM:
            yield
        else:
            with dg.DagsterInstance.get():
                yield


def find_project() -> ProjectTree:
    """Return the project of the calling folder, or else that of DAGSTER_HOME.

    Raises:
        ConfigError: there is no project.
    """
    from atlas_dagster.components import loading

    enter_project()
    return loading.find_project(calling_folder(), Path.cwd())


def find_connections() -> list[ProjectConnection]:
    """Return all connections of the project, declared in its defs folder or built in Python.

    Raises:
        ConfigError: there is no project.
    """
    tree = find_project()
    found: dict[str, ProjectConnection] = {}
    for each in chain.from_iterable(_load_part(tree, part) for part in tree.parts()):
        named = found.setdefault(each.name, each)
        if named is not each and each.part and named.part:
            folder = each.part.name
            error = ConfigError(
                f"Two connections are named '{each.name}', in {named.part.name} and {folder}; "
                "rename one of them."
            )
            found[folder] = ProjectConnection(folder, tree, each.part, error)
    return [*found.values(), *_build_python_connections(tree)]


def find_connection(name: str) -> ProjectConnection:
    """Return a connection. Raises ConfigError, with the closest name, if it does not exist."""
    tree = find_project()
    # Most connections have the name of their folder, so that folder is loaded first.
    for part in (part for part in tree.parts() if part.stem == name):
        for each in _load_part(tree, part):
            if each.name == name:
                return each
    declared = {connection.name: connection for connection in find_connections()}
    if name in declared:
        return declared[name]
    near = closest_match(name, declared)
    hint = f"did you mean '{near}'?" if near else f"there are: {', '.join(declared) or 'none'}."
    if f"source-{name}" in connectors_by_name():
        hint = f"did you mean the connector source-{name}?"
    folder = tree.defs_module_name.replace(".", "/")
    raise ConfigError(f"There is no connection '{name}' in {folder}; {hint}")


def make_subject(declared: ProjectConnection) -> Subject:
    """Return the connection as ``atlas doctor`` examines it."""
    from atlas_dagster.orchestration.operations.doctor import Subject
    from atlas_dagster.source.connector_ref import ConnectorRef

    try:
        _ = declared.connection
        declared.parse_schedule()
        discovered = declared.discovered
        if discovered is not None:
            declared.assets(discovered)
        return Subject(declared.name, ConnectorRef.resolve(declared.connection), discovered)
    except AtlasError as error:
        return Subject(declared.name, None, problem=str(error))


def project_registry() -> None:
    """Write the list of connectors to the SQL tables."""
    import dagster as dg

    from atlas_dagster.orchestration.step.projections import make_projection_writer

    with dg.DagsterInstance.get() as instance:
        make_projection_writer(instance, print_note).write_registry(listing())


@contextmanager
def open_context(listener: Listener) -> Iterator[tuple[dg.DagsterInstance, RunContext]]:
    """Open Dagster's instance, and make the context of connectors that this command runs."""
    import dagster as dg

    from atlas_dagster.orchestration.definitions.resource import AtlasResource

    with dg.DagsterInstance.get() as instance:
        atlas = AtlasResource.from_environment()
        yield instance, atlas.run_context(instance, None, listener)


def _load_part(tree: ProjectTree, part: Path) -> list[ProjectConnection]:
    try:
        return [
            ProjectConnection(each.name or "", tree, part, each) for each in tree.connections(part)
        ]
    except Exception as error:  # noqa: BLE001 - a user's file may raise anything
        return [ProjectConnection(part.stem, tree, part, _config_error(error, part))]


def _build_python_connections(tree: ProjectTree) -> list[ProjectConnection]:
    """Return the connections that ``build_airbyte_assets`` builds in the project's definitions."""
    import dagster as dg

    from atlas_dagster.components.loading import find_built_connections

    with dg.DagsterInstance.get():  # catalogs may be in its state storage
        built = find_built_connections(tree)
    return [ProjectConnection(name, tree, None, component) for name, component in built.items()]


def _config_error(error: Exception, part: Path) -> ConfigError:
    from atlas_dagster.components.declaration_errors import describe_error

    return error if isinstance(error, ConfigError) else ConfigError(describe_error(error, part))
