"""What a READ leaves behind, by what the source says and how it ends."""

import pytest

from atlas_dagster.runners.base import ExitStatus
from atlas_dagster.sync.events import StreamsCommitted
from atlas_dagster.sync.stream import ActiveStream
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    error,
    full_refresh,
    incremental,
    line,
    record,
    records,
    state,
    status,
)

A, B = incremental("a"), incremental("b")


# The happy path


def test_rows_state_and_counts(lake: Lake) -> None:
    done = lake.sync(
        [A], record("a", 1, "x"), record("a", 2), state("a", {"at": 2}, count=2), status("a")
    )
    assert done.failure is None
    assert lake.rows("a") == [(1, "x"), (2, None)]
    finished = done.finished["a"]
    assert (finished.records, finished.commits, finished.table.row_count) == (2, 1, 2)
    assert finished.cursor_before is None
    assert bytes(finished.cursor_after or b"") == b'{"at": 2}'
    assert finished.warnings == ()
    assert [type(event).__name__ for event in done.events] == ["StreamsCommitted", "StreamFinished"]
    assert done.file("state") is None
    assert done.runner.closed == 1


def test_what_the_connector_is_asked(lake: Lake) -> None:
    done = lake.sync([A, full_refresh("b")], status("a"), status("b"))
    a, b = done.file("catalog")["streams"]
    assert (a["stream"]["name"], a["sync_mode"], a["destination_sync_mode"]) == (
        "a",
        "incremental",
        "append",
    )
    assert (a["generation_id"], a["minimum_generation_id"]) == (0, 0)
    assert (b["sync_mode"], b["destination_sync_mode"]) == ("full_refresh", "overwrite")
    assert (b["generation_id"], b["minimum_generation_id"]) == (1, 1)
    assert a["sync_id"] == done.plan.sync_id


def test_the_next_sync_continues(lake: Lake) -> None:
    lake.sync([A], records("a", [1, 2]), state("a", {"at": 2}, count=2), status("a"))
    done = lake.sync([A], records("a", [3]), state("a", {"at": 3}, count=1), status("a"))
    assert done.file("state") == [
        {
            "type": "STREAM",
            "stream": {"stream_descriptor": {"name": "a"}, "stream_state": {"at": 2}},
        }
    ]
    assert lake.ids("a") == [1, 2, 3]
    assert bytes(done.finished["a"].cursor_before or b"") == b'{"at": 2}'


@pytest.mark.parametrize("options", [EAGER, {"commit_bytes": 0}])
def test_a_state_that_is_due_is_committed(lake: Lake, options: dict[str, float]) -> None:
    output = b"".join(record("a", n) + state("a", {"at": n}, count=1) for n in (1, 2, 3))
    done = lake.sync([A], output, status("a"), **options)
    assert len(done.commits) == done.finished["a"].commits == 3
    seqs = [commit.envelope.seq for commit in done.commits]
    assert seqs == sorted(set(seqs))
    assert lake.ids("a") == [1, 2, 3]


def test_a_state_that_is_not_due_waits_for_the_end(lake: Lake) -> None:
    output = b"".join(record("a", n) + state("a", {"at": n}, count=1) for n in (1, 2, 3))
    assert len(lake.sync([A], output, status("a")).commits) == 1


def test_nothing_new_makes_no_new_version(lake: Lake) -> None:
    lake.sync([A], records("a", [1]), state("a", {"at": 1}), status("a"))
    before = lake.versions()
    done = lake.sync([A], state("a", {"at": 1}, count=0), status("a"))
    assert lake.versions() == before
    assert done.commits == []
    assert (done.finished["a"].records, done.finished["a"].table.row_count) == (0, 1)


def test_a_new_state_without_rows_is_kept(lake: Lake) -> None:
    lake.sync([A], records("a", [1]), state("a", {"at": 1}), status("a"))
    lake.sync([A], state("a", {"at": 9}, count=0), status("a"))
    done = lake.sync([A], status("a"))
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 9}


def test_a_null_state_starts_the_stream_over(lake: Lake) -> None:
    lake.sync([A], records("a", [1]), state("a", {"at": 1}), status("a"))
    lake.sync([A], records("a", [2]), state("a", None), status("a"))
    assert lake.sync([A], status("a")).file("state") is None
    assert lake.ids("a") == [1, 2]


def test_a_last_state_after_complete_still_counts(lake: Lake) -> None:
    done = lake.sync(
        [A],
        records("a", [1]) + state("a", {"at": 1}, count=1) + records("a", [2]),
        status("a") + state("a", {"at": 2}, count=1),
    )
    assert done.finished["a"].warnings == ()
    assert lake.sync([A], status("a")).file("state")[0]["stream"]["stream_state"] == {"at": 2}
    assert lake.ids("a") == [1, 2]


def test_rows_after_the_last_state_are_kept_with_a_warning(lake: Lake) -> None:
    done = lake.sync([A], records("a", [1]), state("a", {"at": 1}), records("a", [2]), status("a"))
    assert lake.ids("a") == [1, 2]
    assert "1 records came after the stream's last state" in done.finished["a"].warnings[0]


# Dying


def test_death_keeps_what_the_last_state_covers(lake: Lake) -> None:
    output = b"".join(record("a", n) + state("a", {"at": n}, count=1) for n in (1, 2, 3))
    done = lake.sync([A], output, record("a", 4), 1)
    assert lake.ids("a") == [1, 2, 3]
    assert "exit code 1" in str(done.failure)
    again = lake.sync([A], records("a", [4, 5]), state("a", {"at": 5}, count=2), status("a"))
    assert again.file("state")[0]["stream"]["stream_state"] == {"at": 3}
    assert again.failure is None
    assert lake.ids("a") == [1, 2, 3, 4, 5]
    assert lake.staged() == set()


def test_death_before_any_state_leaves_nothing(lake: Lake) -> None:
    lake.sync([A], records("a", [1, 2]), 137)
    assert lake.versions() == {}
    assert lake.staged() == set()


def test_a_closed_session_leaves_no_more_than_its_commits(lake: Lake) -> None:
    session, outcome = lake.prepare(
        [A], record("a", 1) + state("a", {"at": 1}), records("a", [2, 3]), **EAGER
    )
    events = session.run()
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert lake.ids("a") == [1]
    assert lake.staged() == set()
    assert outcome.runner.closed == 1


# Output that cannot be trusted


def test_a_wrong_record_count_stops_the_stream_there(lake: Lake) -> None:
    done = lake.sync(
        [A, B],
        records("a", [1]) + state("a", {"at": 1}, count=1),
        records("a", [2]) + state("a", {"at": 3}, count=2),
        records("a", [4]) + state("a", {"at": 4}, count=1) + status("a"),
        records("b", [1]) + state("b", {"at": 1}, count=1.0) + status("b"),
    )
    assert "a: its state counts 2 records before it, but Atlas received 1" in str(done.failure)
    assert (lake.ids("a"), lake.ids("b")) == ([1], [1])
    assert list(done.finished) == ["b"]
    assert lake.sync([A], status("a")).file("state")[0]["stream"]["stream_state"] == {"at": 1}


@pytest.mark.parametrize(
    ("blob", "kept"),
    [
        *((each, each) for each in (b"1e400", b"-0.0", b"1" * 5000, b"[" * 900 + b"]" * 900)),
        (b'"caf\xe9"', '"caf\ufffd"'.encode()),
        (b'"\\ud800"', '"\ufffd"'.encode()),
    ],
    ids=["1e400", "zero", "5000 digits", "900 levels", "no UTF-8", "surrogate"],
)
def test_any_state_is_handed_back(lake: Lake, blob: bytes, kept: bytes) -> None:
    said = state("a", {"at": "BLOB"}).replace(b'"BLOB"', blob)
    for id in (1, 2):
        done = lake.sync([A], record("a", id), said, status("a"))
        assert done.failure is None
    assert kept in done.runner.commands[-1].files["state"]
    assert lake.ids("a") == [1, 2]


@pytest.mark.parametrize("levels", [400, 900, 985, 1000, 5000])
def test_no_nesting_ends_a_sync(lake: Lake, levels: int) -> None:
    deep = b"[" * levels + b"]" * levels
    sent = record("a", 1) + record("a", 2).replace(b'"v": null', b'"v": %s' % deep) + record("a", 3)
    done = lake.sync([A], sent, state("a", {"at": 3}, count=3) + status("a"))
    assert done.failure is None
    assert lake.ids("a") == [1, 2, 3]


@pytest.mark.parametrize("number", ["1e400", "NaN", "-5", "1" * 400, "1" * 5000])
def test_no_number_of_a_message_ends_a_sync(lake: Lake, number: str) -> None:
    limited = {"type": "RATE_LIMITED", "rate_limited": {"quota_reset": "NUMBER"}}
    running = {"stream_descriptor": {"name": "a"}, "status": "RUNNING", "reasons": [limited]}
    estimate = {"type": "STREAM", "name": "a", "row_estimate": "NUMBER"}
    messages = [
        line("TRACE", trace={"type": "STREAM_STATUS", "stream_status": running}),
        line("TRACE", trace={"type": "ESTIMATE", "estimate": estimate}),
        line("RECORD", record={"stream": "a", "data": {"id": 1}, "emitted_at": "NUMBER"}),
        state("a", {"at": 1}).replace(
            b'"type"', b'"sourceStats":{"recordCount":"NUMBER"},"type"', 2
        ),
    ]
    sent = [each.replace(b'"NUMBER"', number.encode()) for each in messages]
    done = lake.sync([A], *sent, status("a"))
    assert done.failure is None
    assert lake.ids("a") == [1]


def test_an_unreadable_line_fails_its_own_stream_only(lake: Lake) -> None:
    broken = b'{"type":"RECORD","record":{"stream":"a","data":{"id":\n'
    done = lake.sync(
        [A, B],
        records("a", [1]) + state("a", {"at": 1}, count=1),
        broken,
        records("a", [3]) + state("a", {"at": 3}) + status("a") + records("b", [1]) + status("b"),
    )
    assert "a: a RECORD message could not be read" in str(done.failure)
    assert list(done.finished) == ["b"]
    assert (lake.ids("a"), lake.ids("b")) == ([1], [1])


def test_a_line_that_is_too_long_fails_its_own_stream_only(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("atlas_dagster.protocol.decoder.LONGEST_LINE", 1000)
    long = record("a", 2, "x" * 5000)
    done = lake.sync(
        [A, B],
        records("a", [1]) + state("a", {"at": 1}),
        *(long[at : at + 100] for at in range(0, len(long), 100)),
        records("b", [1]) + state("a", {"at": 2}) + status("a") + status("b"),
    )
    assert list(done.finished) == ["b"]
    assert (lake.ids("a"), lake.ids("b")) == ([1], [1])
    assert "a: a RECORD message could not be read (0 MB long); leave the stream out" in str(
        done.failure
    )


def test_a_stream_not_asked_for_is_ignored(lake: Lake) -> None:
    done = lake.sync(
        [A],
        records("x", [7]) + state("x", {}) + status("x"),
        records("x", [8]),
        records("a", [1]),
        status("a"),
    )
    assert done.failure is None
    assert list(lake.versions()) == ["c/a"]
    assert [text for level, text in done.log if level == "WARN"] == [
        "Ignored messages of stream 'x': it was not requested."
    ]


def test_noise_is_logged_without_secrets(lake: Lake) -> None:
    done = lake.sync(
        [A],
        b"starting up with hunter22\n",
        b'{"type":"RECORD","record":{"stream":"a","data":{"v":"hunter22"}}}\n',
        line("LOG", log={"level": "INFO", "message": "password hunter22"}),
        error("no entry for hunter22", stream="a"),
        secrets=["hunter22"],
    )
    assert "hunter22" not in repr(done.log) + str(done.failure)
    assert ("INFO", "starting up with **********") in done.log


# How a stream ends


@pytest.mark.parametrize(
    ("ending", "complete"),
    [
        ((), True),  # an old source: exit code 0 is its only word
        ((0,), True),
        ((3,), False),
        ((status("a"),), True),
        ((status("a"), 3), True),  # the stream is complete, but the sync has failed
        ((status("a", "INCOMPLETE"),), False),
        ((status("a", "RUNNING"),), False),
        ((status("x"),), False),  # statuses, but none for this one
    ],
)
def test_what_makes_a_stream_complete(
    lake: Lake, ending: tuple[bytes | int, ...], complete: bool
) -> None:
    over = full_refresh("a")
    lake.sync([over], records("a", [1, 2]), status("a"))
    done = lake.sync([over], records("a", [3]), *ending)
    assert lake.ids("a") == ([3] if complete else [1, 2])
    assert ("a" in done.finished) == complete
    assert (done.failure is None) == (complete and 3 not in ending)
    if not complete:
        assert lake.staged() == set()


def test_without_a_status_a_cut_off_output_is_not_complete(lake: Lake) -> None:
    old, new, cut_off = full_refresh("a"), full_refresh("b"), ExitStatus(0, cut_off=True)
    lake.sync([old], records("a", [1, 2]), status("a"))
    done = lake.sync([old], records("a", [3]), cut_off)
    assert lake.ids("a") == [1, 2]
    assert "ended before its container did, so records may be lost" in str(done.failure)
    assert done.failure is not None
    assert done.failure.failure_type == "transient_error"
    done = lake.sync([new], records("b", [4]), status("b"), cut_off)
    assert (lake.ids("b"), done.failure) == ([4], None)


def test_an_explicit_complete_swaps_to_empty(lake: Lake) -> None:
    over = full_refresh("a")
    lake.sync([over], records("a", [1]), status("a"))
    done = lake.sync([over], status("a"))
    assert lake.ids("a") == []
    assert done.finished["a"].table.row_count == 0


def test_zero_records_without_a_status_keep_the_old_rows(lake: Lake) -> None:
    over = full_refresh("a")
    lake.sync([over], records("a", [1]), status("a"))
    done = lake.sync([over], 0)
    assert lake.ids("a") == [1]
    assert done.finished["a"].warnings == (
        "The source sent no records and no status; the rows of the last sync were kept.",
    )


def test_old_rows_stay_until_the_new_are_complete(lake: Lake) -> None:
    over = full_refresh("a")
    lake.sync([over], records("a", [1]), status("a"))
    lake.sync([over], records("a", [2]) + state("a", {"page": 1}), 1, **EAGER)
    assert lake.ids("a") == [1]
    done = lake.sync([over], records("a", [3]), status("a"))
    assert done.file("state") is None
    assert lake.ids("a") == [3]


def test_half_a_full_refresh_is_never_appended(lake: Lake) -> None:
    snapshots = full_refresh("a", "append")
    lake.sync([snapshots], records("a", [1, 2]) + state("a", {"page": 1}), 1, **EAGER)
    assert lake.versions() == {}
    lake.sync([snapshots], records("a", [1, 2, 3]) + state("a", {"page": 2}), status("a"))
    assert lake.ids("a") == [1, 2, 3]
    lake.sync([snapshots], records("a", [1, 4]), status("a"))
    assert lake.ids("a") == [1, 1, 2, 3, 4]


def test_records_after_complete_fail_a_finished_stream(lake: Lake) -> None:
    done = lake.sync(
        [A],
        records("a", [1]) + state("a", {"at": 1}) + status("a"),
        records("a", [2]) + state("a", {"at": 2}),
    )
    assert "a: it sent records after its status COMPLETE" in str(done.failure)
    assert lake.ids("a") == [1]
    assert lake.sync([A], status("a")).file("state")[0]["stream"]["stream_state"] == {"at": 1}


def test_records_after_complete_reopen_one_that_waits(lake: Lake) -> None:
    done = lake.sync([A], records("a", [1]) + status("a") + records("a", [2]))
    assert done.failure is None
    assert lake.ids("a") == [1, 2]


# Errors


def test_the_first_error_is_what_the_user_reads(lake: Lake) -> None:
    done = lake.sync(
        [A, B],
        error("the API said 503", "transient_error", stream="a") + status("a", "INCOMPLETE"),
        records("b", [1]) + state("b", {}) + status("b"),
        error("Concurrent read failure", "config_error"),
        1,
    )
    assert str(done.failure) == (
        "1 of 2 streams did not complete. a: the API said 503. Finished and kept: b."
    )
    assert done.failure is not None
    assert done.failure.failure_type == "transient_error"
    assert list(done.finished) == ["b"]
    assert lake.ids("b") == [1]


def test_an_error_with_exit_0_fails_but_keeps_what_finished(lake: Lake) -> None:
    done = lake.sync(
        [A], records("a", [1]) + state("a", {}) + status("a"), error("no licence", "config_error")
    )
    assert str(done.failure) == "All streams completed, but source-x: no licence"
    assert done.failure is not None
    assert done.failure.failure_type == "config_error"
    assert lake.ids("a") == [1]


def test_a_crash_is_explained_by_the_last_words(lake: Lake) -> None:
    done = lake.sync([A], line("LOG", log={"level": "FATAL", "message": "disk full"}), 1)
    assert "source-x ended with exit code 1" in str(done.failure)
    assert "disk full" in str(done.failure)


# Names


def test_one_name_in_two_namespaces(lake: Lake) -> None:
    n, m = incremental("a", namespace="n"), incremental("a", namespace="m")
    for first in (1, 2):
        lake.sync(
            [n, m],
            record("a", first, namespace="n") + state("a", first, namespace="n"),
            record("a", 10 * first, namespace="m") + state("a", 10 * first, namespace="m"),
            status("a", namespace="m") + status("a", namespace="n"),
        )
    assert (lake.ids("n", "a"), lake.ids("m", "a")) == ([1, 2], [10, 20])
    states = lake.sync([n, m], status("a", namespace="n")).file("state")
    assert {
        s["stream"]["stream_descriptor"]["namespace"]: s["stream"]["stream_state"] for s in states
    } == {
        "n": 2,
        "m": 20,
    }


def test_a_pause_of_the_source_is_used_to_commit(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that falls silent after a STATE must not keep its rows from being durable."""
    due = iter([False, True])
    monkeypatch.setattr(ActiveStream, "is_due", lambda *_, **__: next(due))
    stream = incremental("a", "append")
    session, _ = lake.prepare([stream], records("a", [1, 2]) + state("a", {"at": 2}), status("a"))
    events = session.run()
    first = next(events)
    assert isinstance(first, StreamsCommitted)
    assert lake.ids("a") == [1, 2]
    events.close()


def test_messages_without_their_namespace_are_of_the_only_stream_of_that_name(lake: Lake) -> None:
    spaced = incremental("a", namespace="n")
    done = lake.sync([spaced], record("a", 1), state("a", {"at": 1}, count=1), status("a"))
    assert done.failure is None
    assert lake.ids("n", "a") == [1]
    (again,) = lake.sync([spaced], status("a")).file("state")
    assert again["stream"] == {
        "stream_descriptor": {"name": "a", "namespace": "n"},
        "stream_state": {"at": 1},
    }


def test_messages_that_may_be_of_several_streams_fail_them(lake: Lake) -> None:
    streams = [*(incremental("a", namespace=space) for space in ("n", "m")), B]
    done = lake.sync(
        streams,
        record("a", 1) + record("b", 1) + state("b", {"at": 1}),
        status("a", namespace="n") + status("a", namespace="m") + status("b"),
    )
    assert list(done.finished) == ["b"]
    assert "2 of 3 streams did not complete" in str(done.failure)
    assert "messages without a namespace, which may be of any of n.a, m.a" in str(done.failure)


def test_a_record_without_a_time_is_kept(lake: Lake) -> None:
    bare = line("RECORD", record={"stream": "a", "data": {"id": 1}})
    done = lake.sync([A], bare, state("a", {"at": 1}, count=1), status("a"))
    assert done.failure is None
    assert lake.ids("a") == [1]
    assert '"emitted_at"' in lake.rows("a", columns="_airbyte_meta")[0][0]
