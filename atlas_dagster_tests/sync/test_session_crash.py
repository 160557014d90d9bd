"""The process dies between any two steps of a Delta commit; the next sync makes the tables whole.

``Crash`` is raised where the process would be killed. Clean-up code still runs then, which a real
kill would not allow, so each case also proves that the clean-up destroys nothing.
"""

import errno
from collections.abc import Callable

import pyarrow.parquet as pq
import pytest

from atlas_dagster.destinations.delta.parquet_stage import ParquetStage
from atlas_dagster.destinations.delta.table import LakeTable
from atlas_dagster.destinations.delta.writer import DedupWriter, DeltaWriter
from atlas_dagster.errors import DestinationError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    Outcome,
    global_state,
    incremental,
    records,
    resumable,
    state,
    status,
    upkeep,
)

MODES = ["append", "append_dedup"]


class Crash(BaseException):
    """The process is gone."""


@pytest.fixture
def lake(delta_lake: Lake) -> Lake:
    return delta_lake


def crash(
    monkeypatch: pytest.MonkeyPatch, owner: type, name: str, *, call: int = 1, after: bool = False
) -> None:
    """Die in the ``call``-th call of ``owner.name``, before or after it did its work."""
    original: Callable[..., object] = getattr(owner, name)
    calls = 0

    def dying(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            raise Crash
        result = original(*args, **kwargs)
        if calls == call:
            raise Crash
        return result

    monkeypatch.setattr(owner, name, dying)


def source(first: int, last: int) -> list[bytes]:
    """What a source sends that continues after row ``first``, a STATE after each."""
    each = [records("a", [n]) + state("a", {"at": n}, count=1) for n in range(first + 1, last + 1)]
    return [*each, status("a")]


def resume(lake: Lake, stream: ConfiguredStream, last: int) -> Outcome:
    """Sync as a real source would: from the state it is given."""
    session, outcome = lake.prepare([stream])
    sent = outcome.plan.state.to_file()
    first = outcome.plan.state.streams.get(stream.descriptor)
    del session
    at = 0 if first is None else int(bytes(first).split(b":")[1].strip(b" }"))
    done = lake.sync([stream], *source(at, last), **EAGER)
    assert done.failure is None
    assert outcome.plan.state.to_file() == sent
    return done


STEPS = [
    pytest.param("prepare", False, id="before the envelope is stored"),
    pytest.param("prepare", True, id="between prepare and commit"),
    pytest.param("commit", True, id="between commit and event"),
    pytest.param("add", True, id="within the commit, after the transaction"),
    pytest.param("reload", False, id="after the transaction, before it is seen"),
]
KINDS = {
    "append": incremental("a"),
    "append_dedup": incremental("a", "append_dedup"),
    "refreshed append": incremental("a"),
    "refreshed append_dedup": incremental("a", "append_dedup"),
    "overwrite": resumable("a"),
    "full refresh append": resumable("a", "append"),
    "full refresh append_dedup": resumable("a", "append_dedup"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("old", [False, True], ids=["first sync", "later sync"])
@pytest.mark.parametrize("call", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("step", "after"), STEPS)
def test_anywhere_in_a_commit(
    lake: Lake,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    old: bool,
    step: str,
    after: bool,
    call: int,
) -> None:
    stream = KINDS[kind]
    refreshed = kind.startswith("refreshed")
    if old or refreshed:
        lake.sync([stream], *source(-1, 0))
    if refreshed:
        upkeep(lake, stream).refresh([stream.descriptor], keep_rows=False)
    owner = {"prepare": type(lake.destination), "commit": DeltaWriter}.get(step, LakeTable)
    replaced = refreshed or kind == "overwrite"
    before = [0] if old or refreshed else []
    complete = [1, 2, 3] if replaced else [*before, 1, 2, 3]
    with monkeypatch.context() as patch:
        crash(patch, owner, step, call=call, after=after)
        try:
            lake.sync([stream], *source(0, 3), **EAGER)
        except Crash:
            pass
        else:  # it has not as many commits
            assert lake.ids("a") == complete
            return
    if refreshed or stream.sync_mode == "full_refresh":
        exists = (lake.root / "c/a/_delta_log").exists()
        assert (lake.ids("a") if exists else []) in (before, complete)
    done = resume(lake, stream, 5)
    # A full refresh that was complete is not read again by the same run.
    assert lake.ids("a") == (complete if done.plan.streams[0].already_read else [*complete, 4, 5])
    assert call > 3 or not done.plan.streams[0].already_read


@pytest.mark.slow
@pytest.mark.parametrize("step", ["_merge", "_write_anew", "clear"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("exists", [False, True], ids=["first load", "later merge"])
def test_within_a_merge(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, step: str, after: bool, exists: bool
) -> None:
    stream = incremental("a", "append_dedup")
    if exists:
        lake.sync([stream], records("a", [1]) + state("a", {"at": 0}) + status("a"))
    with monkeypatch.context() as patch:
        crash(patch, LakeTable if step == "clear" else DedupWriter, step, after=after)
        with pytest.raises(Crash):
            lake.sync([stream], *source(0, 3), **EAGER)
    resume(lake, stream, 4)
    assert lake.ids("a") == [1, 2, 3, 4]


@pytest.mark.parametrize("step", ["add", "take_files"])
def test_a_full_disk_is_named_and_nothing_is_lost(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    stream = incremental("a", "append")
    full = OSError(errno.ENOSPC, "\x1b[31mNo space\x1b[0m\nleft on device")

    def refuse(*_: object, **__: object) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(LakeTable if step == "add" else ParquetStage, step, refuse)
        failed = lake.sync([stream], *source(0, 3), **EAGER)
    assert f" a: Writing {lake.root}/c/a failed ([Errno 28] No space left on device)" in str(
        failed.failure
    )
    resume(lake, stream, 5)
    assert lake.ids("a") == [1, 2, 3, 4, 5]


def test_a_file_that_a_full_disk_cut_off_is_no_error_of_its_own(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = incremental("a", "append")
    calls = []

    def cut_off(writer: pq.ParquetWriter) -> None:
        """As Arrow's does: what it could not write at first, it never writes."""
        calls.append(writer)
        if len(calls) > 1:
            writer.file_handle.close()
            writer.is_open = False
            return
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "close", cut_off)
        failed = lake.sync([stream], *source(0, 3), **EAGER)
    assert "No space left on device" in str(failed.failure)
    assert lake.staged() == set()
    resume(lake, stream, 5)
    assert lake.ids("a") == [1, 2, 3, 4, 5]


# Two tables, one state

A, B = "a", "b"
BOTH = status("a") + status("b")


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("first", [True, False], ids=["first sync", "later sync"])
@pytest.mark.parametrize("rows", [[7, 8], []], ids=["rows", "no rows"])
def test_between_two_tables(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, mode: str, first: bool, rows: list[int]
) -> None:
    """The first table has the commit, so the second takes its part of it before anything else."""
    streams = [incremental(A, mode), incremental(B, mode)]
    if not first:
        lake.sync(streams, records(A, [0]) + records(B, [0]), global_state({"lsn": 1}, {}), BOTH)
    output = records(A, [1]) + records(B, rows), global_state({"lsn": 2}, {}), BOTH
    with monkeypatch.context() as patch:
        crash(patch, DeltaWriter if mode == "append" else DedupWriter, "commit", after=True)
        with pytest.raises(Crash):
            lake.sync(streams, *output)
    done = lake.sync(streams, records(A, [2]), global_state({"lsn": 3}, {}), BOTH)
    assert done.failure is None
    assert done.file("state")[0]["global"]["shared_state"] == {"lsn": 2}
    old = [] if first else [0]
    assert (lake.ids(A), lake.ids(B)) == ([*old, 1, 2], [*old, *rows])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [[7, 8], []], ids=["rows", "no rows"])
@pytest.mark.parametrize("call", [1, 3, 5], ids=["first held", "next held", "shown"])
def test_between_two_tables_of_a_refresh(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, mode: str, rows: list[int], call: int
) -> None:
    """Both are shown, or neither is."""
    streams = [incremental(A, mode), incremental(B, mode)]
    lake.sync(streams, records(A, [0]) + records(B, [0]), global_state({"lsn": 0}, {}), BOTH)
    upkeep(lake, *streams).refresh([s.descriptor for s in streams], keep_rows=False)
    unpublished = records(A, [1]) + records(B, rows) + global_state({"lsn": 1}, {})
    unpublished += records(A, [2]) + global_state({"lsn": 2}, {})
    with monkeypatch.context() as patch:
        crash(patch, DeltaWriter, "commit", after=True, call=call)
        with pytest.raises(Crash):
            lake.sync(streams, unpublished, records(A, [3]), BOTH, **EAGER)
    done = lake.sync(streams, records(A, [9]), global_state({"lsn": 9}, {}), BOTH)
    assert done.failure is None
    sent = done.file("state")[0]["global"]["shared_state"]
    assert sent == {"lsn": 1 if call == 1 else 2}
    # What came behind the last state comes again, unless it was told that this is all.
    more = {1: [], 3: [2], 5: [2, 3]}[call]
    assert (lake.ids(A), lake.ids(B)) == ([1, *more, 9], rows)


def test_between_two_tables_on_a_full_disk(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [incremental(A), incremental(B)]
    output = records(A, [1]) + records(B, [2]), global_state({"lsn": 2}, {}), BOTH
    with monkeypatch.context() as patch:
        crash(patch, DeltaWriter, "commit", after=True)
        with pytest.raises(Crash):
            lake.sync(streams, *output)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LakeTable, "add", refuse)
        with pytest.raises(DestinationError, match=r"/c/b .*No space"):
            lake.sync(streams, BOTH)
    assert lake.sync(streams, BOTH).failure is None
    assert (lake.ids(A), lake.ids(B)) == ([1], [2])


@pytest.mark.slow
def test_between_two_tables_and_the_files_are_gone(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: a refresh, which is the way out, was refused for the same reason."""
    streams = [incremental(A), incremental(B)]
    names = [stream.descriptor for stream in streams]
    lake.sync(streams, records(A, [0]) + records(B, [0]), global_state({"lsn": 1}, {}), BOTH)
    output = records(A, [1]) + records(B, [2]), global_state({"lsn": 2}, {}), BOTH
    with monkeypatch.context() as patch:
        crash(patch, DeltaWriter, "commit", after=True)
        with pytest.raises(Crash):
            lake.sync(streams, *output)
    for file in lake.untracked(B):
        file.unlink()
    with pytest.raises(DestinationError, match="`atlas refresh c`"):
        lake.sync(streams, BOTH)
    with pytest.raises(DestinationError, match="`atlas refresh c`"):
        upkeep(lake, *streams).reset(names)
    upkeep(lake, *streams).refresh(names, keep_rows=False)
    done = lake.sync(streams, records(A, [5]) + records(B, [6]), global_state({"lsn": 3}, {}), BOTH)
    assert done.failure is None
    assert (lake.ids(A), lake.ids(B)) == ([5], [6])


def test_a_column_that_came_with_the_lost_commit(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.sync([incremental(A), incremental(B)], records(A, [0]) + records(B, [0]), BOTH)
    wider = [incremental(A), incremental(B, w={"type": "string"})]
    row = b'{"type":"RECORD","record":{"stream":"b","data":{"id":7,"w":"new"},"emitted_at":1}}\n'
    with monkeypatch.context() as patch:
        crash(patch, DeltaWriter, "commit", after=True)
        with pytest.raises(Crash):
            lake.sync(wider, records(A, [1]), row, global_state({"lsn": 2}, {}), BOTH)
    lake.sync(wider, BOTH)
    assert lake.rows(B, columns="id, w") == [(0, None), (7, "new")]
    lake.sync(wider, row, global_state({"lsn": 3}, {}), BOTH)
    assert lake.rows(B, columns="id, w") == [(0, None), (7, "new"), (7, "new")]


def test_a_stream_that_was_dedup_before(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its empty change table is still there, but the lost rows are in the table's own folder."""
    lake.sync(
        [incremental(A, "append_dedup"), incremental(B, "append_dedup")], records(B, [0]), BOTH
    )
    streams = [incremental(A), incremental(B)]
    with monkeypatch.context() as patch:
        crash(patch, DeltaWriter, "commit", after=True)
        with pytest.raises(Crash):
            lake.sync(
                streams, records(A, [1]) + records(B, [7]), global_state({"lsn": 2}, {}), BOTH
            )
    lake.sync(streams, BOTH)
    assert (lake.ids(A), lake.ids(B)) == ([1], [0, 7])
