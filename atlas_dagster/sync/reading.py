"""A READ whose records go to the caller instead of into tables."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing

import pyarrow as pa
from msgspec import Struct

from atlas_dagster.errors import ProtocolError, ReadFailedError
from atlas_dagster.protocol.catalog import ConfiguredStream, configured_catalog_json
from atlas_dagster.protocol.messages import (
    Message,
    Records,
    State,
    StreamDescriptor,
    StreamStatus,
    Unreadable,
)
from atlas_dagster.protocol.state import ConnectionState, is_whole, state_type
from atlas_dagster.records.batches import BatchBuilder
from atlas_dagster.records.types import TableSchema
from atlas_dagster.sync.connector import Connector
from atlas_dagster.sync.conversation import Conversation
from atlas_dagster.sync.progress import WATCHED_EVERY_SECONDS, sync_watcher

#: As many as a sync takes at once, for the same reason; see ``sync/stream.py``.
_BATCH_ROWS = 5_000
_BATCH_BYTES = 4 * 1024 * 1024


class _Progress(Struct):
    """One stream's."""

    records: int = 0
    since_state: int = 0
    status: str | None = None
    #: Records were left out, so no later state may count.
    is_cut: bool = False


class Reading:
    """Reads ``streams`` once, from ``state`` on.

    Nothing is stored: whoever takes the records takes :attr:`state` with them. Leaving an iterator
    early stops the connector; so does reaching ``limit`` records of each stream.
    """

    def __init__(
        self,
        connector: Connector,
        streams: Sequence[ConfiguredStream],
        *,
        state: ConnectionState | None = None,
        limit: int | None = None,
    ) -> None:
        self._connector = connector
        self._limit = limit
        self._configured = {stream.descriptor: stream for stream in streams}
        self._progress = {name: _Progress() for name in self._configured}
        self._strangers: set[str] = set()
        self._started = time.monotonic()
        self._told = 0.0
        #: Where the next reading continues: covers records that were handed out, and no others.
        #: Some of those may come again, as a source says its state only now and then.
        self.state = state or ConnectionState()

    @property
    def counts(self) -> dict[StreamDescriptor, int]:
        """Records handed out so far."""
        return {name: progress.records for name, progress in self._progress.items()}

    def records(self) -> Iterator[Records]:
        """Records of one stream at a time, as the source wrote them.

        Raises:
            ReadFailedError: a stream did not complete.
            ConnectorFailedError: the connector failed.
            ProtocolError: a record or state cannot be understood, or records are missing.
            RunnerUnavailableError: the connector cannot be started.
        """
        for found in self._read():
            if isinstance(found, Records):
                yield found
            else:
                self.state = found

    def batches(self) -> Iterator[tuple[StreamDescriptor, pa.RecordBatch]]:
        """Typed batches, in the columns of the stream's table. Raises as :meth:`records` does."""
        builders = {name: _builder(stream) for name, stream in self._configured.items()}
        rows = size = 0
        newest = self.state
        for found in self._read():
            if not isinstance(found, Records):
                newest = found
                continue
            builders[StreamDescriptor(found.stream, found.namespace)].extend(
                found.records, found.bytes
            )
            rows += len(found.records)
            size += found.bytes
            if rows >= _BATCH_ROWS or size >= _BATCH_BYTES:
                yield from _built(builders)
                self.state = newest
                rows = size = 0
        yield from _built(builders)
        self.state = newest

    def _read(self) -> Iterator[Records | ConnectionState]:
        """Records, and each state that covers all before it."""
        conversation = self._connector.converse()
        catalog = configured_catalog_json(list(self._configured.values()), sync_id=0)
        files = {"catalog": catalog}
        if self.state:
            files["state"] = self.state.to_file()
        newest = self.state
        command = self._connector.command("read", files)
        with closing(conversation.messages(command)) as messages:
            for message in messages:
                if isinstance(message, Records):
                    found = self._taken(message)
                    if found is not None:
                        yield found
                    if self._is_enough:
                        return
                elif isinstance(message, Unreadable):
                    raise ProtocolError(
                        f"A {message.kind} of {self._connector.name} cannot be read "
                        f"({message.text}); report it to the connector's maintainers."
                    )
                elif isinstance(message, Message):
                    self._note(message)
                    if message.state is not None and self._counts(message.state):
                        newest = newest.apply(message.state)
                        yield newest
        self._judge(conversation)

    def _taken(self, found: Records) -> Records | None:
        """What of ``found`` is asked for."""
        progress = self._progress.get(StreamDescriptor(found.stream, found.namespace))
        if progress is None:
            if found.stream not in self._strangers:
                self._strangers.add(found.stream)
                text = f"Ignored records of stream '{found.stream}': it was not asked for."
                self._connector.log("WARN", text)
            return None
        progress.since_state += len(found.records)
        room = len(found.records) if self._limit is None else self._limit - progress.records
        if room < len(found.records):
            progress.is_cut = True
            found = Records(found.stream, found.namespace, found.records[:room], found.bytes)
        progress.records += len(found.records)
        self._tell()
        return found if found.records else None

    def _tell(self) -> None:
        now, watch = time.monotonic(), sync_watcher.get()
        if watch is not None and now - self._told >= WATCHED_EVERY_SECONDS:
            self._told = now
            count = sum(self.counts.values())
            watch(count, None, count / max(now - self._started, 1e-3))

    @property
    def _is_enough(self) -> bool:
        limit = self._limit
        return limit is not None and all(p.records >= limit for p in self._progress.values())

    def _note(self, message: Message) -> None:
        status: StreamStatus | None = message.trace.stream_status if message.trace else None
        if status is not None and status.stream_descriptor in self._progress:
            self._progress[status.stream_descriptor].status = status.status

    def _counts(self, state: State) -> bool:
        """Whether ``state`` may be kept. Raises ProtocolError where records are missing."""
        if not is_whole(state):
            return False
        covered = list(self._progress.values())
        if state_type(state) == "STREAM":
            assert state.stream is not None
            one = self._progress.get(state.stream.stream_descriptor)
            if one is None:
                return False
            covered = [one]
        said = state.sourceStats.recordCount if state.sourceStats else None
        came = sum(progress.since_state for progress in covered)
        for progress in covered:
            progress.since_state = 0
        if said is not None and int(said) != came:
            raise ProtocolError(
                f"{self._connector.name} says that {int(said)} records came before its state, but "
                f"{came} did; read again, and report it to the connector's maintainers."
            )
        return not any(progress.is_cut for progress in covered)

    def _judge(self, conversation: Conversation) -> None:
        """Once the connector has ended."""
        if conversation.failed:
            raise conversation.failure()
        statuses = {name: progress.status for name, progress in self._progress.items()}
        some = any(statuses.values())
        broken = [str(n) for n, status in statuses.items() if some and status != "COMPLETE"]
        if conversation.exit is not None and conversation.exit.cut_off:
            broken = [str(name) for name in statuses]
        if broken:
            raise ReadFailedError(
                f"{self._connector.name} did not complete {', '.join(broken)}; "
                "see its log, and read again."
            )


def _builder(stream: ConfiguredStream) -> BatchBuilder:
    schema = TableSchema.from_json_schema(stream.stream.json_schema, nested=stream.nested_fields)
    return BatchBuilder(schema, sync_id=0, generation_id=stream.generation_id)


def _built(
    builders: dict[StreamDescriptor, BatchBuilder],
) -> Iterator[tuple[StreamDescriptor, pa.RecordBatch]]:
    for name, builder in builders.items():
        if len(builder):
            yield name, builder.build()
