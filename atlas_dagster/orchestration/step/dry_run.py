"""The events of a dry run. They describe what a sync would do with each stream."""

from collections.abc import Iterator

import dagster as dg

from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.step.metadata import AtlasMetadataSet
from atlas_dagster.orchestration.step.summary import (
    Mask,
    changed_values,
    escape,
    format_cursor,
    join_bounded,
    preview,
)
from atlas_dagster.sync.dry_run import DryRunResult
from atlas_dagster.sync.stream_plan import StreamPlan
from atlas_dagster.wording import plural

_NOTHING = "**Dry run: nothing was written.**"


def dry_run_observation(result: DryRunResult, key: dg.AssetKey, mask: Mask) -> dg.AssetObservation:
    """Return the event that describes what a sync would do with a stream."""
    return _observation(
        key,
        join_bounded(_describe(result, mask)),
        preview(result.sample, mask),
    )


def refused_observation(key: dg.AssetKey, error: AtlasError) -> dg.AssetObservation:
    """Return the event that says why a sync would not read a stream."""
    text = f"A sync would skip this stream: {escape(str(error))}"
    return _observation(key, join_bounded([_NOTHING, text]), None)


def _observation(
    key: dg.AssetKey, text: str, rows: dg.TableMetadataValue | None
) -> dg.AssetObservation:
    metadata = {**AtlasMetadataSet(dry_run=dg.MetadataValue.md(text), preview=rows)}
    return dg.AssetObservation(key, description="Dry run: nothing was written.", metadata=metadata)


def _describe(result: DryRunResult, mask: Mask) -> Iterator[str]:
    plan = result.plan
    stream = plan.configured
    yield _NOTHING
    mode = f"{stream.sync_mode} | {stream.destination_sync_mode}"
    yield f"A sync ({mode}) would {_describe_effect(plan, mask)}."
    count = f"{plural(result.records, 'record')} read and discarded"
    yield (f"{count}; there are no more." if result.complete else f"{count}; there may be more.")
    if result.fault:
        yield f"**Warning:** a sync would not complete this stream: {escape(result.fault)}."
    if without_key := result.rows_without_key:
        yield f"**Warning:** {without_key:,} of them have no value in a field of the key."
    yield from changed_values(result.changes)


def _describe_effect(plan: StreamPlan, mask: Mask) -> str:
    if plan.state is not None:
        start = f"resume from {format_cursor(plan.state, mask)}"
    else:
        start = "read from the beginning"
    match plan.table.mode:
        case _ if plan.table.replaces:
            return f"{start}, and replace the rows of the table when it is complete"
        case "append_dedup":
            return f"{start}, and keep the newest row of each primary key"
        case _:
            return f"{start}, and add rows to the table"
