"""A READ of a few records that changes nothing: what a dry run sees of the source."""

import time
from collections.abc import Mapping
from contextlib import closing

import pyarrow as pa
from msgspec import Struct

from atlas_dagster.destinations.base import StreamWriter, TableInfo
from atlas_dagster.destinations.envelope import Envelope, StagedFile
from atlas_dagster.protocol.messages import Message, Records, StreamDescriptor
from atlas_dagster.records.issues import ValueChange
from atlas_dagster.source.attribution import StreamNames
from atlas_dagster.source.connector import Connector
from atlas_dagster.sync.plan import SyncPlan
from atlas_dagster.sync.stream import ActiveStream
from atlas_dagster.sync.stream_plan import StreamPlan

#: Records of each stream, and seconds in all, after which it is enough.
RECORDS = 1_000
SECONDS = 60.0


class DryRunResult(Struct, frozen=True):
    """What came of one stream before the READ was stopped.

    ``complete``: the source said that this is all. The rest as in
    :class:`~atlas_dagster.sync.events.StreamFinished`.
    """

    plan: StreamPlan
    records: int
    complete: bool
    keyless: int
    changes: Mapping[ValueChange, int]
    sample: pa.RecordBatch | None


class DiscardingWriter(StreamWriter):
    """Takes rows and forgets them."""

    def write(self, batch: pa.RecordBatch) -> None:
        self.staged_rows += batch.num_rows

    def rewind(self, rows: int) -> None:
        self.staged_rows = rows

    def stage(self) -> tuple[StagedFile, ...]:
        return ()

    def commit(self, envelope: Envelope) -> None:
        raise AssertionError(f"a rehearsal does not commit {envelope.seq}")

    def merge_committed(self) -> None: ...

    def discard(self) -> None: ...

    def describe(self) -> TableInfo:
        return TableInfo("", 0)

    def exists(self) -> bool:
        return False


def dry_run(plan: SyncPlan, connector: Connector) -> list[DryRunResult]:
    """Read up to :data:`RECORDS` of each stream, as ``plan`` would, and type them.

    The source may send one stream after the other, so the later ones may not be reached.

    Raises:
        AtlasError: the connector failed before that.
    """
    streams = {
        each.descriptor: ActiveStream(
            each, DiscardingWriter(), sync_id=plan.sync_id, root_run_id=plan.root_run_id
        )
        for each in plan.streams
    }
    for stream in streams.values():
        stream.refuses_null_keys = False  # told instead
    names = StreamNames(streams)
    deadline = time.monotonic() + SECONDS
    conversation = connector.invoke()
    command = connector.command("read", plan.files())
    enough = False
    with closing(conversation.messages(command)) as messages:
        for message in messages:
            if isinstance(message, Records):
                name = names.find(StreamDescriptor(message.stream, message.namespace))
                if name is not None and streams[name].records < RECORDS:
                    streams[name].add(message)
            elif isinstance(message, Message) and message.trace is not None:
                status = message.trace.stream_status
                name = names.find(status.stream_descriptor) if status is not None else None
                if status is not None and name is not None:
                    streams[name].status = status.status
            enough = all(_is_enough(stream) for stream in streams.values())
            if enough or time.monotonic() > deadline:
                enough = True
                break
    if not enough and conversation.failed:
        raise conversation.failure()
    for stream in streams.values():
        stream.flush()
    return [
        DryRunResult(
            stream.plan,
            stream.records,
            stream.status == "COMPLETE" or not enough,
            stream.keyless,
            stream.builder.changes,
            stream.sample,
        )
        for stream in streams.values()
    ]


def _is_enough(stream: ActiveStream) -> bool:
    return stream.records >= RECORDS or stream.status == "COMPLETE"
