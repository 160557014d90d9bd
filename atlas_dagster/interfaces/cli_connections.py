"""Declared connections, as the command line sees them."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import dagster as dg
from dagster.components.utils.project_paths import get_local_state_path

from atlas_dagster.components.airbyte_connection import AirbyteConnection
from atlas_dagster.components.loading import (
    build_quietly,
    component_tree,
    connection_folders,
    explain,
    find_component,
)
from atlas_dagster.definitions import CONNECTIONS
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.sync.connection import Connection
from atlas_dagster.sync.discovered import Discovered
from atlas_dagster.sync.source import Caller, connected

Say = Callable[[str], None]


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
        with self._explained():
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
        path = self._catalog_path()
        return Discovered.decode(path.read_bytes()) if path.exists() else None

    @property
    def is_discovered(self) -> bool:
        return self._catalog_path().exists()

    def _catalog_path(self) -> Path:
        key = self.component.defs_state_config.key
        return get_local_state_path(key, self.tree.project_root)


def declared_connections() -> list[Declared]:
    return [Declared(folder) for folder in connection_folders(CONNECTIONS)]


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
    discovered = declared.discovered
    if discovered is None:
        raise ConfigError(
            f"The streams of '{declared.name}' are not known yet; "
            f"run: atlas discover {declared.name}"
        )
    return discovered


def check_connection(declared: Declared, say: Say) -> None:
    """Run CHECK. Raises AtlasError unless it passes."""
    discovered = discovered_or_told(declared)
    with (
        _caller(say) as caller,
        connected(declared.connection, caller, discovered.spec_schema) as connector,
    ):
        connector.check()


@contextmanager
def _caller(say: Say) -> Iterator[Caller]:
    with dg.DagsterInstance.get() as instance:
        yield AtlasResource.from_environment().caller(
            instance, None, explain=say, log=lambda *_: None
        )
