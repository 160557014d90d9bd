"""Rows that are held back until their stream is complete, and who goes on with them."""

from typing import Any

import pytest

from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    error,
    full_refresh,
    global_state,
    incremental,
    legacy_state,
    line,
    records,
    resumable,
    state,
    status,
    upkeep,
)
from atlas_dagster_tests.sync.unpublished_rows import (
    BOTH,
    KINDS,
    MODES,
    NAME,
    OTHER,
    A,
    B,
    begin,
    end,
    exists,
    generation,
    pieces,
    sent,
    unpublished,
)

# A full refresh


@pytest.mark.slow
@MODES
def test_a_full_refresh_goes_on_when_its_run_is_tried_again(lake: Lake, mode: str) -> None:
    stream = resumable("a", mode)
    end(lake, stream, 1, 2, 3)
    first = begin(lake, stream, 4, 5)
    assert len(first.commits) == 2
    assert lake.ids("a") == [1, 2, 3]
    second = begin(lake, stream, 6)
    assert sent(second) == {"at": 5}
    assert lake.ids("a") == [1, 2, 3]

    done = end(lake, stream, 7)

    assert sent(done) == {"at": 6}
    assert "continues where the last attempt ended" in done.notices[0]
    assert generation(first) == generation(done)
    new = [4, 5, 6, 7]
    assert lake.ids("a") == (new if mode == "overwrite" else [1, 2, 3, *new])
    assert done.finished["a"].table.row_count == len(lake.ids("a"))
    (newest, _) = generation(done)
    generations = {row[0] for row in lake.rows("a", columns="_airbyte_generation_id")}
    assert generations == ({newest} if mode == "overwrite" else {newest - 1, newest})
    assert unpublished(lake) == []
    after = end(lake, stream, 8)
    assert (sent(after), generation(after)[0]) == (None, newest + 1)


@MODES
def test_nothing_of_a_first_full_refresh_is_there_before_its_end(lake: Lake, mode: str) -> None:
    stream = resumable("a", mode)
    begin(lake, stream, 1, 2)
    assert not exists(lake)
    done = end(lake, stream, 3)
    assert sent(done) == {"at": 2}
    assert lake.ids("a") == [1, 2, 3]


@pytest.mark.slow
@MODES
@pytest.mark.parametrize("old", [[], [1, 2]], ids=["first load", "later"])
def test_a_new_run_begins_a_full_refresh_anew(lake: Lake, mode: str, old: list[int]) -> None:
    stream = resumable("a", mode)
    if old:
        end(lake, stream, *old)
    first = begin(lake, stream, 3, 4)
    again = begin(lake, stream, 5, root="another")
    assert (sent(again), again.notices) == (None, [])
    assert generation(again)[0] == generation(first)[0] + 1
    late = begin(lake, stream, 6)  # the first run once more: what it held is gone
    assert sent(late) is None

    done = end(lake, stream, 7, root="the last")

    assert sent(done) is None
    assert lake.ids("a") == ([7] if mode == "overwrite" else [*old, 7])
    assert unpublished(lake) == []


@MODES
def test_unpublished_rows_go_where_a_new_run_needs_none(lake: Lake, mode: str) -> None:
    stream = resumable("a", mode)
    end(lake, stream, 1)
    begin(lake, stream, 2, 3)
    done = lake.sync([stream], records("a", [4]), status("a"), root="another")
    assert done.failure is None
    assert lake.ids("a") == ([4] if mode == "overwrite" else [1, 4])
    assert unpublished(lake) == []


@MODES
def test_a_source_that_cannot_go_on_is_read_from_the_beginning(lake: Lake, mode: str) -> None:
    stream = full_refresh("a", mode)
    end(lake, stream, 1)
    first = begin(lake, stream, 2)
    assert first.commits == []
    assert lake.ids("a") == [1]
    done = end(lake, stream, 2, 3)
    assert (sent(done), len(done.commits)) == (None, 1)
    assert lake.ids("a") == ([2, 3] if mode == "overwrite" else [1, 2, 3])


@pytest.mark.parametrize("blob", [{"__ab_no_cursor_state_message": True}, None])
def test_a_state_that_is_no_position_is_not_committed_before_the_end(lake: Lake, blob: Any) -> None:
    stream = resumable("a")
    done = lake.sync([stream], records("a", [1]), state("a", blob, count=1), 1, **EAGER)
    assert done.commits == []
    done = lake.sync([stream], pieces(1), records("a", [2]), state("a", blob, count=1), 1, **EAGER)
    assert len(done.commits) == 1
    assert sent(end(lake, stream, 2)) == {"at": 1}
    assert lake.ids("a") == [1, 2]


@pytest.mark.parametrize("blob", [{"__ab_no_cursor_state_message": True}, None])
def test_it_does_not_replace_the_position_of_an_earlier_commit(lake: Lake, blob: Any) -> None:
    """What is held goes with the state that covers it, or its rows would come twice."""
    stream = resumable("a")
    died = lake.sync([stream], pieces(1, 2), records("a", [3]), state("a", blob), 1)
    assert died.failure is not None
    done = end(lake, stream, 3)
    assert sent(done) == {"at": 2}
    assert lake.ids("a") == [1, 2, 3]


def test_a_source_that_had_said_everything_says_nothing_more(lake: Lake) -> None:
    stream = resumable("a")
    end(lake, stream, 1)
    complete = {"__ab_full_refresh_sync_complete": True}
    lake.sync([stream], pieces(2), records("a", [3]) + state("a", complete), 1, **EAGER)
    done = end(lake, stream)
    assert sent(done) == complete
    assert lake.ids("a") == [2, 3]


@pytest.mark.parametrize("mode", ["overwrite", "append"])
def test_an_old_source_without_statuses_goes_on_too(lake: Lake, mode: str) -> None:
    stream = resumable("a", mode)
    end(lake, stream, 1)
    begin(lake, stream, 2)
    done = lake.sync([stream], 0)
    assert done.failure is None
    assert done.finished["a"].warnings == ()
    assert lake.ids("a") == ([2] if mode == "overwrite" else [1, 2])


def test_rows_that_no_state_covers_come_again(lake: Lake) -> None:
    stream = resumable("a")
    lake.sync([stream], pieces(1) + records("a", [2, 3]), status("a", "INCOMPLETE"), **EAGER)
    done = end(lake, stream, 2, 3)
    assert sent(done) == {"at": 1}
    assert lake.ids("a") == [1, 2, 3]


def test_what_a_dying_source_had_covered_is_held_though_it_was_not_due(lake: Lake) -> None:
    stream = resumable("a")
    failed = lake.sync([stream], pieces(1, 2), records("a", [3]), 1)
    assert [c.envelope.streams[0].unpublished for c in failed.commits] == [True]
    assert sent(end(lake, stream, 3)) == {"at": 2}
    assert lake.ids("a") == [1, 2, 3]


# ... that was complete


def test_it_is_not_read_again_by_the_run_that_has_done_so(lake: Lake) -> None:
    streams = [resumable("a", "append"), resumable("b", "append")]
    failed = lake.sync(streams, records("a", [1]) + status("a") + records("b", [7]), 1)
    assert list(failed.finished) == ["a"]

    done = lake.sync(streams, records("b", [7, 8]) + status("b"))

    assert done.failure is None
    assert [each["stream"]["name"] for each in done.file("catalog")["streams"]] == ["b"]
    a = done.finished["a"]
    assert (a.records, a.table.row_count) == (0, 1)
    assert a.warnings == ("It was complete when this run failed, so it was not read again.",)
    assert a.envelope is not None
    assert a.envelope.seq == failed.commits[0].envelope.seq
    assert (lake.ids("a"), lake.ids("b")) == ([1], [7, 8])


def test_nothing_is_asked_of_the_source_where_all_was_complete(lake: Lake) -> None:
    stream = resumable("a", "append")
    lake.sync([stream], records("a", [1]) + status("a"), 1)
    done = lake.sync([stream], 1)
    assert (done.failure, done.runner.commands) == (None, [])
    assert list(done.finished) == ["a"]
    assert lake.ids("a") == [1]


def test_it_is_done_though_another_stream_cannot_be_read(lake: Lake) -> None:
    streams = [resumable("a", "append"), B]
    lake.sync([*streams], records("a", [1]) + records("b", [1]) + state("b", 1), BOTH, 1)
    lake.store.envelopes.pop(OTHER)
    lake.lose_envelopes(of="b")
    done = lake.sync(streams, 1)
    assert (list(done.finished), done.runner.commands) == (["a"], [])
    assert str(done.failure).startswith("1 of 2 streams did not complete. b: The table of")
    assert str(done.failure).endswith("Finished and kept: a.")


def test_a_state_that_a_user_sets_or_resets_has_it_read_again(lake: Lake) -> None:
    stream = resumable("a", "append")
    lake.sync([stream], records("a", [1]) + status("a"), 1)
    upkeep(lake, stream, root=f"run {lake.runs}").reset([NAME])
    done = lake.sync([stream], records("a", [2]) + status("a"))
    assert done.failure is None
    assert lake.ids("a") == [1, 2]


# An incremental stream that is read again


@pytest.mark.slow
@KINDS
def test_any_sync_goes_on_with_a_refresh(lake: Lake, stream: ConfiguredStream) -> None:
    end(lake, stream, 1, 2)
    upkeep(lake, stream).refresh([NAME], keep_rows=False)
    for root, id in (("one", 3), ("two", 4)):
        begin(lake, stream, id, root=root)
        assert lake.ids("a") == [1, 2]
    done = end(lake, stream, 5, root="three")
    assert sent(done) == {"at": 4}
    assert lake.ids("a") == [3, 4, 5]
    assert unpublished(lake) == []
    assert sent(end(lake, stream, 6, root="four")) == {"at": 5}
    assert lake.ids("a") == [3, 4, 5, 6]


@KINDS
@pytest.mark.slow
def test_its_last_state_may_come_behind_complete(lake: Lake, stream: ConfiguredStream) -> None:
    """Regression: a refresh did not wait for it, so the next sync brought the same rows again."""
    end(lake, stream, 1)
    upkeep(lake, stream).refresh([NAME], keep_rows=False)
    done = lake.sync([stream], records("a", [2, 3]), status("a"), state("a", {"at": 3}, count=2))
    assert done.finished["a"].warnings == ()
    assert sent(lake.sync([stream], status("a"))) == {"at": 3}
    assert lake.ids("a") == [2, 3]


@KINDS
@pytest.mark.slow
def test_a_null_state_gives_up_the_rest_only(lake: Lake, stream: ConfiguredStream) -> None:
    end(lake, stream, 1)
    upkeep(lake, stream).refresh([NAME], keep_rows=False)
    lake.sync([stream], pieces(2), records("a", [3]), state("a", None, count=1), 1, **EAGER)
    done = end(lake, stream, 3)
    assert sent(done) == {"at": 2}
    assert lake.ids("a") == [2, 3]


def test_an_empty_answer_in_its_middle_does_not_replace_the_old_rows(lake: Lake) -> None:
    end(lake, A, 1)
    upkeep(lake, A).refresh([NAME], keep_rows=False)
    done = lake.sync([A], state("a", {"at": 9}), **EAGER)
    assert "the rows of the last sync were kept" in done.finished["a"].warnings[0]
    assert lake.ids("a") == [1]
    done = end(lake, A, 2)
    assert sent(done) is None
    assert lake.ids("a") == [2]


@pytest.mark.slow
@KINDS
def test_the_versions_of_a_row_keep_their_order(lake: Lake, stream: ConfiguredStream) -> None:
    """Those of several tries, all from the same moment."""
    end(lake, stream, 1)
    upkeep(lake, stream).refresh([NAME], keep_rows=False)

    def version(number: int) -> bytes:
        data = {"stream": "a", "data": {"id": 1, "v": str(number)}, "emitted_at": 5}
        return line("RECORD", record=data) + state("a", {"at": number}, count=1)

    for number in range(12):
        lake.sync([stream], version(number), 1, **EAGER)
    end(lake, stream)
    versions = [(1, str(number)) for number in range(12)]
    assert lake.rows("a") == (sorted(versions, key=repr) if stream is A else versions[-1:])


# One state for all streams


SNAPSHOT = {"a": {"done": False}, "b": {"done": False}}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["append", "append_dedup"])
@pytest.mark.parametrize("parts", [SNAPSHOT, {}], ids=["parts", "no parts"])
@pytest.mark.parametrize("kind", [global_state, lambda shared, _, count: legacy_state(shared)])
def test_all_streams_are_refreshed_and_go_on_together(
    lake: Lake, mode: str, parts: Any, kind: Any
) -> None:
    streams = [incremental("a", mode), incremental("b", mode)]

    def piece(id: int) -> bytes:
        return records("a", [id]) + records("b", [10 * id]) + kind({"at": id}, parts, count=2)

    lake.sync(streams, piece(1), BOTH)
    upkeep(lake, *streams).refresh([NAME, OTHER], keep_rows=False)
    for id in (2, 3):
        failed = lake.sync(streams, piece(id), records("a", [99]), 1, root=f"run {id}", **EAGER)
        assert failed.failure is not None
        assert (lake.ids("a"), lake.ids("b")) == ([1], [10])

    done = lake.sync(streams, piece(4), BOTH, root="last")

    assert done.failure is None
    given = done.file("state")
    shared = given if "at" in given else given[0]["global"]["shared_state"]
    assert shared == {"at": 3}
    assert (lake.ids("a"), lake.ids("b")) == ([2, 3, 4], [20, 30, 40])
    again = lake.sync(streams, piece(5), BOTH)
    assert again.failure is None
    assert (lake.ids("a"), lake.ids("b")) == ([2, 3, 4, 5], [20, 30, 40, 50])


def test_one_stream_of_a_global_state_goes_on_while_others_advance(lake: Lake) -> None:
    lake.sync(
        [A, B], records("a", [1]) + records("b", [7]), global_state({"at": 1}, SNAPSHOT), BOTH
    )
    upkeep(lake, A, B).refresh([NAME], keep_rows=False)
    output = records("a", [2]) + records("b", [8]), global_state({"at": 2}, SNAPSHOT, count=2)
    lake.sync([A, B], *output, 1, **EAGER)
    assert (lake.ids("a"), lake.ids("b")) == ([1], [7, 8])
    done = lake.sync([A, B], records("a", [3]), global_state({"at": 3}, SNAPSHOT), BOTH)
    given = done.file("state")[0]["global"]
    assert given["shared_state"] == {"at": 2}
    assert [each["stream_descriptor"]["name"] for each in given["stream_states"]] == ["a", "b"]
    assert (lake.ids("a"), lake.ids("b")) == ([2, 3], [7, 8])


def test_one_stream_fails_and_keeps_the_refreshed_other_from_being_shown(lake: Lake) -> None:
    """What it sent after the last state would come twice, and without it rows would be missing."""
    lake.sync(
        [A, B], records("a", [1]) + records("b", [7]), global_state({"at": 1}, SNAPSHOT), BOTH
    )
    upkeep(lake, A, B).refresh([NAME], keep_rows=False)
    done = lake.sync(
        [A, B],
        records("a", [2]) + global_state({"at": 2}, SNAPSHOT),
        records("a", [3]) + status("a"),
        error("lost connection", stream="b"),
        1,
    )
    assert list(done.finished) == []
    assert lake.ids("a") == [1]
    lake.sync([A, B], records("a", [3]) + global_state({"at": 3}, SNAPSHOT) + BOTH)
    assert lake.ids("a") == [2, 3]


def test_a_full_refresh_beside_a_global_state_has_a_state_of_its_own(lake: Lake) -> None:
    """Regression: its state took the place of that of all others, which then began anew."""
    streams = [A, resumable("b")]

    def piece(id: int) -> bytes:
        own = records("b", [id]) + state("b", {"at": id}, count=1)
        return records("a", [id]) + global_state({"lsn": id}, {"a": {}}, count=1) + own

    lake.sync(streams, piece(1), BOTH)
    assert (lake.ids("a"), lake.ids("b")) == ([1], [1])
    lake.sync(streams, piece(2), piece(3), 1, **EAGER)
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2, 3], [1])

    done = lake.sync(streams, piece(4), BOTH, **EAGER)

    assert done.failure is None
    shared, own = done.file("state")
    assert (shared["type"], shared["global"]["shared_state"]) == ("GLOBAL", {"lsn": 3})
    assert (own["type"], own["stream"]["stream_state"]) == ("STREAM", {"at": 3})
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2, 3, 4], [2, 3, 4])
    last = lake.sync(streams, BOTH, root="another")
    (shared,) = last.file("state")
    assert shared["global"]["shared_state"] == {"lsn": 4}


def test_a_full_refresh_in_a_global_state_is_not_gone_on_with(lake: Lake) -> None:
    """Newer sources (Bulk CDK) write its part there, and do not read it."""
    streams = [A, resumable("b")]
    for _ in range(2):
        lake.sync(
            streams,
            records("a", [1]) + records("b", [7]),
            global_state({"lsn": 1}, SNAPSHOT, count=2),
            1,
            **EAGER,
        )
    assert "b" not in {name.split("/")[-1] for name in lake.versions()}
    done = lake.sync(streams, records("b", [7, 8]), BOTH)
    assert done.failure is None
    assert lake.ids("b") == [7, 8]


@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_a_quiet_table_of_a_state_of_all_streams_is_dropped(lake: Lake, mode: str) -> None:
    """Its last commit had no rows, and a log of it may be left: it is not there all the same."""
    streams = [incremental("a", mode), incremental("b", mode)]
    both = records("a", [1]) + records("b", [1])
    lake.sync(streams, both, global_state({"at": 1}, {"a": {}, "b": {}}, count=2), BOTH, **EAGER)
    lake.sync(
        streams, records("a", [2]), global_state({"at": 2}, {"a": {}, "b": {}}, count=1), BOTH
    )
    lake.drop("b")
    done = lake.sync(
        streams, records("b", [1]), global_state({"at": 3}, {"a": {}, "b": {}}, count=1), BOTH
    )
    assert "The table of stream 'b' is gone; it is read again" in done.notices[0]
    given = done.file("state")[0]["global"]["stream_states"]
    assert [part["stream_descriptor"]["name"] for part in given] == ["a"]
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2], [1])
