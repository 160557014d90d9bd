"""Where a connection's catalog is kept: a file in the project, or Dagster's versioned storage."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import dagster as dg
from dagster._core.definitions.definitions_load_context import (
    DefinitionsLoadContext,
    DefinitionsLoadType,
)
from dagster._core.storage.defs_state import DefsStateStorage
from dagster.components.utils.defs_state import DefsStateConfig
from dagster.components.utils.project_paths import get_local_state_path
from dagster_shared.serdes.objects.models.defs_state_info import DefsStateManagementType

from atlas_dagster.sync.discovered import Discovered


@contextmanager
def open_storage() -> Iterator[DefsStateStorage | None]:
    """Dagster's storage of definitions' state; that of the instance, where none is open yet."""
    if storage := DefsStateStorage.get():
        yield storage
    else:
        with dg.DagsterInstance.get() as instance:  # which makes it the current one
            yield instance.defs_state_storage


@contextmanager
def catalog_file(config: DefsStateConfig, project_root: Path) -> Iterator[Path | None]:
    """The newest catalog; None where there is none yet."""
    with _storage_of(config) as storage:
        newest = DefinitionsLoadContext(DefinitionsLoadType.INITIALIZATION)
        with newest.state_path(config, storage, project_root) as path:
            yield path


def known_catalog(config: DefsStateConfig, project_root: Path) -> Discovered | None:
    """Raises ConfigError where it cannot be read."""
    with catalog_file(config, project_root) as path:
        return None if path is None else Discovered.decode(path.read_bytes())


def keep_catalog(config: DefsStateConfig, project_root: Path, found: Discovered) -> None:
    """Make ``found`` the newest catalog, as `atlas discover` would have."""
    with _storage_of(config) as storage:
        if storage is None:
            path = get_local_state_path(config.key, project_root)
            path.write_bytes(found.encode())
            return
        with TemporaryDirectory() as folder:
            path = Path(folder) / "state"
            path.write_bytes(found.encode())
            storage.upload_state_from_path(config.key, str(uuid4()), path)


def _storage_of(
    config: DefsStateConfig,
) -> AbstractContextManager[DefsStateStorage | None]:
    """None for a catalog that is a file in the project."""
    is_local = config.management_type == DefsStateManagementType.LOCAL_FILESYSTEM
    return nullcontext() if is_local else open_storage()
