"""The Dagster resource every step of Atlas uses: where rows land, and under whose name."""

import os
from pathlib import Path
from typing import Any, ClassVar, Self

import dagster as dg
from pydantic import Field

from atlas_dagster.destinations.base import Destination
from atlas_dagster.destinations.factory import open_destination, shown
from atlas_dagster.listener import Listener
from atlas_dagster.orchestration.operations.config_store import config_store
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
    """Where rows land and what this deployment is called."""

    destination: str | None = Field(
        default=None,
        description="Where rows land unless a connection says otherwise: folder or object store "
        "address of Delta tables, or a Postgres database, "
        "postgresql://user:{{ env.PASSWORD }}@host/database. A relative folder starts at "
        "DAGSTER_HOME, else at the current folder. By default what ATLAS_DESTINATION or "
        "ATLAS_LAKE says, else the folder lake.",
    )
    deployment: str = Field(
        default=DEFAULT_DEPLOYMENT,
        description="Name of this deployment; Atlas never touches containers or tables of another "
        "one. By default what ATLAS_DEPLOYMENT says.",
    )

    executor: dict[str, Any] = Field(
        default={},
        description="Limits of connectors whose connection does not say otherwise; "
        "see ExecutorConfig.",
    )

    #: What :meth:`from_environment` looks at.
    VARIABLES: ClassVar = ("ATLAS_EXECUTOR", "ATLAS_DEPLOYMENT")

    @classmethod
    def from_environment(cls) -> Self:
        """With what ATLAS_EXECUTOR and ATLAS_DEPLOYMENT say, if they do."""
        # Not with the destination: Dagster shows what a resource is configured with.
        return cls(
            executor=declared_defaults(os.environ),
            deployment=os.environ.get("ATLAS_DEPLOYMENT") or DEFAULT_DEPLOYMENT,
        )

    def executor_defaults(self) -> ExecutorConfig:
        """Raises ConfigError where a limit is wrong."""
        return executor_defaults(self.executor)

    def address(self, connection: Connection | None = None) -> str:
        """Where ``connection``'s rows land, as declared: variables are not replaced."""
        declared = connection.destination if connection else None
        environ = os.environ.get("ATLAS_DESTINATION") or os.environ.get("ATLAS_LAKE")
        address = declared or self.destination or environ or "lake"
        if "://" in address or address.startswith("{{"):
            return address
        return str(Path(os.environ.get("DAGSTER_HOME") or ".").absolute() / address)

    def open_destination(self, connection: Connection | None = None) -> Destination:
        """Where ``connection``'s rows land, or those of all that do not say.

        Raises:
            ConfigError: the address is wrong.
        """
        where = f"The destination of connection '{connection.name}'" if connection else "Atlas"
        return open_destination(self.address(connection), os.environ, where=where)

    def deployment_label(self) -> str:
        """The deployment with its destination: two checkouts on one machine do not share either."""
        return f"{self.deployment} {shown(self.address())}"

    def run_context(
        self, instance: dg.DagsterInstance, run_id: str | None, listener: Listener
    ) -> RunContext:
        """Return the context of a Dagster run, or of this very process when there is none.

        Raises:
            ConfigError: a default of this deployment is wrong.
        """
        # A run may be deleted while its connector runs; then its process still tells.
        owner = f"run:{run_id}:{this_process()}" if run_id else this_process()
        return RunContext(
            deployment=self.deployment_label(),
            owner=owner,
            environ=os.environ,
            configs=config_store(instance),
            limits=self.executor_defaults(),
            listener=listener,
        )

    def step_context(self, context: StepContext) -> RunContext:
        """Return the context of the step that runs here. Raises ConfigError."""
        return self.run_context(context.instance, context.run.run_id, StepListener(context.log))
