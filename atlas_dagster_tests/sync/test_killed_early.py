"""Killed before there was a row: there is no table yet, and it must not pass for a dropped one."""

import pytest

from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    global_state,
    incremental,
    records,
    state,
    status,
)

MODES = pytest.mark.parametrize("mode", ["append", "append_dedup"])
BOTH = status("a") + status("b")


@MODES
def test_a_stream_of_a_shared_state_without_rows_so_far(lake: Lake, mode: str) -> None:
    """Regression: the next sync wanted a refresh of the whole connection."""
    streams = [incremental("a", mode), incremental("b", mode)]
    output = records("a", [1]), global_state({"lsn": 1}, {}), records("a", [2])
    session, _ = lake.prepare(streams, *output, **EAGER)
    events = session.run()
    lake.store.note(next(events))
    events.close()  # type: ignore[attr-defined]

    done = lake.sync(streams, records("b", [7]), global_state({"lsn": 2}, {}), BOTH)

    assert (done.failure, done.notices) == (None, [])
    assert done.file("state")[0]["global"]["shared_state"] == {"lsn": 1}
    assert (lake.ids("a"), lake.ids("b")) == ([1], [7])


@MODES
@pytest.mark.parametrize("complete", [True, False])
def test_a_state_before_any_row(lake: Lake, mode: str, complete: bool) -> None:
    stream = incremental("a", mode)
    output = state("a", {"at": 0}, count=0), status("a") if complete else records("a", [1])
    session, _ = lake.prepare([stream], *output, **EAGER)
    events = session.run()
    lake.store.note(next(events))
    events.close()  # type: ignore[attr-defined]

    done = lake.sync([stream], records("a", [7]), state("a", {"at": 7}), status("a"))

    assert (done.failure, done.notices) == (None, [])
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 0}
    assert lake.ids("a") == [7]
    lake.drop("a")
    assert "is gone" in lake.prepare([stream])[1].notices[0]
