"""A stream that was read in full goes over to incremental reads."""

from typing import Any

import pytest

from atlas_dagster.errors import BreakingChangeError
from atlas_dagster.sync.resume import RunRef
from atlas_dagster.sync.state_edits import StateEditor
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

#: What Python sources say at the end of a full refresh.
DONE = {"__ab_full_refresh_sync_complete": True}


def load(lake: Lake, stream: Any, *ids: int, at: Any) -> Any:
    return lake.sync([stream], records("a", ids), state("a", at), status("a"))


@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_a_state_of_a_full_refresh_is_none_to_go_on_from(lake: Lake, mode: str) -> None:
    """Regression: an incremental read was given it, and brought all rows a second time."""
    load(lake, full_refresh("a"), 1, 2, at=DONE)
    stream = incremental("a", mode)

    done = load(lake, stream, 2, 3, at={"at": 3})

    assert done.file("state") is None
    assert done.notices == [
        "Stream 'a' was read in full so far and is incremental now: it is read from the beginning, "
        "and its old rows are replaced when it is complete."
    ]
    assert lake.ids("a") == [2, 3]
    assert load(lake, stream, 4, at={"at": 4}).file("state")[0]["stream"]["stream_state"] == {
        "at": 3
    }
    assert lake.ids("a") == [2, 3, 4]


def test_it_is_replaced_only_once_it_is_complete(lake: Lake) -> None:
    load(lake, full_refresh("a"), 1, 2, at=DONE)
    stream = incremental("a")
    lake.sync([stream], records("a", [2]), state("a", {"at": 2}), 1, **EAGER)
    assert lake.ids("a") == [1, 2]
    done = load(lake, stream, 3, at={"at": 3})
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 2}
    assert lake.ids("a") == [2, 3]


def test_snapshots_that_were_appended_stay(lake: Lake) -> None:
    for id in (1, 2):
        load(lake, full_refresh("a", "append"), id, at=DONE)
    done = load(lake, incremental("a"), 2, 3, at={"at": 3})
    assert done.file("state") is None
    assert done.notices[0].endswith("it is read from the beginning, and its rows stay.")
    assert lake.ids("a") == [1, 2, 2, 3]


def test_what_someone_else_changed_and_is_accepted_was_still_read_in_full(delta_lake: Lake) -> None:
    snapshots = full_refresh("a", "append")
    load(delta_lake, snapshots, 1, 2, at=DONE)
    delta_lake.table("a").delete("id = 1")
    name = snapshots.descriptor
    StateEditor(delta_lake.target([snapshots]), RunRef()).accept([name])
    done = load(delta_lake, incremental("a"), 3, at={"at": 3})
    assert done.file("state") is None
    assert delta_lake.ids("a") == [2, 3]


def test_and_back(lake: Lake) -> None:
    load(lake, full_refresh("a"), 1, at=DONE)
    load(lake, incremental("a"), 1, 2, at={"at": 2})
    load(lake, full_refresh("a"), 1, 5, at=DONE)
    done = load(lake, incremental("a"), 1, 5, 6, at={"at": 6})
    assert done.file("state") is None
    assert lake.ids("a") == [1, 5, 6]


@pytest.mark.parametrize("blobs", [{"b": {}}, {}], ids=["states of each", "shared alone"])
def test_beside_a_state_of_all(lake: Lake, blobs: dict[str, Any]) -> None:
    """The last commit of the full refresh must not pass for that of all streams."""
    a, b = full_refresh("a"), incremental("b")
    ending = global_state({"lsn": 1}, blobs), status("a") + status("b")
    lake.sync([a, b], records("a", [1]) + records("b", [7]), *ending)
    over = [incremental("a"), b]
    if not blobs:
        with pytest.raises(BreakingChangeError, match=r"incremental.* `atlas refresh c`"):
            lake.prepare(over)
        return
    done = lake.sync(over, records("a", [1, 2]) + records("b", [8]), *ending)
    assert done.failure is None
    assert done.file("state")[0]["global"]["shared_state"] == {"lsn": 1}
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2], [7, 8])
