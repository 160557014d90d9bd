"""One READ: from the connector's messages to committed rows.

Knows nothing of Dagster. :meth:`SyncSession.run` yields an event whenever something is durable, so
that whoever drives it can record it at once, and now and then how far it is.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager

from atlas_dagster.destinations.base import Destination
from atlas_dagster.errors import AtlasError, TransientError
from atlas_dagster.protocol.messages import (
    Records,
    State,
    StreamDescriptor,
    StreamStatus,
    Unreadable,
    present,
)
from atlas_dagster.protocol.state import is_complete_message, state_type
from atlas_dagster.source.attribution import (
    Strangers,
    StreamNames,
    counted_together,
    no_namespace,
    records_since_state,
)
from atlas_dagster.source.connector import Connector
from atlas_dagster.source.invocation import Invocation
from atlas_dagster.sync.commits import Commits
from atlas_dagster.sync.events import Checkpoint, StreamFailed, StreamFinished, SyncEvent
from atlas_dagster.sync.failure import failure_of, is_cut_off
from atlas_dagster.sync.plan import SyncPlan
from atlas_dagster.sync.progress import Progress
from atlas_dagster.sync.stream import ActiveStream

#: A STATE is committed when this much time has passed or data come since the last commit.
COMMIT_SECONDS = 30.0
COMMIT_BYTES = 256 * 1024 * 1024
#: Bytes of records after which all streams make batches of what they have, though it be little.
_BUFFERED_BYTES = 16 * 1024 * 1024


class SyncSession:
    """Reads the streams of ``plan`` once."""

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
        #: What is raised when a user ends the sync, and whether all that came is dealt with.
        self._interrupts = interrupts
        self._at_rest = False
        self._commits = Commits(plan, destination)
        self._streams: dict[tuple[str | None, str], ActiveStream] = {}
        self._done: list[ActiveStream] = []
        self._statuses_seen = False
        self._strangers = Strangers()
        self._names = StreamNames(stream.descriptor for stream in plan.streams)
        self._buffered = 0
        self._progress = Progress()

    # --8<-- [start:run] shown in docs/architecture.md
    def run(self) -> Iterator[SyncEvent]:
        """Read, commit, and yield what became true.

        Raises:
            ReadFailedError: a stream did not complete, or the connector failed. Streams already
                finished keep their rows.
            TransientError: the destination, or what runs the connector, does not answer.
        """
        conversation = None
        try:
            yield from self._open()
            if self._streams:
                conversation = self._connector.invoke()
                yield from self._read(conversation)
                if self._nothing_left:
                    conversation = None  # it was stopped, and what it said is of no use
                else:
                    yield from self._end(conversation)
        except self._interrupts:
            # Only one that came while waiting for output: another may have cut a batch in two.
            if self._at_rest:
                reading = [s for s in self._streams.values() if s.phase == "reading"]
                yield from self._keep_covered(reading)
            raise
        finally:
            for stream in self._streams.values():
                stream.writer.discard()
        for stream in self._streams.values():
            if stream.phase != "finished":
                yield StreamFailed(stream.plan, stream.reason, stream.miscounted)
        streams = [*self._done, *self._streams.values()]
        failure = failure_of(conversation, streams, self._plan.refused)
        if failure is not None:
            raise failure

    # --8<-- [end:run]

    def _read(self, conversation: Invocation) -> Iterator[SyncEvent]:
        command = self._connector.command("read", self._plan.files())
        with closing(conversation.messages(command)) as messages:
            self._at_rest = True
            for message in messages:
                self._at_rest = False
                if message is None:
                    if progressed := self._progress.due(self._streams.values()):
                        yield progressed
                    yield from self._commit_due()
                elif isinstance(message, Unreadable):
                    self._on_unreadable(message)
                elif isinstance(message, Records):
                    self._on_records(message)
                elif message.state is not None and is_complete_message(message.state):
                    yield from self._on_state(message.state)
                elif message.trace is not None and message.trace.stream_status is not None:
                    yield from self._on_status(message.trace.stream_status)
                elif message.trace is not None and message.trace.estimate is not None:
                    self._progress.estimate(message.trace.estimate)
                elif message.type in ("RECORD", "STATE"):
                    self._on_unreadable(Unreadable(message.type, "it holds nothing"))
                if self._nothing_left:
                    return
                self._at_rest = True

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
                self._done.append(stream)
                yield self._finished(stream)
            else:
                self._streams[plan.descriptor.namespace, plan.descriptor.name] = stream
        together = {p.descriptor for p in self._plan.streams if self._commits.shares_state(p)}
        self._plan = self._plan.without(refused)
        if refused and (together & refused.keys() or not self._plan.streams):
            # The state of all streams cannot go on without one of them.
            raise next(iter(refused.values()))

    @contextmanager
    def _alone(self, streams: Collection[ActiveStream]) -> Iterator[None]:
        """What the destination refuses of ``streams`` ends them alone."""
        try:
            yield
        except TransientError:
            raise
        except AtlasError as error:
            for stream in streams:
                stream.refuse(error)

    @property
    def _nothing_left(self) -> bool:
        """Whether the destination has refused streams and no other is read any more."""
        streams = self._streams.values()
        return any(s.refusal for s in streams) and not any(s.phase == "reading" for s in streams)

    def _find(self, name: str, namespace: str | None) -> ActiveStream | None:
        """The active stream; one that was not asked for is ignored, as the protocol says."""
        stream = self._streams.get((namespace or None, name))
        if stream is not None:
            return stream
        named = StreamDescriptor(name, namespace)
        meant = self._names.find(named)
        if meant is not None:
            return self._streams.get((meant.namespace, meant.name))
        candidates = self._names.ambiguous(named)
        for each in candidates:
            other = self._streams.get((each.namespace, each.name))
            if other is not None and other.phase == "reading":
                other.fault = other.fault or no_namespace(candidates)
        if not candidates and self._strangers.is_new(name):
            self._connector.log(
                "WARN", f"Ignored messages of stream '{name}': it was not asked for."
            )
        return None

    def _on_records(self, found: Records) -> None:
        stream = self._find(found.stream, found.namespace)
        if stream is None:
            return
        if stream.phase == "finished":
            stream.fault = "it sent records after it had declared itself COMPLETE"
            stream.phase = "failed"
        if stream.phase == "failed":
            return
        with self._alone([stream]):
            stream.add(found)
        self._buffered += found.bytes
        if self._buffered >= _BUFFERED_BYTES:
            for other in self._streams.values():
                with self._alone([other]):
                    other.flush()
            self._buffered = 0

    def _on_state(self, state: State) -> Iterator[SyncEvent]:
        kind = state_type(state)
        counted = state.sourceStats.count if state.sourceStats else None
        if kind == "STREAM":
            assert state.stream is not None
            descriptor = state.stream.stream_descriptor
            stream = self._find(descriptor.name, descriptor.namespace)
            if stream is None or stream.phase != "reading" or stream.fault:
                return
            if not self._counts_agree([stream], counted):
                return
            state.stream.stream_descriptor = stream.descriptor
            stream.take_state(present(state.stream.stream_state))
            stream.counted = counted is not None
            if not stream.plan.full_refresh:
                self._commits.state = self._commits.state.apply(state)
            if self._is_due(stream) and stream.has_news:
                yield from self._commit([stream])
            return
        streams = [s for s in self._streams.values() if s.phase == "reading"]
        of = counted_together(self._streams.values(), counted)
        if any(s.fault for s in streams) or not self._counts_agree(of, counted):
            return
        for stream in of:
            stream.records_since_state = 0
            stream.counted = counted is not None
        whole = self._commits.state = self._commits.state.apply(state)
        joint = [stream for stream in streams if self._commits.share_state(stream)]
        for stream in joint:
            stream.take_state(whole.streams.get(stream.descriptor) or whole.shared)
        joint = [stream for stream in joint if stream.is_covered]
        due = any(self._is_due(stream) for stream in joint)
        if due and (self._commits.state_has_moved or any(stream.has_news for stream in joint)):
            yield from self._commit(joint)

    def _commit_due(self) -> Iterator[SyncEvent]:
        """In a pause of the source: commit what its last STATE covers, if that is long ago."""
        for stream in self._streams.values():
            sound = stream.phase == "reading" and not stream.fault
            alone = not self._commits.share_state(stream)
            if sound and alone and stream.pending_rows and self._is_due(stream):
                yield from self._commit([stream])

    def _counts_agree(self, streams: Sequence[ActiveStream], counted: int | None) -> bool:
        """Check the STATE's count against the records that came since the one before."""
        came = records_since_state(streams)
        if counted is None or counted == came:
            return True
        whose = "its state" if len(streams) == 1 else "the state of all streams"
        for stream in streams:
            stream.miscounted = True
            stream.fault = (
                f"{whose} says that {counted} records came before it, but {came} did; "
                "nothing after the last agreement is kept"
            )
        return False

    def _on_status(self, status: StreamStatus) -> Iterator[SyncEvent]:
        self._statuses_seen = True
        descriptor = status.stream_descriptor
        stream = self._find(descriptor.name, descriptor.namespace)
        if stream is None or stream.phase != "reading":
            return
        stream.status = status.status
        # A GLOBAL state may still come, or the stream's last one; where none matters, or it is
        # here already, the stream can finish now.
        covered = stream.state_seen and stream.is_covered
        alone = self._commits.state.type == "STREAM" or (stream.plan.full_refresh and covered)
        settled = alone and (covered or stream.plan.full_refresh)
        if status.status == "COMPLETE" and settled and not stream.fault:
            yield from self._finish(stream)

    def _on_unreadable(self, message: Unreadable) -> None:
        self._connector.log("ERROR", f"Unreadable {message.kind}: {message.text}")
        fault = f"a {message.kind} message could not be read"
        if message.why:
            fault += f" ({message.why}); leave the stream out, or report it to the maintainers"
        named = [s for s in self._streams.values() if s.descriptor.name == message.stream]
        for stream in named or self._streams.values():
            if stream.phase == "reading":
                stream.fault = fault

    def _end(self, conversation: Invocation) -> Iterator[SyncEvent]:
        """The connector has ended: judge each stream that is still open."""
        for error in conversation.errors:
            if error.stream_descriptor is not None:
                descriptor = error.stream_descriptor
                stream = self._find(descriptor.name, descriptor.namespace)
                if stream is not None and stream.error is None:
                    stream.error = error
        still_open = [s for s in self._streams.values() if s.phase == "reading"]
        broken = [s for s in still_open if not self._is_complete(s, conversation)]
        if broken or any(s.phase == "failed" for s in self._streams.values()):
            broken += self._kept_back([s for s in still_open if s not in broken])
        whole = [s for s in still_open if s not in broken]
        yield from self._keep_covered(broken, whole)
        for stream in broken:
            with self._alone([stream]):
                stream.writer.merge_committed()
        for stream in whole:
            if not stream.refusal:
                yield from self._finish(stream)

    def _keep_covered(
        self, broken: Sequence[ActiveStream], whole: Sequence[ActiveStream] = ()
    ) -> Iterator[SyncEvent]:
        """Commit what the last states cover of streams that do not complete.

        ``whole``: those that do, which share a state with them.
        """
        for stream in broken:
            stream.phase = "failed"
            with self._alone([stream]):
                stream.drop_uncovered()
        kept = [s for s in broken if s.pending_rows and not s.refusal]
        for stream in kept:
            if not self._commits.share_state(stream):
                yield from self._commit([stream])
        yield from self._commit_jointly(
            [s for s in kept if self._commits.share_state(s)],
            [s for s in whole if self._commits.share_state(s)],
        )

    def _kept_back(self, complete: Sequence[ActiveStream]) -> list[ActiveStream]:
        """Complete streams that others, which failed, keep from being shown.

        The state of all stays behind, so what came after it comes again. Shown without, a table
        would lose rows that it has now, until then.
        """
        found = [
            stream
            for stream in complete
            if self._commits.share_state(stream)
            and stream.plan.unpublished
            and not stream.is_covered
        ]
        for stream in found:
            stream.fault = (
                "it is complete, but its last rows came after the last state of all streams; they "
                "come again, and its old rows are replaced then"
            )
        return found

    def _commit_jointly(
        self, broken: Sequence[ActiveStream], whole: Sequence[ActiveStream]
    ) -> Iterator[SyncEvent]:
        """The last commit where one state covers all streams."""
        whole = [stream for stream in whole if not stream.is_accidentally_empty]
        for stream in whole:
            if any(other.phase == "failed" for other in self._streams.values()):
                # The state stays behind, so rows that it does not cover would come twice.
                with self._alone([stream]):
                    stream.drop_uncovered()
            self._warn_of_uncovered(stream)
        news = [*broken, *(s for s in whole if s.has_news or s.needs_publish)]
        if not news and self._commits.state_has_moved:
            news = list(whole[:1])  # without rows; one table is enough
        if news:
            # Those that start over share the state from its first commit on, rows or none.
            others = [s for s in self._streams.values() if s.is_in_no_commit and s not in news]
            news += [s for s in others if self._commits.share_state(s)]
            yield from self._commit(news, complete=whole)

    def _is_complete(self, stream: ActiveStream, conversation: Invocation) -> bool:
        if stream.fault or stream.error is not None:
            return False
        if stream.status == "COMPLETE":
            return True
        # Old sources emit no statuses at all; their exit code is the only word, and none on output
        # that did not reach us.
        return not (self._statuses_seen or conversation.failed or is_cut_off(conversation))

    def _finish(self, stream: ActiveStream) -> Iterator[SyncEvent]:
        """The source says the stream is complete: make all of it durable and visible."""
        if stream.is_accidentally_empty:
            stream.warnings.append(
                "The source sent no records and no status; the rows of the last sync were kept."
            )
        else:
            self._warn_of_uncovered(stream)
            if stream.has_news or stream.needs_publish:
                yield from self._commit([stream], complete=[stream])
        if stream.refusal:
            return
        finished: StreamFinished | None = None
        with self._alone([stream]):
            stream.writer.merge_committed()
            finished = self._finished(stream)
        if finished is not None:
            stream.phase = "finished"
            yield finished

    def _finished(self, stream: ActiveStream) -> StreamFinished:
        for warning in stream.warnings:
            self._connector.log("WARN", f"{stream.descriptor}: {warning}")
        return StreamFinished(
            plan=stream.plan,
            records=stream.records,
            bytes=stream.bytes,
            seconds=time.monotonic() - stream.started,
            checkpoints=stream.checkpoints,
            cursor_before=stream.plan.state,
            cursor_after=stream.committed_state,
            envelope=self._commits.last(stream),
            table=stream.writer.describe(),
            warnings=tuple(stream.warnings),
            counted=stream.counted,
            keyless=stream.keyless,
            late=stream.writer.late_rows,
            changes=stream.builder.changes,
            sample=stream.sample,
        )

    def _warn_of_uncovered(self, stream: ActiveStream) -> None:
        rows_since_state = stream.pending_rows - stream.covered_rows
        incremental = stream.plan.configured.sync_mode == "incremental"
        if rows_since_state and stream.state_seen and incremental:
            stream.warnings.append(
                f"{rows_since_state} records came after the stream's last state; they are kept, "
                "and the next sync may bring them again."
            )

    def _is_due(self, stream: ActiveStream) -> bool:
        due = stream.is_due(seconds=self._commit_seconds, size=self._commit_bytes)
        return due and stream.is_covered

    def _commit(
        self, streams: Sequence[ActiveStream], *, complete: Collection[ActiveStream] = ()
    ) -> Iterator[SyncEvent]:
        done: Checkpoint | None = None
        with self._alone(streams):
            done = self._commits.commit(streams, complete=complete)
        if done is not None:
            yield done
            self._commits.prune_envelopes()
