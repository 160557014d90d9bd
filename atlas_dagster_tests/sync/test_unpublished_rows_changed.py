"""Rows that are held back, and what users, other modes and other hands do to them meanwhile."""

import json
from typing import Any

import pyarrow as pa
import pytest
from msgspec import Raw

from atlas_dagster.destinations.delta.destination import DeltaDestination
from atlas_dagster.destinations.envelope import now
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster_tests.sync.fake_source import (
    Lake,
    Warehouse,
    line,
    resumable,
    state,
    status,
    upkeep,
)
from atlas_dagster_tests.sync.unpublished_rows import (
    KINDS,
    MERGED,
    MODES,
    NAME,
    A,
    begin,
    end,
    generation,
    sent,
    unpublished,
)

# Users


@KINDS
@pytest.mark.slow
def test_a_refresh_in_the_middle_of_a_refresh_begins_anew(
    lake: Lake, stream: ConfiguredStream
) -> None:
    end(lake, stream, 1)
    upkeep(lake, stream, root="one").refresh([NAME], keep_rows=False)
    begin(lake, stream, 2)
    assert not upkeep(lake, stream, root="one").refresh([NAME], keep_rows=False)
    assert upkeep(lake, stream, root="two").refresh([NAME], keep_rows=False)
    assert unpublished(lake) == []
    assert lake.ids("a") == [1]
    done = end(lake, stream, 3)
    assert (sent(done), generation(done)) == (None, (2, 2))
    assert lake.ids("a") == [3]


@KINDS
@pytest.mark.slow
def test_a_reset_in_the_middle_of_a_refresh_begins_it_anew(
    lake: Lake, stream: ConfiguredStream
) -> None:
    end(lake, stream, 1)
    upkeep(lake, stream).refresh([NAME], keep_rows=False)
    begin(lake, stream, 2)
    upkeep(lake, stream).reset([NAME])
    done = end(lake, stream, 3)
    assert (sent(done), generation(done)) == (None, (1, 1))
    assert lake.ids("a") == [3]
    assert unpublished(lake) == []


@KINDS
@pytest.mark.slow
def test_a_clear_in_the_middle_of_a_refresh(lake: Lake, stream: ConfiguredStream) -> None:
    end(lake, stream, 1)
    upkeep(lake, stream).refresh([NAME], keep_rows=False)
    begin(lake, stream, 2)
    upkeep(lake, stream).clear([NAME])
    assert (lake.ids("a"), unpublished(lake)) == ([], [])
    assert sent(end(lake, stream, 3)) is None
    assert lake.ids("a") == [3]


@KINDS
@pytest.mark.slow
def test_a_state_that_is_set_ends_a_refresh(lake: Lake, stream: ConfiguredStream) -> None:
    """The next sync continues from there, with the rows that are shown."""
    end(lake, stream, 1)
    upkeep(lake, stream).refresh([NAME], keep_rows=False)
    begin(lake, stream, 2)
    upkeep(lake, stream, root="another").set_stream(NAME, Raw(b'{"at": 7}'))
    assert unpublished(lake) == []
    done = end(lake, stream, 8)
    assert (sent(done), generation(done)) == ({"at": 7}, (1, 0))
    assert lake.ids("a") == [1, 8]


@pytest.mark.slow
@KINDS
def test_a_refresh_that_keeps_the_rows_ends_one_that_does_not(
    lake: Lake, stream: ConfiguredStream
) -> None:
    end(lake, stream, 1)
    upkeep(lake, stream, root="one").refresh([NAME], keep_rows=False)
    begin(lake, stream, 2)
    upkeep(lake, stream, root="two").refresh([NAME], keep_rows=True)
    begin(lake, stream, 3)
    assert lake.ids("a") == [1, 3]
    assert sent(end(lake, stream, 4)) == {"at": 3}
    assert lake.ids("a") == [1, 3, 4]


def test_what_someone_else_did_meanwhile_does_not_matter(delta_lake: Lake) -> None:
    end(delta_lake, A, 1, 2)
    upkeep(delta_lake, A).refresh([NAME], keep_rows=False)
    begin(delta_lake, A, 3)
    delta_lake.table("a").delete("id = 1")
    assert upkeep(delta_lake, A).accept([NAME]) == []
    done = end(delta_lake, A, 4)
    assert sent(done) == {"at": 3}
    assert delta_lake.ids("a") == [3, 4]


def test_a_snapshot_is_not_added_to_what_someone_else_changed(delta_lake: Lake) -> None:
    stream = resumable("a", "append")
    end(delta_lake, stream, 1, 2)
    begin(delta_lake, stream, 3)
    delta_lake.table("a").delete("id = 1")
    with pytest.raises(Exception, match="changed"):
        delta_lake.prepare([stream])
    upkeep(delta_lake, stream).accept([NAME])
    end(delta_lake, stream, 3, 4)
    assert delta_lake.ids("a") == [2, 3, 4]


@pytest.mark.slow
@MODES
def test_a_full_refresh_is_refreshed_or_reset(lake: Lake, mode: str) -> None:
    stream = resumable("a", mode)
    end(lake, stream, 1)
    begin(lake, stream, 2)
    upkeep(lake, stream).reset([NAME])
    assert unpublished(lake) == []
    assert sent(end(lake, stream, 3)) is None
    assert lake.ids("a") == ([3] if mode == "overwrite" else [1, 3])
    begin(lake, stream, 4, root="x")
    upkeep(lake, stream).refresh([NAME], keep_rows=False)
    assert unpublished(lake) == []
    begin(lake, stream, 5, root="x")
    assert sent(end(lake, stream, 6, root="x")) == {"at": 5}
    assert lake.ids("a") == [5, 6]


@MODES
def test_a_first_full_refresh_is_refreshed(lake: Lake, mode: str) -> None:
    stream = resumable("a", mode)
    begin(lake, stream, 1)
    upkeep(lake, stream).refresh([NAME], keep_rows=False)
    assert sent(end(lake, stream, 2)) is None
    assert lake.ids("a") == [2]


def test_the_state_shown_is_the_one_held(lake: Lake) -> None:
    end(lake, A, 1)
    upkeep(lake, A).refresh([NAME], keep_rows=False)
    begin(lake, A, 2)
    resume_points = upkeep(lake, A).resume_points
    assert json.loads(resume_points.state.to_file())[0]["stream"]["stream_state"] == {"at": 2}
    assert resume_points.by_stream[NAME].unpublished


# Other modes, other columns, other hands


def test_a_full_refresh_becomes_incremental_in_its_middle(lake: Lake) -> None:
    """The two may mean different things by their states."""
    end(lake, resumable("a"), 1)
    begin(lake, resumable("a"), 2)
    done = end(lake, A, 3)
    assert sent(done) is None
    assert lake.ids("a") == [1, 3]
    assert unpublished(lake) == []


def test_a_refresh_becomes_a_full_refresh_in_its_middle(lake: Lake) -> None:
    end(lake, A, 1)
    upkeep(lake, A, root=f"run {lake.runs}").refresh([NAME], keep_rows=False)
    begin(lake, A, 2)
    assert sent(end(lake, resumable("a"), 3)) is None
    assert lake.ids("a") == [3]


@pytest.mark.parametrize("kinds", [(A, MERGED), (MERGED, A)], ids=["to dedup", "from dedup"])
@pytest.mark.slow
def test_a_refresh_changes_its_mode_in_the_middle(
    lake: Lake, kinds: tuple[ConfiguredStream, ConfiguredStream]
) -> None:
    before, after = kinds
    end(lake, before, 1)
    upkeep(lake, before).refresh([NAME], keep_rows=False)
    begin(lake, before, 2)
    begin(lake, before, 2)
    done = end(lake, after, 3)
    assert sent(done) == {"at": 2}
    assert lake.ids("a") == ([2, 3] if after is MERGED else [2, 2, 3])


def test_an_overwrite_becomes_an_append_in_its_middle(lake: Lake) -> None:
    end(lake, resumable("a"), 1)
    begin(lake, resumable("a"), 2)
    end(lake, resumable("a", "append"), 3, root="another")
    assert lake.ids("a") == [1, 3]


@MODES
@pytest.mark.slow
def test_a_new_column_in_the_middle(lake: Lake, mode: str) -> None:
    end(lake, resumable("a", mode), 1)
    begin(lake, resumable("a", mode), 2)
    wider = resumable("a", mode, **{"w x": {"type": "string"}})
    row = line("RECORD", record={"stream": "a", "data": {"id": 3, "w x": "new"}, "emitted_at": 9})
    begin(lake, wider, 4)
    done = lake.sync([wider], row, state("a", {"at": 5}, count=1), status("a"))
    assert sent(done) == {"at": 4}
    old = [] if mode == "overwrite" else [(1, None)]
    assert lake.rows("a", columns="id, w_x") == [*old, (2, None), (3, "new"), (4, None)]


@MODES
@pytest.mark.parametrize("column", [{"type": "integer"}, None], ids=["another type", "gone"])
@pytest.mark.slow
def test_another_column_in_the_middle(lake: Lake, mode: str, column: Any) -> None:
    end(lake, resumable("a", mode), 1)
    first = begin(lake, resumable("a", mode), 2)
    done = end(lake, resumable("a", mode, v=column), 3)
    assert sent(done) is None
    assert done.notices == [
        "The fields or the cursor of stream 'a' changed; it is read again from the beginning."
    ]
    assert generation(done)[0] == generation(first)[0] + 1
    assert lake.ids("a") == ([3] if mode == "overwrite" else [1, 3])
    assert unpublished(lake) == []


@MODES
@pytest.mark.slow
def test_held_rows_that_someone_deleted(lake: Lake, mode: str) -> None:
    stream = resumable("a", mode)
    end(lake, stream, 1)
    begin(lake, stream, 2, 3)
    if isinstance(lake, Warehouse):
        lake.do('DROP TABLE c."_atlas_held_a"')
    else:
        unpublished(lake)[0].unlink()
    done = end(lake, stream, 2, 3, 4)
    assert sent(done) is None
    assert lake.ids("a") == ([2, 3, 4] if mode == "overwrite" else [1, 2, 3, 4])
    assert unpublished(lake) == []


@KINDS
def test_a_wipe_in_the_middle_of_a_refresh(lake: Lake, stream: ConfiguredStream) -> None:
    end(lake, stream, 1)
    upkeep(lake, stream).refresh([NAME], keep_rows=False)
    begin(lake, stream, 2)
    lake.store.envelopes.clear()
    lake.store.wiped[NAME] = now()
    done = end(lake, stream, 3)
    assert sent(done) is None
    assert lake.ids("a") == [3]
    assert unpublished(lake) == []


@MODES
@pytest.mark.slow
def test_the_table_is_dropped_in_the_middle(lake: Lake, mode: str) -> None:
    stream = resumable("a", mode)
    end(lake, stream, 1)
    begin(lake, stream, 2)
    lake.drop("a")
    done = end(lake, stream, 2, 3)
    # In Postgres what is held is not in the table's own folder.
    assert sent(done) == ({"at": 2} if isinstance(lake, Warehouse) else None)
    assert lake.ids("a") in ([2, 3], [2, 2, 3])
    assert unpublished(lake) == []


@MODES
@pytest.mark.slow
def test_the_event_log_is_lost_in_the_middle(lake: Lake, mode: str) -> None:
    stream = resumable("a", mode)
    end(lake, stream, 1)
    begin(lake, stream, 2)
    lake.store.envelopes.clear()
    done = end(lake, stream, 3)
    assert done.plan.streams[0].resume_point.unrecorded
    assert sent(done) == {"at": 2}
    assert lake.ids("a") == ([2, 3] if mode == "overwrite" else [1, 2, 3])


# Delta


@pytest.mark.slow
@MODES
def test_maintenance_in_the_middle(delta_lake: Lake, mode: str) -> None:
    destination = delta_lake.destination
    assert isinstance(destination, DeltaDestination)
    stream = resumable("a", mode)
    for id in (1, 2, 3):
        end(delta_lake, stream, id, root=str(id))
    begin(delta_lake, stream, 4, 5)
    destination.maintain(("c", "a"), retain_hours=0)
    done = end(delta_lake, stream, 6)
    assert sent(done) == {"at": 5}
    assert delta_lake.ids("a") == ([4, 5, 6] if mode == "overwrite" else [1, 2, 3, 4, 5, 6])


@MODES
def test_files_keep_their_statistics(delta_lake: Lake, mode: str) -> None:
    stream = resumable("a", mode)
    begin(delta_lake, stream, 4, 5)
    end(delta_lake, stream, 6)
    files = pa.table(delta_lake.table("a").get_add_actions(flatten=True)).to_pylist()
    found = {(file["num_records"], file["min.id"], file["null_count.v"]) for file in files}
    assert found == {(1, id, 1) for id in (4, 5, 6)}


def test_the_end_is_one_version(delta_lake: Lake) -> None:
    stream = resumable("a")
    end(delta_lake, stream, 1)
    before = delta_lake.table("a").version()
    begin(delta_lake, stream, 2, 3)
    assert delta_lake.table("a").version() == before
    end(delta_lake, stream, 4)
    assert delta_lake.table("a").version() == before + 1
