"""State in requests and answers."""

from typing import Any

import msgspec
from msgspec import Raw

from atlas_dagster.interfaces.http.problems import ProblemError
from atlas_dagster.protocol.messages import State, StreamDescriptor, StreamState
from atlas_dagster.protocol.state import ConnectionState, is_complete_message

#: Where a STATE message has its state; an object with a type and without any of them is none.
_MESSAGE_FIELDS = ("stream", "global", "data")
_TYPES = ("STREAM", "GLOBAL", "LEGACY")


def given_state(given: Any, stream: StreamDescriptor) -> ConnectionState:
    """The state in a request: STATE messages, one of them, or what one of ``stream`` holds.

    Raises:
        ProblemError: it is none of these.
    """
    if not given:
        return ConnectionState()
    if isinstance(given, dict) and not _is_message(given):
        blob = Raw(msgspec.json.encode(given))
        return ConnectionState().apply(State(type="STREAM", stream=StreamState(stream, blob)))
    messages = given if isinstance(given, list) else [given]
    try:
        states = msgspec.json.decode(msgspec.json.encode(messages), type=list[State])
    except msgspec.MsgspecError:
        states = []
    if not states or not all(map(is_complete_message, states)):
        raise _refusal(
            "The state is none; send what an earlier answer returned, or the object that this "
            "stream's state holds."
        )
    state = ConnectionState()
    for each in states:
        state = state.apply(each)
    if state.type == "STREAM" and state.streams and stream not in state.streams:
        others = ", ".join(map(str, state.streams))
        raise _refusal(f"The state is of {others}, not of {stream}; send that of {stream}.")
    return state


def returned_state(state: ConnectionState) -> list[Any] | None:
    """For an answer; :func:`given_state` takes it back. None where there is none yet."""
    if not state:
        return None
    # As the source wrote it: what it holds may be beyond every parser.
    content = Raw(state.to_file())
    # Of a source that is older than types: a list like the others, without a type as it came.
    return [{"data": content}] if state.bare else msgspec.json.decode(content, type=list[Raw])


def _is_message(given: dict[str, Any]) -> bool:
    return given.get("type") in _TYPES and any(field in given for field in _MESSAGE_FIELDS)


def _refusal(detail: str) -> ProblemError:
    return ProblemError("invalid_request", detail, field="state")
