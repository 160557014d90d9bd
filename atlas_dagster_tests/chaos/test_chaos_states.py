"""States of every type, at every moment, and where the next sync continues."""

import json

import pytest

from atlas_dagster_tests.chaos.chaotic import A, B, Chaos


def sent_next(chaos: Chaos) -> object:
    """The state file of the next sync."""
    state = chaos.lake.prepare([A, B])[1].plan.state
    return json.loads(state.to_file()) if state else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "file"),
    [
        ("legacy-states", [{"type": "LEGACY", "data": {"at": 2}}]),
        ("typeless-states", {"at": 2}),
    ],
)
def test_one_blob_for_all_streams(chaos: Chaos, scenario: str, file: object) -> None:
    """The source gets its state back in the form it knows: bare where it came without a type."""
    assert chaos.sync(scenario, A, B).failure is None
    assert sent_next(chaos) == file
    assert chaos.sync(scenario, A, B).failure is None
    assert chaos.lake.ids("a") == [1, 2, 3, 4]


@pytest.mark.slow
def test_one_state_with_the_count_of_all_streams(chaos: Chaos) -> None:
    for sync in (1, 2):
        done = chaos.sync("global-states", A, B)
        assert done.failure is None
        assert chaos.position() == chaos.position(B) == sync
        (commit,) = done.commits
        assert [part.rows for part in commit.envelope.streams] == [1, 2]
    assert (chaos.lake.ids("a"), chaos.lake.ids("b")) == ([1, 2], [1, 2, 11, 12])


@pytest.mark.slow
def test_types_of_state_that_take_turns(chaos: Chaos) -> None:
    assert chaos.sync("mixed-states", A, B).failure is None
    assert (chaos.lake.ids("a"), chaos.lake.ids("b")) == ([1, 2], [1, 2])
    assert (chaos.position(), chaos.position(B)) == (2, 2)
    assert chaos.sync("well-behaved", A).failure is None
    assert chaos.lake.ids("a") == [1, 2, 3]


def test_a_state_taken_back_starts_the_stream_over(chaos: Chaos) -> None:
    assert chaos.sync("null-state").failure is None
    assert (chaos.lake.ids("a"), sent_next(chaos)) == ([1], None)


def test_a_state_before_any_record(chaos: Chaos) -> None:
    assert chaos.sync("state-before-any-record").failure is None
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)


def test_states_that_say_nothing_new_make_no_commit(chaos: Chaos) -> None:
    done = chaos.sync("duplicate-states")
    assert done.failure is None
    assert [commit.envelope.streams[0].rows for commit in done.commits] == [1, 1]
    assert (chaos.lake.ids("a"), chaos.position()) == ([1, 2], 2)


def test_a_wrong_count_stops_the_stream_at_the_last_right_one(chaos: Chaos) -> None:
    done = chaos.sync("wrong-record-count")
    assert "a: its state counts 2 records before it, but Atlas received 1" in str(done.failure)
    assert (chaos.lake.ids("a"), chaos.position()) == ([1], 1)
    assert chaos.sync("well-behaved").failure is None
    assert chaos.lake.ids("a") == [1, 2, 3]


def test_no_state_at_all(chaos: Chaos) -> None:
    done = chaos.sync("no-state")
    assert done.failure is None
    assert len(done.commits) == 1
    assert (chaos.lake.ids("a"), sent_next(chaos)) == ([1, 2], None)
