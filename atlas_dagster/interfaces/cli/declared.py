"""Declared connections, as the command line sees them."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import dagster as dg

from atlas_dagster.components.airbyte_connection import AirbyteConnection
from atlas_dagster.components.explaining import explain
from atlas_dagster.components.loading import ProjectTree, built_connections, find_project
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.interfaces.cli.output import note, warn
from atlas_dagster.interfaces.cli.project import called_in, enter_project
from atlas_dagster.orchestration.automation.cron import Schedule
from atlas_dagster.orchestration.dagster_internals import DefsStateManagementType
from atlas_dagster.orchestration.definitions.discovery import check_result, evaluation
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.translator import ConnectionAssets
from atlas_dagster.orchestration.operations.doctor import Subject
from atlas_dagster.orchestration.step.projections import books_of
from atlas_dagster.registry.catalogue import connectors_by_name, listing
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector_ref import ConnectorRef
from atlas_dagster.source.discovered_catalog import Discovered, Discovery
from atlas_dagster.source.invocation import Log
from atlas_dagster.source.open import Caller, discover
from atlas_dagster.wording import closest_match

Say = Callable[[str], None]

# What it says about loading is for servers.
logging.getLogger("dagster").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class ProjectConnection:
    """One connection of the project: the component, or why it cannot be loaded.

    ``part`` of the project declares it; None where it is built in Python.
    """

    name: str
    tree: ProjectTree
    part: Path | None
    loaded: AirbyteConnection | ConfigError

    @property
    def component(self) -> AirbyteConnection:
        """Raises ConfigError where the declaration cannot be loaded."""
        if isinstance(self.loaded, ConfigError):
            raise self.loaded
        return self.loaded

    @property
    def connection(self) -> Connection:
        """Raises ConfigError where the declaration is wrong."""
        with self._explained():
            return self.component.connection

    def times(self) -> Schedule | None:
        """When to sync. Raises ConfigError where that, or the connector's name, is wrong."""
        with self._explained():
            return self.component.times()

    def defined(self) -> ConnectionAssets:
        """As Dagster knows it.

        Raises:
            ConfigError: the declaration is wrong, or the streams are not known yet.
        """
        discovered = self.discovered
        if discovered is None:
            raise ConfigError(
                f"The streams of '{self.name}' are not known yet; run: atlas discover {self.name}"
            )
        return self.defined_by(discovered)

    def defined_by(self, discovered: Discovered) -> ConnectionAssets:
        """As Dagster knows it with what was ``discovered``. Raises ConfigError."""
        with self._explained():
            defined = self.component.define(discovered)
        if defined.problem is not None:
            raise ConfigError(defined.problem)
        return defined

    def definitions(self) -> dg.Definitions:
        """Its assets, and what else is declared beside it. Raises ConfigError."""
        with self._explained(), self._state_storage():
            if self.part is not None:
                return self.tree.build_defs(self.part)
            return self.component.build_defs(self.tree.context_in_python)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except AtlasError:
            raise
        except Exception as error:
            raise _explained(error, self.part or Path(self.name)) from error

    @property
    def discovered(self) -> Discovered | None:
        with self._state_storage():
            return self.component.known(self.tree.project_root)

    @property
    def is_discovered(self) -> bool:
        return self.discovered is not None

    def keep(self, found: Discovered) -> None:
        """Cache what DISCOVER found."""
        with self._state_storage():
            self.component.keep(found, self.tree.project_root)

    @contextmanager
    def _state_storage(self) -> Iterator[None]:
        """With Dagster's own, where catalogs are kept there; it comes with its instance."""
        config = self.component.defs_state_config
        if config.management_type is DefsStateManagementType.LOCAL_FILESYSTEM:
            yield
        else:
            with dg.DagsterInstance.get():
                yield


def declared_connections() -> list[ProjectConnection]:
    """All of the project: in its defs folder, and those its definitions build in Python.

    Raises:
        ConfigError: there is no project.
    """
    tree = project()
    found: dict[str, ProjectConnection] = {}
    for each in chain.from_iterable(_in_part(tree, part) for part in tree.parts()):
        named = found.setdefault(each.name, each)
        if named is not each and each.part and named.part:
            folder = each.part.name
            found[folder] = ProjectConnection(
                folder,
                tree,
                each.part,
                ConfigError(
                    f"There are two connections named '{each.name}', in {named.part.name} and "
                    f"{folder}; give one of them another name."
                ),
            )
    return [*found.values(), *_in_python(tree)]


def connections_folder() -> Path:
    """Where connections are declared, a folder each."""
    return project().defs_module_path


def note_listing() -> None:
    """Write the list of connectors down for SQL."""
    with dg.DagsterInstance.get() as instance:
        books_of(instance, note).listed(listing())


def subject_of(declared: ProjectConnection) -> Subject:
    """The connection as the doctor sees it."""
    try:
        _ = declared.connection
        declared.times()
        discovered = declared.discovered
        if discovered is not None:
            declared.defined_by(discovered)
        return Subject(declared.name, ConnectorRef.resolve(declared.connection), discovered)
    except AtlasError as error:
        return Subject(declared.name, None, wrong=str(error))


def find_declared(name: str) -> ProjectConnection:
    """Raises ConfigError, with the nearest names, where there is no such connection."""
    tree = project()
    # Most are named after their folder, and need not be looked for.
    for part in (part for part in tree.parts() if part.stem == name):
        for each in _in_part(tree, part):
            if each.name == name:
                return each
    declared = {connection.name: connection for connection in declared_connections()}
    if name in declared:
        return declared[name]
    near = closest_match(name, declared)
    hint = f"did you mean '{near}'?" if near else f"there are: {', '.join(declared) or 'none'}."
    if f"source-{name}" in connectors_by_name():
        hint = f"did you mean the connector source-{name}?"
    folder = tree.defs_module_name.replace(".", "/")
    raise ConfigError(f"There is no connection '{name}' in {folder}; {hint}")


def project() -> ProjectTree:
    """The project around the folder the command was called in, or else around DAGSTER_HOME.

    Raises:
        ConfigError: there is none.
    """
    enter_project()
    return find_project(called_in(), Path.cwd())


def _in_part(tree: ProjectTree, part: Path) -> list[ProjectConnection]:
    try:
        return [
            ProjectConnection(each.name or "", tree, part, each) for each in tree.connections(part)
        ]
    except Exception as error:  # noqa: BLE001 - whatever a user's file raises
        return [ProjectConnection(part.stem, tree, part, _explained(error, part))]


def _in_python(tree: ProjectTree) -> list[ProjectConnection]:
    """Those that ``build_airbyte_assets`` builds where the project's definitions are."""
    with dg.DagsterInstance.get():  # where catalogs may be
        built = built_connections(tree)
    return [ProjectConnection(name, tree, None, component) for name, component in built.items()]


def _explained(error: Exception, part: Path) -> ConfigError:
    return error if isinstance(error, ConfigError) else ConfigError(explain(error, part))


def discover_catalog(declared: ProjectConnection, say: Say, log: Log) -> Discovery:
    """Run DISCOVER, store the catalog with all changes in it, and record what came of it."""
    _ = declared.connection  # says what is wrong with it before anything is run
    with _caller(say, log) as (instance, caller):
        discovery = declared.component.refresh_catalog(declared.tree.project_root, caller)
        result = check_result(discovery)
        instance.report_runless_asset_event(evaluation(declared.connection, result))
    return discovery


def preview_catalog(declared: ProjectConnection, say: Say, log: Log) -> Discovery:
    """Run DISCOVER and store nothing."""
    with _caller(say, log) as (_, caller):
        known, connection = declared.discovered, declared.connection
        caller.books = None
        return Discovery.since(known, discover(connection, caller, known), connection)


@contextmanager
def _caller(say: Say, log: Log) -> Iterator[tuple[dg.DagsterInstance, Caller]]:
    with dg.DagsterInstance.get() as instance:
        atlas = AtlasResource.from_environment()
        yield instance, atlas.caller(instance, None, explain=say, log=log, warn=warn)
