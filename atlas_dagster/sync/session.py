"""One READ: from the connector's messages to committed rows.

Knows nothing of Dagster. :meth:`SyncSession.run` yields an event whenever something is durable, so
that whoever drives it can record it at once, and now and then how far it is.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing

from msgspec import Raw

from atlas_dagster.destinations.base import Destination
from atlas_dagster.errors import (
    AtlasError,
    ConnectorFailedError,
    FailureType,
    ReadFailedError,
)
from atlas_dagster.protocol.messages import (
    Records,
    State,
    StreamDescriptor,
    StreamStatus,
    Unreadable,
    present,
)
from atlas_dagster.protocol.state import ConnectionState, is_whole, same_blob, state_type
from atlas_dagster.state.envelope import Envelope, next_seq, now
from atlas_dagster.sync.connector import Connector
from atlas_dagster.sync.conversation import Conversation
from atlas_dagster.sync.events import Checkpoint, StreamFailed, StreamFinished, SyncEvent
from atlas_dagster.sync.plan import SyncPlan, writing_failed
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
    ) -> None:
        self._plan = plan
        self._connector = connector
        self._destination = destination
        self._commit_seconds = commit_seconds
        self._commit_bytes = commit_bytes
        self._seq = plan.last_seq
        self._streams: dict[tuple[str | None, str], ActiveStream] = {}
        self._envelopes: dict[StreamDescriptor, Envelope] = {}
        self._state = plan.state
        self._stored_state = _stored_state(plan)
        self._statuses_seen = False
        self._strangers: set[str] = set()
        self._buffered = 0
        self._progress = Progress()

    def run(self) -> Iterator[SyncEvent]:
        """Read, commit, and yield what became true.

        Raises:
            ReadFailedError: a stream did not complete, or the connector failed. Streams already
                finished keep their rows.
            DestinationError: a table refused a commit.
            RunnerUnavailableError: the connector cannot be started.
        """
        conversation = self._connector.converse()
        command = self._connector.command("read", self._plan.files())
        try:
            self._open()
            with closing(conversation.messages(command)) as messages:
                for message in messages:
                    if message is None:
                        if progressed := self._progress.due(self._streams.values()):
                            yield progressed
                        yield from self._commit_due()
                    elif isinstance(message, Unreadable):
                        self._on_unreadable(message)
                    elif isinstance(message, Records):
                        self._on_records(message)
                    elif message.state is not None and is_whole(message.state):
                        yield from self._on_state(message.state)
                    elif message.trace is not None and message.trace.stream_status is not None:
                        yield from self._on_status(message.trace.stream_status)
                    elif message.trace is not None and message.trace.estimate is not None:
                        self._progress.estimate(message.trace.estimate)
                    elif message.type in ("RECORD", "STATE"):
                        self._on_unreadable(Unreadable(message.type, "it holds nothing"))
            yield from self._end(conversation)
        except OSError as error:
            raise writing_failed(self._plan.connection, error) from error
        finally:
            for stream in self._streams.values():
                stream.writer.discard()
        yield from self._failed()
        self._raise_failures(conversation)

    def _open(self) -> None:
        for plan in self._plan.streams:
            writer = self._destination.open(self._plan.connection, plan.table)
            stream = ActiveStream(
                plan, writer, sync_id=self._plan.sync_id, root_run_id=self._plan.root_run_id
            )
            self._streams[plan.descriptor.namespace, plan.descriptor.name] = stream
            if plan.resumption.envelope is not None:
                self._envelopes[plan.descriptor] = plan.resumption.envelope

    def _find(self, name: str, namespace: str | None) -> ActiveStream | None:
        """The active stream; one that was not asked for is ignored, as the protocol says."""
        stream = self._streams.get((namespace or None, name))
        if stream is None and name not in self._strangers:
            self._strangers.add(name)
            self._connector.log(
                "WARN", f"Ignored messages of stream '{name}': it was not asked for."
            )
        return stream

    def _on_records(self, found: Records) -> None:
        stream = self._find(found.stream, found.namespace)
        if stream is None:
            return
        if stream.phase == "finished":
            stream.fault = "it sent records after it had declared itself COMPLETE"
            stream.phase = "failed"
        if stream.phase == "failed":
            return
        stream.add(found)
        self._buffered += found.bytes
        if self._buffered >= _BUFFERED_BYTES:
            for other in self._streams.values():
                other.flush()
            self._buffered = 0

    def _on_state(self, state: State) -> Iterator[SyncEvent]:
        kind = state_type(state)
        counted = state.sourceStats.recordCount if state.sourceStats else None
        if kind == "STREAM":
            assert state.stream is not None
            descriptor = state.stream.stream_descriptor
            stream = self._find(descriptor.name, descriptor.namespace)
            if stream is None or stream.phase != "reading" or stream.fault:
                return
            if not self._counts_agree([stream], counted):
                return
            stream.adopt(present(state.stream.stream_state))
            stream.counted = counted is not None
            self._state = self._state.apply(state)
            if not stream.plan.at_once and self._is_due(stream) and stream.has_news:
                yield from self._commit([stream])
            return
        streams = [s for s in self._streams.values() if s.phase == "reading"]
        if any(s.fault for s in streams) or not self._counts_agree(
            list(self._streams.values()), counted
        ):
            return
        self._state = self._state.apply(state)
        for stream in self._streams.values():
            stream.records_since_state = 0
        for stream in streams:
            stream.counted = counted is not None
            stream.adopt(self._state.streams.get(stream.descriptor) or self._state.shared)
        joint = [stream for stream in streams if not stream.plan.at_once]
        due = any(self._is_due(stream) for stream in joint)
        if due and (self._has_moved or any(stream.has_news for stream in joint)):
            yield from self._commit(joint)

    def _commit_due(self) -> Iterator[SyncEvent]:
        """In a pause of the source: commit what its last STATE covers, if that is long ago."""
        if self._state.type != "STREAM":
            return
        for stream in self._streams.values():
            covered = 0 < stream.covered_rows == stream.pending_rows
            sound = stream.phase == "reading" and not stream.fault
            if covered and sound and not stream.plan.at_once and self._is_due(stream):
                yield from self._commit([stream])

    def _counts_agree(self, streams: Sequence[ActiveStream], counted: float | None) -> bool:
        """Check the STATE's count against the records that came since the one before."""
        came = sum(stream.records_since_state for stream in streams)
        if counted is None or int(counted) == came:
            return True
        whose = "its state" if len(streams) == 1 else "the state of all streams"
        for stream in streams:
            stream.miscounted = True
            stream.fault = (
                f"{whose} says that {int(counted)} records came before it, but {came} did; "
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
        covered = stream.state_seen and stream.pending_rows == stream.covered_rows
        settled = self._state.type == "STREAM" and (covered or stream.plan.at_once)
        if status.status == "COMPLETE" and settled and not stream.fault:
            yield from self._finish(stream)

    def _on_unreadable(self, message: Unreadable) -> None:
        self._connector.log("ERROR", f"Unreadable {message.kind}: {message.text}")
        named = [s for s in self._streams.values() if s.descriptor.name == message.stream]
        for stream in named or self._streams.values():
            if stream.phase == "reading":
                stream.fault = f"a {message.kind} message could not be read"

    def _end(self, conversation: Conversation) -> Iterator[SyncEvent]:
        """The connector has ended: judge each stream that is still open."""
        for error in conversation.errors:
            if error.stream_descriptor is not None:
                descriptor = error.stream_descriptor
                stream = self._find(descriptor.name, descriptor.namespace)
                if stream is not None and stream.error is None:
                    stream.error = error
        still_open = [s for s in self._streams.values() if s.phase == "reading"]
        broken = [s for s in still_open if not self._is_complete(s, conversation)]
        whole = [s for s in still_open if s not in broken]
        for stream in broken:
            stream.phase = "failed"
            stream.drop_uncovered()
        kept = [s for s in broken if s.pending_rows and not s.plan.at_once]
        if self._state.type == "STREAM":
            for stream in kept:
                yield from self._commit([stream])
        else:
            yield from self._commit_jointly(kept, [s for s in whole if not s.plan.at_once])
        for stream in broken:
            stream.writer.finish()
        for stream in whole:
            yield from self._finish(stream)

    def _commit_jointly(
        self, broken: Sequence[ActiveStream], whole: Sequence[ActiveStream]
    ) -> Iterator[SyncEvent]:
        """The last commit where one state covers all streams."""
        for stream in whole:
            if any(other.phase == "failed" for other in self._streams.values()):
                # The state stays behind, so rows that it does not cover would come twice.
                stream.drop_uncovered()
            self._warn_of_uncovered(stream)
        news = [*broken, *(stream for stream in whole if stream.has_news)]
        if not news and self._has_moved:
            news = list(whole[:1])  # without rows; one table is enough
        if news:
            yield from self._commit(news)

    def _is_complete(self, stream: ActiveStream, conversation: Conversation) -> bool:
        if stream.fault or stream.error is not None:
            return False
        if stream.status == "COMPLETE":
            return True
        # Old sources emit no statuses at all; their exit code is the only word, and none on output
        # that did not reach us.
        return not (self._statuses_seen or conversation.failed or _is_cut_off(conversation))

    def _finish(self, stream: ActiveStream) -> Iterator[SyncEvent]:
        """The source says the stream is complete: make all of it durable and visible."""
        silent = stream.status != "COMPLETE"
        if stream.plan.table.replaces and silent and not stream.records and stream.writer.exists():
            stream.warnings.append(
                "The source sent no records and no status; the rows of the last sync were kept."
            )
        else:
            self._warn_of_uncovered(stream)
            if stream.has_news:
                yield from self._commit([stream])
        stream.writer.finish()
        stream.phase = "finished"
        for warning in stream.warnings:
            self._connector.log("WARN", f"{stream.descriptor}: {warning}")
        yield StreamFinished(
            plan=stream.plan,
            records=stream.records,
            bytes=stream.bytes,
            seconds=time.monotonic() - stream.started,
            checkpoints=stream.checkpoints,
            cursor_before=stream.plan.state,
            cursor_after=stream.committed_state,
            envelope=self._envelopes.get(stream.descriptor),
            table=stream.writer.describe(),
            warnings=tuple(stream.warnings),
            counted=stream.counted,
            keyless=stream.keyless,
            changes=stream.builder.changes,
            sample=stream.sample,
        )

    def _failed(self) -> Iterator[SyncEvent]:
        for stream in self._streams.values():
            if stream.phase != "finished":
                yield StreamFailed(stream.plan, stream.reason, stream.miscounted)

    def _warn_of_uncovered(self, stream: ActiveStream) -> None:
        uncovered = stream.pending_rows - stream.covered_rows
        incremental = stream.plan.configured.sync_mode == "incremental"
        if uncovered and stream.state_seen and incremental:
            stream.warnings.append(
                f"{uncovered} records came after the stream's last state; they are kept, and the "
                "next sync may bring them again."
            )

    @property
    def _has_moved(self) -> bool:
        """Whether the state of all streams together is another one than the last committed."""
        return not same_blob(Raw(self._state.to_file()), Raw(self._stored_state.to_file()))

    def _is_due(self, stream: ActiveStream) -> bool:
        return stream.is_due(seconds=self._commit_seconds, size=self._commit_bytes)

    def _commit(self, streams: Sequence[ActiveStream]) -> Iterator[SyncEvent]:
        """Commit what ``streams`` have staged, under one envelope."""
        self._seq = next_seq(self._seq)
        envelope = Envelope(
            seq=self._seq,
            sync_id=self._plan.sync_id,
            connection=self._plan.connection,
            streams=tuple(stream.stage() for stream in streams),
            state=Raw(self._state_of(streams).to_file()),
            prepared_at=now(),
            run_id=self._plan.run_id,
        )
        self._destination.commit(envelope, [stream.writer for stream in streams])
        self._stored_state = self._state
        sizes = tuple(stream.committed() for stream in streams)
        for stream in streams:
            self._envelopes[stream.descriptor] = envelope
        yield Checkpoint(envelope, tuple(stream.plan for stream in streams), sizes)
        self._destination.forget(
            self._plan.connection,
            self._plan.needed | {kept.seq for kept in self._envelopes.values()},
        )

    def _state_of(self, streams: Sequence[ActiveStream]) -> ConnectionState:
        if self._state.type != "STREAM":
            return self._state
        return ConnectionState(
            "STREAM", {s.descriptor: s.state for s in streams if s.state is not None}
        )

    def _raise_failures(self, conversation: Conversation) -> None:
        failed = [s for s in self._streams.values() if s.phase != "finished"]
        refused = self._plan.refused
        if not failed and not refused and not conversation.failed:
            return
        cause: ConnectorFailedError | None = None
        if conversation.failed:
            cause = conversation.failure()
        elif failed and _is_cut_off(conversation):
            cause = ConnectorFailedError(
                f"The connection to the output of {conversation.name} ended before its container "
                "did, so records may be lost; see what lies between Atlas and the Docker engine "
                "(a proxy, a tunnel), then sync again.",
                failure_type="transient_error",
            )
        reasons = [f"{name}: {error}" for name, error in refused.items()]
        reasons.append(_reasons(failed, cause))
        finished = [str(s.descriptor) for s in self._streams.values() if s.phase == "finished"]
        kept = f" Finished and kept: {', '.join(finished)}." if finished else ""
        lost, total = len(failed) + len(refused), len(self._streams) + len(refused)
        which = f"{lost} of {total} streams" if total > 1 else "The stream"
        why = " ".join(filter(None, reasons))
        raise ReadFailedError(
            f"{which} did not complete. {why}{kept}"
            if lost
            else f"All streams completed, but {why}",
            failure_type=_failure_type(cause, refused.values()),
            stack_trace=cause.stack_trace if cause else None,
        )


def _is_cut_off(conversation: Conversation) -> bool:
    return conversation.exit is not None and conversation.exit.cut_off


def _stored_state(plan: SyncPlan) -> ConnectionState:
    """The newest state that is committed, also of streams that start anew."""
    envelopes = [p.resumption.envelope for p in plan.streams if p.resumption.envelope]
    newest = max(envelopes, key=lambda envelope: envelope.seq, default=None)
    return newest.connection_state if newest else ConnectionState()


def _failure_type(
    cause: ConnectorFailedError | None, refused: Collection[AtlasError]
) -> FailureType:
    if cause is not None:
        return cause.failure_type
    return next((error.failure_type for error in refused), "system_error")


def _reasons(failed: Sequence[ActiveStream], cause: ConnectorFailedError | None) -> str:
    said = {s.descriptor: s.reason for s in failed}
    told = {name: reason for name, reason in said.items() if reason}
    text = " ".join(f"{name}: {reason.removesuffix('.')}." for name, reason in told.items())
    silent = [str(name) for name in said if name not in told]
    if cause is not None:
        known = any(reason in str(cause) for reason in told.values())
        return text if known else f"{text} {cause}".strip()
    if silent:
        text += f" {', '.join(silent)}: the source ended without declaring it COMPLETE."
    return text.strip()
