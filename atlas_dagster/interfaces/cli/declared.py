"""Declared connections, as the command line sees them."""

import difflib
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import dagster as dg

from atlas_dagster.components.airbyte_connection import AirbyteConnection
from atlas_dagster.components.catalogs import (
    catalog_file,
    keep_catalog,
    known_catalog,
    open_storage,
)
from atlas_dagster.components.loading import (
    build_quietly,
    component_tree,
    connection_folders,
    explain,
    find_component,
)
from atlas_dagster.definitions import CONNECTIONS
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.interfaces.cli.project import enter_project
from atlas_dagster.interfaces.cli.terminal import note
from atlas_dagster.orchestration.bookkeeping import books_of
from atlas_dagster.orchestration.checkup import Subject
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.registry.listing import listing
from atlas_dagster.sync.connection import Connection
from atlas_dagster.sync.discovered import Discovered
from atlas_dagster.sync.source import Caller

Say = Callable[[str], None]

# What it says about loading is for servers.
logging.getLogger("dagster").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Declared:
    """One connection of the project."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def tree(self) -> dg.ComponentTree:
        """Raises ConfigError where the folder cannot be a connection."""
        return component_tree(CONNECTIONS, self.folder)

    @property
    def component(self) -> AirbyteConnection:
        """Raises ConfigError where the declaration cannot be loaded."""
        with self._explained():
            found = find_component(self.tree)
        if found is None:
            raise ConfigError(f"The folder {self.name} declares no AirbyteConnection.")
        return found

    @property
    def connection(self) -> Connection:
        """Raises ConfigError where the declaration is wrong."""
        with self._explained():
            return self.component.connection

    def definitions(self) -> dg.Definitions:
        """Its assets alone. Raises ConfigError where the declaration is wrong."""
        with self._explained(), open_storage():
            return build_quietly(self.tree)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except AtlasError:
            raise
        except Exception as error:
            raise ConfigError(explain(error, self.folder)) from error

    @property
    def discovered(self) -> Discovered | None:
        return known_catalog(self.component.defs_state_config, self.tree.project_root)

    @property
    def is_discovered(self) -> bool:
        """Also where what is known cannot be read."""
        with catalog_file(self.component.defs_state_config, self.tree.project_root) as path:
            return path is not None

    def keep(self, found: Discovered) -> None:
        """Cache what DISCOVER found."""
        keep_catalog(self.component.defs_state_config, self.tree.project_root, found)


def declared_connections() -> list[Declared]:
    """In order of their names. Raises ConfigError outside of a project."""
    enter_project()
    return [Declared(folder) for folder in connection_folders(CONNECTIONS)]


def connections_folder() -> Path:
    """Where connections are declared, a folder each."""
    return Path(next(iter(importlib.import_module(CONNECTIONS).__path__)))


def note_listing() -> None:
    """Write the list of connectors down for SQL."""
    with dg.DagsterInstance.get() as instance:
        books_of(instance, note).listed(listing())


def subject_of(declared: Declared) -> Subject:
    """The connection as the doctor sees it."""
    try:
        return Subject(declared.name, declared.connection, declared.discovered)
    except ConfigError as error:
        return Subject(declared.name, None, wrong=str(error))


def find_declared(name: str) -> Declared:
    """Raises ConfigError, with the nearest names, where there is no such connection."""
    declared = {connection.name: connection for connection in declared_connections()}
    if name in declared:
        return declared[name]
    near = difflib.get_close_matches(name, declared, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(declared) or 'none'}."
    raise ConfigError(f"There is no connection '{name}' in atlas_dagster/connections; {hint}")


def discover_catalog(declared: Declared, say: Say) -> Discovered:
    """Run DISCOVER and store the catalog."""
    _ = declared.connection  # says what is wrong with it before anything is run
    with _caller(say) as caller:
        declared.component.refresh_catalog(declared.tree.project_root, caller)
    found = declared.discovered
    assert found is not None
    return found


def discovered_or_told(declared: Declared) -> Discovered:
    """Raises ConfigError where the streams are not known yet."""
    return known_or_told(declared.name, declared.discovered)


def known_or_told(name: str, discovered: Discovered | None) -> Discovered:
    """Raises ConfigError where there is nothing known."""
    if discovered is None:
        raise ConfigError(f"The streams of '{name}' are not known yet; run: atlas discover {name}")
    return discovered


@contextmanager
def _caller(say: Say) -> Iterator[Caller]:
    with dg.DagsterInstance.get() as instance:
        yield AtlasResource.from_environment().caller(
            instance, None, explain=say, log=lambda *_: None
        )
