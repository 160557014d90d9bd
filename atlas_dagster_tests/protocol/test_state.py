import msgspec
import pytest
from msgspec import Raw

from atlas_dagster.protocol.messages import State, StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState, is_complete_message, same_blob, state_type

A, B = StreamDescriptor("a"), StreamDescriptor("b", "n")
#: Key order, spaces, zeros and big numbers must survive.
ODD = b'{"z": 1.10, "a" : [12345678901234567890123, 1e400],"n":null}'


def message(text: bytes) -> State:
    return msgspec.json.decode(text, type=State)


def stream_state(name: str, blob: bytes, namespace: str | None = None) -> State:
    descriptor = msgspec.json.encode({"name": name, "namespace": namespace})
    return message(
        b'{"type":"STREAM","stream":{"stream_descriptor":%b,"stream_state":%b}}'
        % (descriptor, blob)
    )


def blobs(state: ConnectionState) -> dict[StreamDescriptor, bytes]:
    return {name: bytes(blob) for name, blob in state.streams.items()}


def test_stream_states_replace_each_other() -> None:
    state = ConnectionState()
    assert not state
    for name, blob in (("a", b"1"), ("b", b"2"), ("a", b"3")):
        state = state.apply(stream_state(name, blob))
    assert blobs(state) == {A: b"3", StreamDescriptor("b"): b"2"}


@pytest.mark.parametrize("null", [b"null", b" null "])
def test_null_resets_a_stream(null: bytes) -> None:
    state = ConnectionState().apply(stream_state("a", b"1")).apply(stream_state("a", null))
    assert blobs(state) == {}
    assert not state


def test_an_absent_blob_resets_a_stream() -> None:
    absent = message(b'{"type":"STREAM","stream":{"stream_descriptor":{"name":"a"}}}')
    assert blobs(ConnectionState().apply(stream_state("a", b"1")).apply(absent)) == {}


def test_an_empty_namespace_is_none() -> None:
    state = ConnectionState()
    for namespace in ("", None):
        state = state.apply(stream_state("a", b"1", namespace))
    assert blobs(state) == {A: b"1"}


def test_global_replaces_everything() -> None:
    first = message(
        b'{"type":"GLOBAL","global":{"shared_state":{"lsn":1},"stream_states":['
        b'{"stream_descriptor":{"name":"a"},"stream_state":{"x":1}},'
        b'{"stream_descriptor":{"name":"b","namespace":"n"},"stream_state":null}]}}'
    )
    state = ConnectionState().apply(stream_state("old", b"1")).apply(first)
    assert (state.type, bytes(state.shared or b"")) == ("GLOBAL", b'{"lsn":1}')
    assert blobs(state) == {A: b'{"x":1}'}
    second = message(b'{"type":"GLOBAL","global":{"stream_states":[]}}')
    assert not state.apply(second)


def test_a_missing_type_is_legacy() -> None:
    state = ConnectionState().apply(message(b'{"data":{"a":1}}'))
    assert (state.type, bytes(state.shared or b"")) == ("LEGACY", b'{"a":1}')
    assert not state.apply(message(b'{"data":null}'))
    assert blobs(state.apply(stream_state("a", b"1"))) == {A: b"1"}


@pytest.mark.parametrize(
    ("text", "kind", "whole"),
    [
        (b'{"type":"STREAM","stream":{"stream_descriptor":{"name":"a"}}}', "STREAM", True),
        (b'{"stream":{"stream_descriptor":{"name":"a"}}}', "STREAM", True),
        (b'{"global":{}}', "GLOBAL", True),
        (b'{"type":"LEGACY","data":null}', "LEGACY", True),
        (
            b'{"type":"STREAM","stream":{"stream_descriptor":{"name":"a"}},"data":{}}',
            "STREAM",
            True,
        ),
        (b'{"type":"STREAM"}', "STREAM", False),
        (b'{"type":"GLOBAL","global":null}', "GLOBAL", False),
        (b"{}", "LEGACY", False),
    ],
)
def test_types(text: bytes, kind: str, whole: bool) -> None:
    assert state_type(message(text)) == kind
    assert is_complete_message(message(text)) == whole


@pytest.mark.parametrize(
    "state",
    [
        ConnectionState(),
        ConnectionState("STREAM", {A: Raw(ODD), B: Raw(b"[]")}),
        ConnectionState("GLOBAL", {B: Raw(ODD)}, Raw(ODD)),
        ConnectionState("GLOBAL", {}, None),
        ConnectionState("LEGACY", {}, Raw(ODD)),
        ConnectionState("LEGACY", {}, Raw(b" " + ODD), bare=True),
    ],
)
def test_a_state_file_holds_blobs_byte_for_byte(state: ConnectionState) -> None:
    again = ConnectionState.from_file(state.to_file())
    assert (again.type, again.bare, blobs(again)) == (state.type, state.bare, blobs(state))
    assert bytes(again.shared or b"") == bytes(state.shared or b"")
    assert again.to_file() == state.to_file()


def test_what_a_state_file_looks_like() -> None:
    state = ConnectionState("STREAM", {A: Raw(b"1"), B: Raw(b"2")})
    assert state.to_file() == (
        b'[{"type":"STREAM","stream":{"stream_descriptor":{"name":"a"},"stream_state":1}},'
        b'{"type":"STREAM","stream":{"stream_descriptor":{"name":"b","namespace":"n"},'
        b'"stream_state":2}}]'
    )


@pytest.mark.parametrize(
    ("printed", "file"),
    [
        (b'{"data":{"a":1}}', b'{"a":1}'),
        (b'{"type":"LEGACY","data":{"a":1}}', b'[{"type":"LEGACY","data":{"a":1}}]'),
        (b'{"data":[1]}', b'[{"type":"LEGACY","data":[1]}]'),  # bare, it would be messages
    ],
)
def test_a_source_takes_the_file_it_knows(printed: bytes, file: bytes) -> None:
    assert ConnectionState().apply(message(printed)).to_file() == file


def test_some_streams_only() -> None:
    state = ConnectionState("STREAM", {A: Raw(b"1"), B: Raw(b"2")})
    assert blobs(state.only([B])) == {B: b"2"}
    shared = ConnectionState("GLOBAL", {A: Raw(b"1")}, Raw(b"2"))
    assert shared.only([B]) is shared


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b'{"a":1,"b":2}', b'{"b": 2, "a": 1}', True),
        (b"1", b"2", False),
        (b"1", None, False),
        (None, None, True),
        (b"1e400", b"1e400", True),
        (b"1e400", b"1e401", False),
    ],
)
def test_same_blob(one: bytes | None, other: bytes | None, same: bool) -> None:
    raw = [None if blob is None else Raw(blob) for blob in (one, other)]
    assert same_blob(*raw) == same
