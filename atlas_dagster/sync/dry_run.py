"""A dry run: a READ of a few records that commits nothing."""

import time
from collections.abc import Mapping
from contextlib import closing

import pyarrow as pa
from msgspec import Struct

from atlas_dagster.destinations.base import StreamWriter, TableInfo
from atlas_dagster.destinations.envelope import Envelope, StagedFile
from atlas_dagster.protocol.messages import Records, StreamDescriptor
from atlas_dagster.records.issues import ValueChange
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.read_protocol import ReadProtocol
from atlas_dagster.sync.plan import SyncPlan
from atlas_dagster.sync.stream import ActiveStream
from atlas_dagster.sync.stream_plan import StreamPlan

#: A dry run ends after this many records of each stream, or after this many seconds.
RECORDS = 1_000
SECONDS = 60.0


class DryRunResult(Struct, frozen=True):
    """The result of a dry run for one stream.

    ``complete``: the source has sent all records. ``fault``: why a sync would not complete the
    stream. :class:`~atlas_dagster.sync.events.StreamFinished` explains the other fields.
    """

    plan: StreamPlan
    records: int
    complete: bool
    fault: str | None
    rows_without_key: int
    changes: Mapping[ValueChange, int]
    sample: pa.RecordBatch | None


class DiscardingWriter(StreamWriter):
    """A writer that discards its rows."""

    staged_rows = 0
    unpublished_rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self.staged_rows += batch.num_rows

    def rewind(self, rows: int) -> None:
        self.staged_rows = rows

    def stage(self) -> tuple[StagedFile, ...]:
        return ()

    def commit(self, envelope: Envelope) -> None:
        raise AssertionError(f"a dry run does not commit {envelope.seq}")

    def merge_committed(self) -> None: ...

    def discard(self) -> None: ...

    def describe(self) -> TableInfo:
        return TableInfo("", 0)

    def exists(self) -> bool:
        return False


def dry_run(plan: SyncPlan, connector: Connector) -> list[DryRunResult]:
    """Read up to :data:`RECORDS` records of each stream of ``plan``, and convert them to rows.

    A source may send one stream after the other, so later streams may have no records.

    Raises:
        AtlasError: the connector failed before it had sent enough records.
    """
    streams = {
        each.descriptor: ActiveStream(
            each, DiscardingWriter(), sync_id=plan.sync_id, root_run_id=plan.run.root_run_id
        )
        for each in plan.streams
    }
    for stream in streams.values():
        stream.refuses_null_keys = False  # a dry run counts null keys instead
    protocol = ReadProtocol(
        [stream.read for stream in streams.values()], state=plan.state, log=connector.log
    )
    deadline = time.monotonic() + SECONDS
    invocation = connector.invoke()
    command = connector.command("read", plan.files())
    is_done = False
    with closing(invocation.messages(command)) as messages:
        for message in messages:
            event = protocol.feed(message)
            if isinstance(event, Records):
                stream = streams[StreamDescriptor(event.stream, event.namespace)]
                if stream.records < RECORDS:
                    stream.add(event)
            is_done = all(map(_has_enough, streams.values())) or time.monotonic() > deadline
            if is_done:
                break
    if not is_done:
        protocol.end(invocation.errors, failed=invocation.failed, cut_off=invocation.cut_off)
        if invocation.failed:
            raise invocation.failure()
    for stream in streams.values():
        stream.flush()
    return [
        DryRunResult(
            stream.plan,
            stream.records,
            stream.read.is_complete,
            stream.read.fault,
            stream.rows_without_key,
            stream.builder.changes,
            stream.sample,
        )
        for stream in streams.values()
    ]


def _has_enough(stream: ActiveStream) -> bool:
    return bool(stream.records >= RECORDS or stream.read.status == "COMPLETE" or stream.read.fault)
