"""The Dagster resource of all Atlas steps: the destination and the deployment."""

import os
from pathlib import Path
from typing import Any, ClassVar, Self

import dagster as dg
from pydantic import Field

from atlas_dagster.destinations.base import Destination
from atlas_dagster.destinations.factory import open_destination, without_password
from atlas_dagster.listener import Listener
from atlas_dagster.orchestration.operations.config_store import open_config_store
from atlas_dagster.orchestration.step.listener import StepListener
from atlas_dagster.runners.limits import (
    ExecutorConfig,
    declared_defaults,
    executor_defaults,
)
from atlas_dagster.runners.owner import this_process
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.run_context import RunContext

DEFAULT_DEPLOYMENT = "atlas_dagster"

StepContext = dg.OpExecutionContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext


class AtlasResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The destination of rows, the name of this deployment, and default limits."""

    destination: str | None = Field(
        default=None,
        description="Destination of connections that declare none: folder or object store "
        "address of Delta tables, or a Postgres database, "
        "postgresql://user:{{ env.PASSWORD }}@host/database. A relative folder starts at "
        "DAGSTER_HOME, else at the current folder. The default is ATLAS_DESTINATION or ATLAS_LAKE, "
        "else the folder lake.",
    )
    deployment: str = Field(
        default=DEFAULT_DEPLOYMENT,
        description="Name of this deployment. Atlas never touches containers or tables of another "
        "one. The default is ATLAS_DEPLOYMENT.",
    )

    executor: dict[str, Any] = Field(
        default={},
        description="Default limits of connectors; see ExecutorConfig.",
    )

    #: The variables that :meth:`from_environment` reads.
    VARIABLES: ClassVar = ("ATLAS_EXECUTOR", "ATLAS_DEPLOYMENT")

    @classmethod
    def from_environment(cls) -> Self:
        """Return the resource that ATLAS_EXECUTOR and ATLAS_DEPLOYMENT configure."""
        # The destination is left out, because Dagster shows the config of resources.
        return cls(
            executor=declared_defaults(os.environ),
            deployment=os.environ.get("ATLAS_DEPLOYMENT") or DEFAULT_DEPLOYMENT,
        )

    def executor_defaults(self) -> ExecutorConfig:
        """Return the default limits. Raises ConfigError if one is not valid."""
        return executor_defaults(self.executor)

    def address(self, connection: Connection | None = None) -> str:
        """Return the address of the connection's destination, with variables not replaced."""
        declared = connection.destination if connection else None
        environ = os.environ.get("ATLAS_DESTINATION") or os.environ.get("ATLAS_LAKE")
        address = declared or self.destination or environ or "lake"
        if "://" in address or address.startswith("{{"):
            return address
        return str(Path(os.environ.get("DAGSTER_HOME") or ".").absolute() / address)

    def open_destination(self, connection: Connection | None = None) -> Destination:
        """Open the connection's destination, or the default one.

        Raises:
            ConfigError: the address is not valid.
        """
        where = f"The destination of connection '{connection.name}'" if connection else "Atlas"
        return open_destination(self.address(connection), os.environ, where=where)

    def deployment_label(self) -> str:
        """Return deployment and destination, so that checkouts on one machine have other labels."""
        return f"{self.deployment} {without_password(self.address())}"

    def run_context(
        self, instance: dg.DagsterInstance, run_id: str | None, listener: Listener
    ) -> RunContext:
        """Return the context of a Dagster run, or of this process if there is no run.

        Raises:
            ConfigError: a default of this deployment is wrong.
        """
        # If the run is deleted while its connector runs, the process still identifies the owner.
        owner = f"run:{run_id}:{this_process()}" if run_id else this_process()
        return RunContext(
            deployment=self.deployment_label(),
            owner=owner,
            environ=os.environ,
            configs=open_config_store(instance),
            limits=self.executor_defaults(),
            listener=listener,
        )

    def step_context(self, context: StepContext) -> RunContext:
        """Return the context of the step that runs here. Raises ConfigError."""
        return self.run_context(context.instance, context.run.run_id, StepListener(context.log))
