"""``type: atlas_dagster.AirbyteConnection``: a connection declared in YAML."""

import asyncio
import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import dagster as dg
from dagster.components import DefsStateConfig, DefsStateConfigArgs, ResolvedDefsStateConfig
from pydantic import BaseModel

from atlas_dagster.components.scaffolding import ConnectionScaffolder
from atlas_dagster.errors import ConfigError
from atlas_dagster.files import atomic_write
from atlas_dagster.orchestration.automation.cron import Schedule
from atlas_dagster.orchestration.automation.maintenance import MaintenanceConfig
from atlas_dagster.orchestration.dagster_database import catalog_lock
from atlas_dagster.orchestration.dagster_internals import (
    ComponentLoc,
    ComponentPath,
    DefinitionsLoadContext,
    DefinitionsLoadType,
    DefsStateManagementType,
    DefsStateStorage,
    TranslationFn,
    TranslationFnResolver,
)
from atlas_dagster.orchestration.definitions.assets import (
    build_connection_defs,
    build_undiscovered_defs,
)
from atlas_dagster.orchestration.definitions.discovery import DiscoveryConfig
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.translator import (
    ConnectionAssets,
    StreamProps,
    stream_spec,
)
from atlas_dagster.orchestration.step.catalog_update import CatalogUpdate
from atlas_dagster.orchestration.step.listener import PrintListener
from atlas_dagster.orchestration.step.projections import project_discovery
from atlas_dagster.orchestration.step.run_config import SyncConfig
from atlas_dagster.orchestration.step.sync_step import run_sync
from atlas_dagster.runners.limits import ExecutorConfig
from atlas_dagster.source.catalog_diff import SchemaPolicy
from atlas_dagster.source.connection import Connection, RunnerChoice, StreamSelection
from atlas_dagster.source.discovered_catalog import Discovered, Discovery, discover
from atlas_dagster.source.run_context import RunContext


def _default_state() -> DefsStateConfigArgs:
    """Return the place of stored catalogs: the project, or the one that ATLAS_DEFS_STATE names."""
    # DISCOVER runs a container, so loading must never start it.
    return DefsStateConfigArgs(
        management_type=DefsStateManagementType(
            os.environ.get("ATLAS_DEFS_STATE") or DefsStateManagementType.LOCAL_FILESYSTEM.value
        ),
        refresh_if_dev=False,
    )


@dg.scaffold_with(ConnectionScaffolder)
@dataclass
class AirbyteConnection(dg.StateBackedComponent, dg.Resolvable):
    """An Airbyte source and the streams to sync from it, each stream an asset.

    Its catalog is cached by DISCOVER (`atlas discover`, or the discovery job in the UI); loading
    never runs a connector. In a subclass, override `get_asset_spec` to change the streams' assets,
    and `execute` to do something before or after a sync.
    """

    name: Annotated[
        str | None,
        dg.Resolver.default(description="The connection's name; by default, that of its folder."),
    ] = None
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
            description="A declarative manifest (YAML) to use instead: its path, relative to this "
            "folder. A components.py beside it may hold its Python code.",
            examples=["manifest.yaml"],
        ),
    ] = None
    command: Annotated[
        Sequence[str] | None,
        dg.Resolver.default(
            description="A program to use instead: a command that speaks the Airbyte protocol, as "
            "a list. It runs in this folder.",
            examples=[["python3", "my_source.py"]],
        ),
    ] = None
    version: Annotated[
        str | None,
        # Not resolved as a template, because Dagster would turn "3.10" into the number 3.1.
        dg.Resolver.passthrough(
            description="Version of the connector; by default that of the registry. latest: "
            "the newest. auto: the newest on PyPI that can be installed, if the registry's cannot.",
            examples=["3.8.1", "auto"],
        ),
    ] = None
    cdk_version: Annotated[
        str | None,
        # Not resolved as a template, as above.
        dg.Resolver.passthrough(
            description="Version of the Airbyte CDK that runs the manifest; by default that in "
            "the manifest. In Docker, the tag of airbyte/source-declarative-manifest.",
            examples=["6.48.10"],
        ),
    ] = None
    config: Annotated[
        Mapping[str, Any],
        dg.Resolver.passthrough(
            description="The connector's config, validated against its SPEC. `{{ env.X }}` is "
            "replaced by that environment variable only while a step runs.",
            examples=[{"host": "db", "password": "{{ env.SHOP_PASSWORD }}"}],
        ),
    ] = None  # type: ignore[assignment]
    validate: Annotated[
        bool,
        dg.Resolver.default(
            description="Whether to validate the config against the connector's SPEC. With `off`, "
            "the connector gets it unchanged, without the SPEC's defaults."
        ),
    ] = True
    streams: Annotated[
        Sequence[StreamSelection] | None,
        dg.Resolver.default(
            description="Streams to sync, and their modes; by default all, in Airbyte's modes."
        ),
    ] = None
    schedule: Annotated[
        str | Schedule | None,
        dg.Resolver.default(
            description="When to sync: cron expression in UTC, or cron and timezone.",
            examples=["*/15 * * * *", {"cron": "0 6 * * 1-5", "timezone": "Europe/Rome"}],
        ),
    ] = None
    discovery: Annotated[
        DiscoveryConfig | None,
        dg.Resolver.default(
            description="When to run DISCOVER, and which changes to apply; by default before a "
            "sync, once a day.",
            examples=[{"schedule": "0 6 * * *", "schema_changes": "propagate_columns"}],
        ),
    ] = None
    maintenance: Annotated[
        MaintenanceConfig | None,
        dg.Resolver.default(
            description="When to compact the tables and delete unused files; by default never.",
            examples=[{"schedule": "0 3 * * 0", "retain_hours": 168}],
        ),
    ] = None
    runner: Annotated[
        RunnerChoice,
        dg.Resolver.default(
            description="Where the connector runs: docker, python, kubernetes (a container in the "
            "step's pod), or auto: in Docker if an engine and the image are available, else from "
            "its Python package or manifest."
        ),
    ] = "auto"
    executor: Annotated[
        ExecutorConfig | None,
        dg.Resolver.default(
            description="Limits of the connector: memory, CPUs, network, times. The defaults are "
            "the deployment's.",
            examples=[{"memory_limit": "4g", "timeout_seconds": 7200}],
        ),
    ] = None
    destination: Annotated[
        str | None,
        # Not resolved as a template, because the password is inserted only while a step runs.
        dg.Resolver.passthrough(
            description="Where rows land: folder or object store address of Delta tables, or a "
            "Postgres database; by default the deployment's. `{{ env.X }}` is replaced as in "
            "config.",
            examples=["postgresql://loader:{{ env.WAREHOUSE_PASSWORD }}@host:5432/warehouse"],
        ),
    ] = None
    translation: Annotated[
        TranslationFn[StreamProps] | None,
        TranslationFnResolver[StreamProps](lambda props: {"props": props}),
    ] = None
    defs_state: ResolvedDefsStateConfig = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.config = self.config or {}
        self.defs_state = self.defs_state or _default_state()
        self._folder = Path()
        self._defined: ConnectionAssets | None = None
        self._to_store: Discovered | None = None
        self._catalog_update: CatalogUpdate | None = None

    @classmethod
    def model(cls) -> type[BaseModel]:
        with warnings.catch_warnings():
            # Pydantic has a deprecated method of this name.
            warnings.filterwarnings("ignore", message='Field name "validate"')
            return super().model()

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Self:
        # The parent's method needs the state key, which needs the name.
        loaded = super(dg.StateBackedComponent, cls).load(attributes, context)
        loaded.set_location(context.component_loc)
        context.component_tree.mark_component_defs_state_key(
            loc=context.component_loc, defs_state_key=loaded.defs_state_config.key
        )
        return loaded

    def set_location(self, loc: ComponentLoc) -> None:
        """Set the place of the declaration. It gives the default name and the base of paths.

        Raises:
            ConfigError: the connection has no name, and is not declared in the defs folder.
        """
        if isinstance(loc, ComponentPath):
            is_python = loc.file_path.suffix == ".py"
            self._folder = loc.file_path.parent if is_python else loc.file_path
            # A connection declared in Python is named after its function.
            self.name = self.name or (str(loc.instance_key) if is_python else self._folder.name)
        elif not self.name:
            raise ConfigError('Give the AirbyteConnection a name: AirbyteConnection(name="shop").')

    @property
    def connection(self) -> Connection:
        """The declaration, validated. Raises pydantic's ValidationError."""
        return Connection(
            name=self.name or "",
            connector=self.connector,
            image=self.image,
            manifest=self.manifest,
            command=None if self.command is None else list(self.command),
            folder=self._folder,
            version=self.version,
            cdk_version=self.cdk_version,
            config=dict(self.config),
            streams=None if self.streams is None else list(self.streams),
            runner=self.runner,
            executor=self.executor,
            destination=self.destination,
            validate_config=self.validate,
        )

    @property
    def defs_state_config(self) -> DefsStateConfig:
        return DefsStateConfig.from_args(
            self.defs_state, default_key=f"AirbyteConnection[{self.name}]"
        )

    def refresh_catalog(
        self, project_root: Path, context: RunContext, policy: SchemaPolicy | None = None
    ) -> Discovery:
        """Run DISCOVER for ``context`` and store the catalog.

        ``policy`` decides which changes are applied; without a policy, all are.

        Raises:
            AtlasError: DISCOVER failed; the stored catalog stays.
        """
        known = self._readable_catalog(project_root)
        found = discover(self.connection, context, known, policy)
        self.store(found, project_root)
        return Discovery.since(known, found, self.connection)

    def compare_catalog(self, project_root: Path, context: RunContext) -> Discovery:
        """Run DISCOVER and store nothing, so all changes are pending. Raises AtlasError."""
        known = self.stored_catalog(project_root)
        return Discovery.since(
            known, discover(self.connection, context, known, "ignore"), self.connection
        )

    async def refresh_state(self, project_root: Path) -> str:
        """Run DISCOVER and store the catalog; Dagster's own commands call this."""
        return await self._store(
            await asyncio.to_thread(self._discover, project_root), project_root
        )

    def store(self, found: Discovered, project_root: Path) -> None:
        """Store a discovered catalog."""
        asyncio.run(self._store(found, project_root))

    async def _store(self, found: Discovered, project_root: Path) -> str:
        self._to_store = found
        with contextlib.ExitStack() as until_stored:
            if self.defs_state_config.management_type != DefsStateManagementType.LOCAL_FILESYSTEM:
                instance = until_stored.enter_context(dg.DagsterInstance.get())
                # In a thread, because another component of this event loop may hold the lock.
                await asyncio.to_thread(until_stored.enter_context, catalog_lock(instance))
            return await super().refresh_state(project_root)

    def write_state_to_path(self, state_path: Path) -> None:
        """Write the catalog to store; Dagster calls this from ``refresh_state``."""
        assert self._to_store is not None
        atomic_write(state_path, self._to_store.encode(), mode=0o666)

    def _discover(self, project_root: Path) -> Discovered:
        with dg.DagsterInstance.get() as instance:
            context = AtlasResource.from_environment().run_context(instance, None, PrintListener())
            found = discover(self.connection, context, self._readable_catalog(project_root))
            project_discovery(instance, self.connection, found, print)
            return found

    def _readable_catalog(self, project_root: Path) -> Discovered | None:
        """Return the stored catalog; None if it cannot be read. DISCOVER then replaces it."""
        try:
            return self.stored_catalog(project_root)
        except ConfigError:
            return None

    def stored_catalog(self, project_root: Path) -> Discovered | None:
        """Return the stored catalog; None before the first DISCOVER.

        Raises:
            ConfigError: the stored catalog cannot be read.
        """
        # This context gives the newest version, not the one that this process has loaded.
        context = DefinitionsLoadContext(DefinitionsLoadType.INITIALIZATION)
        config, storage = self.defs_state_config, DefsStateStorage.get()
        try:
            with context.state_path(config, storage, project_root) as path:
                found = path is not None and path.exists()
                return Discovered.decode(path.read_bytes()) if path and found else None
        except ValueError as error:
            if _is_lost(error):
                return None
            raise

    def catalog_update(self, project_root: Path) -> CatalogUpdate | None:
        """Return how a sync updates an old catalog; None if it must not."""
        discovery = self.discovery or DiscoveryConfig()
        if discovery.look == "never":
            return None
        return CatalogUpdate(
            discovery.schema_changes, partial(self.store, project_root=project_root)
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        self.set_location(context.component_loc)
        try:
            return super().build_defs(context)
        except ValueError as error:
            if _is_lost(error):
                return self.build_defs_from_state(context, None)
            raise

    def build_defs_from_state(
        self, context: dg.ComponentLoadContext, state_path: Path | None
    ) -> dg.Definitions:
        refresh = partial(self.refresh_catalog, context.project_root)
        if state_path is None or not state_path.exists():
            self.parse_schedule()
            return build_undiscovered_defs(self.connection, refresh=refresh)
        self._defined = self.define(Discovered.decode(state_path.read_bytes()))
        self._catalog_update = self.catalog_update(context.project_root)
        return build_connection_defs(
            self._defined,
            execute=self.execute,
            refresh=refresh,
            compare=partial(self.compare_catalog, context.project_root),
            maintenance=self.maintenance,
            discovery=self.discovery,
        )

    def define(self, discovered: Discovered) -> ConnectionAssets:
        """Return the connection and its assets for a catalog.

        Raises:
            ConfigError: the translation gives two streams the same asset key.
        """
        schedule, problem = None, None
        try:
            schedule = self.parse_schedule()
        except ConfigError as error:
            problem = str(error)
        return ConnectionAssets.of(
            self.connection,
            discovered,
            self._translate,
            schedule=schedule,
            problem=problem,
        )

    def parse_schedule(self) -> Schedule | None:
        """Return the schedule. Raises ConfigError if it or the connector's name is not valid."""
        self.connection.entry()
        return None if self.schedule is None else Schedule.of(self.schedule)

    def _translate(self, props: StreamProps) -> dg.AssetSpec:
        spec = self.get_asset_spec(props)
        return spec if self.translation is None else self.translation(spec, props)

    def get_asset_spec(self, props: StreamProps) -> dg.AssetSpec:
        """Return the asset of a stream, before ``translation``. Override it to change assets.

        If you change the key, only the name in Dagster changes; the table's path stays
        ``props.table``.
        """
        return stream_spec(props)

    def execute(
        self, context: dg.AssetExecutionContext, atlas: AtlasResource, config: SyncConfig
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        """Sync the streams selected in ``context``. Override it to do more.

        Yields each stream's result as soon as its rows are durable.

        Raises:
            dagster.Failure: its description says what failed and what to do.
        """
        assert self._defined is not None  # Dagster calls this only after build_defs
        yield from run_sync(context, self._defined, atlas, config, self._catalog_update)


def _is_lost(error: ValueError) -> bool:
    """Return whether Dagster's database names a missing catalog, as after a partial restore."""
    return str(error).startswith("No state found for key ")
