"""The rules of one READ: the meaning of its messages for the requested streams.

This module does no I/O. A sync, a read to the caller and a dry run feed their messages to
:class:`ReadProtocol` and act on its events:

- A STATE is valid if it is readable and its record count matches. A count in a shared state
  (GLOBAL, LEGACY) includes the records of full refreshes, unless these have their own states.
- A fault ends a stream: its later records and states are ignored, and so are shared states.
- A stream is complete after the status COMPLETE. If the source sends no status at all, its exit
  code decides, provided that its whole output arrived.
"""

from collections.abc import Callable, Iterable

from msgspec import Struct

from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import (
    Message,
    Records,
    State,
    StreamDescriptor,
    StreamStatus,
    TraceError,
    Unreadable,
)
from atlas_dagster.protocol.state import ConnectionState, is_complete_message, state_type

#: Unknown streams that are logged, and characters of their names; a source may invent any number.
_MOST_UNKNOWN = 1_000
_NAME_CHARACTERS = 200


class StreamRead(Struct, eq=False):
    """The messages of one stream so far.

    ``has_state``: a state covers the stream. ``records_since_state``: records since then.
    ``counted``: the last state had a record count. ``miscounted``: a record count did not match.
    ``fault``: why the stream's messages are ignored. ``settled``: the stream is complete, and no
    state is missing. ``skips_records``: set by a caller that has dropped records of the stream, so
    that no later state covers them. ``ended_well``: the source ended without error or statuses.
    """

    descriptor: StreamDescriptor
    full_refresh: bool
    records_since_state: int = 0
    has_state: bool = False
    counted: bool = False
    miscounted: bool = False
    status: str | None = None
    fault: str | None = None
    error: TraceError | None = None
    settled: bool = False
    skips_records: bool = False
    ended_well: bool = False

    @classmethod
    def of(cls, stream: ConfiguredStream) -> "StreamRead":
        return cls(stream.descriptor, stream.sync_mode == "full_refresh")

    @property
    def is_complete(self) -> bool:
        """True if the source has sent all of the stream."""
        if self.fault or (self.error and not self.settled):
            return False
        return self.status == "COMPLETE" or self.ended_well


class StateReached(Struct, frozen=True):
    """A state that covers all records so far of ``streams``.

    ``state``: the connection's new state. ``is_apart``: ``state`` belongs to one full refresh among
    incremental streams, and is not a part of the connection's state.
    """

    state: ConnectionState
    streams: tuple[StreamDescriptor, ...]
    is_apart: bool = False


class StreamComplete(Struct, frozen=True):
    """A stream is complete, and no state of it is missing; other streams complete at the end."""

    stream: StreamDescriptor


class StreamFault(Struct, frozen=True):
    """From now on, messages of these streams are ignored. Complete streams are not included."""

    streams: tuple[StreamDescriptor, ...]
    reason: str


ReadEvent = Records | StateReached | StreamComplete | StreamFault


class ReadProtocol:
    """The rules for the messages of one READ.

    Args:
        streams: the requested streams; each message updates them.
        state: the state that the source continues from.
        log: takes a level and a text that may contain secrets.
    """

    def __init__(
        self,
        streams: Iterable[StreamRead],
        *,
        state: ConnectionState,
        log: Callable[[str, str], None],
    ) -> None:
        self._streams = list(streams)
        self._by_name: dict[str, list[StreamRead]] = {}
        for stream in self._streams:
            self._by_name.setdefault(stream.descriptor.name, []).append(stream)
        self._state = state
        self._log = log
        self._unknown: set[str] = set()
        self._has_statuses = False

    def feed(self, message: Message | Records | Unreadable | None) -> ReadEvent | None:
        """Take the next message; return its event, if any.

        Returned records have the namespace of their requested stream.
        """
        if message is None:
            return None
        if isinstance(message, Records):
            return self._on_records(message)
        if isinstance(message, Unreadable):
            return self._on_unreadable(message)
        if message.state is not None and is_complete_message(message.state):
            return self._on_state(message.state)
        if message.trace is not None and message.trace.stream_status is not None:
            return self._on_status(message.trace.stream_status)
        if message.type in ("RECORD", "STATE"):
            return self._on_unreadable(Unreadable(message.type, "it is empty"))
        return None

    def end(self, errors: Iterable[TraceError], *, failed: bool, cut_off: bool) -> None:
        """Handle the end of the READ; :attr:`StreamRead.is_complete` has the result.

        Args:
            errors: all errors of the source.
            failed: the source reported an error, or its exit code is not 0.
            cut_off: the end of its output is missing.
        """
        for error in errors:
            if error.stream_descriptor is not None:
                stream = self._find(error.stream_descriptor)
                if isinstance(stream, StreamRead):
                    stream.error = stream.error or error
        for stream in self._streams:
            stream.ended_well = not (self._has_statuses or failed or cut_off)

    def _find(self, named: StreamDescriptor) -> StreamRead | StreamFault | None:
        """Return the stream called ``named``.

        Some sources omit the namespace. It is then the only stream of that name; if there are
        several, all of them get a fault.
        """
        candidates = self._by_name.get(named.name, [])
        for stream in candidates:
            if stream.descriptor == named:
                return stream
        if named.namespace is None and candidates:
            if len(candidates) == 1:
                return candidates[0]
            names = ", ".join(str(stream.descriptor) for stream in candidates)
            return _fail_streams(
                candidates,
                f"the source sent messages without a namespace, which may be of any of {names}; "
                "select one of these streams only, or report it to the connector's maintainers",
            )
        name = named.name[:_NAME_CHARACTERS]
        if name not in self._unknown and len(self._unknown) < _MOST_UNKNOWN:
            self._unknown.add(name)
            self._log("WARN", f"Ignored messages of stream '{name}': it was not requested.")
        return None

    def _on_records(self, found: Records) -> Records | StreamFault | None:
        stream = self._find(StreamDescriptor(found.stream, found.namespace))
        if not isinstance(stream, StreamRead):
            return stream
        if stream.fault:
            return None
        if stream.settled:
            stream.settled = False
            return _fail_streams([stream], "it sent records after its status COMPLETE")
        stream.records_since_state += len(found.records)
        found.namespace = stream.descriptor.namespace
        return found

    def _on_unreadable(self, message: Unreadable) -> StreamFault:
        self._log("ERROR", f"Unreadable {message.kind}: {message.text}")
        why = f" ({message.why})" if message.why else ""
        return _fail_streams(
            self._by_name.get(message.stream or "") or self._streams,
            f"a {message.kind} message could not be read{why}; leave the stream out, or report it "
            "to the connector's maintainers",
        )

    def _on_status(self, status: StreamStatus) -> StreamComplete | StreamFault | None:
        self._has_statuses = True
        stream = self._find(status.stream_descriptor)
        if not isinstance(stream, StreamRead):
            return stream
        if stream.settled:
            return None
        stream.status = status.status
        if status.status != "COMPLETE" or stream.fault:
            return None
        # A later state, its own or a shared one, may cover it: then it completes at the end.
        is_covered = stream.has_state and not stream.records_since_state
        is_alone = self._state.type == "STREAM" or (stream.full_refresh and is_covered)
        stream.settled = is_alone and (stream.full_refresh or is_covered)
        return StreamComplete(stream.descriptor) if stream.settled else None

    def _on_state(self, state: State) -> StateReached | StreamFault | None:
        if state_type(state) != "STREAM":
            return self._on_shared_state(state)
        assert state.stream is not None
        stream = self._find(state.stream.stream_descriptor)
        if not isinstance(stream, StreamRead):
            return stream
        if stream.settled or stream.fault:
            return None
        if fault := _check_count([stream], state, "its state"):
            return fault
        stream.has_state = True
        if stream.skips_records:
            return None
        state.stream.stream_descriptor = stream.descriptor
        if stream.full_refresh and any(not other.full_refresh for other in self._streams):
            apart = ConnectionState().apply(state)
            return StateReached(apart, (stream.descriptor,), is_apart=True)
        self._state = self._state.apply(state)
        return StateReached(self._state, (stream.descriptor,))

    def _on_shared_state(self, state: State) -> StateReached | StreamFault | None:
        if any(stream.fault for stream in self._streams):
            return None
        incremental = [stream for stream in self._streams if not stream.full_refresh]
        counted = incremental
        if _record_count(state) != _records_since_state(incremental):
            # Some sources count the records of full refreshes, too.
            counted = [s for s in self._streams if not (s.full_refresh and s.has_state)]
        if fault := _check_count(counted, state, "the state of all streams"):
            return fault
        if any(stream.skips_records for stream in incremental or self._streams):
            return None
        self._state = self._state.apply(state)
        covered = [stream for stream in incremental if not stream.settled]
        for stream in covered:
            stream.has_state = True
        return StateReached(self._state, tuple(stream.descriptor for stream in covered))


def _record_count(state: State) -> int | None:
    return state.sourceStats.count if state.sourceStats else None


def _records_since_state(streams: Iterable[StreamRead]) -> int:
    return sum(stream.records_since_state for stream in streams)


def _check_count(streams: list[StreamRead], state: State, whose: str) -> StreamFault | None:
    """Compare the count in ``state`` with the records since the last state of ``streams``."""
    expected, received = _record_count(state), _records_since_state(streams)
    if expected is not None and expected != received:
        for stream in streams:
            stream.miscounted = True
        return _fail_streams(
            streams,
            f"{whose} counts {expected} records before it, but Atlas received {received}; "
            "everything after the last correct state is ignored",
        )
    for stream in streams:
        stream.records_since_state = 0
        stream.counted = expected is not None
    return None


def _fail_streams(streams: Iterable[StreamRead], reason: str) -> StreamFault:
    found = [stream for stream in streams if not stream.settled]
    for stream in found:
        stream.fault = stream.fault or reason
    return StreamFault(tuple(stream.descriptor for stream in found), reason)
