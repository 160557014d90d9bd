"""Where a sync starts: after a wipe, a deleted table, a lost memory, a changed schema."""

import json
from typing import Any

import pytest

from atlas_dagster.destinations.envelope import now
from atlas_dagster.errors import BreakingChangeError, DestinationError
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster_tests.sync.fake_source import (
    COLUMNS,
    EAGER,
    Lake,
    Warehouse,
    global_state,
    incremental,
    legacy_state,
    line,
    records,
    resumable,
    state,
    status,
)

INTEGER, STRING, BOOLEAN = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
A, B = incremental("a"), incremental("b")
BOTH = status("a") + status("b")


# Somebody else's hands


def test_a_wiped_stream_is_read_again_and_replaced(lake: Lake) -> None:
    for kind in (A, incremental("b", "append_dedup")):
        name = kind.descriptor.name
        lake.sync([kind], records(name, [1, 2]) + state(name, {"at": 2}), status(name))
        # Dagster forgets all of a wiped asset's events.
        del lake.store.envelopes[kind.descriptor]
        lake.store.wiped[kind.descriptor] = now()
        failed = lake.sync([kind], records(name, [3]) + state(name, {"at": 3}), 1, **EAGER)
        assert failed.file("state") is None
        assert "was wiped" in failed.notices[0]
        assert lake.ids(name) == [1, 2]
        done = lake.sync([kind], records(name, [5]) + state(name, {"at": 5}), status(name))
        assert done.file("state")[0]["stream"]["stream_state"] == {"at": 3}
        assert lake.ids(name) == [3, 5]
        assert done.file("catalog")["streams"][0]["generation_id"] == 1


def test_a_table_deleted_by_hand_is_read_again(lake: Lake) -> None:
    for kind in (A, incremental("b", "append_dedup")):
        name = kind.descriptor.name
        lake.sync([kind], records(name, [1, 2]) + state(name, {"at": 2}), status(name))
        lake.drop(name)
        done = lake.sync([kind], records(name, [1]) + state(name, {"at": 1}), status(name))
        assert "is gone" in done.notices[0]
        assert done.file("state") is None
        assert lake.ids(name) == [1]


def test_a_lost_memory_is_found_in_the_lake(lake: Lake) -> None:
    lake.sync([A], records("a", [1]) + state("a", {"at": 1}), status("a"))
    lake.store.envelopes.clear()
    done = lake.sync([A], records("a", [2]) + state("a", {"at": 2}), status("a"))
    assert done.plan.streams[0].resume_point.unrecorded
    assert done.file("state")[0]["stream"]["stream_state"] == {"at": 1}
    assert lake.ids("a") == [1, 2]


def test_a_subset_does_not_forget_the_others(lake: Lake) -> None:
    """Regression: their stored envelopes were removed as too old."""
    lake.sync([A, B], *(records(n, [1]) + state(n, {"at": 1}) + status(n) for n in "ab"))
    lake.store.envelopes.pop(StreamDescriptor("b"))  # its process died before it was recorded
    done = lake.sync([A, B], records("a", [2]) + state("a", {"at": 2}), status("a"), selected=["a"])
    assert [s["stream"]["name"] for s in done.file("catalog")["streams"]] == ["a"]
    done = lake.sync([A, B], status("a"), status("b"))
    assert done.plan.streams[1].resume_point.unrecorded
    assert [s["stream"]["stream_state"] for s in done.file("state")] == [{"at": 2}, {"at": 1}]


def test_a_table_that_nobody_remembers_is_left_alone(lake: Lake) -> None:
    lake.sync([A], records("a", [1]) + state("a", {"at": 1}), status("a"))
    lake.store.envelopes.clear()
    lake.lose_envelopes()
    with pytest.raises(DestinationError, match="event log"):
        lake.prepare([A])


@pytest.mark.parametrize("shared", [legacy_state({"at": 2}), global_state({"at": 2}, {})])
def test_one_stream_cannot_start_over_alone(lake: Lake, shared: bytes) -> None:
    """Regression: the source sent only what was new, and that replaced all rows."""
    lake.sync([A, B], records("a", [1, 2]) + records("b", [7]), shared, BOTH)
    lake.store.wiped[A.descriptor] = 4e9
    with pytest.raises(BreakingChangeError, match=r"'a' .*`atlas refresh c`"):
        lake.prepare([A, B])
    lake.store.wiped[B.descriptor] = 4e9
    done = lake.sync([A, B], records("a", [1, 3]) + records("b", [8]), shared, BOTH)
    assert done.file("state") is None
    assert (lake.ids("a"), lake.ids("b")) == ([1, 3], [8])


def test_one_stream_of_a_global_state_starts_over(lake: Lake) -> None:
    snapshot = {"a": {"done": True}, "b": {"done": True}}
    output = records("a", [1, 2]) + records("b", [7]), global_state({"lsn": 1}, snapshot), BOTH
    lake.sync([A, B], *output)
    lake.store.wiped[A.descriptor] = 4e9
    output = records("a", [2, 3]) + records("b", [8]), global_state({"lsn": 2}, snapshot), BOTH
    done = lake.sync([A, B], *output)
    sent = done.file("state")[0]["global"]
    assert sent["shared_state"] == {"lsn": 1}
    assert [each["stream_descriptor"]["name"] for each in sent["stream_states"]] == ["b"]
    assert (lake.ids("a"), lake.ids("b")) == ([2, 3], [7, 8])


def test_one_table_of_a_global_state_was_deleted(lake: Lake) -> None:
    """Regression: its last commit was taken for one that it had never got, without any way out."""
    snapshot = {"a": {"done": True}, "b": {"done": True}}
    output = records("a", [1, 2]) + records("b", [7]), global_state({"lsn": 1}, snapshot), BOTH
    lake.sync([A, B], *output)
    lake.drop("b")
    output = records("a", [3]) + records("b", [7, 8]), global_state({"lsn": 2}, snapshot), BOTH
    done = lake.sync([A, B], *output)
    assert done.failure is None
    assert "is gone; it is read again" in done.notices[0]
    sent = done.file("state")[0]["global"]
    assert [each["stream_descriptor"]["name"] for each in sent["stream_states"]] == ["a"]
    assert (lake.ids("a"), lake.ids("b")) == ([1, 2, 3], [7, 8])


@pytest.mark.slow
def test_a_table_deleted_together_with_the_event_log(lake: Lake) -> None:
    """Numbers begin anew, and nothing of the old ones must count."""
    for kind in (A, incremental("a", "append_dedup"), resumable("a"), resumable("a", "append")):
        lake.sync([kind], records("a", [1]) + state("a", {"at": 1}), status("a"))
        for id in (2, 3):
            lake.sync([kind], records("a", [id]) + state("a", {"at": id}), 1, **EAGER)
        lake.drop("a")
        lake.store.envelopes.clear()
        lake.lose_envelopes()
        if isinstance(lake, Warehouse):
            lake.do('DROP TABLE IF EXISTS c."_atlas_held_a"')
        for id in (5, 6):
            done = lake.sync([kind], records("a", [id]) + state("a", {"at": id}), status("a"))
            assert done.failure is None
        assert lake.ids("a") == ([6] if kind.destination_sync_mode == "overwrite" else [5, 6])
        lake.drop("a")
        lake.store.envelopes.clear()


# A schema that changes


def row(id: int, **data: Any) -> bytes:
    content = {"stream": "a", "data": {"id": id, **data}, "emitted_at": id}
    return line("RECORD", record=content) + state("a", {"at": id})


def test_a_new_type_gets_a_new_column(lake: Lake) -> None:
    values: list[tuple[dict[str, str], Any]] = [(INTEGER, 5), (STRING, "x"), (INTEGER, 6)]
    for id, (column, value) in enumerate(values):
        done = lake.sync([incremental("a", w=column)], row(id, w=value), status("a"))
        assert done.failure is None
    rows = lake.rows("a", columns="id, w, w_string")
    assert rows == [(0, 5, None), (1, None, "x"), (2, 6, None)]


def test_the_new_column_does_not_meet_another(lake: Lake) -> None:
    """Regression: a table with one column twice cannot be read any more."""
    lake.sync(
        [incremental("a", w=INTEGER, w_string=STRING)], row(1, w=5, w_string="s"), status("a")
    )
    done = lake.sync(
        [incremental("a", w=STRING, w_string=STRING)], row(2, w="x", w_string="t"), status("a")
    )
    assert done.failure is None
    assert lake.rows("a", columns="id, w, w_string") == [(1, 5, "s"), (2, None, "t")]
    (renamed,) = [c.name for c in done.plan.streams[0].table.schema.columns if c.field == "w"]
    assert lake.rows("a", columns=renamed) == [("x",), (None,)]


def test_a_key_cannot_change_its_type(lake: Lake) -> None:
    stream = incremental("a", "append_dedup")
    lake.sync([stream], row(1), status("a"))
    changed = incremental("a", "append_dedup", id=STRING)
    with pytest.raises(BreakingChangeError, match=r"'a' .*key 'id'"):
        lake.prepare([changed])
    lake.store.wiped[stream.descriptor] = 4e9
    done = lake.sync(
        [changed],
        json.dumps(
            {"type": "RECORD", "record": {"stream": "a", "data": {"id": "k"}, "emitted_at": 1}}
        ).encode()
        + b"\n",
        status("a"),
    )
    assert done.failure is None
    assert lake.rows("a", columns="id") == [("k",)]


def test_columns_of_every_kind_keep_their_names(lake: Lake) -> None:
    kinds: dict[str, Any] = {
        "a b": STRING,
        "o": {"type": "object"},
        "d": {"type": "string", "format": "date"},
        "m": {"type": "string", "format": "date-time"},
        "n": {"type": "number"},
        "f": BOOLEAN,
    }
    for id in (1, 2):
        done = lake.sync([incremental("a", **kinds)], row(id), status("a"))
        names = {c.field: c.name for c in done.plan.streams[0].table.schema.columns}
        assert names == {name: name for name in (*COLUMNS, *kinds)} | {"a b": "a_b"}


def test_a_stream_that_cannot_be_planned_does_not_stop_the_others(lake: Lake) -> None:
    streams = [incremental("a"), incremental("b")]
    lake.sync(streams, records("a", [1]), state("a", 1), records("b", [1]), state("b", 1))
    lake.store.envelopes.clear()
    lake.lose_envelopes(of="a")

    done = lake.sync(streams, records("b", [2]), state("b", 2), status("b"))

    assert done.failure is not None
    assert str(done.failure).startswith("1 of 2 streams did not complete. a: The table of stream")
    assert str(done.failure).endswith("Finished and kept: b.")
    assert lake.ids("a") == [1]
    assert lake.ids("b") == [1, 2]
    assert [s["stream"]["name"] for s in done.file("catalog")["streams"]] == ["b"]


def test_what_is_wrong_with_a_stream_not_selected_does_not_matter(lake: Lake) -> None:
    streams = [incremental("a"), incremental("b")]
    lake.sync(streams, records("a", [1]), state("a", 1), records("b", [1]), state("b", 1))
    lake.store.envelopes.clear()
    lake.lose_envelopes(of="a")

    assert lake.sync(streams, status("b"), selected=["b"]).failure is None


@pytest.mark.postgres
def test_a_table_in_the_way_does_not_stop_the_others(warehouse: Warehouse) -> None:
    warehouse.do("CREATE SCHEMA c")
    warehouse.do("CREATE TABLE c.a (id text)")
    done = warehouse.sync([A, B], records("b", [1]), BOTH)
    assert str(done.failure).startswith("1 of 2 streams did not complete. a: ")
    assert "did not create for stream 'a'" in str(done.failure)
    assert warehouse.ids("b") == [1]
