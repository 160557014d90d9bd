"""Maintenance of a connection's tables: a job and its schedule."""

from collections.abc import Sequence

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field, field_validator

from atlas_dagster.destinations.base import Maintainable, Maintained, TablePath
from atlas_dagster.errors import AtlasError, ConfigError, MaintenanceFailedError
from atlas_dagster.orchestration.automation.cron import Schedule, schedule_job, validate_schedule
from atlas_dagster.orchestration.automation.retries import explain_failure
from atlas_dagster.orchestration.automation.schedule import CONNECTION_TAG
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.operations.pools import pool
from atlas_dagster.source.connection import Connection


class MaintenanceConfig(BaseModel):
    """Settings: the schedule of compaction, and how long to keep unused files."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schedule: str | Schedule = Field(
        description="When to run: cron expression in UTC, or cron and timezone.",
        examples=["0 3 * * 0"],
    )
    retain_hours: int = Field(
        default=168,
        description="Hours for which replaced files, and files of killed syncs, are kept. Running "
        "queries and time travel need them.",
    )

    _cron = field_validator("schedule")(validate_schedule)

    # A validator, because Dagster cannot resolve a field with a pydantic constraint.
    @field_validator("retain_hours")
    @classmethod
    def _at_least_one(cls, hours: int) -> int:
        if hours < 1:
            raise ValueError("use at least 1 hour, because running queries may read old files")
        return hours


def build_maintenance(
    connection: Connection, tables: Sequence[TablePath], config: MaintenanceConfig
) -> dg.Definitions:
    """Return the job ``<connection>__maintenance`` and its schedule."""

    # The pool keeps out syncs; the lock keeps out commands, which use no pool.
    @dg.op(name=f"{connection.name}__maintain", pool=pool(connection))
    def maintain(context: dg.OpExecutionContext, atlas: AtlasResource) -> None:
        with explain_failure():
            destination = atlas.open_destination(connection)
            if not isinstance(destination, Maintainable):
                raise ConfigError(
                    f"Tables in {destination.kind} need no maintenance; remove maintenance from "
                    f"{connection.name}'s defs.yaml."
                )
            run = atlas.step_context(context)
            total = Maintained()
            failed: list[AtlasError] = []
            with run.configs.lock(connection.name, run.listener):
                for table in tables:
                    try:
                        done = destination.maintain(table, retain_hours=config.retain_hours)
                    except AtlasError as error:
                        context.log.error(str(error))
                        failed.append(error)
                        continue
                    context.log.info(
                        f"{'.'.join(table)}: {done.compacted} files compacted into {done.written}, "
                        f"{done.deleted} deleted."
                    )
                    total += done
            context.add_output_metadata(
                {
                    "atlas/files_compacted": total.compacted,
                    "atlas/files_written": total.written,
                    "atlas/files_deleted": total.deleted,
                }
            )
            if failed:
                raise MaintenanceFailedError(failed, len(tables))

    @dg.job(
        name=f"{connection.name}__maintenance",
        description=f"Compacts the tables of {connection.name} and deletes files that have not "
        f"been used for {config.retain_hours} hours.",
        # The connection's sensor requests no run while it runs.
        tags={CONNECTION_TAG: connection.name},
    )
    def maintenance() -> None:
        maintain()

    schedule = schedule_job(maintenance, config.schedule)
    return dg.Definitions(jobs=[maintenance], schedules=[schedule])
