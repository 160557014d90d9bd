"""A READ whose records go to the caller instead of into tables."""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing

import pyarrow as pa
from msgspec import Struct

from atlas_dagster.errors import AtlasError, ProtocolError, ReadFailedError, StoppedError
from atlas_dagster.listener import PROGRESS_SECONDS
from atlas_dagster.protocol.catalog import ConfiguredStream, configured_catalog_json
from atlas_dagster.protocol.messages import Records, StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.records.batches import BatchBuilder
from atlas_dagster.records.types import TableSchema
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.invocation import Invocation
from atlas_dagster.source.read_protocol import ReadProtocol, StateReached, StreamFault, StreamRead

#: The batch size of a sync; ``sync/stream.py`` has the reason.
_BATCH_ROWS = 5_000
_BATCH_BYTES = 4 * 1024 * 1024
#: Rows are kept for a state that covers them, up to this many batches and this long.
_MOST_BATCHES = 2
_WAIT_SECONDS = 30.0
#: Covered rows are kept this long until their batch is full.
_YIELD_SECONDS = 1.0
#: The reader waits this long for the state after the last requested record.
_LAST_STATE_SECONDS = 2.0


class _Mark(Struct, frozen=True):
    """A state, and the number of records of each stream that it covers."""

    state: ConnectionState
    counts: Mapping[StreamDescriptor, int] = {}


class StreamReader:
    """A READ of ``streams`` that continues from ``state``.

    The reader stores nothing: the caller stores the records and :attr:`state` together. It stops
    the connector after ``limit`` records of each stream, or if the caller closes an iterator early.
    """

    def __init__(
        self,
        connector: Connector,
        streams: Sequence[ConfiguredStream],
        *,
        state: ConnectionState | None = None,
        limit: int | None = None,
        batch_rows: int = _BATCH_ROWS,
    ) -> None:
        """``batch_rows``: the size of a batch, which may grow a little until a state covers it."""
        self._connector = connector
        self._limit = limit
        self._batch_rows = batch_rows
        self._configured = {stream.descriptor: stream for stream in streams}
        self._streams = {stream.descriptor: StreamRead.of(stream) for stream in streams}
        self._is_incremental = any(stream.sync_mode == "incremental" for stream in streams)
        self._counts = dict.fromkeys(self._configured, 0)
        self._full_since: float | None = None
        self._next_progress = 0.0
        self._mark = _Mark(state or ConnectionState())
        #: Whether the source has sent all records.
        self.is_complete = False

    @property
    def state(self) -> ConnectionState:
        """The state from which the next READ continues. It covers only records already yielded.

        A source sends states only from time to time, so the next READ may repeat the last
        :attr:`rows_since_state` records.
        """
        return self._mark.state

    @property
    def rows_since_state(self) -> int:
        """The number of records yielded since :attr:`state`, including the current batch."""
        return sum(self.counts.values()) - sum(self._mark.counts.values())

    @property
    def counts(self) -> dict[StreamDescriptor, int]:
        """The number of records of each stream so far."""
        return dict(self._counts)

    @property
    def complete(self) -> list[StreamDescriptor]:
        """The streams whose requested records were all yielded, even if other streams failed."""
        return [
            name
            for name, stream in self._streams.items()
            if stream.is_complete or (self._is_full(name) and not (stream.fault or stream.error))
        ]

    def records(self) -> Generator[Records, None, None]:
        """Yield records as the source wrote them; each item has records of one stream.

        Raises:
            ReadFailedError: a stream did not complete.
            ConnectorFailedError: the connector failed.
            ProtocolError: a record or state is unreadable, or the records do not match its count.
            RunnerUnavailableError: the connector cannot be started.
        """
        for found in self._read():
            if isinstance(found, _Mark):
                self._mark = found
            elif found is not None:
                yield found

    def batches(self) -> Generator[tuple[StreamDescriptor, pa.RecordBatch], None, None]:
        """Yield typed batches, with the columns of the stream's table.

        A batch ends at a state if the source sends one in time, so a caller that stops after this
        batch continues with the next record. Records before a failure are yielded before the error
        is raised, because other streams may be complete. Raises the errors of :meth:`records`.
        """
        queue = _BatchQueue(self._configured.values())
        newest, is_covered = self._mark, False
        failure: AtlasError | None = None
        try:
            for found in self._read():
                if isinstance(found, Records):
                    queue.add(found)
                    is_covered = False
                elif isinstance(found, _Mark):
                    newest, is_covered = found, True
                if self._is_due(queue, is_covered or not self._is_incremental):
                    yield from self._emit(queue, newest)
        except StoppedError:
            raise
        except AtlasError as error:
            failure = error
        yield from self._emit(queue, newest)
        if failure is not None:
            raise failure

    def _is_due(self, queue: "_BatchQueue", is_covered: bool) -> bool:
        """Return whether to yield the rows. ``is_covered``: a state covers all of them already."""
        batches = 1 if is_covered else _MOST_BATCHES
        return bool(queue.rows) and (
            queue.rows >= self._batch_rows * batches
            or queue.bytes >= _BATCH_BYTES * batches
            or queue.seconds >= (_YIELD_SECONDS if is_covered else _WAIT_SECONDS)
        )

    def _emit(
        self, queue: "_BatchQueue", mark: _Mark
    ) -> Iterator[tuple[StreamDescriptor, pa.RecordBatch]]:
        batches = queue.take()
        for place, batch in enumerate(batches, 1):
            if place == len(batches):
                self._mark = mark
            yield batch
        self._mark = mark

    def _read(self) -> Iterator[Records | _Mark | None]:
        """Yield records, states with the counts that they cover, and None while nothing arrives."""
        catalog = configured_catalog_json(list(self._configured.values()), sync_id=0)
        files = {"catalog": catalog}
        if self.state:
            files["state"] = self.state.to_file()
        command = self._connector.command("read", files)
        protocol = ReadProtocol(self._streams.values(), state=self.state, log=self._connector.log)
        invocation = self._connector.invoke()
        with closing(invocation.messages(command)) as messages:
            for message in messages:
                event = protocol.feed(message)
                if message is None:
                    yield None
                elif isinstance(event, Records):
                    if allowed := self._apply_limit(event):
                        yield allowed
                elif isinstance(event, StateReached) and not event.is_apart:
                    yield _Mark(event.state, self.counts)
                elif isinstance(event, StreamFault):
                    names = ", ".join([self._connector.name, *map(str, event.streams)])
                    raise ProtocolError(f"{names}: {event.reason}.")
                if self._has_enough:
                    return
        protocol.end(invocation.errors, failed=invocation.failed, cut_off=invocation.cut_off)
        self._judge(invocation)
        self.is_complete = True

    def _apply_limit(self, found: Records) -> Records | None:
        """Count the records, and return those within the limit."""
        name = StreamDescriptor(found.stream, found.namespace)
        if self._limit is not None and len(found.records) > self._limit - self._counts[name]:
            self._streams[name].skips_records = True
            allowed = found.records[: self._limit - self._counts[name]]
            found = Records(found.stream, found.namespace, allowed, found.bytes)
        self._counts[name] += len(found.records)
        if (now := time.monotonic()) >= self._next_progress:
            self._next_progress = now + PROGRESS_SECONDS
            self._connector.listener.progress("read", sum(self._counts.values()), None)
        return found if found.records else None

    def _is_full(self, name: StreamDescriptor) -> bool:
        return self._limit is not None and self._counts[name] >= self._limit

    @property
    def _has_enough(self) -> bool:
        """True if all requested records came, and also the state after them or its time ran out."""
        if not all(map(self._is_full, self._streams)):
            return False
        streams = self._streams.values()
        if not self._is_incremental or any(
            stream.skips_records or not stream.records_since_state for stream in streams
        ):
            return True
        self._full_since = self._full_since or time.monotonic()
        return time.monotonic() - self._full_since >= _LAST_STATE_SECONDS

    def _judge(self, invocation: Invocation) -> None:
        """Raise an error if the connector failed or a stream is not complete."""
        complete = self.complete
        broken = [name for name in self._streams if name not in complete]
        names = ", ".join(map(str, broken))
        if invocation.failed:
            failure = invocation.failure()
            if len(self._streams) == 1 or not broken:
                raise failure
            raise ReadFailedError(
                f"{str(failure).rstrip('.')}. Not complete: {names}.",
                failure_type=failure.failure_type,
                stack_trace=failure.stack_trace,
            )
        if broken:
            raise ReadFailedError(
                f"{self._connector.name} did not complete {names}; see its log, and read again."
            )


class _BatchQueue:
    """Records that were not yielded yet, built into batches as they arrive."""

    def __init__(self, streams: Iterable[ConfiguredStream]) -> None:
        self._builders = {stream.descriptor: _make_builder(stream) for stream in streams}
        self._built: dict[StreamDescriptor, list[pa.RecordBatch]] = {}
        self.rows = 0
        self.bytes = 0
        self._since = time.monotonic()

    def add(self, found: Records) -> None:
        name = StreamDescriptor(found.stream, found.namespace)
        builder = self._builders[name]
        builder.extend(found.records, found.bytes)
        self.rows += len(found.records)
        self.bytes += found.bytes
        if len(builder) >= _BATCH_ROWS or builder.bytes >= _BATCH_BYTES:
            self._built.setdefault(name, []).append(builder.build())

    @property
    def seconds(self) -> float:
        """The number of seconds since the last :meth:`take`."""
        return time.monotonic() - self._since

    def take(self) -> list[tuple[StreamDescriptor, pa.RecordBatch]]:
        """Remove all records; return one batch for each stream that has any."""
        for name, builder in self._builders.items():
            if len(builder):
                self._built.setdefault(name, []).append(builder.build())
        batches = [(name, pa.concat_batches(built)) for name, built in self._built.items()]
        self._built = {}
        self.rows = self.bytes = 0
        self._since = time.monotonic()
        return batches


def _make_builder(stream: ConfiguredStream) -> BatchBuilder:
    return BatchBuilder(TableSchema.of_rows(stream), sync_id=0, generation_id=stream.generation_id)
