"""Connections without a declaration: a connector's name or image, and a config."""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

from platformdirs import user_state_dir

from atlas_dagster.config.renewable_config import FileConfigStore
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.listener import SILENT, Listener
from atlas_dagster.protocol.catalog import Catalog, ConfiguredStream, FieldPath, configure
from atlas_dagster.records.names import assign
from atlas_dagster.registry import image_name
from atlas_dagster.runners.cleanup import reap, reap_processes
from atlas_dagster.runners.docker.engine import connect
from atlas_dagster.runners.limits import ExecutorConfig, declared_defaults, executor_defaults
from atlas_dagster.runners.owner import Kind, process_has_ended, this_process
from atlas_dagster.source.connection import Connection, RunnerChoice, StreamSelection
from atlas_dagster.source.run_context import RunContext, SpecCache

#: The deployment label of their containers, because they belong to no deployment.
DEPLOYMENT = "adhoc"
#: ``source-x`` or ``source-x:1.2.3``, a connector of the registry. Other names are images.
_NAME = re.compile(r"(?P<name>[^/:@]*-[^/:@]*)(?::(?P<version>\w[\w.+-]*))?")


class AdHocConnection(Connection):
    """A connection without a declaration."""

    @property
    def where(self) -> str:
        return f"The config of {self.source_name}"


def is_adhoc(source: str) -> bool:
    """Return whether ``source`` is a connector or an image, and not the name of a connection."""
    return not re.fullmatch(r"[A-Za-z0-9_]+", source)


class RegistryName(NamedTuple):
    """A connector of the registry, and the requested version, if any."""

    name: str
    version: str | None


def parse_registry_name(source: str) -> RegistryName | None:
    """Split ``source`` into name and version; None if it is an image."""
    found = _NAME.fullmatch(source)
    return found and RegistryName(found["name"], found["version"])


def adhoc_connection(
    source: str,
    config: Mapping[str, Any],
    runner: RunnerChoice = "auto",
    *,
    validate: bool = True,
) -> AdHocConnection:
    """Make a connection for ``source``: ``source-x``, ``source-x:1.2.3`` or an image.

    Raises:
        UnknownConnectorError: the registry has no connector of this name.
        ConfigError: ``runner`` is not valid.
    """
    named = parse_registry_name(source)
    if runner not in get_args(RunnerChoice):
        raise ConfigError(
            f"There is no runner '{runner}'; choose one of {', '.join(get_args(RunnerChoice))}."
        )
    connection = AdHocConnection(
        name=_identity(source, config),
        connector=named and named.name,
        image=None if named else source,
        version=named and named.version,
        config=dict(config),
        runner=runner,
        validate_config=validate,
    )
    connection.entry()
    return connection


class AdHocConfigStore(FileConfigStore):
    """Stores renewals in the user's folder, so that renewed single-use tokens are not lost.

    The number of configs has no limit, so a config without renewals leaves no file.
    """

    def __init__(self) -> None:
        super().__init__(Path(user_state_dir("atlas-dagster")) / "renewals")

    @contextmanager
    def lock(self, connection: str, listener: Listener) -> Iterator[None]:
        """Lock ``connection``. Raises ConfigError if the folder cannot be written."""
        with super().lock(connection, listener):
            try:
                yield
            finally:
                if self.load(connection, {}) is None:
                    # A process that waits for this file notices that it was removed (filelock).
                    self._lock_path(connection).unlink(missing_ok=True)

    def _create_folder(self) -> None:
        try:
            super()._create_folder()
        except OSError as error:
            raise ConfigError(
                f"The folder {self._folder} for renewed credentials cannot be written "
                f"({error.strerror}); set XDG_STATE_HOME to a writable folder."
            ) from error


#: All sources of this process share the cached SPECs.
_SPECS = SpecCache()


def adhoc_context(
    listener: Listener = SILENT,
    *,
    kind: Kind = "command",
    environ: Mapping[str, str] = os.environ,
    limits: ExecutorConfig | None = None,
) -> RunContext:
    """Return the context of this process. Default ``limits``: those of ATLAS_EXECUTOR.

    Raises:
        ConfigError: ATLAS_EXECUTOR has an invalid limit.
    """
    return RunContext(
        deployment=DEPLOYMENT,
        owner=this_process(kind),
        environ=environ,
        configs=AdHocConfigStore(),
        limits=limits or executor_defaults(declared_defaults(os.environ)),
        listener=listener,
        specs=_SPECS,
    )


def reap_adhoc() -> list[str]:
    """Remove containers and processes of killed commands; return a description of each."""
    removed = reap_processes(deployment=DEPLOYMENT, has_ended=process_has_ended)
    try:
        client = connect()
    except AtlasError:
        return removed
    with closing(client):
        return removed + reap(client, deployment=DEPLOYMENT, has_ended=process_has_ended)


@cache
def reap_adhoc_once() -> None:
    """Call :func:`reap_adhoc`, but only once in each process."""
    reap_adhoc()


def select_streams(
    connection: Connection,
    catalog: Catalog,
    names: Collection[str],
    *,
    incremental: bool,
    cursor_field: FieldPath | None = None,
) -> list[ConfiguredStream]:
    """Configure the streams of ``catalog`` called ``names``, or all, for a READ without tables.

    ``incremental``: read incrementally if the source supports that and the cursor is known.

    Raises:
        UnknownStreamError: the source has no such stream.
        ConfigError: a stream does not support this READ.
    """
    if names:
        selections = [StreamSelection.model_validate({"name": name}) for name in names]
        connection = connection.model_copy(update={"streams": selections})
        selected = {stream.descriptor for stream in connection.configured(catalog)}
    else:
        selected = {stream.descriptor for stream in catalog.streams}
    configured = []
    for stream in catalog.streams:
        if stream.descriptor not in selected:
            continue
        is_supported = "incremental" in stream.supported_sync_modes
        cursor = cursor_field or stream.default_cursor_field or stream.source_defined_cursor
        is_incremental = incremental and is_supported and bool(cursor)
        configured.append(
            configure(
                stream,
                sync_mode="incremental" if is_incremental else None,
                destination_sync_mode="append",
                cursor_field=cursor_field if is_incremental else None,
            )
        )
    return configured


def _identity(source: str, config: Mapping[str, Any]) -> str:
    """Return a name for locks and renewals, which differs for each connector and config."""
    content = json.dumps([source, config], sort_keys=True).encode()
    name = image_name(source)
    return f"{assign([name])[name].lstrip('_')}_{hashlib.sha256(content).hexdigest()[:8]}"
