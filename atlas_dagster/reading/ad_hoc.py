"""Connectors used without a declaration: by their name or image, with a config as it is given."""

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

#: What such connectors run under; there is no deployment.
DEPLOYMENT = "adhoc"
#: ``source-x`` or ``source-x:1.2.3``: a connector of the registry. Anything else is an image.
_NAME = re.compile(r"(?P<name>[^/:@]*-[^/:@]*)(?::(?P<version>\w[\w.+-]*))?")


class AdHocConnection(Connection):
    """A connection that is not declared anywhere."""

    @property
    def where(self) -> str:
        return f"The config of {self.source_name}"


def is_adhoc(source: str) -> bool:
    """Whether ``source`` names a connector or an image; a declared connection's name is plain."""
    return not re.fullmatch(r"[A-Za-z0-9_]+", source)


class RegistryName(NamedTuple):
    """A connector of the registry, and the version asked for, if any."""

    name: str
    version: str | None


def registry_name(source: str) -> RegistryName | None:
    """``source`` as the name of a connector; None where it is an image."""
    found = _NAME.fullmatch(source)
    return found and RegistryName(found["name"], found["version"])


def adhoc_connection(
    source: str,
    config: Mapping[str, Any],
    runner: RunnerChoice = "auto",
    *,
    validate: bool = True,
) -> AdHocConnection:
    """What ``source`` says: ``source-x``, ``source-x:1.2.3``, ``source-x:latest`` or an image.

    Raises:
        UnknownConnectorError: it looks like a connector's name, and there is none such.
        ConfigError: there is no such ``runner``.
    """
    named = registry_name(source)
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
    """Single-use tokens that a connector renewed must be there the next time.

    There may be ever new configs, so of one without renewals nothing stays.
    """

    def __init__(self) -> None:
        super().__init__(Path(user_state_dir("atlas-dagster")) / "renewals")

    @contextmanager
    def lock(self, connection: str, listener: Listener) -> Iterator[None]:
        """Raises ConfigError where the folder cannot be written."""
        with super().lock(connection, listener):
            try:
                yield
            finally:
                if self.load(connection, {}) is None:
                    # Who waits for this very file finds that it has no name any more (filelock).
                    self._lock_path(connection).unlink(missing_ok=True)

    def _create_folder(self) -> None:
        try:
            super()._create_folder()
        except OSError as error:
            raise ConfigError(
                f"{self._folder}, where renewed credentials are kept, cannot be written "
                f"({error.strerror}); set XDG_STATE_HOME to a folder that can."
            ) from error


#: A connector's SPEC is the same for all sources of this process.
_SPECS = SpecCache()


def adhoc_context(
    listener: Listener = SILENT,
    *,
    kind: Kind = "command",
    environ: Mapping[str, str] = os.environ,
    limits: ExecutorConfig | None = None,
) -> RunContext:
    """Return the context of this process; ``limits`` are by default those of ATLAS_EXECUTOR.

    Raises:
        ConfigError: one of the limits is wrong.
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
    """Remove what killed commands left behind; returns what, in words."""
    removed = reap_processes(deployment=DEPLOYMENT, has_ended=process_has_ended)
    try:
        client = connect()
    except AtlasError:
        return removed
    with closing(client):
        return removed + reap(client, deployment=DEPLOYMENT, has_ended=process_has_ended)


@cache
def reap_adhoc_once() -> None:
    """:func:`reap_adhoc`, the first time in the life of a process."""
    reap_adhoc()


def chosen_streams(
    connection: Connection,
    catalog: Catalog,
    names: Collection[str],
    *,
    incremental: bool,
    cursor_field: FieldPath | None = None,
) -> list[ConfiguredStream]:
    """The streams of ``catalog`` called ``names``, or all, for a READ outside of a sync.

    ``incremental``: where the source can, and says by which cursor or ``cursor_field`` does.

    Raises:
        UnknownStreamError: there is no such stream.
        ConfigError: a stream cannot be read like that.
    """
    if names:
        selections = [StreamSelection.model_validate({"name": name}) for name in names]
        connection = connection.model_copy(update={"streams": selections})
        picked = {stream.descriptor for stream in connection.configured(catalog)}
    else:
        picked = {stream.descriptor for stream in catalog.streams}
    chosen = []
    for stream in catalog.streams:
        if stream.descriptor not in picked:
            continue
        can = "incremental" in stream.supported_sync_modes
        cursor = cursor_field or stream.default_cursor_field or stream.source_defined_cursor
        by_cursor = incremental and can and bool(cursor)
        chosen.append(
            configure(
                stream,
                sync_mode="incremental" if by_cursor else None,
                destination_sync_mode="append",
                cursor_field=cursor_field if by_cursor else None,
            )
        )
    return chosen


def _identity(source: str, config: Mapping[str, Any]) -> str:
    """Locks and renewals are kept under it: one for each connector and config."""
    content = json.dumps([source, config], sort_keys=True).encode()
    name = image_name(source)
    return f"{assign([name])[name].lstrip('_')}_{hashlib.sha256(content).hexdigest()[:8]}"
