"""What downstream is told: another version of the data only where the rows may have changed."""

import pytest

from atlas_dagster.destinations.envelope import Envelope, StreamCommit
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    full_refresh,
    global_state,
    incremental,
    records,
    state,
    status,
)

A, B = incremental("a"), incremental("b")
D = incremental("a", "append_dedup")


def version(lake: Lake, kind: object, *output: bytes | int, of: str = "a") -> str:
    kinds = kind if isinstance(kind, list) else [kind]
    return lake.sync(kinds, *output).finished[of].data_version


@pytest.mark.parametrize("kind", [A, D], ids=["append", "append_dedup"])
def test_new_rows_are_a_new_version_and_nothing_new_is_none(lake: Lake, kind: object) -> None:
    first = version(lake, kind, records("a", [1]) + state("a", {"at": 1}), status("a"))
    nothing = version(lake, kind, status("a"))
    same_state = version(lake, kind, state("a", {"at": 1}), status("a"))
    second = version(lake, kind, records("a", [2]) + state("a", {"at": 2}), status("a"))

    assert first == nothing == same_state
    assert second != first


@pytest.mark.parametrize("kind", [A, D], ids=["append", "append_dedup"])
def test_a_state_that_moves_without_rows_is_no_new_version(lake: Lake, kind: object) -> None:
    """Many sources write the time of each sync into it, and it has to be committed."""
    first = version(lake, kind, records("a", [1]) + state("a", {"at": 1}), status("a"))
    before = lake.versions()
    for moment in (2, 3):
        later = version(lake, kind, state("a", {"at": 1, "asked": moment}), status("a"))
        assert later == first
    assert lake.versions() != before
    assert lake.ids("a") == [1]
    assert version(lake, kind, records("a", [2]) + state("a", {"at": 2}), status("a")) != first


def test_rows_that_a_sync_committed_before_it_died_are_a_new_version(lake: Lake) -> None:
    first = version(lake, A, records("a", [1]) + state("a", {"at": 1}), status("a"))
    died = lake.sync([A], records("a", [2]) + state("a", {"at": 2}), 1, **EAGER)
    assert died.failure is not None

    assert version(lake, A, state("a", {"at": 2, "asked": 9}), status("a")) != first


def test_a_lost_memory_is_no_new_version(lake: Lake) -> None:
    first = version(lake, A, records("a", [1]) + state("a", {"at": 1}), status("a"))
    version(lake, A, state("a", {"at": 1, "asked": 2}), status("a"))
    lake.store.envelopes.clear()

    assert version(lake, A, status("a")) == first


def test_a_table_that_is_replaced_is_a_new_version(lake: Lake) -> None:
    copy = full_refresh("a")
    first = version(lake, copy, records("a", [1]), status("a"))

    assert version(lake, copy, records("a", [1]), status("a")) != first


def test_of_streams_with_one_state_only_those_with_rows_have_a_new_version(lake: Lake) -> None:
    both = status("a") + status("b")
    first = lake.sync(
        [A, B], records("a", [1]) + records("b", [1]) + global_state({"lsn": 1}, {}), both
    ).finished
    second = lake.sync([A, B], records("b", [2]) + global_state({"lsn": 2}, {}), both).finished

    assert second["a"].data_version == first["a"].data_version
    assert second["b"].data_version != first["b"].data_version


def test_a_user_who_empties_a_table_makes_a_new_version(lake: Lake) -> None:
    """And one who accepts what somebody else did to it: their commits have no rows of a sync."""
    first = lake.sync([A], records("a", [1]) + state("a", {"at": 1}), status("a"))
    envelope = first.finished["a"].envelope
    assert envelope is not None
    (commit,) = envelope.streams
    word = StreamCommit(commit.stream, commit.table, commit.generation_id, replaces=False)
    cleared = Envelope(envelope.seq + 1, 1, "c", (word,), envelope.state, 0.0, action="clear")

    assert str(cleared.data_seq(commit.stream)) != first.finished["a"].data_version
