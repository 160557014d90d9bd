"""A table that cannot be written to: its stream fails alone; refresh and clear are the way out."""

import pytest

from atlas_dagster.destinations.delta.writer import DedupWriter
from atlas_dagster.errors import DestinationError, ReadFailedError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    MemoryStore,
    full_refresh,
    global_state,
    incremental,
    records,
    state,
    status,
    upkeep,
)

A, B = incremental("a"), incremental("b")
MERGED = incremental("a", "append_dedup")
NAME = A.descriptor
WAYS_OUT = pytest.mark.parametrize("way_out", ["refresh", "refresh, rows kept", "clear"])


def output(name: str, *ids: int) -> bytes:
    return records(name, ids) + state(name, {"at": max(ids)}, count=len(ids)) + status(name)


def take(lake: Lake, way_out: str, *streams: ConfiguredStream) -> None:
    open_state_admin = upkeep(lake, *streams)
    names = list(open_state_admin.resume_points.committed)
    if way_out == "clear":
        open_state_admin.clear(names)
    else:
        open_state_admin.refresh(names, keep_rows=way_out == "refresh, rows kept")


@pytest.mark.parametrize("exists", [True, False])
def test_a_table_that_refuses_its_commit_fails_alone(lake: Lake, exists: bool) -> None:
    """Regression: it ended the READ for all streams."""
    if exists:
        lake.sync([A, B], output("a", 1) + output("b", 1))
    session, outcome = lake.prepare([A, B], output("a", 2) + output("b", 2), **EAGER)
    lake.beside().sync([A, B], output("a", 2), selected=["a"])
    with pytest.raises(ReadFailedError, match=r"^1 of 2 streams .*\. a: ") as failure:
        outcome.events.extend(map(lake.note, session.run()))
    assert "sync of this connection" in str(failure.value)
    assert str(failure.value).endswith("Finished and kept: b.")
    assert list(outcome.finished) == ["b"]
    assert (lake.ids("a"), lake.ids("b")) == (([1, 2], [1, 2]) if exists else ([2], [2]))
    assert lake.sync([A, B], output("a", 3) + output("b", 3)).failure is None
    assert lake.ids("a")[-2:] == lake.ids("b")[-2:] == [2, 3]


def test_with_one_state_for_all_streams_they_fail_together(delta_lake: Lake) -> None:
    lake = delta_lake
    shared = [global_state({"lsn": n}, {"a": {}, "b": {}}) for n in range(4)]
    both = status("a") + status("b")
    beside = full_refresh("x")
    read = records("a", [1]) + records("b", [1]) + shared[1] + both
    lake.sync([A, B, beside], read, records("x", [1]) + status("x"))
    read = records("a", [2]) + records("b", [2]) + shared[2] + both
    read += records("x", [2]) + status("x")
    session, outcome = lake.prepare([A, B, beside], read)
    upkeep(lake.beside(), A, B).refresh([A.descriptor, B.descriptor], keep_rows=False)
    with pytest.raises(ReadFailedError, match=r"^2 of 3 streams .*\. a, b: "):
        outcome.events.extend(session.run())
    assert list(outcome.finished) == ["x"]
    done = lake.sync([A, B, beside], records("a", [1, 2]) + records("b", [5]) + shared[3] + both)
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2], [5]), done.failure


def test_a_table_whose_log_is_broken(delta_lake: Lake) -> None:
    delta_lake.sync([A, B], output("a", 1) + output("b", 1))
    table = delta_lake.root / "c" / "a"
    (table / "_delta_log" / f"{0:020}.json").write_text("not json")
    done = delta_lake.sync([A, B], output("b", 2))
    assert str(done.failure).startswith(
        f"1 of 2 streams did not complete. a: {table} cannot be read as a Delta table (Kernel error"
    )
    assert "move or delete the folder" in str(done.failure)
    assert "unknown>" not in str(done.failure)
    assert delta_lake.ids("b") == [1, 2]
    with pytest.raises(DestinationError, match="Delta table"):
        upkeep(delta_lake, A, B).refresh([NAME], keep_rows=False)
    delta_lake.drop("a")
    assert delta_lake.sync([A, B], output("a", 1, 2) + status("b")).failure is None
    assert delta_lake.ids("a") == [1, 2]


def interrupted(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync that dies before what it brought is merged."""

    class Crash(BaseException):
        pass

    def die(_: object) -> None:
        raise Crash

    lake.sync([MERGED], output("a", 1))
    with monkeypatch.context() as patch:
        patch.setattr(DedupWriter, "merge_committed", die)
        with pytest.raises(Crash):
            lake.sync([MERGED], output("a", 2))
    assert lake.ids("a") == [1]


@pytest.mark.slow
@WAYS_OUT
def test_changes_that_wait_and_were_deleted(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch, way_out: str
) -> None:
    """Regression: no command helped, as each tried to merge them first."""
    interrupted(delta_lake, monkeypatch)
    for file in delta_lake.untracked("a"):
        file.unlink()
    failed = delta_lake.sync([MERGED, B], output("b", 1))
    assert "are missing (1, such as part-" in str(failed.failure)
    assert "`atlas refresh`" in str(failed.failure)
    assert delta_lake.ids("b") == [1]
    with pytest.raises(DestinationError, match="Unmerged files"):
        upkeep(delta_lake, MERGED).reset([NAME])
    take(delta_lake, way_out, MERGED)
    assert delta_lake.ids("a") == ([] if way_out == "clear" else [1])
    done = delta_lake.sync([MERGED], output("a", 1, 2, 3))
    assert (done.failure, done.file("state")) == (None, None)
    assert delta_lake.ids("a") == [1, 2, 3]


def test_changes_that_wait_where_only_the_event_log_knows_their_commit(
    delta_lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(delta_lake, monkeypatch)
    delta_lake.lose_envelopes()
    done = delta_lake.sync([MERGED], output("a", 3))
    assert done.failure is None
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 2}
    assert delta_lake.ids("a") == [1, 2, 3]


@WAYS_OUT
@pytest.mark.parametrize("stream", [A, MERGED], ids=["append", "dedup"])
def test_a_commit_that_nobody_remembers(lake: Lake, way_out: str, stream: ConfiguredStream) -> None:
    """Regression: refresh and clear were refused, too, and the table had to be deleted."""
    streams = [stream, B]
    lake.sync(streams, output("a", 1) + output("b", 1))
    lake.store = MemoryStore()
    lake.lose_envelopes("a")
    done = lake.sync(streams, output("b", 2))
    assert "neither Dagster's event log nor" in str(done.failure)
    assert "`atlas refresh`" in str(done.failure)
    assert lake.ids("b") == [1, 2]
    take(lake, way_out, stream)
    done = lake.sync(streams, output("a", 1, 2) + output("b", 3))
    assert done.failure is None
    both = way_out == "refresh, rows kept" and stream is A
    assert lake.ids("a") == ([1, 1, 2] if both else [1, 2])


@pytest.mark.parametrize("last_logged", [True, False])
def test_an_envelope_that_is_damaged_is_as_good_as_gone(lake: Lake, last_logged: bool) -> None:
    lake.sync([A, B], output("a", 1) + output("b", 1))
    lake.damage_envelopes("a")
    if not last_logged:
        lake.store = MemoryStore()
    done = lake.sync([A, B], (output("a", 2) if last_logged else b"") + output("b", 2))
    if last_logged:
        assert done.failure is None
    else:
        assert "neither Dagster's event log nor" in str(done.failure)
        take(lake, "refresh", A)
        assert lake.sync([A, B], output("a", 1, 2) + status("b")).failure is None
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2], [1, 2])
