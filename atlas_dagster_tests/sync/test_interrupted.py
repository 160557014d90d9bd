"""A user ends a sync (*Terminate*, Ctrl-C): what the last state covers is kept."""

from collections.abc import Iterator

import pytest

from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.sync.stream import ActiveStream
from atlas_dagster_tests.sync.fake_source import (
    Lake,
    global_state,
    incremental,
    records,
    state,
    status,
    upkeep,
)

A, B = incremental("a"), incremental("b")
BOTH = status("a") + status("b")


def interrupted(lake: Lake, streams: list[ConfiguredStream], *output: bytes) -> None:
    session, outcome = lake.prepare(streams)

    def script(_: object) -> Iterator[bytes]:
        yield from output
        raise KeyboardInterrupt

    outcome.runner.script = script
    events = session.run()
    with pytest.raises(KeyboardInterrupt):
        outcome.events.extend(map(lake.note, events))


@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_what_a_state_covers_is_kept(lake: Lake, mode: str) -> None:
    stream = incremental("a", mode)
    interrupted(lake, [stream, B], records("a", [1, 2]) + state("a", {"at": 2}) + records("a", [3]))
    done = lake.sync([stream, B], records("a", [3]) + state("a", {"at": 3}) + BOTH)
    assert [part["stream"]["stream_state"] for part in done.file("state")] == [{"at": 2}]
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2, 3], [])


def test_the_state_of_all_streams(lake: Lake) -> None:
    covered = records("a", [1]) + records("b", [1]) + global_state({"lsn": 1}, {"a": {}, "b": {}})
    interrupted(lake, [A, B], covered + records("b", [2]))
    done = lake.sync([A, B], records("b", [2]) + global_state({"lsn": 2}, {}) + BOTH)
    assert done.file("state")[0]["global"]["shared_state"] == {"lsn": 1}
    assert (lake.ids("a"), lake.ids("b")) == ([1], [1, 2])


def test_a_refresh_goes_on(lake: Lake) -> None:
    lake.sync([A], records("a", [7]) + state("a", {"at": 7}) + status("a"))
    upkeep(lake, A).refresh([A.descriptor], keep_rows=False)
    interrupted(lake, [A], records("a", [1]) + state("a", {"at": 1}))
    assert lake.ids("a") == [7]
    done = lake.sync([A], records("a", [2]) + state("a", {"at": 2}) + status("a"))
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 1}
    assert lake.ids("a") == [1, 2]


def test_nothing_is_kept_of_what_is_cut_in_the_middle(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ActiveStream, "add", interrupt)
        session, _ = lake.prepare([A], state("a", {"at": 2}), records("a", [3]))
        with pytest.raises(KeyboardInterrupt):
            list(session.run())
    done = lake.sync([A], records("a", [1]) + state("a", {"at": 1}) + status("a"))
    assert done.file("state") is None
