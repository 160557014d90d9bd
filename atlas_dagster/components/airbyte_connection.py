"""``type: atlas_dagster.AirbyteConnection``: a connection declared in YAML."""

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import dagster as dg
from dagster.components.component.state_backed_component import StateBackedComponent
from dagster.components.utils.defs_state import (
    DefsStateConfig,
    DefsStateConfigArgs,
    ResolvedDefsStateConfig,
)
from dagster_shared.serdes.objects.models.defs_state_info import DefsStateManagementType
from pydantic import BaseModel

from atlas_dagster.components.catalogs import known_catalog
from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.assets import build_connection_defs, build_undiscovered_defs
from atlas_dagster.orchestration.maintenance import MaintenanceConfig
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.orchestration.schedule import is_cron
from atlas_dagster.orchestration.translator import AtlasTranslator
from atlas_dagster.runners.executor import ExecutorConfig
from atlas_dagster.sync.connection import Connection, RunnerChoice, StreamSelection
from atlas_dagster.sync.discovered import Discovered
from atlas_dagster.sync.source import Caller, discover


def _default_state() -> DefsStateConfigArgs:
    """In the project, unless ATLAS_DEFS_STATE says, in Dagster's words, to keep it elsewhere."""
    # Discovery runs a container, so it is asked for, never a side effect of loading.
    return DefsStateConfigArgs(
        management_type=DefsStateManagementType(
            os.environ.get("ATLAS_DEFS_STATE") or DefsStateManagementType.LOCAL_FILESYSTEM.value
        ),
        refresh_if_dev=False,
    )


@dataclass
class AirbyteConnection(StateBackedComponent, dg.Resolvable):
    """An Airbyte source and the streams to sync from it, each stream an asset.

    The connection is named after its folder. Its catalog is cached by DISCOVER (`atlas discover`,
    or the discovery job in the UI); loading never runs a connector.
    """

    connector: Annotated[
        str | None,
        dg.Resolver.default(
            description="Name of the connector in Airbyte's registry.", examples=["source-postgres"]
        ),
    ] = None
    image: Annotated[
        str | None,
        dg.Resolver.default(
            description="A Docker image to use instead.", examples=["my/own-source:1.0"]
        ),
    ] = None
    manifest: Annotated[
        str | None,
        dg.Resolver.default(
            description="A declarative manifest (YAML) to use instead: its path from this folder. "
            "A components.py beside it is its Python code.",
            examples=["manifest.yaml"],
        ),
    ] = None
    command: Annotated[
        Sequence[str] | None,
        dg.Resolver.default(
            description="A program to use instead, that speaks the Airbyte protocol: its words. "
            "It works in this folder.",
            examples=[["python3", "my_source.py"]],
        ),
    ] = None
    version: Annotated[
        str | None,
        # Not a template: Dagster's would make a number of "3.10", and 3.1 of that.
        dg.Resolver.passthrough(
            description="Version of the connector, the registry's own by default; of a manifest, "
            "that of the CDK that runs it.",
            examples=["3.8.1"],
        ),
    ] = None
    config: Annotated[
        Mapping[str, Any],
        dg.Resolver.passthrough(
            description="The connector's config, checked against its SPEC. `{{ env.X }}` is "
            "replaced by that variable when a step runs, and only there.",
            examples=[{"host": "db", "password": "{{ env.SHOP_PASSWORD }}"}],
        ),
    ] = None  # type: ignore[assignment]
    streams: Annotated[
        Sequence[StreamSelection] | None,
        dg.Resolver.default(
            description="Streams to sync and how; all of them, in the platform's default modes, "
            "when left out."
        ),
    ] = None
    schedule: Annotated[
        str | None,
        dg.Resolver.default(
            description="Cron expression, in UTC, of the times to sync at.",
            examples=["*/15 * * * *"],
        ),
    ] = None
    maintenance: Annotated[
        MaintenanceConfig | None,
        dg.Resolver.default(
            description="When to compact the tables and delete files that nothing uses any more; "
            "never, when left out.",
            examples=[{"schedule": "0 3 * * 0", "retain_hours": 168}],
        ),
    ] = None
    runner: Annotated[
        RunnerChoice,
        dg.Resolver.default(
            description="docker, python, or auto: Docker where an engine and the image can be had, "
            "else the connector's Python package or manifest."
        ),
    ] = "auto"
    executor: Annotated[
        ExecutorConfig | None,
        dg.Resolver.default(
            description="Limits of the connector: memory, CPUs, network, times. What is left out "
            "is the deployment's default.",
            examples=[{"memory_limit": "4g", "timeout_seconds": 7200}],
        ),
    ] = None
    destination: Annotated[
        str | None,
        # Not a template of Dagster's: the password is put in when a step runs, and only there.
        dg.Resolver.passthrough(
            description="Where rows land: folder or object store address of Delta tables, or a "
            "Postgres database. The deployment's by default. `{{ env.X }}` is replaced as in "
            "config.",
            examples=["postgresql://loader:{{ env.WAREHOUSE_PASSWORD }}@host:5432/warehouse"],
        ),
    ] = None
    defs_state: ResolvedDefsStateConfig = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.config = self.config or {}
        self.defs_state = self.defs_state or _default_state()
        self._name = ""
        self._folder = Path()
        self._known: Discovered | None = None
        self._caller: Caller | None = None

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        # The parent's load asks for the state key at once, and that needs the folder's name.
        loaded = super(StateBackedComponent, cls).load(attributes, context)
        loaded._name = context.path.name
        loaded._folder = context.path
        context.component_tree.mark_component_defs_state_key(
            loc=context.component_loc, defs_state_key=loaded.defs_state_config.key
        )
        return loaded

    @property
    def connection(self) -> Connection:
        """The declaration, validated. Raises pydantic's ValidationError."""
        return Connection(
            name=self._name,
            connector=self.connector,
            image=self.image,
            manifest=self.manifest,
            command=None if self.command is None else list(self.command),
            folder=self._folder,
            version=self.version,
            config=dict(self.config),
            streams=None if self.streams is None else list(self.streams),
            runner=self.runner,
            executor=self.executor,
            destination=self.destination,
        )

    @property
    def defs_state_config(self) -> DefsStateConfig:
        return DefsStateConfig.from_args(
            self.defs_state, default_key=f"AirbyteConnection[{self._name}]"
        )

    def refresh_catalog(self, project_root: Path, caller: Caller) -> None:
        """Run DISCOVER on behalf of ``caller`` and store the catalog. Raises AtlasError."""
        self._caller = caller
        asyncio.run(self.refresh_state(project_root))

    async def refresh_state(self, project_root: Path) -> str:
        # One that cannot be read is what discovering again mends.
        with contextlib.suppress(ConfigError):
            self._known = known_catalog(self.defs_state_config, project_root)
        return await super().refresh_state(project_root)

    def write_state_to_path(self, state_path: Path) -> None:
        """Discover; what was known stays in place when that fails."""
        known = self._known
        if self._caller is not None:
            found = discover(self.connection, self._caller, known)
        else:
            with dg.DagsterInstance.get() as instance:
                atlas = AtlasResource.from_environment()
                found = discover(
                    self.connection, atlas.caller(instance, None, explain=print), known
                )
        unfinished = state_path.with_name(f"{state_path.name}.{os.getpid()}")
        unfinished.write_bytes(found.encode())
        unfinished.replace(state_path)

    def build_defs_from_state(
        self, context: dg.ComponentLoadContext, state_path: Path | None
    ) -> dg.Definitions:
        connection = self.connection
        connection.entry()
        if self.schedule is not None and not is_cron(self.schedule):
            raise ConfigError(
                f"Connection '{connection.name}': schedule '{self.schedule}' is no cron "
                'expression; write five fields, such as "*/15 * * * *".'
            )

        def refresh(caller: Caller) -> None:
            self.refresh_catalog(context.project_root, caller)

        if state_path is None or not state_path.exists():
            return build_undiscovered_defs(connection, refresh=refresh)
        self._known = Discovered.decode(state_path.read_bytes())
        return build_connection_defs(
            connection,
            self._known,
            schedule=self.schedule,
            maintenance=self.maintenance,
            refresh=refresh,
            translator=self.get_translator(),
        )

    def get_translator(self) -> AtlasTranslator:
        """Override to change how streams look in Dagster."""
        return AtlasTranslator()
