"""DISCOVER inside Dagster: a check on the source asset, a job, and a schedule where one is asked.

The check says whether the source still offers what is known of it. Which changes are taken at once
is the connection's policy; the others wait, and the check warns, until somebody takes them.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field, field_validator

from atlas_dagster.orchestration.automation.cron import Schedule, scheduled_job, validated
from atlas_dagster.orchestration.automation.retries import explained_failure
from atlas_dagster.orchestration.automation.schedule import CONNECTION_TAG
from atlas_dagster.orchestration.definitions.resource import AtlasResource, StepContext
from atlas_dagster.orchestration.definitions.stream_checks import check_evaluation
from atlas_dagster.orchestration.definitions.translator import source_key
from atlas_dagster.orchestration.operations.cleanup import note_process
from atlas_dagster.orchestration.operations.kubernetes import pod_tags
from atlas_dagster.orchestration.operations.pools import pool
from atlas_dagster.orchestration.step.projections import project_discovery
from atlas_dagster.source.catalog_diff import CatalogChange, SchemaPolicy
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.discovered_catalog import Discovery
from atlas_dagster.source.run_context import RunContext
from atlas_dagster.wording import plural

CHECK_NAME = "schema_changes"
#: Runs DISCOVER on someone's behalf, takes what the policy allows (all without one), stores it.
Refresh = Callable[[RunContext, SchemaPolicy | None], Discovery]
#: Runs DISCOVER on someone's behalf and compares; takes and stores nothing.
Compare = Callable[[RunContext], Discovery]
#: More changes than this are counted, not listed.
_LISTED = 50


class DiscoveryConfig(BaseModel):
    """When the source is asked what it offers, and what becomes of changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schedule: str | Schedule | None = Field(
        default=None,
        description="When to ask by itself: cron expression in UTC, or cron and timezone.",
        examples=["0 6 * * *"],
    )
    schema_changes: SchemaPolicy = Field(
        default="propagate_columns",
        description="Changes that are taken at once: none (ignore), new, missing and retyped "
        "fields (propagate_columns), or streams that come and go as well (propagate_all). Breaking "
        "ones never are. What is not taken is shown on the source's asset and waits.",
    )

    look: Literal["daily", "never"] = Field(
        default="daily",
        description="Whether a sync first asks the source what it offers, at most once a day: many "
        "sources send only the fields that are known, so those of a new field would be missed.",
    )

    _cron = field_validator("schedule")(validated)


class Take(Enum):
    """Which changes a discovery takes."""

    policy = "policy"
    all = "all"


class DiscoveryOptions(dg.Config):
    """Options of one run."""

    take: Take = Field(
        default=Take.policy,
        description="Which changes to take: those that the connection's schema_changes allows, or "
        "all, breaking ones too.",
    )


def schema_check_key(connection: Connection) -> dg.AssetCheckKey:
    return dg.AssetCheckKey(source_key(connection), CHECK_NAME)


def build_discovery(
    connection: Connection, config: DiscoveryConfig, refresh: Refresh, compare: Compare
) -> dg.Definitions:
    """The check, the job ``<connection>__discover``, and its schedule if there is one."""
    allowed = config.schema_changes

    @dg.asset_check(
        asset=source_key(connection),
        name=CHECK_NAME,
        pool=pool(connection),
        op_tags=pod_tags(connection),
        description="Whether the source still offers the streams and fields that are known: runs "
        f"DISCOVER and compares. The job {connection.name}__discover applies changes, as "
        f"schema_changes: {allowed} says.",
    )
    def schema_changes(
        context: dg.AssetCheckExecutionContext, atlas: AtlasResource
    ) -> dg.AssetCheckResult:
        return discover(context, atlas, compare)

    @dg.op(
        name=f"{connection.name}__run_discover",
        pool=pool(connection),
        tags=pod_tags(connection),
    )
    def run_discover(
        context: dg.OpExecutionContext, config: DiscoveryOptions, atlas: AtlasResource
    ) -> None:
        policy = None if config.take is Take.all else allowed
        result = discover_and_project(context, atlas, connection, refresh, policy)
        # Op contexts are typed for the other events alone, and take it all the same.
        event: Any = evaluation(connection, result)
        context.log_event(event)

    @dg.job(
        name=f"{connection.name}__discover",
        description=f"Asks the source of {connection.name} which streams it offers now.",
        # The connection's sensor waits while it runs.
        tags={CONNECTION_TAG: connection.name},
    )
    def discovery() -> None:
        run_discover()

    schedules = [] if config.schedule is None else [scheduled_job(discovery, config.schedule)]
    return dg.Definitions(asset_checks=[schema_changes], jobs=[discovery], schedules=schedules)


def discover(
    context: StepContext,
    atlas: AtlasResource,
    ask: Compare,
) -> dg.AssetCheckResult:
    """Run DISCOVER by ``ask``, and return what changed.

    Raises:
        dagster.Failure: DISCOVER failed; what was known stays.
    """
    with explained_failure():
        note_process(context.instance, context.run.run_id)
        discovery = ask(atlas.step_context(context))
    context.log.info(f"Discovered. {told(discovery)}")
    return check_result(discovery)


def discover_and_project(
    context: StepContext,
    atlas: AtlasResource,
    connection: Connection,
    refresh: Refresh,
    policy: SchemaPolicy | None,
) -> dg.AssetCheckResult:
    """Run DISCOVER by ``refresh``, and write the streams for SQL. Raises dagster.Failure."""

    def ask(run: RunContext) -> Discovery:
        discovery = refresh(run, policy)
        project_discovery(context.instance, connection, discovery.found, context.log.warning)
        return discovery

    return discover(context, atlas, ask)


def check_result(discovery: Discovery) -> dg.AssetCheckResult:
    """What a discovery means for who looks at the source."""
    found, taken = discovery.found, discovery.taken
    metadata: dict[str, dg.MetadataValue[Any]] = {
        "atlas/streams_offered": dg.MetadataValue.int(len(found.streams)),
        "atlas/connector": dg.MetadataValue.text(found.connector),
    }
    if taken:
        metadata["atlas/taken_changes"] = dg.MetadataValue.md(as_markdown(taken))
    if found.pending:
        metadata["atlas/pending_changes"] = dg.MetadataValue.md(as_markdown(found.pending))
    return dg.AssetCheckResult(
        passed=not found.pending,
        severity=dg.AssetCheckSeverity.WARN,
        description=told(discovery),
        metadata=metadata,
    )


def told(discovery: Discovery) -> str:
    """What came of a discovery, in a sentence or two."""
    said = []
    if discovery.taken:
        said.append(f"{_counted(discovery.taken)} taken: reload the definitions to see them.")
    if discovery.lacking:
        streams = ", ".join(map(str, discovery.lacking))
        said.append(
            f"Rows that are in the tables of {streams} already have nothing in the new columns; "
            "`atlas refresh` reads them again."
        )
    if discovery.found.pending:
        said.append(f"{_counted(discovery.found.pending)} not taken yet.")
    return " ".join(said) or "The source offers what is known."


def evaluation(connection: Connection, result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    """``result`` as an event, for who is not the check itself."""
    return check_evaluation(schema_check_key(connection), result)


def as_markdown(changes: Sequence[CatalogChange]) -> str:
    """A list for people."""
    lines = [f"- {change}" for change in changes[:_LISTED]]
    if len(changes) > _LISTED:
        lines.append(f"- … and {len(changes) - _LISTED} more")
    return "\n".join(lines)


def _counted(changes: Sequence[CatalogChange]) -> str:
    breaking = sum(change.breaking for change in changes)
    number = plural(len(changes), "change")
    return f"{number} ({breaking} breaking)" if breaking else number
