"""The rules of a READ, message by message. No I/O: lines in, events out."""

import json
from typing import Any

import pytest

from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.decoder import MessageDecoder
from atlas_dagster.protocol.messages import Noise, Records, StreamDescriptor, TraceError
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.source.read_protocol import (
    ReadEvent,
    ReadProtocol,
    StateReached,
    StreamComplete,
    StreamFault,
    StreamRead,
)
from atlas_dagster_tests.sync.fake_source import (
    full_refresh,
    global_state,
    incremental,
    legacy_state,
    line,
    record,
    records,
    state,
    status,
)

A, B, F = incremental("a"), incremental("b"), full_refresh("f")
STREAM, GLOBAL = ConnectionState("STREAM"), ConnectionState("GLOBAL")


class Read:
    """A READ of ``streams``."""

    def __init__(self, *streams: ConfiguredStream, state: ConnectionState = STREAM) -> None:
        self.log: list[str] = []
        self.streams = {str(s.descriptor): StreamRead.of(s) for s in streams}
        self.protocol = ReadProtocol(
            self.streams.values(),
            state=state,
            log=lambda level, text: self.log.append(f"{level} {text}"),
        )

    def feed(self, *output: bytes) -> list[ReadEvent]:
        """Return the events of ``output``."""
        events = []
        for piece in output:
            decoder = MessageDecoder()
            for message in [*decoder.feed(piece), *decoder.flush()]:
                assert not isinstance(message, Noise)
                if (event := self.protocol.feed(message)) is not None:
                    events.append(event)
        return events

    def end(self, *broken: str, failed: bool = False, cut_off: bool = False) -> list[str]:
        """Return the streams that are complete. ``broken``: streams with an error."""
        errors = [TraceError("lost", stream_descriptor=StreamDescriptor(name)) for name in broken]
        self.protocol.end(errors, failed=failed or bool(broken), cut_off=cut_off)
        return [name for name, stream in self.streams.items() if stream.is_complete]

    def faults(self, *output: bytes) -> dict[str, str | None]:
        """Return why streams failed after ``output``."""
        self.feed(*output)
        return {name: stream.fault for name, stream in self.streams.items() if stream.fault}


def blobs(event: ReadEvent) -> dict[str, Any]:
    """Return the streams that a state covers, and their blobs."""
    assert isinstance(event, StateReached)
    found = {str(name): event.state.blob_of(name) for name in event.streams}
    return {name: blob and json.loads(bytes(blob)) for name, blob in found.items()}


# Streams


def test_records_bear_the_name_of_their_stream() -> None:
    (found,) = Read(A).feed(records("a", [1, 2]))
    assert isinstance(found, Records)
    assert (found.stream, found.namespace, len(found.records)) == ("a", None, 2)


def test_no_namespace_means_the_only_stream_of_that_name() -> None:
    read = Read(incremental("a", namespace="n"))
    found, reached, complete = read.feed(
        record("a", 1), state("a", {"at": 1}, count=1), status("a")
    )
    assert isinstance(found, Records)
    assert found.namespace == "n"
    assert blobs(reached) == {"n.a": {"at": 1}}
    assert complete == StreamComplete(StreamDescriptor("a", "n"))


def test_an_empty_namespace_is_none() -> None:
    read = Read(A)
    read.feed(record("a", 1, namespace=""), state("a", {"at": 1}, namespace="", count=1))
    assert read.feed(status("a", namespace="")) == [StreamComplete(A.descriptor)]


@pytest.mark.parametrize("message", [record("a", 1), state("a", {}), status("a", "RUNNING")])
def test_no_namespace_among_several_ends_them_all(message: bytes) -> None:
    n, m = (incremental("a", namespace=space) for space in "nm")
    read = Read(n, m, B)
    (fault,) = read.feed(message)
    assert isinstance(fault, StreamFault)
    assert fault.streams == (n.descriptor, m.descriptor)
    assert "may be of any of n.a, m.a" in fault.reason
    assert read.end() == ([] if b"RUNNING" in message else ["b"])


def test_a_full_name_among_several_is_found() -> None:
    n, m = (incremental("a", namespace=space) for space in "nm")
    read = Read(n, m)
    assert read.feed(record("a", 1, namespace="m"), state("a", {}, namespace="m", count=1))
    assert read.feed(status("a", namespace="m")) == [StreamComplete(m.descriptor)]


def test_a_stream_that_was_not_requested_is_ignored_with_one_warning() -> None:
    read = Read(A)
    assert read.feed(records("x", [7]) + state("x", {}), status("x"), records("x", [8])) == []
    assert read.log == ["WARN Ignored messages of stream 'x': it was not requested."]


def test_warnings_about_unknown_streams_are_few_and_short() -> None:
    read = Read(A)
    read.feed(*(record(f"{n}{'x' * 500}", 1) for n in range(1_200)))
    assert len(read.log) == 1_000
    assert max(map(len, read.log)) < 300


# States


def test_a_state_covers_its_stream() -> None:
    read = Read(A, B)
    _, reached = read.feed(records("a", [1]) + state("a", {"at": 1}))
    assert blobs(reached) == {"a": {"at": 1}}
    assert isinstance(reached, StateReached)
    assert reached.state.type == "STREAM"
    assert not read.streams["a"].counted


def test_states_of_streams_add_up() -> None:
    read = Read(A, B)
    *_, reached = read.feed(state("a", 1), state("b", 2), state("a", 3), state("b", None))
    assert isinstance(reached, StateReached)
    assert {str(name): bytes(blob) for name, blob in reached.state.streams.items()} == {"a": b"3"}


def test_a_shared_state_covers_all_incremental_streams() -> None:
    read = Read(A, B, F)
    *_, reached = read.feed(
        records("a", [1]) + records("f", [1]), global_state({"lsn": 1}, {"a": {"s": 1}}, count=2)
    )
    assert blobs(reached) == {"a": {"s": 1}, "b": {"lsn": 1}}


def test_a_legacy_state_is_shared() -> None:
    *_, reached = Read(A, B).feed(records("a", [1]) + legacy_state({"n": 1}))
    assert blobs(reached) == {"a": {"n": 1}, "b": {"n": 1}}


def test_the_state_of_a_full_refresh_is_apart_from_that_of_incremental_streams() -> None:
    read = Read(A, F)
    shared, own = read.feed(global_state({"lsn": 1}, {}), state("f", {"page": 1}))
    assert isinstance(own, StateReached)
    assert own.is_apart
    assert blobs(own) == {"f": {"page": 1}}
    (again,) = read.feed(global_state({"lsn": 2}, {}))
    assert isinstance(again, StateReached)
    assert (again.state.type, blobs(shared)) == ("GLOBAL", {"a": {"lsn": 1}})


def test_full_refreshes_alone_have_the_state_of_the_connection() -> None:
    (own,) = Read(F).feed(state("f", {"page": 1}))
    assert isinstance(own, StateReached)
    assert (own.is_apart, list(own.state.streams)) == (False, [F.descriptor])


def test_dropped_records_are_never_covered() -> None:
    """A caller may drop records: they are beyond a limit, or the destination refuses them."""
    read = Read(A, B)
    read.streams["a"].skips_records = True
    events = read.feed(
        records("a", [1, 2]) + records("b", [1]) + state("a", {}, count=2) + state("b", {}, count=1)
    )
    assert [blobs(event) for event in events if isinstance(event, StateReached)] == [{"b": {}}]
    assert read.feed(records("a", [3]), global_state({"lsn": 1}, {}, count=1))[1:] == []
    assert read.faults() == {}


def test_dropped_records_of_a_full_refresh_do_not_hold_a_shared_state() -> None:
    read = Read(A, F)
    read.streams["f"].skips_records = True
    *_, reached = read.feed(records("f", [1]) + global_state({"lsn": 1}, {}, count=1))
    assert blobs(reached) == {"a": {"lsn": 1}}


# Counts


def test_a_count_is_of_the_records_since_the_last_state() -> None:
    read = Read(A)
    assert not read.faults(
        records("a", [1, 2]) + state("a", 2, count=2) + record("a", 3) + state("a", 3, count=1.0)
    )
    assert read.streams["a"].counted


@pytest.mark.parametrize("count", ["1e400", "NaN", "-5", "1" * 400])
def test_an_absurd_count_is_none(count: str) -> None:
    read = Read(A)
    sent = state("a", 1, count=77).replace(b"77", count.encode())
    assert read.faults(record("a", 1), sent) == {}
    assert not read.streams["a"].counted


@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_count_ends_the_stream(count: int) -> None:
    read = Read(A, B)
    faults = read.faults(record("a", 1), state("a", 1, count=count))
    assert f"its state counts {count} records before it, but Atlas received 1" in str(faults["a"])
    assert (read.streams["a"].miscounted, read.streams["b"].miscounted) == (True, False)
    assert read.feed(records("a", [2]) + state("a", 2, count=1) + status("a")) == []
    assert read.feed(records("b", [1]) + state("b", 1, count=1) + status("b"))
    assert read.end() == ["b"]


def test_a_count_in_a_shared_state_is_of_all_streams() -> None:
    read = Read(A, B)
    sent = records("a", [1]) + records("b", [1])
    assert not read.faults(sent, global_state({"lsn": 1}, {}, count=2))
    faults = read.faults(sent, global_state({"lsn": 2}, {}, count=1))
    assert list(faults) == ["a", "b"]
    assert "counts 1 records before it, but Atlas received 2" in str(faults["a"])


@pytest.mark.parametrize("apart", [True, False], ids=["states of its own", "counted together"])
def test_a_full_refresh_beside_a_shared_state(apart: bool) -> None:
    """Sources of Airbyte's Bulk CDK count its records in either way, depending on the version."""
    own = state("f", {"page": 1}, count=2) if apart else b""
    read = Read(A, F)
    assert not read.faults(
        records("f", [1, 2]) + own + record("a", 1),
        global_state({"lsn": 1}, {}, count=1 if apart else 3),
        record("a", 2) + global_state({"lsn": 2}, {}, count=1),
    )


def test_a_full_refresh_may_have_its_first_state_after_a_shared_one() -> None:
    assert not Read(A, F).faults(
        records("f", [7]) + record("a", 1) + global_state({"lsn": 1}, {}, count=1),
        records("f", [8]) + state("f", {"at": 8}, count=2),
        records("f", [9]) + record("a", 2) + global_state({"lsn": 2}, {}, count=1),
        state("f", {"at": 9}, count=1),
    )


def test_a_full_refresh_may_be_counted_when_it_is_complete() -> None:
    """Until then, shared states count the records of other streams only."""
    assert not Read(A, F).faults(
        records("f", [1, 2]) + record("a", 1) + global_state({"lsn": 1}, {}, count=1),
        records("f", [3]) + record("a", 2) + global_state({"lsn": 2}, {}, count=4),
    )


@pytest.mark.parametrize("before", [STREAM, GLOBAL], ids=["first sync", "later"])
def test_a_complete_full_refresh_is_still_counted(before: ConnectionState) -> None:
    read = Read(A, F, state=before)
    sent = records("f", [7, 8]) + status("f") + record("a", 1)
    assert not read.faults(sent, global_state({"lsn": 1}, {}, count=3))


@pytest.mark.parametrize("count", [2, 4])
def test_a_count_beside_a_full_refresh_that_fits_neither_way(count: int) -> None:
    sent = records("f", [1, 2]) + record("a", 1) + global_state({"lsn": 1}, {}, count=count)
    faults = Read(A, F).faults(sent)
    assert f"counts {count} records before it, but Atlas received 3" in str(faults["a"])


def test_a_wrong_count_does_not_undo_a_complete_stream() -> None:
    read = Read(A, F)
    faults = read.faults(
        records("f", [1]) + status("f") + record("a", 1) + global_state({"lsn": 1}, {}, count=9)
    )
    assert list(faults) == ["a"]
    assert read.end() == ["f"]


# Faults


@pytest.mark.parametrize(
    "broken",
    [
        b'{"type":"RECORD","record":{"stream":"a","data":{"id":2}\n',
        b'{"type":"RECORD"}\n',
        b'{"type":"STATE","state":{"type":"STREAM"}}\n',
        b'{"type":"STATE","state":{"type":"GLOBAL"}}\n',
        b'{"type":"STATE","state":{}}\n',
    ],
)
def test_an_unreadable_message_is_not_skipped(broken: bytes) -> None:
    read = Read(A)
    assert "message could not be read" in str(read.faults(broken)["a"])
    assert read.feed(records("a", [3]) + state("a", {"at": 3}) + status("a")) == []
    assert read.log[0].startswith("ERROR Unreadable ")
    assert read.end() == []


def test_an_unreadable_message_ends_its_own_stream_only() -> None:
    read = Read(A, B)
    assert list(read.faults(b'{"type":"RECORD","record":{"stream":"a","data":{"id":\n')) == ["a"]
    assert list(read.faults(b'{"type":"STATE","state":{}}\n')) == ["a", "b"]


def test_no_shared_state_counts_after_a_fault() -> None:
    read = Read(A, B)
    read.feed(b'{"type":"RECORD","record":{"stream":"a","data":{"id":\n')
    assert read.feed(global_state({"lsn": 1}, {})) == []
    assert [blobs(event) for event in read.feed(state("b", 1))] == [{"b": 1}]


def test_records_after_complete_end_the_stream() -> None:
    read = Read(A)
    read.feed(record("a", 1) + state("a", 1, count=1) + status("a"))
    (fault,) = read.feed(record("a", 2))
    assert isinstance(fault, StreamFault)
    assert (fault.streams, "after its status COMPLETE" in fault.reason) == (
        (A.descriptor,),
        True,
    )
    assert read.end() == []


def test_records_after_complete_are_fine_while_a_state_is_missing() -> None:
    read = Read(A)
    assert len(read.feed(record("a", 1) + status("a"), record("a", 2), state("a", 2, count=2))) == 3
    assert read.end() == ["a"]


# Completeness


@pytest.mark.parametrize("before", [STREAM, GLOBAL], ids=["STREAM", "GLOBAL"])
@pytest.mark.parametrize(
    ("stream", "sent", "at_once"),
    [
        (A, b"", {"STREAM": False, "GLOBAL": False}),
        (A, record("a", 1) + state("a", 1), {"STREAM": True, "GLOBAL": True}),
        (A, state("a", 1) + record("a", 1), {"STREAM": False, "GLOBAL": False}),
        (A, global_state({"lsn": 1}, {}), {"STREAM": False, "GLOBAL": False}),
        (F, record("f", 1), {"STREAM": True, "GLOBAL": False}),
    ],
)
def test_complete_counts_at_once_or_waits_for_a_state(
    before: ConnectionState, stream: ConfiguredStream, sent: bytes, at_once: dict[str, bool]
) -> None:
    name = stream.descriptor.name
    read = Read(stream, state=before)
    read.feed(sent)
    assert read.feed(status(name)) == ([StreamComplete(stream.descriptor)] * at_once[before.type])
    assert read.end() == [name]


@pytest.mark.parametrize("covered", [True, False])
def test_a_full_refresh_beside_a_shared_state_is_complete_with_its_own(covered: bool) -> None:
    read = Read(A, F, state=GLOBAL)
    read.feed(state("f", 1) + record("f", 1) + (state("f", 2) if covered else b""))
    assert read.feed(status("f")) == ([StreamComplete(F.descriptor)] * covered)


@pytest.mark.parametrize(
    ("output", "how", "complete"),
    [
        (b"", {}, True),  # an old source: exit code 0 is its only sign
        (b"", {"failed": True}, False),
        (b"", {"cut_off": True}, False),
        (status("a"), {}, True),
        (status("a"), {"failed": True}, True),  # the stream is complete, but the READ has failed
        (status("a"), {"cut_off": True}, True),
        (status("a", "INCOMPLETE"), {}, False),
        (status("a", "RUNNING"), {}, False),
        (status("a") + status("a", "INCOMPLETE"), {}, False),
        (status("x"), {}, False),  # a source with statuses, but none for this stream
    ],
)
def test_the_end_of_a_stream(output: bytes, how: dict[str, bool], complete: bool) -> None:
    read = Read(A)
    read.feed(record("a", 1) + output)
    assert read.end(**how) == (["a"] if complete else [])


def test_an_error_ends_its_own_stream_only() -> None:
    read = Read(A, B)
    read.feed(record("a", 1) + status("a") + status("b"))
    assert read.end("a") == ["b"]
    assert read.streams["a"].error is not None


def test_an_error_after_the_last_state_of_a_complete_stream_is_too_late() -> None:
    read = Read(A)
    read.feed(state("a", 1) + status("a"))
    assert read.end("a") == ["a"]


def test_other_messages_mean_nothing() -> None:
    estimate = line("TRACE", trace={"type": "ESTIMATE", "estimate": {"name": "a"}})
    read = Read(A)
    assert read.feed(estimate) == []
    assert read.protocol.feed(None) is None
