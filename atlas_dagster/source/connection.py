"""A connection as the user declares it."""

import difflib
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from atlas_dagster.errors import ConfigError, UnknownStreamError
from atlas_dagster.protocol.catalog import (
    Catalog,
    ConfiguredStream,
    DestinationSyncMode,
    FieldPath,
    Stream,
    SyncMode,
    configure,
)
from atlas_dagster.records.names import assign
from atlas_dagster.registry import ConnectorInfo, get_connector_info, image_name
from atlas_dagster.runners.limits import ExecutorConfig

RunnerChoice = Literal["auto", "docker", "python", "kubernetes"]


class StreamSelection(BaseModel):
    """One stream to sync. An absent field means the default of the Airbyte platform."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="The stream's name in the connector's catalog.")
    namespace: str | None = Field(None, description="The stream's namespace, if it has one.")
    sync_mode: SyncMode | None = Field(None, description="full_refresh or incremental.")
    destination_sync_mode: DestinationSyncMode | None = Field(
        None, description="append, overwrite or append_dedup."
    )
    cursor_field: str | list[str] | None = Field(
        None, description="The field that grows, for incremental reads; a list is a path."
    )
    primary_key: str | list[str | list[str]] | None = Field(
        None, description="The fields that identify a row; a nested list is a path."
    )

    cdc_deletes: Literal["soft", "hard"] = Field(
        "soft",
        description="For rows that the source deleted, with append_dedup: soft keeps them with "
        "the time in _ab_cdc_deleted_at, hard deletes them.",
    )

    null_keys: Literal["keep", "refuse"] = Field(
        "keep",
        description="For records without a value in a field of the primary key: keep stores each "
        "as a row of its own, refuse stops the stream.",
    )

    def cursor_path(self) -> FieldPath | None:
        match self.cursor_field:
            case None:
                return None
            case str():
                return (self.cursor_field,)
            case path:
                return tuple(path)

    def key_paths(self) -> tuple[FieldPath, ...] | None:
        if self.primary_key is None:
            return None
        parts = [self.primary_key] if isinstance(self.primary_key, str) else self.primary_key
        return tuple((part,) if isinstance(part, str) else tuple(part) for part in parts)


class Connection(BaseModel):
    """One source and its streams to sync.

    ``config`` and ``destination`` may hold ``{{ env.X }}`` templates. ``destination`` is an
    address; None for the deployment's. Relative paths in ``manifest`` and ``command`` start at
    ``folder``. ``version`` of a manifest is an older spelling of ``cdk_version``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    connector: str | None = None
    image: str | None = None
    manifest: str | None = None
    command: list[str] | None = None
    folder: Path = Path()
    version: str | None = None
    cdk_version: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    streams: list[StreamSelection] | None = None
    runner: RunnerChoice = "auto"
    executor: ExecutorConfig | None = None
    destination: str | None = None
    #: Whether the config must fit the SPEC; ``validate`` in a declaration.
    validate_config: bool = True

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", name):
            raise ValueError(
                f"the connection name '{name}' is not valid, because it becomes part of asset keys "
                "and table paths; use only letters, digits and underscores, and no leading "
                "underscore (the default name is the folder's)"
            )
        return name

    @model_validator(mode="after")
    def _check_connector(self) -> "Connection":
        given = [self.connector, self.image, self.manifest, self.command]
        if sum(one is not None for one in given) != 1:
            raise ValueError(
                "give exactly one of connector (a registry name), image (a Docker image), "
                "manifest (the file of a declarative manifest) and command (your own program)"
            )
        if self.image is not None and self.version is not None:
            raise ValueError("version goes with connector; for an image, write it as the tag")
        if self.cdk_version is not None and (self.manifest is None or self.version is not None):
            raise ValueError(
                "cdk_version goes with manifest, not with version: it is the version of the CDK "
                "that runs the manifest"
            )
        if self.image is not None and self.runner == "python":
            raise ValueError("an image cannot run with runner python; use connector")
        if self.command is not None and self.version is not None:
            raise ValueError("version goes with connector; remove it for a command")
        if self.command is not None and self.runner in ("docker", "kubernetes"):
            raise ValueError(
                f"a command cannot run with runner {self.runner}; build an image of it"
            )
        if self.command is not None and not any(self.command[:1]):
            raise ValueError("the command is empty; give a program and its arguments")
        return self

    def entry(self) -> ConnectorInfo | None:
        """Return the registry's entry at the pinned version; None for the user's own connector.

        Raises:
            UnknownConnectorError: the registry has no such connector.
        """
        return (
            None if self.connector is None else get_connector_info(self.connector).at(self.version)
        )

    @property
    def where(self) -> str:
        """The subject of messages: ``Connection 'shop'``."""
        return f"Connection '{self.name}'"

    @property
    def source_name(self) -> str:
        """The connector's name without a registry or path: ``source-faker``."""
        if self.connector is not None:
            return self.connector
        if self.image is None:
            return f"source-{self.name}"
        return image_name(self.image)

    @property
    def source_key_part(self) -> str:
        """The name of the source among the connection's streams: ``source_faker``."""
        return assign([self.source_name])[self.source_name]

    def configured(self, catalog: Catalog, *, strict: bool = True) -> list[ConfiguredStream]:
        """Return the streams to sync, in the catalog's order.

        Unless ``strict``, declared streams that do not exist are left out, and streams whose
        declared mode does not fit get the platform's default mode.

        Raises:
            UnknownStreamError: a declared stream is not in ``catalog``.
            ConfigError: a declared mode does not fit its stream.
        """
        for selection in self.streams if strict and self.streams else ():
            _require_stream(selection, catalog)
        configured = []
        for stream in filter(self.selects, catalog.streams):
            try:
                configured.append(self.configure(stream))
            except ConfigError:
                if strict:
                    raise
                with suppress(ConfigError):
                    configured.append(configure(stream))
        return configured

    def selects(self, stream: Stream) -> bool:
        """Return whether ``stream`` is to be synced."""
        return self.streams is None or self._selection(stream) is not None

    def configure(self, stream: Stream) -> ConfiguredStream:
        """Return ``stream`` as declared. Raises ConfigError if the declaration does not fit."""
        selection = self._selection(stream)
        if selection is None:
            return configure(stream)
        return configure(
            stream,
            sync_mode=selection.sync_mode,
            destination_sync_mode=selection.destination_sync_mode,
            cursor_field=selection.cursor_path(),
            primary_key=selection.key_paths(),
            hard_deletes=selection.cdc_deletes == "hard",
            refuses_null_keys=selection.null_keys == "refuse",
        )

    def _selection(self, stream: Stream) -> StreamSelection | None:
        """Return the last selection of ``stream``."""
        name = stream.descriptor
        for selection in reversed(self.streams or ()):
            same_name = selection.namespace is None
            if selection.name == name.name and (
                same_name or (selection.namespace or None) == name.namespace
            ):
                return selection
        return None


def _require_stream(selection: StreamSelection, catalog: Catalog) -> Stream:
    same_name = [s for s in catalog.streams if s.descriptor.name == selection.name]
    named = same_name
    if selection.namespace is not None:
        named = [s for s in named if s.descriptor.namespace == (selection.namespace or None)]
    if len(named) == 1:
        return named[0]
    if named:
        spaces = ", ".join(str(s.descriptor.namespace) for s in named)
        raise UnknownStreamError(
            f"Stream '{selection.name}' is in several namespaces ({spaces}); add namespace to it."
        )
    if same_name:
        spaces = " and ".join(str(s.descriptor.namespace or "none") for s in same_name)
        raise UnknownStreamError(
            f"Stream '{selection.name}' is not in the namespace '{selection.namespace}'; the "
            f"source has it in {spaces}."
        )
    raise UnknownStreamError(
        describe_missing_stream(selection.name, {s.descriptor.name for s in catalog.streams})
    )


def describe_missing_stream(name: str, known: Collection[str]) -> str:
    """Return the message that there is no stream ``name``, with the nearest names."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(known))}."
    return f"The connector has no stream '{name}'; {hint}"
