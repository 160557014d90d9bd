"""A READ whose records go to the caller instead of into tables."""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing

import pyarrow as pa
from msgspec import Struct

from atlas_dagster.errors import AtlasError, ProtocolError, ReadFailedError, StoppedError
from atlas_dagster.protocol.catalog import ConfiguredStream, configured_catalog_json
from atlas_dagster.protocol.messages import (
    Message,
    Records,
    State,
    StreamDescriptor,
    StreamStatus,
    Unreadable,
)
from atlas_dagster.protocol.state import ConnectionState, is_complete_message, state_type
from atlas_dagster.records.batches import BatchBuilder
from atlas_dagster.records.types import TableSchema
from atlas_dagster.source.attribution import (
    Strangers,
    StreamNames,
    counted_together,
    no_namespace,
    records_since_state,
)
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.invocation import Invocation
from atlas_dagster.source.progress import WATCHED_EVERY_SECONDS, sync_watcher

#: As many as a sync takes at once, for the same reason; see ``sync/stream.py``.
_BATCH_ROWS = 5_000
_BATCH_BYTES = 4 * 1024 * 1024
#: Rows that wait for a state which covers them: so many times a batch at most, and so long.
_MOST_BATCHES = 2
_WAIT_SECONDS = 30.0
#: However few they are, rows are handed out after this time.
_HAND_OUT_SECONDS = 1.0
#: How long a state may lag behind the last record that is asked for.
_LAST_STATE_SECONDS = 2.0


class _Mark(Struct, frozen=True):
    """A state, and how many records of each stream it covers."""

    state: ConnectionState
    counts: Mapping[StreamDescriptor, int] = {}


class _Progress(Struct):
    """One stream's."""

    full_refresh: bool = False
    records: int = 0
    records_since_state: int = 0
    state_seen: bool = False
    status: str | None = None
    #: Records were left out, so no later state may count.
    is_cut: bool = False


class StreamReader:
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
        batch_rows: int = _BATCH_ROWS,
    ) -> None:
        """``batch_rows``: about as many come in one batch; a few more where a state follows."""
        self._connector = connector
        self._limit = limit
        self._batch_rows = batch_rows
        self._configured = {stream.descriptor: stream for stream in streams}
        self._progress = {
            name: _Progress(stream.sync_mode == "full_refresh")
            for name, stream in self._configured.items()
        }
        self._names = StreamNames(self._configured)
        self._strangers = Strangers()
        self._is_incremental = any(stream.sync_mode == "incremental" for stream in streams)
        self._full_since: float | None = None
        self._started = time.monotonic()
        self._told = 0.0
        self._mark = _Mark(state or ConnectionState())
        #: Whether the source has said all it had to say.
        self.is_complete = False
        self._broken: set[StreamDescriptor] = set()

    @property
    def state(self) -> ConnectionState:
        """Where the next reading continues: covers records that were handed out, and no others.

        Some of those may come again, as a source says its state only now and then: the last
        :attr:`rows_since_state` ones.
        """
        return self._mark.state

    @property
    def rows_since_state(self) -> int:
        """Records handed out since :attr:`state`; counts while a batch is handed out, too."""
        return sum(self.counts.values()) - sum(self._mark.counts.values())

    @property
    def counts(self) -> dict[StreamDescriptor, int]:
        """Records handed out so far."""
        return {name: progress.records for name, progress in self._progress.items()}

    @property
    def complete(self) -> list[StreamDescriptor]:
        """Streams of which all that is asked for came, whatever becomes of the others."""
        return [
            name
            for name, progress in self._progress.items()
            if name not in self._broken
            and (
                self.is_complete
                or progress.status == "COMPLETE"
                or (self._limit is not None and progress.records >= self._limit)
            )
        ]

    def records(self) -> Generator[Records, None, None]:
        """Records of one stream at a time, as the source wrote them.

        Raises:
            ReadFailedError: a stream did not complete.
            ConnectorFailedError: the connector failed.
            ProtocolError: a record or state cannot be understood, or records are missing.
            RunnerUnavailableError: the connector cannot be started.
        """
        for found in self._read():
            if isinstance(found, _Mark):
                self._mark = found
            elif found is not None:
                yield found

    def batches(self) -> Generator[tuple[StreamDescriptor, pa.RecordBatch], None, None]:
        """Typed batches, in the columns of the stream's table. Raises as :meth:`records` does.

        A batch ends where a state covers it, wherever the source says one in time: whoever takes
        it and then stops continues with the next record. What came before a failure is handed out
        before it is raised, for other streams may be complete.
        """
        waiting = _Waiting(self._configured.values())
        newest, is_covered = self._mark, False
        failure: AtlasError | None = None
        try:
            for found in self._read():
                if isinstance(found, Records):
                    waiting.add(found)
                    is_covered = False
                elif isinstance(found, _Mark):
                    newest, is_covered = found, True
                if self._is_due(waiting, is_covered or not self._is_incremental):
                    yield from self._emit(waiting, newest)
        except StoppedError:
            raise
        except AtlasError as error:
            failure = error
        yield from self._emit(waiting, newest)
        if failure is not None:
            raise failure

    def _is_due(self, waiting: "_Waiting", is_covered: bool) -> bool:
        """``is_covered``: nothing better comes from waiting."""
        patience = 1 if is_covered else _MOST_BATCHES
        return bool(waiting.rows) and (
            waiting.rows >= self._batch_rows * patience
            or waiting.bytes >= _BATCH_BYTES * patience
            or waiting.seconds >= (_HAND_OUT_SECONDS if is_covered else _WAIT_SECONDS)
        )

    def _emit(
        self, waiting: "_Waiting", mark: _Mark
    ) -> Iterator[tuple[StreamDescriptor, pa.RecordBatch]]:
        batches = waiting.take()
        for place, batch in enumerate(batches, 1):
            if place == len(batches):
                self._mark = mark
            yield batch
        self._mark = mark

    def _read(self) -> Iterator[Records | _Mark | None]:
        """Records, and each state that covers all before it; None in a pause."""
        conversation = self._connector.invoke()
        catalog = configured_catalog_json(list(self._configured.values()), sync_id=0)
        files = {"catalog": catalog}
        newest = self.state
        if newest:
            files["state"] = newest.to_file()
        command = self._connector.command("read", files)
        with closing(conversation.messages(command)) as messages:
            for message in messages:
                if isinstance(message, Records):
                    found = self._taken(message)
                    if found is not None:
                        yield found
                elif message is None:
                    yield None
                elif isinstance(message, Unreadable):
                    raise ProtocolError(
                        f"A {message.kind} of {self._connector.name} cannot be read "
                        f"({self._connector.reason(message)}); report it to the connector's "
                        "maintainers."
                    )
                elif isinstance(message, Message):
                    self._note(message)
                    if message.state is not None and self._counts(message.state):
                        newest = newest.apply(message.state)
                        yield _Mark(newest, self.counts)
                if self._is_enough:
                    return
        self._judge(conversation)
        self.is_complete = True

    def _taken(self, found: Records) -> Records | None:
        """What of ``found`` is asked for."""
        name = self._find(StreamDescriptor(found.stream, found.namespace))
        if name is None:
            if self._strangers.is_new(found.stream):
                text = f"Ignored records of stream '{found.stream}': it was not asked for."
                self._connector.log("WARN", text)
            return None
        found.namespace = name.namespace
        progress = self._progress[name]
        progress.records_since_state += len(found.records)
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
        """Whether all that is asked for came, and the state after it if that is near."""
        progresses = self._progress.values()
        if self._limit is None or any(p.records < self._limit for p in progresses):
            return False
        if not self._is_incremental or any(
            p.is_cut or not p.records_since_state for p in progresses
        ):
            return True
        self._full_since = self._full_since or time.monotonic()
        return time.monotonic() - self._full_since >= _LAST_STATE_SECONDS

    def _note(self, message: Message) -> None:
        status: StreamStatus | None = message.trace.stream_status if message.trace else None
        name = self._find(status.stream_descriptor) if status is not None else None
        if status is not None and name is not None:
            self._progress[name].status = status.status

    def _find(self, named: StreamDescriptor) -> StreamDescriptor | None:
        """The stream that is called ``named``; None for one that was not asked for.

        Raises:
            ProtocolError: it may be one of several.
        """
        if candidates := self._names.ambiguous(named):
            raise ProtocolError(f"{self._connector.name}: {no_namespace(candidates)}.")
        return self._names.find(named)

    def _counts(self, state: State) -> bool:
        """Whether ``state`` may be kept. Raises ProtocolError where records are missing."""
        if not is_complete_message(state):
            return False
        said = state.sourceStats.count if state.sourceStats else None
        if state_type(state) == "STREAM":
            assert state.stream is not None
            name = self._find(state.stream.stream_descriptor)
            if name is None:
                return False
            state.stream.stream_descriptor = name
            covered = [self._progress[name]]
            covered[0].state_seen = True
        else:
            covered = counted_together(self._progress.values(), said)
        came = records_since_state(covered)
        for progress in covered:
            progress.records_since_state = 0
        if said is not None and said != came:
            raise ProtocolError(
                f"{self._connector.name} says that {said} records came before its state, but "
                f"{came} did; read again, and report it to the connector's maintainers."
            )
        # Beside streams that continue from a state of all, a full refresh has none to keep.
        apart = self._is_incremental and all(progress.full_refresh for progress in covered)
        return not apart and not any(progress.is_cut for progress in covered)

    def _judge(self, conversation: Invocation) -> None:
        """Once the connector has ended."""
        for error in conversation.errors:
            name = error.stream_descriptor and self._names.find(error.stream_descriptor)
            if name is not None:
                self._broken.add(name)
        if conversation.failed:
            failure = conversation.failure()
            complete = self.complete
            broken = [name for name in self._progress if name not in complete]
            if len(self._progress) == 1 or not broken:
                raise failure
            raise ReadFailedError(
                f"{str(failure).rstrip('.')}. Not complete: {', '.join(map(str, broken))}.",
                failure_type=failure.failure_type,
                stack_trace=failure.stack_trace,
            )
        statuses = {name: progress.status for name, progress in self._progress.items()}
        some = any(statuses.values())
        broken = [n for n, status in statuses.items() if some and status != "COMPLETE"]
        if conversation.exit is not None and conversation.exit.cut_off:
            broken = list(statuses)
        if broken:
            self._broken.update(broken)
            raise ReadFailedError(
                f"{self._connector.name} did not complete {', '.join(map(str, broken))}; "
                "see its log, and read again."
            )


class _Waiting:
    """Records that are to be handed out, made into batches as they come."""

    def __init__(self, streams: Iterable[ConfiguredStream]) -> None:
        self._builders = {stream.descriptor: _builder(stream) for stream in streams}
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
        """Since records were handed out."""
        return time.monotonic() - self._since

    def take(self) -> list[tuple[StreamDescriptor, pa.RecordBatch]]:
        """One batch for each stream that has any records."""
        for name, builder in self._builders.items():
            if len(builder):
                self._built.setdefault(name, []).append(builder.build())
        batches = [(name, pa.concat_batches(built)) for name, built in self._built.items()]
        self._built = {}
        self.rows = self.bytes = 0
        self._since = time.monotonic()
        return batches


def _builder(stream: ConfiguredStream) -> BatchBuilder:
    return BatchBuilder(TableSchema.of_rows(stream), sync_id=0, generation_id=stream.generation_id)
