"""One READ into tables: from the connector's messages to committed rows.

A session does not use Dagster. :meth:`SyncSession.run` yields an event as soon as rows are durable,
so that the caller can record it at once. It also yields progress reports.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager

from atlas_dagster.destinations.base import Destination
from atlas_dagster.errors import AtlasError, TransientError
from atlas_dagster.protocol.messages import Message, Records, StreamDescriptor
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.invocation import Invocation
from atlas_dagster.source.read_protocol import (
    ReadEvent,
    ReadProtocol,
    StateReached,
    StreamComplete,
    StreamFault,
)
from atlas_dagster.sync.commits import Commits
from atlas_dagster.sync.events import StreamFailed, StreamFinished, StreamsCommitted, SyncEvent
from atlas_dagster.sync.failure import explain_failure
from atlas_dagster.sync.plan import SyncPlan
from atlas_dagster.sync.progress import Progress
from atlas_dagster.sync.stream import ActiveStream

#: A STATE is committed if the last commit was this many seconds, or this many bytes, ago.
COMMIT_SECONDS = 30.0
COMMIT_BYTES = 256 * 1024 * 1024
#: After this many bytes of records, all streams build batches, even small ones.
_BUFFERED_BYTES = 16 * 1024 * 1024


class SyncSession:
    """One READ of the streams of ``plan``."""

    def __init__(
        self,
        plan: SyncPlan,
        *,
        connector: Connector,
        destination: Destination,
        commit_seconds: float = COMMIT_SECONDS,
        commit_bytes: int = COMMIT_BYTES,
        interrupts: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    ) -> None:
        self._plan = plan
        self._connector = connector
        self._commit_seconds = commit_seconds
        self._commit_bytes = commit_bytes
        #: The exceptions that end the sync on the user's request.
        self._interrupts = interrupts
        self._is_between_messages = False
        self._commits = Commits(plan, destination)
        self._streams: dict[StreamDescriptor, ActiveStream] = {}
        #: Streams that an earlier run of this chain of retries has read completely.
        self._already_read: list[ActiveStream] = []
        self._buffered = 0
        self._progress = Progress(connector.listener)

    # --8<-- [start:run] shown in docs/architecture.md
    def run(self) -> Iterator[SyncEvent]:
        """Read, commit, and yield an event for everything that has become durable.

        Raises:
            ReadFailedError: a stream did not complete, or the connector failed. Streams that
                finished keep their rows.
            TransientError: the destination, or the connector's runner, does not respond.
        """
        invocation = None
        try:
            yield from self._open()
            if self._streams:
                protocol = ReadProtocol(
                    [stream.read for stream in self._streams.values()],
                    state=self._plan.state,
                    log=self._connector.log,
                )
                invocation = self._connector.invoke()
                yield from self._read(invocation, protocol)
                if self._has_nothing_to_read:
                    invocation = None  # Atlas stopped it, so its exit code means nothing
                else:
                    protocol.end(
                        invocation.errors, failed=invocation.failed, cut_off=invocation.cut_off
                    )
                    yield from self._end()
        except self._interrupts:
            # In the middle of a message, half a batch may be lost.
            if self._is_between_messages:
                yield from self._commit_covered(self._open_streams)
            raise
        finally:
            for stream in self._streams.values():
                stream.writer.discard()
        for stream in self._streams.values():
            if stream.phase != "finished":
                yield StreamFailed(stream.plan, stream.reason, stream.read.miscounted)
        streams = [*self._already_read, *self._streams.values()]
        failure = explain_failure(invocation, streams, self._plan.refused)
        if failure is not None:
            raise failure

    # --8<-- [end:run]

    def _open(self) -> Iterator[SyncEvent]:
        refused: dict[StreamDescriptor, AtlasError] = {}
        for plan in self._plan.streams:
            try:
                stream = self._commits.open(plan)
            except TransientError:
                raise
            except AtlasError as error:
                refused[plan.descriptor] = error
                continue
            if plan.already_read:
                stream.warnings.append(
                    "It was complete when this run failed, so it was not read again."
                )
                stream.phase = "finished"
                self._already_read.append(stream)
                yield self._build_finished(stream)
            else:
                self._streams[plan.descriptor] = stream
        sharing = {p.descriptor for p in self._plan.streams if self._commits.plan_shares_state(p)}
        self._plan = self._plan.without(refused)
        if refused and (sharing & refused.keys() or not self._plan.streams):
            # A shared state cannot advance without one of its streams.
            raise next(iter(refused.values()))

    def _read(self, invocation: Invocation, protocol: ReadProtocol) -> Iterator[SyncEvent]:
        command = self._connector.command("read", self._plan.files())
        with closing(invocation.messages(command)) as messages:
            self._is_between_messages = True
            for message in messages:
                self._is_between_messages = False
                if message is None:
                    if progressed := self._progress.report_if_due(self._streams.values()):
                        yield progressed
                    yield from self._commit_due()
                elif event := protocol.feed(message):
                    yield from self._take(event)
                elif isinstance(message, Message) and message.trace and message.trace.estimate:
                    self._progress.add_estimate(message.trace.estimate)
                if self._has_nothing_to_read:
                    return
                self._is_between_messages = True

    def _take(self, event: ReadEvent) -> Iterator[SyncEvent]:
        if isinstance(event, Records):
            self._add(event)
        elif isinstance(event, StateReached):
            yield from self._take_state(event)
        elif isinstance(event, StreamComplete):
            stream = self._streams[event.stream]
            if stream.phase == "reading":
                yield from self._finish(stream)
        elif isinstance(event, StreamFault):
            for name in event.streams:
                if self._streams[name].phase == "finished":
                    self._streams[name].phase = "failed"

    def _add(self, found: Records) -> None:
        stream = self._streams[StreamDescriptor(found.stream, found.namespace)]
        if stream.phase != "reading":
            return
        with self._isolate([stream]):
            stream.add(found)
        self._buffered += found.bytes
        if self._buffered >= _BUFFERED_BYTES:
            for other in self._streams.values():
                with self._isolate([other]):
                    other.flush()
            self._buffered = 0

    def _take_state(self, reached: StateReached) -> Iterator[SyncEvent]:
        if not reached.is_apart:
            self._commits.state = reached.state
        streams = [self._streams[name] for name in reached.streams]
        for stream in streams:
            stream.take_state(reached.state.blob_of(stream.descriptor))
        streams = [stream for stream in streams if stream.is_covered]
        is_new = reached.state.type != "STREAM" and self._commits.has_new_state
        if any(map(self._is_due, streams)) and (is_new or any(s.has_changes for s in streams)):
            yield from self._commit(streams)

    def _commit_due(self) -> Iterator[SyncEvent]:
        """While the source is silent, commit covered rows if a commit is due."""
        for stream in self._open_streams:
            is_alone = not stream.read.fault and not self._commits.shares_state(stream)
            if is_alone and stream.pending_rows and self._is_due(stream):
                yield from self._commit([stream])

    @property
    def _open_streams(self) -> list[ActiveStream]:
        return [stream for stream in self._streams.values() if stream.phase == "reading"]

    @property
    def _has_nothing_to_read(self) -> bool:
        """True if the destination has refused a stream, and no other stream is being read."""
        return not self._open_streams and any(stream.refusal for stream in self._streams.values())

    @contextmanager
    def _isolate(self, streams: Collection[ActiveStream]) -> Iterator[None]:
        """Fail only ``streams`` if the destination refuses their rows."""
        try:
            yield
        except TransientError:
            raise
        except AtlasError as error:
            for stream in streams:
                stream.refuse(error)

    def _end(self) -> Iterator[SyncEvent]:
        """After the connector's end, finish complete streams and keep covered rows of others."""
        complete = [stream for stream in self._open_streams if stream.read.is_complete]
        broken = [stream for stream in self._open_streams if stream not in complete]
        if broken or any(stream.phase == "failed" for stream in self._streams.values()):
            broken += self._hold_back(complete)
            complete = [stream for stream in complete if stream not in broken]
        yield from self._commit_covered(broken, complete)
        for stream in broken:
            with self._isolate([stream]):
                stream.writer.merge_committed()
        for stream in complete:
            if not stream.refusal:
                yield from self._finish(stream)

    def _hold_back(self, complete: Sequence[ActiveStream]) -> list[ActiveStream]:
        """Return complete streams that cannot be published because another stream failed.

        The shared state does not cover their last rows, so the source sends these again. Publishing
        a stream without them would remove rows from its table until the next sync.
        """
        found = [
            stream
            for stream in complete
            if self._commits.shares_state(stream)
            and stream.plan.unpublished
            and not stream.is_covered
        ]
        for stream in found:
            stream.read.fault = (
                "it is complete, but its last rows came after the last state of all streams; the "
                "next sync reads them again and then replaces the old rows"
            )
        return found

    def _commit_covered(
        self, broken: Sequence[ActiveStream], complete: Sequence[ActiveStream] = ()
    ) -> Iterator[SyncEvent]:
        """Commit the rows of ``broken`` streams that a state covers, and drop the others.

        ``complete``: streams that may share a state with them.
        """
        for stream in broken:
            stream.phase = "failed"
            with self._isolate([stream]):
                stream.drop_uncovered()
        kept = [stream for stream in broken if stream.pending_rows and not stream.refusal]
        for stream in kept:
            if not self._commits.shares_state(stream):
                yield from self._commit([stream])
        yield from self._commit_jointly(
            [stream for stream in kept if self._commits.shares_state(stream)],
            [stream for stream in complete if self._commits.shares_state(stream)],
        )

    def _commit_jointly(
        self, broken: Sequence[ActiveStream], complete: Sequence[ActiveStream]
    ) -> Iterator[SyncEvent]:
        """Make the last commit of streams that share a state."""
        complete = [stream for stream in complete if not stream.is_accidentally_empty]
        for stream in complete:
            if any(other.phase == "failed" for other in self._streams.values()):
                # The next sync reads these rows again, because no state covers them.
                with self._isolate([stream]):
                    stream.drop_uncovered()
            stream.warn_of_uncovered()
        pending = [*broken, *(s for s in complete if s.has_changes or s.needs_publish)]
        if not pending and self._commits.has_new_state:
            pending = list(complete[:1])  # only the state is new: one table is enough to store it
        if pending:
            # The first commit of a shared state includes restarted streams, even without rows.
            rest = [s for s in self._streams.values() if s.needs_first_commit and s not in pending]
            pending += [stream for stream in rest if self._commits.shares_state(stream)]
            yield from self._commit(pending, complete=complete)

    def _finish(self, stream: ActiveStream) -> Iterator[SyncEvent]:
        """Make all rows of a complete stream durable, and publish them."""
        if stream.is_accidentally_empty:
            stream.warnings.append(
                "The source sent no records and no status; the rows of the last sync were kept."
            )
        else:
            stream.warn_of_uncovered()
            if stream.has_changes or stream.needs_publish:
                yield from self._commit([stream], complete=[stream])
        if stream.refusal:
            return
        finished: StreamFinished | None = None
        with self._isolate([stream]):
            stream.writer.merge_committed()
            finished = self._build_finished(stream)
        if finished is not None:
            stream.phase = "finished"
            yield finished

    def _build_finished(self, stream: ActiveStream) -> StreamFinished:
        for warning in stream.warnings:
            self._connector.log("WARN", f"{stream.descriptor}: {warning}")
        return stream.build_finished(self._commits.last_commit(stream))

    def _is_due(self, stream: ActiveStream) -> bool:
        due = stream.is_due(seconds=self._commit_seconds, size=self._commit_bytes)
        return due and stream.is_covered

    def _commit(
        self, streams: Sequence[ActiveStream], *, complete: Collection[ActiveStream] = ()
    ) -> Iterator[SyncEvent]:
        done: StreamsCommitted | None = None
        with self._isolate(streams):
            done = self._commits.commit(streams, complete=complete)
        if done is not None:
            yield done
            self._commits.prune_envelopes()
