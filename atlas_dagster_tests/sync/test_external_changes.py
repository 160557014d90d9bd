"""What others do to a Delta table between two syncs."""

import shutil
from collections.abc import Callable

import pytest
from deltalake import DeltaTable, write_deltalake
from pyarrow import table

from atlas_dagster.errors import AtlasError, DestinationError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.sync.resume import RunRef
from atlas_dagster.sync.state_edits import StateEditor
from atlas_dagster_tests.sync.fake_source import (
    Lake,
    full_refresh,
    incremental,
    records,
    state,
    status,
)

A = incremental("a")
MERGED = incremental("a", "append_dedup")
NAME = A.descriptor
ROW = table({"id": [77]})


def load(lake: Lake, stream: ConfiguredStream, *ids: int) -> AtlasError | None:
    done = lake.sync([stream], records("a", ids), state("a", {"at": max(ids)}), status("a"))
    return done.failure


def upkeep(lake: Lake, stream: ConfiguredStream) -> StateEditor:
    return StateEditor(lake.target([stream]), RunRef())


def restore(there: DeltaTable) -> None:
    there.restore(0)


HANDS: list[tuple[Callable[[DeltaTable], object], str]] = [
    (lambda there: there.delete("id = 2"), "DELETE"),
    (lambda there: there.delete(), "DELETE"),
    (restore, "RESTORE"),
    (lambda there: there.update({"v": "'x'"}), "UPDATE"),
    (lambda there: write_deltalake(there, ROW, mode="append", schema_mode="merge"), "WRITE"),
    (lambda there: write_deltalake(there, ROW, mode="overwrite", schema_mode="merge"), "WRITE"),
]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [A, MERGED], ids=["append", "dedup"])
@pytest.mark.parametrize(
    ("hand", "operation"), HANDS, ids=["delete", "empty", "restore", "update", "append", "replace"]
)
def test_rows_changed_by_someone_else_stop_the_stream(
    delta_lake: Lake,
    hand: Callable[[DeltaTable], object],
    operation: str,
    stream: ConfiguredStream,
) -> None:
    load(delta_lake, stream, 1, 2)
    load(delta_lake, stream, 3)
    hand(delta_lake.table("a"))
    left, version = delta_lake.ids("a"), delta_lake.table("a").version()

    with pytest.raises(DestinationError) as refused:
        delta_lake.prepare([stream])

    message = str(refused.value)
    assert "stream 'a' was changed outside of Atlas" in message
    assert f"(version {version}, {operation} at 20" in message
    assert " UTC by delta-rs:py-" in message
    assert "`atlas refresh c --stream a`" in message
    assert "`atlas state accept c --stream a`" in message
    with pytest.raises(DestinationError, match="changed"):
        upkeep(delta_lake, stream).reset([NAME])
    assert delta_lake.ids("a") == left
    upkeep(delta_lake, stream).accept([NAME])
    _, outcome = delta_lake.prepare([stream])
    assert b'{"at": 3}' in outcome.plan.files()["state"]
    assert load(delta_lake, stream, 9) is None
    assert delta_lake.ids("a") == sorted([*left, 9])


def test_what_someone_else_changed_is_refreshed(delta_lake: Lake) -> None:
    load(delta_lake, A, 1, 2)
    delta_lake.table("a").delete()
    upkeep(delta_lake, A).refresh([NAME], keep_rows=False)
    assert load(delta_lake, A, 1, 2) is None
    assert delta_lake.ids("a") == [1, 2]


def test_rows_that_are_replaced_anyway_may_change(delta_lake: Lake) -> None:
    load(delta_lake, full_refresh("a"), 1, 2)
    delta_lake.table("a").delete()
    assert load(delta_lake, full_refresh("a"), 1, 3) is None
    assert delta_lake.ids("a") == [1, 3]


@pytest.mark.parametrize("stream", [A, MERGED], ids=["append", "dedup"])
def test_maintenance_changes_no_row(delta_lake: Lake, stream: ConfiguredStream) -> None:
    load(delta_lake, stream, 1, 2)
    load(delta_lake, stream, 3)
    there = delta_lake.table("a")
    assert there.optimize.compact()["numFilesRemoved"] == 2
    there.vacuum(0, enforce_retention_duration=False, dry_run=False)
    there.alter.set_table_properties({"delta.logRetentionDuration": "interval 1 days"})
    there.create_checkpoint()
    assert load(delta_lake, stream, 4) is None
    assert delta_lake.ids("a") == [1, 2, 3, 4]


def test_another_table_in_the_place(delta_lake: Lake) -> None:
    load(delta_lake, A, 1)
    shutil.rmtree(delta_lake.root / "c" / "a")
    write_deltalake(str(delta_lake.root / "c" / "a"), ROW)
    for ask in (
        lambda: delta_lake.prepare([A]),
        lambda: upkeep(delta_lake, A).refresh([NAME], keep_rows=False),
    ):
        with pytest.raises(DestinationError, match="Atlas did not create"):
            ask()
    assert delta_lake.ids("a") == [77]


def test_a_log_that_was_cleaned_up_tells_nothing(delta_lake: Lake) -> None:
    load(delta_lake, A, 1)
    there = delta_lake.table("a")
    there.alter.set_table_properties({"delta.logRetentionDuration": "interval 1 days"})
    there.create_checkpoint()
    (delta_lake.root / "c" / "a" / "_delta_log" / f"{0:020}.json").unlink()
    assert load(delta_lake, A, 2) is None
    assert delta_lake.ids("a") == [1, 2]
