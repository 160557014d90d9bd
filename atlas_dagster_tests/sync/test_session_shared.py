"""One state for all streams: GLOBAL, as CDC sources send, and LEGACY."""

import msgspec
import pytest

from atlas_dagster.errors import BreakingChangeError
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    Outcome,
    error,
    full_refresh,
    global_state,
    incremental,
    legacy_state,
    line,
    records,
    state,
    status,
    upkeep,
)

A, B = incremental("a"), incremental("b")
BOTH = status("a") + status("b")


def lsn(lake: Lake) -> int | None:
    """The position that the next sync starts from."""
    files = lake.prepare([A, B])[1].plan.files()
    sent = lake.sync([A, B], BOTH).file("state") if "state" in files else None
    return None if sent is None else int(sent[0]["global"]["shared_state"]["lsn"])


def test_streams_commit_together(lake: Lake) -> None:
    done = lake.sync(
        [A, B],
        records("a", [1]) + records("b", [7, 8]),
        global_state({"lsn": 3}, {"a": {"s": 1}, "b": {"s": 2}}, count=3),
        BOTH,
    )
    assert done.failure is None
    (commit,) = done.commits
    assert [(c.stream.name, c.rows) for c in commit.envelope.streams] == [("a", 1), ("b", 2)]
    assert (lake.ids("a"), lake.ids("b")) == ([1], [7, 8])
    again = lake.sync([A, B], BOTH)
    assert again.file("state") == [
        {
            "type": "GLOBAL",
            "global": {
                "shared_state": {"lsn": 3},
                "stream_states": [
                    {"stream_descriptor": {"name": "a"}, "stream_state": {"s": 1}},
                    {"stream_descriptor": {"name": "b"}, "stream_state": {"s": 2}},
                ],
            },
        }
    ]


def test_the_count_is_of_all_streams(lake: Lake) -> None:
    done = lake.sync(
        [A, B],
        records("a", [1]) + records("b", [7]),
        global_state({"lsn": 1}, {}, count=2),
        records("a", [2]) + records("b", [8]),
        global_state({"lsn": 2}, {}, count=1),
        BOTH,
    )
    assert str(done.failure) == (
        "2 of 2 streams did not complete. a, b: the state of all streams counts 1 records before "
        "it, but Atlas received 2; everything after the last correct state is ignored."
    )
    assert (lake.ids("a"), lake.ids("b")) == ([1], [7])
    assert lsn(lake) == 1


def test_a_position_that_moves_without_rows_is_kept(lake: Lake) -> None:
    lake.sync([A, B], records("a", [1]) + global_state({"lsn": 1}, {"a": {}, "b": {}}) + BOTH)
    done = lake.sync([A, B], global_state({"lsn": 2}, {"a": {}, "b": {}}, count=0) + BOTH)
    assert len(done.commits) == 1
    assert [c.rows for c in done.commits[0].envelope.streams] == [0]
    assert lsn(lake) == 2


def test_nothing_new_makes_no_new_version(lake: Lake) -> None:
    output = global_state({"lsn": 1}, {"a": {}, "b": {}}) + BOTH
    lake.sync([A, B], records("a", [1]), output)
    before = lake.versions()
    assert lake.sync([A, B], output).commits == []
    assert lake.versions() == before


def test_only_a_state_that_moves_is_committed(lake: Lake) -> None:
    states = [global_state({"lsn": lsn_}, {"a": {}, "b": {}}) for lsn_ in (1, 1, 2, 2)]
    done = lake.sync([A, B], records("a", [1]), *states, BOTH, **EAGER)
    assert [[c.rows for c in each.envelope.streams] for each in done.commits] == [
        [1, 0],
        [0, 0],
    ]


@pytest.mark.slow
def test_death_keeps_all_streams_at_one_position(lake: Lake) -> None:
    done = lake.sync(
        [A, B],
        records("a", [1]) + records("b", [7]) + global_state({"lsn": 1}, {}, count=2),
        records("a", [2]) + records("b", [8]) + global_state({"lsn": 2}, {}, count=2),
        records("a", [3]),
        1,
    )
    assert done.failure is not None
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2], [7, 8])
    assert lsn(lake) == 2
    assert lake.staged() == set()


@pytest.mark.parametrize("count", [True, False])
def test_a_stream_that_the_destination_refuses_holds_the_state(lake: Lake, count: bool) -> None:
    """Regression: without a count the state went on, and the refused rows were lost. With one, the
    other streams failed for a wrong count."""
    refusing = msgspec.structs.replace(A, refuses_null_keys=True)
    keyless = line("RECORD", record={"stream": "a", "data": {"v": "x"}})
    many = range(2, 5_002)  # more than a batch, so that they are refused before the state

    def shared(lsn: int, came: int) -> bytes:
        return global_state({"lsn": lsn}, {"a": {}, "b": {}}, count=came if count else None)

    done = lake.sync(
        [refusing, B],
        records("a", [1]) + records("b", [1]) + shared(1, 2),
        keyless + records("a", many) + records("b", [2]) + shared(2, 5_002),
        BOTH,
        **EAGER,
    )
    assert str(done.failure).startswith("1 of 2 streams did not complete. a: Stream 'a' sent a ")
    assert (lake.ids("a"), lake.ids("b")) == ([1], [1])
    assert lsn(lake) == 1


@pytest.mark.parametrize("covered", [True, False])
def test_one_stream_fails_and_the_state_stays_behind(lake: Lake, covered: bool) -> None:
    """What the other stream sent after that state would come twice."""
    done = lake.sync(
        [A, B],
        (records("b", [7]) if covered else b"") + records("a", [1]),
        global_state({"lsn": 1}, {}),
        records("a", [2]) + status("a"),
        error("lost connection", "transient_error", stream="b"),
        1,
    )
    assert str(done.failure) == (
        "1 of 2 streams did not complete. b: lost connection. Finished and kept: a."
    )
    assert lake.ids("a") == [1]
    lake.sync([A, B], records("a", [2]) + global_state({"lsn": 2}, {}) + BOTH)
    assert lake.ids("a") == [1, 2]


def test_a_subset_reads_everything(lake: Lake) -> None:
    lake.sync([A, B], records("a", [1]) + global_state({"lsn": 1}, {"a": {}, "b": {}}) + BOTH)
    done = lake.sync(
        [A, B],
        records("b", [7]) + global_state({"lsn": 2}, {"a": {}, "b": {}}) + BOTH,
        selected=["a"],
    )
    assert "all 2 configured streams are read" in done.notices[0]
    assert list(done.finished) == ["a", "b"]
    assert lake.ids("b") == [7]


def test_a_full_refresh_beside_cdc(lake: Lake) -> None:
    streams = [A, full_refresh("b")]
    for lsn_ in (1, 2):
        lake.sync(
            streams,
            records("a", [lsn_]) + records("b", [lsn_ * 10]),
            global_state({"lsn": lsn_}, {"a": {}, "b": {"done": True}}, count=2) + BOTH,
        )
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2], [20])
    sent = lake.sync(streams, BOTH).file("state")[0]["global"]
    assert sent["shared_state"] == {"lsn": 2}
    assert [each["stream_descriptor"]["name"] for each in sent["stream_states"]] == ["a"]


def test_a_source_may_move_from_one_state_per_stream_to_global(lake: Lake) -> None:
    lake.sync([A, B], *(records(n, [1]) + state(n, {"at": 1}) for n in "ab"), BOTH)
    lake.sync([A, B], records("a", [2]) + global_state({"lsn": 5}, {}, count=1) + BOTH)
    assert lake.ids("a") == [1, 2]
    assert lsn(lake) == 5


# LEGACY


def test_a_state_without_a_type(lake: Lake) -> None:
    done = lake.sync([A, B], records("a", [1]) + records("b", [7]), legacy_state({"a": 1, "b": 7}))
    assert done.failure is None
    done = lake.sync([A, B], records("a", [2]), legacy_state({"a": 2, "b": 7}))
    assert done.file("state") == {"a": 1, "b": 7}
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2], [7])


def test_death_between_two_of_them(lake: Lake) -> None:
    output = [records("a", [n]) + records("b", [n]) + legacy_state({"n": n}) for n in (1, 2, 3)]
    lake.sync([A, B], *output, records("a", [4]), 1, **EAGER)
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2, 3], [1, 2, 3])
    assert lake.sync([A, B]).file("state") == {"n": 3}


@pytest.mark.slow
def test_a_stream_may_be_left_out_for_a_while(lake: Lake) -> None:
    """What changed in it meanwhile is lost to it, so it starts over."""
    streams = [A, B, incremental("c")]

    def sync(names: str, id: int) -> Outcome:
        parts = {name: {"at": id} for name in names}
        output = [*(records(name, [id]) for name in names), global_state({"at": id}, parts)]
        chosen = [stream for stream in streams if stream.descriptor.name in names]
        return lake.sync(chosen, *output, *map(status, names))

    for id, names in enumerate(("abc", "ac", "ac")):
        assert sync(names, id).failure is None
    del lake.store.envelopes[B.descriptor]  # its event only refers to the state of all
    done = sync("abc", 3)
    assert done.failure is None
    sent = done.file("state")[0]["global"]["stream_states"]
    assert [each["stream_descriptor"]["name"] for each in sent] == ["a", "c"]
    assert done.notices[0].startswith("Stream 'b' was not selected while the source advanced")
    assert (lake.ids("a"), lake.ids("b"), lake.ids("c")) == ([0, 1, 2, 3], [3], [0, 1, 2, 3])
    assert sync("abc", 4).notices == []
    assert lake.ids("b") == [3, 4]


def test_a_stream_that_was_left_out_and_cannot_start_over_alone(lake: Lake) -> None:
    lake.sync([A, B], records("a", [1]) + records("b", [1]) + global_state({"lsn": 1}, {}) + BOTH)
    lake.sync([A], records("a", [2]) + global_state({"lsn": 2}, {}) + status("a"))
    with pytest.raises(BreakingChangeError, match=r"'b' .*`atlas refresh c`"):
        lake.plan([A, B])
    upkeep(lake, A, B).refresh([A.descriptor, B.descriptor], keep_rows=False)
    read = records("a", [1, 2]) + records("b", [1, 2]) + global_state({"lsn": 2}, {}) + BOTH
    assert lake.sync([A, B], read).file("state") is None
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2], [1, 2])


def test_a_stream_that_is_left_out_of_a_legacy_state_goes_on(lake: Lake) -> None:
    """It is one blob, in which the source keeps a position of each."""
    lake.sync([A, B], records("a", [1]) + records("b", [1]) + legacy_state({"a": 1, "b": 1}))
    lake.sync([A], records("a", [2]) + legacy_state({"a": 2, "b": 1}))
    done = lake.sync([A, B], records("b", [2]) + legacy_state({"a": 2, "b": 2}))
    assert (done.failure, done.file("state")) == (None, {"a": 2, "b": 1})
    assert lake.ids("b") == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [True, False], ids=["parts", "shared alone"])
@pytest.mark.parametrize("eager", [True, False])
def test_a_refresh_that_dies_after_the_rows_of_one_stream_goes_on(
    lake: Lake, parts: bool, eager: bool
) -> None:
    """Regression: the other stream blocked the connection with the sentence that it was wiped."""

    def at(lsn: int, names: str) -> bytes:
        return global_state({"lsn": lsn}, {name: {"at": lsn} for name in names if parts})

    lake.sync([A, B], records("a", [1]) + records("b", [1]) + at(1, "ab") + BOTH)
    upkeep(lake, A, B).refresh([A.descriptor, B.descriptor], keep_rows=False)
    options = EAGER if eager else {}
    died = lake.sync([A, B], records("a", [1, 2]) + at(2, "a") + records("a", [3]), 1, **options)
    assert died.failure is not None
    assert (lake.ids("a"), lake.ids("b")) == ([1], [1])
    read = records("a", [3]) + records("b", [1, 2]) + at(3, "ab") + BOTH
    done = lake.sync([A, B], read)
    assert done.failure is None
    whole = done.file("state")[0]["global"]
    assert whole["shared_state"] == {"lsn": 2}
    assert len(whole.get("stream_states", [])) == int(parts)
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2, 3], [1, 2])
