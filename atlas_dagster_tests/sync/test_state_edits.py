"""Refresh, clear, reset, set: commits without rows, and what the next sync makes of them."""

from typing import Any

import pytest
from msgspec import Raw

from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.delta.writer import DedupWriter
from atlas_dagster.errors import BreakingChangeError, ConfigError, UnknownStreamError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    full_refresh,
    global_state,
    incremental,
    legacy_state,
    records,
    state,
    status,
    upkeep,
)

A, B = incremental("a"), incremental("b")
MERGED = incremental("a", "append_dedup")
NAME, OTHER = A.descriptor, B.descriptor
BOTH = status("a") + status("b")
KINDS = pytest.mark.parametrize("stream", [A, MERGED], ids=["append", "dedup"])


class Crash(Exception):
    """In place of a kill."""


def load(lake: Lake, stream: ConfiguredStream, *ids: int) -> Any:
    """Sync rows and a state that says where they end."""
    name = stream.descriptor.name
    return lake.sync([stream], records(name, ids), state(name, {"at": max(ids)}), status(name))


def generations(lake: Lake, name: str = "a") -> list[int]:
    column = "_airbyte_generation_id"
    return sorted(row[0] for row in lake.rows(name, columns=column))


# Refresh


@pytest.mark.slow
@KINDS
def test_a_refresh_replaces_the_old_rows_once_it_is_complete(
    lake: Lake, stream: ConfiguredStream
) -> None:
    load(lake, stream, 1, 2)
    (asked,) = upkeep(lake, stream).refresh([NAME], keep_rows=False)
    assert (asked.action, asked.streams[0].generation_id) == ("refresh", 1)
    assert lake.ids("a") == [1, 2]

    failed = lake.sync([stream], records("a", [3]) + state("a", {"at": 3}), 1, **EAGER)
    assert failed.file("state") is None
    assert failed.notices == [
        "Stream 'a' is refreshed: it is read again from the beginning, and its old rows are "
        "replaced when it is complete."
    ]
    assert lake.ids("a") == [1, 2]

    done = load(lake, stream, 4, 5)
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 3}
    sent = done.file("catalog")["streams"][0]
    assert (sent["generation_id"], sent["minimum_generation_id"]) == (1, 1)
    assert lake.ids("a") == [3, 4, 5]
    assert generations(lake) == [1, 1, 1]
    again = load(lake, stream, 6)
    assert again.file("state")[0]["stream"]["stream_state"] == {"at": 5}
    assert lake.ids("a") == [3, 4, 5, 6]


@KINDS
def test_a_refresh_that_keeps_the_rows(lake: Lake, stream: ConfiguredStream) -> None:
    load(lake, stream, 1, 2)
    upkeep(lake, stream).refresh([NAME], keep_rows=True)

    done = load(lake, stream, 2, 3)

    sent = done.file("catalog")["streams"][0]
    assert (sent["generation_id"], sent["minimum_generation_id"]) == (1, 0)
    assert done.file("state") is None
    assert lake.ids("a") == ([1, 2, 2, 3] if stream is A else [1, 2, 3])
    assert generations(lake) == ([0, 0, 1, 1] if stream is A else [0, 1, 1])


@pytest.mark.parametrize("keep_rows", [False, True])
@pytest.mark.slow
def test_a_run_that_is_tried_again_does_not_refresh_again(lake: Lake, keep_rows: bool) -> None:
    load(lake, A, 1, 2)
    assert upkeep(lake, A, run="one").refresh([NAME], keep_rows=keep_rows)
    lake.sync([A], records("a", [1]) + state("a", {"at": 1}), 1, **EAGER)

    assert not upkeep(lake, A, run="two", root="one").refresh([NAME], keep_rows=keep_rows)
    done = lake.sync([A], records("a", [2]) + state("a", {"at": 2}), status("a"))
    assert not upkeep(lake, A, run="three", root="one").refresh([NAME], keep_rows=keep_rows)

    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 1}
    assert lake.ids("a") == ([1, 1, 2, 2] if keep_rows else [1, 2])
    assert upkeep(lake, A, run="four").refresh([NAME], keep_rows=keep_rows)


def test_what_a_run_has_begun_itself_is_not_refreshed_by_it(lake: Lake) -> None:
    assert not upkeep(lake, A, run="run 0").refresh([NAME], keep_rows=True)
    lake.sync([A], records("a", [1]) + state("a", {"at": 1}), 1, **EAGER)
    assert not upkeep(lake, A, run="run 0").refresh([NAME], keep_rows=True)
    done = lake.sync([A], records("a", [2]) + state("a", {"at": 2}), status("a"))
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 1}


def test_a_refresh_is_found_where_no_event_was_written(lake: Lake) -> None:
    load(lake, A, 1, 2)
    upkeep(lake, A).refresh([NAME], keep_rows=False)
    lake.store.envelopes.clear()
    done = load(lake, A, 7)
    (unrecorded,) = [s.resume_point.unrecorded for s in done.plan.streams]
    assert unrecorded is not None
    assert unrecorded.action == "refresh"
    assert lake.ids("a") == [7]


def test_the_request_is_kept_while_other_streams_commit(lake: Lake) -> None:
    lake.sync([A, B], *(records(n, [1]) + state(n, {"at": 1}) + status(n) for n in "ab"))
    upkeep(lake, A, B).refresh([NAME], keep_rows=False)
    lake.sync([A, B], records("b", [2]) + state("b", {"at": 2}) + status("b"), 1)
    lake.store.envelopes.clear()
    done = lake.sync([A, B], records("a", [5]) + state("a", {"at": 5}), BOTH)
    assert done.failure is None
    assert (lake.ids("a"), lake.ids("b")) == ([5], [1, 2])


def test_a_key_with_a_new_type_is_followed_by_a_refresh(lake: Lake) -> None:
    load(lake, MERGED, 1, 2)
    changed = incremental("a", "append_dedup", id={"type": "string"})
    with pytest.raises(BreakingChangeError, match="refresh"):
        lake.prepare([changed])
    upkeep(lake, changed).refresh([NAME], keep_rows=False)
    done = load(lake, changed, 1, 3)
    assert done.failure is None
    assert lake.rows("a", columns="id") == [("1",), ("3",)]


@pytest.mark.slow
def test_a_sync_that_is_running_meanwhile_stops(lake: Lake) -> None:
    for stream in (A, MERGED):
        name = [stream.descriptor]
        load(lake, stream, 1, 2)
        session, _ = lake.prepare([stream], records("a", [3]) + state("a", 3), status("a"))
        events = session.run()
        list(session._open())
        upkeep(lake, stream).clear(name)
        session._open = lambda: iter(())  # type: ignore[method-assign]
        with pytest.raises(Exception, match=r"another sync|refused"):
            list(events)
        assert lake.ids("a") == []
        load(lake, stream, 4)
        assert lake.ids("a") == [4]
        lake.drop("a")


# Clear


@KINDS
def test_clear_empties_the_table_and_forgets_the_state(
    lake: Lake, stream: ConfiguredStream
) -> None:
    load(lake, stream, 1, 2)
    (done,) = upkeep(lake, stream).clear([NAME])
    assert lake.ids("a") == []
    lake.store.envelopes[NAME] = done.without_files()

    again = load(lake, stream, 2)

    assert again.file("state") is None
    assert again.notices == []
    assert again.file("catalog")["streams"][0]["generation_id"] == 1
    assert lake.ids("a") == [2]


def test_clear_of_streams_never_synced_does_nothing(lake: Lake) -> None:
    assert upkeep(lake, A, B).clear([NAME, OTHER]) == []
    assert lake.versions() == {}


def test_clear_takes_the_changes_that_wait(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a merge that a dead process did not come to."""

    def die(self: DedupWriter) -> None:
        raise Crash

    load(delta_lake, MERGED, 1)
    with monkeypatch.context() as patch:
        patch.setattr(DedupWriter, "merge_committed", die)
        with pytest.raises(Crash):
            load(delta_lake, MERGED, 2)
    upkeep(delta_lake, MERGED).clear([NAME])
    assert delta_lake.ids("a") == []
    load(delta_lake, MERGED, 3)
    assert delta_lake.ids("a") == [3]


def test_clear_of_a_dedup_table_survives_a_death_in_its_middle(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: the next merge left the old rows, for it looked at its own commit only."""

    def die(self: DedupWriter) -> None:
        raise Crash

    load(delta_lake, MERGED, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(DedupWriter, "merge_committed", die)
        with pytest.raises(Crash):
            upkeep(delta_lake, MERGED).clear([NAME])
    done = load(delta_lake, MERGED, 3)
    assert done.file("state") is None
    assert delta_lake.ids("a") == [3]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_clear_of_all_streams_is_one_commit(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Where one state is of all: what one table has taken, the others take, too."""
    streams = [incremental("a", mode), incremental("b", mode)]
    output = records("a", [1]) + records("b", [7]), global_state({"lsn": 1}, {"a": {}, "b": {}})
    delta_lake.sync(streams, *output, BOTH)
    commits: list[object] = []

    def die_at_the_second(self: DeltaDestination, envelope: Any, writers: Any) -> None:
        self.prepare(envelope)
        writers[0].commit(envelope)
        commits.append(envelope)
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(DeltaDestination, "commit", die_at_the_second)
        with pytest.raises(Crash):
            upkeep(delta_lake, *streams).clear([NAME, OTHER])

    done = delta_lake.sync(streams, records("a", [2]) + records("b", [8]), output[1], BOTH)

    assert done.file("state") is None
    assert (delta_lake.ids("a"), delta_lake.ids("b")) == ([2], [8])


# Reset and set


@KINDS
def test_reset_forgets_the_cursor_and_nothing_else(lake: Lake, stream: ConfiguredStream) -> None:
    load(lake, stream, 1, 2)
    upkeep(lake, stream).reset([NAME])

    done = load(lake, stream, 2)

    assert done.file("state") is None
    sent = done.file("catalog")["streams"][0]
    assert (sent["generation_id"], sent["minimum_generation_id"]) == (0, 0)
    assert lake.ids("a") == ([1, 2, 2] if stream is A else [1, 2])


@KINDS
def test_a_state_that_is_set_is_where_the_next_sync_continues(
    lake: Lake, stream: ConfiguredStream
) -> None:
    load(lake, stream, 1, 2)
    given = ConnectionState("STREAM", {NAME: Raw(b'{"at": 1.50}')})
    upkeep(lake, stream).set(given)

    _, outcome = lake.prepare([stream])
    assert b'"stream_state":{"at": 1.50}' in outcome.plan.files()["state"]
    assert lake.ids("a") == [1, 2]


@KINDS
@pytest.mark.slow
def test_a_run_that_is_tried_again_goes_on_from_where_it_is_not_from_the_state_it_set(
    lake: Lake, stream: ConfiguredStream
) -> None:
    load(lake, stream, 1, 2)
    given = Raw(b'{"at": 1}')
    upkeep(lake, stream, run="first").set_stream(NAME, given)
    done = lake.sync([stream], records("a", [2]), state("a", {"at": 2}), 1)
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 1}

    assert upkeep(lake, stream, run="again", root="first").set_stream(NAME, given) == []
    done = lake.sync([stream], status("a"))
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 2}
    assert upkeep(lake, stream, run="another").set_stream(NAME, given) != []


@KINDS
def test_what_is_pretended_changes_nothing(lake: Lake, stream: ConfiguredStream) -> None:
    load(lake, stream, 1, 2)
    before = lake.versions(), lake.rows("a"), lake.prepare([stream])[1].plan.state
    pretending = upkeep(lake, stream, assume=())
    (asked,) = pretending.refresh([NAME], keep_rows=False)
    (given,) = pretending.set_stream(NAME, Raw(b'{"at": 1}'))

    assert (lake.versions(), lake.rows("a"), lake.prepare([stream])[1].plan.state) == before
    afresh, continued = (lake.plan([stream], assume=[each]) for each in (asked, given))
    assert (afresh.state.streams, afresh.streams[0].table.replaces) == ({}, True)
    assert bytes(continued.state.streams[NAME]) == b'{"at": 1}'


@KINDS
def test_a_state_for_a_stream_never_synced(lake: Lake, stream: ConfiguredStream) -> None:
    upkeep(lake, stream, B).set_stream(NAME, Raw(b'{"at": 7}'))
    assert lake.ids("a") == []
    done = load(lake, stream, 8)
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 7}
    assert lake.ids("a") == [8]


def test_a_state_sets_only_the_streams_it_is_of(lake: Lake) -> None:
    lake.sync([A, B], *(records(n, [1]) + state(n, {"at": 1}) + status(n) for n in "ab"))
    upkeep(lake, A, B).set(ConnectionState("STREAM", {OTHER: Raw(b'{"at": 9}')}))
    done = lake.sync([A, B], BOTH)
    assert [s["stream"]["stream_state"] for s in done.file("state")] == [{"at": 1}, {"at": 9}]


def test_states_that_fit_no_stream(lake: Lake) -> None:
    unknown = ConnectionState("STREAM", {StreamDescriptor("z"): Raw(b"1")})
    with pytest.raises(UnknownStreamError, match=r"'z'.* a, b"):
        upkeep(lake, A, B).set(unknown)
    whole = full_refresh("a")
    with pytest.raises(ConfigError, match="no incremental stream"):
        upkeep(lake, whole).set_stream(NAME, Raw(b"1"))


# One state for all streams


SNAPSHOT = {"a": {"done": True}, "b": {"done": True}}


def load_both(lake: Lake, shared: bytes) -> None:
    lake.sync([A, B], records("a", [1, 2]) + records("b", [7]), shared, BOTH)


@pytest.mark.parametrize("shared", [legacy_state({"at": 2}), global_state({"at": 2}, {})])
def test_what_cannot_be_done_for_one_stream_alone(lake: Lake, shared: bytes) -> None:
    load_both(lake, shared)
    before = lake.versions()
    kind = "LEGACY" if b"data" in shared else "GLOBAL"
    sentence = (
        f"The source of connection 'c' keeps one state for all streams ({kind}), so this "
        "cannot be done for 'a' alone; do it for the whole connection."
    )
    for ask in (
        lambda it: it.refresh([NAME], keep_rows=False),
        lambda it: it.clear([NAME]),
        lambda it: it.reset([NAME]),
        lambda it: it.set(ConnectionState("STREAM", {NAME: Raw(b"1")})),
    ):
        with pytest.raises(BreakingChangeError) as refused:
            ask(upkeep(lake, A, B))
        assert str(refused.value) == sentence
    assert lake.versions() == before


@pytest.mark.parametrize("shared", [legacy_state({"at": 2}), global_state({"at": 2}, SNAPSHOT)])
@pytest.mark.slow
def test_all_streams_are_refreshed_together(lake: Lake, shared: bytes) -> None:
    load_both(lake, shared)
    (asked,) = upkeep(lake, A, B).refresh([NAME, OTHER], keep_rows=False)
    assert [commit.stream.name for commit in asked.streams] == ["a", "b"]
    done = lake.sync([A, B], records("a", [3]) + records("b", [8]), shared, BOTH)
    assert done.file("state") is None
    assert (lake.ids("a"), lake.ids("b")) == ([3], [8])


@pytest.mark.parametrize("keep_rows", [False, True])
def test_one_stream_of_a_global_state_is_refreshed(lake: Lake, keep_rows: bool) -> None:
    load_both(lake, global_state({"lsn": 1}, SNAPSHOT))
    upkeep(lake, A, B).refresh([NAME], keep_rows=keep_rows)
    output = records("a", [2, 3]) + records("b", [8]), global_state({"lsn": 2}, SNAPSHOT), BOTH
    done = lake.sync([A, B], *output)
    sent = done.file("state")[0]["global"]
    assert sent["shared_state"] == {"lsn": 1}
    assert [each["stream_descriptor"]["name"] for each in sent["stream_states"]] == ["b"]
    assert lake.ids("a") == ([1, 2, 2, 3] if keep_rows else [2, 3])
    assert lake.ids("b") == [7, 8]


def test_a_global_state_is_set(lake: Lake) -> None:
    given = ConnectionState("GLOBAL", {NAME: Raw(b'{"n":1}')}, Raw(b'{"lsn":5}'))
    upkeep(lake, A, B).set(given)
    upkeep(lake, A, B, run="another").set_stream(NAME, Raw(b'{"n":2}'))
    done = lake.sync([A, B], BOTH)
    sent = done.file("state")[0]["global"]
    assert sent["shared_state"] == {"lsn": 5}
    assert [each["stream_state"] for each in sent["stream_states"]] == [{"n": 2}]


# A source that goes over from one kind of state to the other


def test_all_streams_go_over_together(lake: Lake) -> None:
    lake.sync([A, B], *(records(n, [1]) + state(n, {"at": 1}) + status(n) for n in "ab"))
    lake.sync([A, B], records("a", [2]), global_state({"lsn": 1}, SNAPSHOT), BOTH)
    done = lake.sync([A, B], *(records(n, [3]) + state(n, {"at": 3}) + status(n) for n in "ab"))
    assert done.file("state")[0]["type"] == "GLOBAL"
    last = lake.sync([A, B], BOTH)
    assert [each["type"] for each in last.file("state")] == ["STREAM", "STREAM"]
    assert last.failure is None
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2, 3], [1, 3])


def test_a_stream_left_behind_by_states_of_single_streams(lake: Lake) -> None:
    load_both(lake, global_state({"lsn": 1}, {}))
    lake.sync([A, B], records("a", [3]) + state("a", {"at": 3}) + status("a"), 1)
    done = lake.sync([A, B], records("a", [4]) + state("a", {"at": 4}) + status("a"))
    assert "is shared by all streams (GLOBAL)" in str(done.failure)
    assert "`atlas refresh c --stream b`. Finished and kept: a." in str(done.failure)
    upkeep(lake, A, B).refresh([OTHER], keep_rows=False)
    done = lake.sync([A, B], records("b", [9]) + state("b", {"at": 9}), BOTH)
    assert done.failure is None
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2, 3, 4], [9])


@pytest.mark.parametrize("alone", [True, False])
def test_a_stream_left_behind_by_a_state_of_all(lake: Lake, alone: bool) -> None:
    lake.sync([A, B], *(records(n, [1]) + state(n, {"at": 1}) + status(n) for n in "ab"))
    output = records("a", [2]) + global_state({"lsn": 1}, {"a": {}}) + status("a")
    lake.sync([A, B], output, selected=["a"])
    with pytest.raises(BreakingChangeError, match=r"'b'.* `atlas refresh c --stream b`"):
        lake.prepare([A, B])
    upkeep(lake, A, B).refresh([OTHER] if alone else [NAME, OTHER], keep_rows=False)
    done = lake.sync([A, B], records("b", [7]) + global_state({"lsn": 1}, SNAPSHOT) + BOTH)
    assert done.failure is None
    assert lake.ids("b") == [7]
