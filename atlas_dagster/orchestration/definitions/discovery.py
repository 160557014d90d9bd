"""DISCOVER inside Dagster: a check on the source asset, a job, and optionally a schedule.

The check compares the source's catalog with the stored one. The connection's policy says which
changes are applied automatically; the others stay pending, and the check warns until they are
applied.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field, field_validator

from atlas_dagster.orchestration.automation.cron import Schedule, schedule_job, validate_schedule
from atlas_dagster.orchestration.automation.retries import explain_failure
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
#: Runs DISCOVER, applies the changes that the policy allows (without one, all), and stores them.
RefreshCatalog = Callable[[RunContext, SchemaPolicy | None], Discovery]
#: Runs DISCOVER and compares; applies and stores nothing.
CompareCatalog = Callable[[RunContext], Discovery]
#: At most this many changes are listed; the others are counted.
_MOST_LISTED = 50


class DiscoveryConfig(BaseModel):
    """Settings: the schedule of DISCOVER, and the changes to apply automatically."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schedule: str | Schedule | None = Field(
        default=None,
        description="When to run DISCOVER: cron expression in UTC, or cron and timezone.",
        examples=["0 6 * * *"],
    )
    schema_changes: SchemaPolicy = Field(
        default="propagate_columns",
        description="Changes that are applied automatically: none (ignore); new, missing and "
        "retyped fields (propagate_columns); also new and removed streams (propagate_all). "
        "Breaking changes never are. Other changes stay pending; the source's asset lists them.",
    )

    look: Literal["daily", "never"] = Field(
        default="daily",
        description="Run DISCOVER before a sync, at most once a day, or never. Many sources send "
        "only the fields of the stored catalog, so values of new fields would be missed.",
    )

    _cron = field_validator("schedule")(validate_schedule)


class Take(Enum):
    """The changes that a discovery applies."""

    policy = "policy"
    all = "all"


class DiscoveryOptions(dg.Config):
    """Options of one run."""

    take: Take = Field(
        default=Take.policy,
        description="Which changes to apply: those that the connection's schema_changes allows, or "
        "all, also breaking ones.",
    )


def schema_check_key(connection: Connection) -> dg.AssetCheckKey:
    return dg.AssetCheckKey(source_key(connection), CHECK_NAME)


def build_discovery(
    connection: Connection,
    config: DiscoveryConfig,
    refresh: RefreshCatalog,
    compare: CompareCatalog,
) -> dg.Definitions:
    """Return the check, the job ``<connection>__discover``, and its schedule if there is one."""
    allowed = config.schema_changes

    @dg.asset_check(
        asset=source_key(connection),
        name=CHECK_NAME,
        pool=pool(connection),
        op_tags=pod_tags(connection),
        description="Runs DISCOVER and compares the streams and fields with the stored catalog. "
        f"The job {connection.name}__discover applies the changes that "
        f"`schema_changes: {allowed}` allows.",
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
        # The method's type does not name this event, but accepts it.
        event: Any = make_evaluation(connection, result)
        context.log_event(event)

    @dg.job(
        name=f"{connection.name}__discover",
        description=f"Runs DISCOVER for {connection.name} and applies changes to its streams.",
        # The connection's sensor requests no run while it runs.
        tags={CONNECTION_TAG: connection.name},
    )
    def discovery() -> None:
        run_discover()

    schedules = [] if config.schedule is None else [schedule_job(discovery, config.schedule)]
    return dg.Definitions(asset_checks=[schema_changes], jobs=[discovery], schedules=schedules)


def discover(
    context: StepContext,
    atlas: AtlasResource,
    get_discovery: CompareCatalog,
) -> dg.AssetCheckResult:
    """Run DISCOVER with ``get_discovery``. Return the result of the check ``schema_changes``.

    Raises:
        dagster.Failure: DISCOVER failed; the stored catalog stays.
    """
    with explain_failure():
        note_process(context.instance, context.run.run_id)
        discovery = get_discovery(atlas.step_context(context))
    context.log.info(f"Discovered. {describe_discovery(discovery)}")
    return check_result(discovery)


def discover_and_project(
    context: StepContext,
    atlas: AtlasResource,
    connection: Connection,
    refresh: RefreshCatalog,
    policy: SchemaPolicy | None,
) -> dg.AssetCheckResult:
    """Run DISCOVER with ``refresh``, and write the SQL tables. Raises dagster.Failure."""

    def get_discovery(run: RunContext) -> Discovery:
        discovery = refresh(run, policy)
        project_discovery(context.instance, connection, discovery.found, context.log.warning)
        return discovery

    return discover(context, atlas, get_discovery)


def check_result(discovery: Discovery) -> dg.AssetCheckResult:
    """Return the result of the check ``schema_changes`` for a discovery."""
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
        description=describe_discovery(discovery),
        metadata=metadata,
    )


def describe_discovery(discovery: Discovery) -> str:
    """Describe a discovery in one or two sentences."""
    sentences = []
    if discovery.taken:
        sentences.append(
            f"{_count_changes(discovery.taken)} applied: reload the definitions to see them."
        )
    if discovery.lacking:
        streams = ", ".join(map(str, discovery.lacking))
        sentences.append(
            f"Existing rows of {streams} have no values in the new columns; `atlas refresh` reads "
            "them again."
        )
    if discovery.found.pending:
        sentences.append(f"{_count_changes(discovery.found.pending)} pending.")
    return " ".join(sentences) or "No changes: the source matches the stored catalog."


def make_evaluation(connection: Connection, result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    """Return the event for a result that does not come from a run of the check itself."""
    return check_evaluation(schema_check_key(connection), result)


def as_markdown(changes: Sequence[CatalogChange]) -> str:
    """Return the changes as a list in Markdown."""
    lines = [f"- {change}" for change in changes[:_MOST_LISTED]]
    if len(changes) > _MOST_LISTED:
        lines.append(f"- … and {len(changes) - _MOST_LISTED} more")
    return "\n".join(lines)


def _count_changes(changes: Sequence[CatalogChange]) -> str:
    breaking = sum(change.breaking for change in changes)
    number = plural(len(changes), "change")
    return f"{number} ({breaking} breaking)" if breaking else number
