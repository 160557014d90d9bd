"""What a sync would do, told of each stream instead of doing it."""

from collections.abc import Iterator

import dagster as dg

from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.step.metadata import AtlasMetadataSet
from atlas_dagster.orchestration.step.summary import (
    Mask,
    bounded,
    changed_values,
    plain,
    preview,
    shown_cursor,
)
from atlas_dagster.sync.dry_run import DryRunResult
from atlas_dagster.sync.stream_plan import StreamPlan
from atlas_dagster.wording import plural

_NOTHING = "**Dry run: nothing was written.**"


def rehearsed_observation(
    rehearsed: DryRunResult, key: dg.AssetKey, mask: Mask
) -> dg.AssetObservation:
    """The event that tells what would become of a stream."""
    return _observation(
        key,
        bounded(_told(rehearsed, mask)),
        preview(rehearsed.sample, mask),
    )


def refused_observation(key: dg.AssetKey, error: AtlasError) -> dg.AssetObservation:
    """The event that tells why a stream would not be read."""
    told = f"A sync would leave this stream out: {plain(str(error))}"
    return _observation(key, bounded([_NOTHING, told]), None)


def _observation(
    key: dg.AssetKey, told: str, rows: dg.TableMetadataValue | None
) -> dg.AssetObservation:
    metadata = {**AtlasMetadataSet(dry_run=dg.MetadataValue.md(told), preview=rows)}
    return dg.AssetObservation(key, description="Dry run: nothing was written.", metadata=metadata)


def _told(rehearsed: DryRunResult, mask: Mask) -> Iterator[str]:
    plan = rehearsed.plan
    stream = plan.configured
    yield _NOTHING
    yield (
        f"A sync ({stream.sync_mode} | {stream.destination_sync_mode}) would {_would(plan, mask)}."
    )
    count = f"{plural(rehearsed.records, 'record')} read and thrown away"
    yield (
        f"{count}; that is all there is." if rehearsed.complete else f"{count}; there may be more."
    )
    if rehearsed.fault:
        yield f"**Warning:** a sync would not complete this stream: {plain(rehearsed.fault)}."
    if rehearsed.keyless:
        yield f"**Warning:** {rehearsed.keyless:,} of them have nothing in a field of the key."
    yield from changed_values(rehearsed.changes)


def _would(plan: StreamPlan, mask: Mask) -> str:
    if plan.state is not None:
        start = f"read on from {shown_cursor(plan.state, mask)}"
    else:
        start = "read from the beginning"
    match plan.table.mode:
        case _ if plan.table.replaces:
            return f"{start}, and replace the rows of the table once that is complete"
        case "append_dedup":
            return f"{start}, and keep the newest row of each primary key"
        case _:
            return f"{start}, and add rows to the table"
