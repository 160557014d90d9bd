"""A READ whose records are handed out, and the state that goes with them."""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from atlas_dagster.errors import ConnectorFailedError, ProtocolError, ReadFailedError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.reading import reader as module
from atlas_dagster.reading.reader import StreamReader
from atlas_dagster.runners.base import ExitStatus
from atlas_dagster.runners.fake import FakeRunner
from atlas_dagster.source.connector import Connector
from atlas_dagster_tests.sync.fake_source import (
    error,
    full_refresh,
    global_state,
    incremental,
    line,
    record,
    records,
    state,
    status,
)

USERS = StreamDescriptor("users")


def reading(
    *output: bytes | int | ExitStatus,
    streams: Sequence[ConfiguredStream] = (incremental("users"),),
    **options: Any,
) -> tuple[StreamReader, FakeRunner]:
    runner = FakeRunner(lambda _: output)
    connector = Connector(runner, name="source-x")
    return StreamReader(connector, list(streams), **options), runner


def ids(it: StreamReader) -> list[int]:
    return [id for _, batch in it.batches() for id in batch["id"].to_pylist()]


def said(it: StreamReader) -> Any:
    return {str(name): json.loads(bytes(blob)) for name, blob in it.state.streams.items()}


def test_records_come_as_the_source_wrote_them() -> None:
    it, _ = reading(record("users", 1, "a"), record("users", 2), status("users"))
    data = [json.loads(bytes(each.data)) for found in it.records() for each in found.records]
    assert data == [{"id": 1, "v": "a"}, {"id": 2, "v": None}]
    assert it.counts == {USERS: 2}


def test_batches_have_the_columns_of_a_table() -> None:
    it, _ = reading(records("users", range(3)), status("users"))
    ((name, batch),) = it.batches()
    assert name == USERS
    assert batch.schema.names[:3] == ["id", "v", "_airbyte_raw_id"]
    assert batch["id"].to_pylist() == [0, 1, 2]


def test_the_state_goes_in_and_comes_out() -> None:
    before = ConnectionState.from_file(
        b'[{"type": "STREAM", "stream": {"stream_descriptor": {"name": "users"}, '
        b'"stream_state": {"id": 2}}}]'
    )
    it, runner = reading(record("users", 3), state("users", {"id": 3}, count=1), state=before)
    assert ids(it) == [3]
    assert said(it) == {"users": {"id": 3}}
    assert runner.commands[0].files["state"] == before.to_file()
    catalog = json.loads(runner.commands[0].files["catalog"])
    assert catalog["streams"][0]["sync_mode"] == "incremental"


def test_a_batch_ends_where_a_state_covers_it() -> None:
    it, runner = reading(
        records("users", [1, 2]),
        state("users", {"id": 2}),
        record("users", 3),
        record("users", 4),
        state("users", {"id": 4}),
        record("users", 5),
        batch_rows=2,
    )
    batches = it.batches()
    _, first = next(batches)
    assert (first["id"].to_pylist(), said(it)) == ([1, 2], {"users": {"id": 2}})
    assert it.rows_since_state == 0
    _, second = next(batches)
    assert (second["id"].to_pylist(), said(it)) == ([3, 4], {"users": {"id": 4}})
    batches.close()  # type: ignore[attr-defined]
    assert said(it) == {"users": {"id": 4}}
    assert runner.closed == 1


def test_rows_do_not_wait_for_a_state_for_ever() -> None:
    it, _ = reading(
        record("users", 1),
        state("users", {"id": 1}),
        *(record("users", id) for id in range(2, 7)),
        state("users", {"id": 6}),
        batch_rows=2,
    )
    batches = it.batches()
    _, first = next(batches)
    assert first["id"].to_pylist() == [1, 2, 3, 4]
    assert (said(it), it.rows_since_state) == ({"users": {"id": 1}}, 3)
    assert [batch["id"].to_pylist() for _, batch in batches] == [[5, 6]]
    assert (said(it), it.rows_since_state) == ({"users": {"id": 6}}, 0)


def test_few_rows_are_handed_out_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_YIELD_SECONDS", 0.0)
    it, _ = reading(record("users", 1), state("users", {"id": 1}), record("users", 2))
    assert [batch["id"].to_pylist() for _, batch in it.batches()] == [[1], [2]]
    it, _ = reading(record("users", 1), record("users", 2), streams=[full_refresh("users")])
    assert [batch["id"].to_pylist() for _, batch in it.batches()] == [[1], [2]]


def test_the_state_right_after_the_last_record_belongs_to_it() -> None:
    it, runner = reading(
        records("users", [1, 2]),
        state("users", {"id": 2}),
        records("users", [3]),
        limit=2,
    )
    assert ids(it) == [1, 2]
    assert (said(it), it.rows_since_state) == ({"users": {"id": 2}}, 0)
    assert not it.is_complete
    assert runner.closed == 1


def test_a_state_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LAST_STATE_SECONDS", 0.0)
    it, _ = reading(records("users", [1, 2]), error("never reached"), 1, limit=2)
    assert ids(it) == [1, 2]
    assert (said(it), it.rows_since_state) == ({}, 2)


def test_a_limit_stops_the_connector_and_the_state() -> None:
    it, runner = reading(
        records("users", [1, 2]),
        state("users", {"id": 2}),
        records("users", [3, 4]),
        state("users", {"id": 4}),
        error("never reached"),
        1,
        limit=3,
    )
    assert ids(it) == [1, 2, 3]
    assert said(it) == {"users": {"id": 2}}
    assert runner.closed == 1


def test_a_limit_is_one_for_each_stream() -> None:
    streams = [incremental("users"), incremental("orders")]
    it, _ = reading(
        records("users", range(5)),
        state("users", {"id": 5}),
        records("orders", range(2)),
        state("orders", {"id": 2}),
        status("users"),
        status("orders"),
        streams=streams,
        limit=3,
    )
    assert sum(len(found.records) for found in it.records()) == 5
    assert it.counts == {USERS: 3, StreamDescriptor("orders"): 2}
    assert said(it) == {"orders": {"id": 2}}


def test_a_state_of_all_streams_does_not_cover_what_was_left_out() -> None:
    streams = [incremental("users"), incremental("orders")]
    it, _ = reading(
        records("users", range(5)),
        global_state({"lsn": 1}, {"users": {"id": 5}}, count=5),
        record("orders", 1),
        global_state({"lsn": 2}, {"users": {"id": 5}}, count=1),
        streams=streams,
        limit=3,
    )
    assert sum(len(found.records) for found in it.records()) == 4
    assert not it.state


def test_records_of_other_streams_are_left_out() -> None:
    it, _ = reading(record("others", 1), record("users", 2), state("others", {"id": 1}))
    assert ids(it) == [2]
    assert said(it) == {}


def test_missing_records_are_an_error() -> None:
    it, _ = reading(record("users", 1), state("users", {"id": 2}, count=2))
    with pytest.raises(ProtocolError, match="2 records before it, but Atlas received 1"):
        ids(it)


@pytest.mark.parametrize(
    "broken",
    [
        b'{"type": "RECORD", "record": {"stream": "users", "data": nonsense}}\n',
        line("STATE", state={}),
    ],
)
def test_an_unreadable_message_is_an_error(broken: bytes) -> None:
    it, _ = reading(record("users", 1) + broken)
    with pytest.raises(ProtocolError, match=r"source-x, users: a .* message could not be read"):
        ids(it)


def test_records_after_complete_are_an_error() -> None:
    it, _ = reading(record("users", 1) + state("users", 1) + status("users") + record("users", 2))
    with pytest.raises(ProtocolError, match="users: it sent records after"):
        ids(it)


def test_a_failure_is_in_the_connectors_own_words() -> None:
    it, _ = reading(record("users", 1), error("The key is wrong.", "config_error"), 1)
    with pytest.raises(ConnectorFailedError, match=r"source-x: The key is wrong\.") as caught:
        ids(it)
    assert caught.value.failure_type == "config_error"


@pytest.mark.parametrize(
    "output",
    [
        (record("users", 1), status("users", "INCOMPLETE")),
        (record("users", 1), status("others")),
        (record("users", 1), ExitStatus(0, cut_off=True)),
    ],
)
def test_half_a_stream_is_said(output: tuple[Any, ...]) -> None:
    it, _ = reading(*output, streams=[full_refresh("users")])
    with pytest.raises(ReadFailedError, match=r"source-x .*users"):
        ids(it)


def test_an_old_source_without_statuses_is_complete_when_it_ends_well() -> None:
    it, _ = reading(record("users", 1), line("STATE", state={"data": {"id": 1}}))
    assert ids(it) == [1]
    assert it.state.type == "LEGACY"


# A full refresh beside streams that keep one state together


def shared(lsn: int, count: float) -> bytes:
    return global_state({"lsn": lsn}, {"users": {"n": lsn}}, count=count)


@pytest.mark.parametrize("apart", [True, False], ids=["states of its own", "counted together"])
def test_a_full_refresh_beside_a_state_of_all_streams(apart: bool) -> None:
    """As a sync counts: sources on Airbyte's Bulk CDK do it in either way, by their version."""
    own = state("pages", {"page": 1}, count=2) if apart else b""
    it, _ = reading(
        records("pages", [1, 2]) + own + record("users", 1) + shared(1, 1 if apart else 3),
        record("users", 2) + shared(2, 1) + (state("pages", {"page": 2}) if apart else b""),
        status("users") + status("pages"),
        streams=[incremental("users"), full_refresh("pages")],
    )
    assert sorted(ids(it)) == [1, 1, 2, 2]
    assert it.state.type == "GLOBAL"
    assert said(it) == {"users": {"n": 2}}


# What sources leave out


def test_messages_without_their_namespace_are_of_the_only_stream_of_that_name() -> None:
    it, _ = reading(
        record("users", 1) + state("users", {"id": 1}, count=1) + status("users"),
        streams=[incremental("users", namespace="public")],
    )
    ((name, batch),) = it.batches()
    assert (str(name), batch["id"].to_pylist()) == ("public.users", [1])
    assert said(it) == {"public.users": {"id": 1}}
    it, _ = reading(record("users", 2), streams=[incremental("users", namespace="public")])
    assert [(found.namespace, len(found.records)) for found in it.records()] == [("public", 1)]


def test_messages_that_may_be_of_several_streams_are_an_error() -> None:
    both = [incremental("users", namespace=space) for space in ("eu", "us")]
    it, _ = reading(record("users", 1), streams=both)
    with pytest.raises(ProtocolError, match=r"eu\.users, us\.users"):
        ids(it)


def test_a_record_without_a_time_is_of_now() -> None:
    bare = line("RECORD", record={"stream": "users", "data": {"id": 1}})
    it, _ = reading(bare + record("users", 2))
    ((_, batch),) = it.batches()
    times = batch["_airbyte_extracted_at"].to_pylist()
    assert abs(times[0].timestamp() - time.time()) < 60
    assert times[1].timestamp() == 1_700_000_000.002
    assert json.loads(batch["_airbyte_meta"][0].as_py())["changes"] == [
        {
            "field": "emitted_at",
            "change": "NULLED",
            "reason": "DESTINATION_SERIALIZATION_ERROR",
        }
    ]
