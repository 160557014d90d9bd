"""A full refresh, or a refresh, beside streams that keep one state together."""

from typing import Any

import pytest

from atlas_dagster.sync.resume import RunRef
from atlas_dagster.sync.state_edits import StateEditor
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    error,
    global_state,
    incremental,
    records,
    resumable,
    state,
    status,
)

A, B, F = incremental("a"), incremental("b"), resumable("f")
SNAPSHOT = {"a": {"n": 1}, "b": {"n": 1}}


def refresh(lake: Lake, *streams: Any) -> None:
    StateEditor(lake.target(streams), RunRef()).refresh([streams[0].descriptor], keep_rows=False)


@pytest.mark.parametrize("apart", [True, False], ids=["states of its own", "counted together"])
def test_where_its_records_are_counted(lake: Lake, apart: bool) -> None:
    """Sources on Airbyte's Bulk CDK do it in either way, by their version."""
    own = [state("f", {"page": n}, count=count) if apart else b"" for n, count in ((1, 2), (2, 1))]
    shared = [
        global_state({"lsn": 1}, {"a": {}}, count=1 if apart else 4),
        global_state({"lsn": 2}, {"a": {}}, count=1),
    ]
    done = lake.sync(
        [A, F],
        records("f", [1, 2]) + own[0],
        records("f", [3]) + records("a", [1]) + shared[0] + own[1],
        status("f") + records("a", [2]) + shared[1] + status("a"),
    )
    assert done.failure is None
    assert (lake.ids("a"), lake.ids("f")) == ([1, 2], [1, 2, 3])
    sent = lake.sync([A, F], status("a") + status("f")).file("state")
    assert [each["type"] for each in sent] == ["GLOBAL"]
    assert sent[0]["global"]["shared_state"] == {"lsn": 2}


def test_it_goes_on_beside_them(lake: Lake) -> None:
    """From its own state, which goes back to the source beside the one of all."""
    lake.sync(
        [A, F],
        records("a", [1]) + global_state({"lsn": 1}, {"a": {}}, count=1),
        records("f", [1, 2]) + state("f", {"page": 1}, count=2) + records("f", [3]),
        1,
        **EAGER,
    )
    done = lake.sync([A, F], records("f", [3]) + state("f", {"page": 2}), status("f") + status("a"))
    shared, own = done.file("state")
    assert shared["global"]["shared_state"] == {"lsn": 1}
    assert own["stream"] == {"stream_descriptor": {"name": "f"}, "stream_state": {"page": 1}}
    assert (lake.ids("a"), lake.ids("f")) == ([1], [1, 2, 3])


@pytest.mark.parametrize("options", [{}, EAGER], ids=["at the end", "at every state"])
def test_a_refresh_that_others_keep_from_being_complete(
    lake: Lake, options: dict[str, float]
) -> None:
    """Regression: its rows after the last state of all were missing until the next sync."""
    ending = global_state({"lsn": 1}, SNAPSHOT), status("a") + status("b")
    lake.sync([A, B], records("a", [1, 2, 3]) + records("b", [7]), *ending)
    refresh(lake, A, B)
    failed = lake.sync(
        [A, B],
        records("a", [1]) + global_state({"lsn": 2}, SNAPSHOT),
        records("a", [2, 3]) + status("a") + error("lost", "transient_error", stream="b"),
        1,
        **options,
    )
    assert "2 of 2 streams did not complete. a: it is complete, but its last" in str(failed.failure)
    assert "b: lost" in str(failed.failure)
    assert lake.ids("a") == [1, 2, 3]

    done = lake.sync([A, B], records("a", [2, 4]), global_state({"lsn": 3}, SNAPSHOT), ending[1])

    assert done.file("state")[0]["global"]["shared_state"] == {"lsn": 2}
    assert lake.ids("a") == [1, 2, 4]


def test_a_refresh_whose_rows_are_all_covered_is_shown(lake: Lake) -> None:
    ending = global_state({"lsn": 1}, SNAPSHOT), status("a") + status("b")
    lake.sync([A, B], records("a", [1, 2]) + records("b", [7]), *ending)
    refresh(lake, A, B)
    failed = lake.sync(
        [A, B],
        records("a", [3]) + global_state({"lsn": 2}, SNAPSHOT) + status("a"),
        error("lost", "transient_error", stream="b"),
        1,
    )
    assert list(failed.finished) == ["a"]
    assert lake.ids("a") == [3]
