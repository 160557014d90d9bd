"""CHECK as an asset check on the source asset."""

import time

import dagster as dg

from atlas_dagster.errors import AtlasError, CheckFailedError
from atlas_dagster.orchestration.automation.retries import (
    RetryBudget,
    format_text_block,
    tag_failure,
)
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.orchestration.definitions.stream_checks import check_evaluation
from atlas_dagster.orchestration.definitions.translator import source_key
from atlas_dagster.orchestration.operations.cleanup import note_process
from atlas_dagster.orchestration.operations.kubernetes import pod_tags
from atlas_dagster.orchestration.operations.pools import pool
from atlas_dagster.orchestration.step.metadata import short_digest
from atlas_dagster.orchestration.step.telemetry import SUCCESS, RunTotals, push_check
from atlas_dagster.source.connection import Connection
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.discovered_catalog import Discovered
from atlas_dagster.source.open_connector import open_connector

CHECK_NAME = "connection"
#: A passed CHECK is valid for this long.
_FRESH_SECONDS = 300


def check_key(connection: Connection) -> dg.AssetCheckKey:
    return dg.AssetCheckKey(source_key(connection), CHECK_NAME)


def build_check(connection: Connection, discovered: Discovered) -> dg.AssetChecksDefinition:
    """Return the blocking check: if it fails, the sync in the same run does not start."""

    @dg.asset_check(
        asset=source_key(connection),
        name=CHECK_NAME,
        blocking=True,
        pool=pool(connection),
        op_tags=pod_tags(connection),
        description=f"The connector's own CHECK: can {connection.source_name} reach its source?",
    )
    def check(context: dg.AssetCheckExecutionContext, atlas: AtlasResource) -> dg.AssetCheckResult:
        note_process(context.instance, context.run.run_id)
        budget = RetryBudget()
        while True:
            try:
                run = atlas.step_context(context)
                with open_connector(connection, run, spec=discovered.spec) as connector:
                    connector.check()
                push_check(connection.name, atlas.deployment, SUCCESS, context.log.warning)
                return _passed(connector)
            except AtlasError as error:
                wait = budget.wait_after(error)
                if wait is None:
                    tag_failure(context.instance, context.run.run_id, error, budget)
                    # The run page does not show the description of a failed check.
                    context.log.error(str(error))
                    outcome = error.failure_type
                    push_check(connection.name, atlas.deployment, outcome, context.log.warning)
                    return _failed(error)
                context.log.warning(f"{error} Trying again in {wait:.0f} seconds.")
                time.sleep(wait)

    return check


def ensure_checked(
    context: dg.AssetExecutionContext,
    connection: Connection,
    connector: Connector,
    totals: RunTotals,
) -> None:
    """Run CHECK unless one has passed in the last five minutes, and record the result.

    Raises:
        AtlasError: the CHECK failed.
    """
    record = context.instance.get_latest_asset_check_evaluation_record(check_key(connection))
    if record is not None and record.event is not None and record.status.value == "SUCCEEDED":
        # The event's time, because the record has that of its run, which may have been queued.
        age = time.time() - record.event.timestamp
        if age < _FRESH_SECONDS:
            return
    try:
        connector.check()
    except AtlasError as error:
        totals.check_outcome = error.failure_type
        context.log_event(check_evaluation(check_key(connection), _failed(error)))
        raise
    totals.check_outcome = SUCCESS
    context.log_event(check_evaluation(check_key(connection), _passed(connector)))


def _passed(connector: Connector) -> dg.AssetCheckResult:
    ran = short_digest(connector.runner.identity())
    return dg.AssetCheckResult(
        passed=True,
        description=f"{connector.name} reached its source.",
        metadata={"atlas/connector": ran},
    )


def _failed(error: AtlasError) -> dg.AssetCheckResult:
    metadata: dict[str, dg.RawMetadataValue] = {
        "atlas/message": str(error),
        "atlas/failure_type": error.failure_type,
    }
    if isinstance(error, CheckFailedError) and error.detail:
        metadata["atlas/detail"] = format_text_block(error.detail)
    return dg.AssetCheckResult(passed=False, description=str(error), metadata=metadata)
