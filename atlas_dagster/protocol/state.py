"""Connector state: opaque blobs, kept byte for byte.

A STREAM state replaces the state of its stream, and a GLOBAL state replaces all states. A LEGACY
state is one blob for the connection. The state file is a JSON array of messages, but an old source
that prints states without a type (airbytehq/airbyte#16205) gets its bare blob back.
"""

from collections.abc import Collection, Mapping
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.protocol.messages import State, StreamDescriptor, StreamState, present

StateType = Literal["STREAM", "GLOBAL", "LEGACY"]


def state_type(state: State) -> StateType:
    """Return the state's type, inferred from its content if the source left it out."""
    if state.type == "STREAM" or (state.type is None and state.stream is not None):
        return "STREAM"
    if state.type == "GLOBAL" or (state.type is None and state.global_ is not None):
        return "GLOBAL"
    return "LEGACY"


def is_complete_message(state: State) -> bool:
    """Return whether the state has the field that its type requires."""
    match state_type(state):
        case "STREAM":
            return state.stream is not None
        case "GLOBAL":
            return state.global_ is not None
        case "LEGACY":
            return bytes(state.data) != b""


class ConnectionState(Struct, frozen=True):
    """The content of the state file, from which a connector continues."""

    type: StateType = "STREAM"
    #: STREAM and GLOBAL: the blob of each stream that has one.
    streams: dict[StreamDescriptor, Raw] = {}
    #: GLOBAL: the shared blob; LEGACY: the only one.
    shared: Raw | None = None
    #: LEGACY: the blob had no type and is an object, so it is the whole state file.
    bare: bool = False

    def __bool__(self) -> bool:
        return bool(self.streams) or self.shared is not None

    def apply(self, state: State) -> "ConnectionState":
        """Return the state after the source printed ``state``."""
        match state_type(state):
            case "STREAM":
                assert state.stream is not None
                streams = dict(self.streams) if self.type == "STREAM" else {}
                blob = present(state.stream.stream_state)
                if blob is None:
                    streams.pop(state.stream.stream_descriptor, None)
                else:
                    streams[state.stream.stream_descriptor] = blob
                return ConnectionState("STREAM", streams)
            case "GLOBAL":
                content = state.global_
                assert content is not None
                blobs = _present_blobs(content.stream_states)
                return ConnectionState("GLOBAL", blobs, present(content.shared_state))
            case "LEGACY":
                bare = state.type is None and _is_object(state.data)
                return ConnectionState("LEGACY", {}, present(state.data), bare)

    @classmethod
    def from_file(cls, content: bytes | Raw) -> "ConnectionState":
        """The inverse of :meth:`to_file`."""
        if _is_object(content):
            return cls("LEGACY", {}, Raw(bytes(content)), bare=True)
        state = cls()
        for message in msgspec.json.decode(content, type=list[State]):
            state = state.apply(message)
        return state

    def blob_of(self, stream: StreamDescriptor) -> Raw | None:
        """Return the blob of ``stream``, or else the shared blob."""
        return self.streams.get(stream) or self.shared

    def only(self, streams: Collection[StreamDescriptor]) -> "ConnectionState":
        """Return the state of ``streams`` only. GLOBAL and LEGACY states stay as they are."""
        if self.type != "STREAM":
            return self
        return ConnectionState(
            "STREAM", {name: blob for name, blob in self.streams.items() if name in streams}
        )

    def advanced(
        self, newer: "ConnectionState", streams: Collection[StreamDescriptor]
    ) -> "ConnectionState":
        """Return this state with the state of ``streams`` from ``newer``.

        GLOBAL and LEGACY states are indivisible and stay as they are.
        """
        if newer.type != "STREAM" or self.type != "STREAM":
            return self
        kept = {name: blob for name, blob in self.streams.items() if name not in streams}
        return ConnectionState("STREAM", kept | newer.only(streams).streams)

    def to_file(self, extra: Mapping[StreamDescriptor, Raw] | None = None) -> bytes:
        """Return the ``--state`` file, with the blobs byte for byte.

        ``extra`` has the states of full refreshes, which a GLOBAL state does not cover.
        """
        if self.bare and self.shared is not None:
            return bytes(self.shared)
        messages: list[Mapping[str, object]]
        per_stream = _format_blobs(self.streams)
        match self.type:
            case "STREAM":
                messages = [{"type": "STREAM", "stream": entry} for entry in per_stream]
            case "GLOBAL":
                content = {"shared_state": self.shared, "stream_states": per_stream}
                messages = [{"type": "GLOBAL", "global": content}]
            case "LEGACY":
                messages = [{"type": "LEGACY", "data": self.shared}]
        messages += [{"type": "STREAM", "stream": entry} for entry in _format_blobs(extra or {})]
        return msgspec.json.encode(messages)


def is_position(blob: Raw | None) -> bool:
    """Return whether a source can continue from ``blob``.

    For a stream without a cursor, a Python source sends a special last state (airbyte-cdk
    ``FinalStateCursor``), and reads the stream from the beginning the next time.
    """
    return blob is not None and b'"__ab_no_cursor_state_message"' not in bytes(blob)


def same_blob(one: Raw | None, other: Raw | None) -> bool:
    """Return whether two blobs are the same JSON value, regardless of formatting and key order."""
    if one is None or other is None:
        return one is other
    if bytes(one) == bytes(other):
        return True
    try:
        return bool(msgspec.json.decode(one) == msgspec.json.decode(other))
    except ValueError:  # such as 1e400: legal, but not comparable
        return False


def _is_object(blob: bytes | Raw) -> bool:
    return bytes(blob).lstrip().startswith(b"{")


def _present_blobs(states: list[StreamState]) -> dict[StreamDescriptor, Raw]:
    blobs = {state.stream_descriptor: present(state.stream_state) for state in states}
    return {name: blob for name, blob in blobs.items() if blob is not None}


def _format_blobs(blobs: Mapping[StreamDescriptor, Raw]) -> list[Mapping[str, object]]:
    return [
        {"stream_descriptor": _format_descriptor(name), "stream_state": blob}
        for name, blob in blobs.items()
    ]


def _format_descriptor(name: StreamDescriptor) -> dict[str, str]:
    """Return the JSON form, without a namespace key if there is no namespace."""
    return {"name": name.name} | ({"namespace": name.namespace} if name.namespace else {})
