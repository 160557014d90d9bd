"""One row per key: which version of it wins, and when."""

from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from lakes import INTEGER, T0, Lake, spec

from atlas_dagster.errors import DestinationError


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


PLAIN = spec("append_dedup")
BY_CURSOR = spec("append_dedup", cursor="at", at=INTEGER)


def row(id: int | None, v: str, **rest: Any) -> dict[str, Any]:
    return {"id": id, "v": v, **rest}


@pytest.mark.parametrize("syncs", [1, 2], ids=["in one sync", "in two syncs"])
@pytest.mark.parametrize(
    ("old", "new", "winner"),
    [
        (row(1, "old", at=1), row(1, "new", at=2), "new"),
        (row(1, "old", at=2), row(1, "new", at=1), "old"),  # an older cursor comes late
        (row(1, "old", at=1), row(1, "new", at=1), "new"),  # same cursor, later extraction
        (row(1, "old"), row(1, "new", at=1), "new"),
        (row(1, "old", at=1), row(1, "new"), "old"),  # NULL is older than anything
        (row(1, "old"), row(1, "new"), "new"),
    ],
)
def test_the_cursor_decides_then_the_extraction(
    lake: Lake, old: dict[str, Any], new: dict[str, Any], winner: str, syncs: int
) -> None:
    if syncs == 1:
        lake.sync(BY_CURSOR, [old], [new])
    else:
        lake.sync(BY_CURSOR, [old])
        lake.sync(BY_CURSOR, [new], at=T0 + 1000)
    assert lake.rows() == [(1, winner)]
    assert lake.committed() == lake.seq


@pytest.mark.parametrize("syncs", [1, 2], ids=["in one sync", "in two syncs"])
@pytest.mark.parametrize("wanted", [PLAIN, BY_CURSOR], ids=["no cursor", "cursor"])
def test_arrival_decides_at_the_same_moment(lake: Lake, wanted: Any, syncs: int) -> None:
    versions = [row(1, str(number), at=5) for number in range(30)]
    if syncs == 1:
        lake.sync(wanted, versions)
    else:
        lake.sync(wanted, versions[:-1])
        lake.sync(wanted, versions[-1:])
    assert lake.rows() == [(1, "29")]


def test_an_older_extraction_loses_without_a_cursor(lake: Lake) -> None:
    lake.sync(PLAIN, [row(1, "new")], at=T0 + 1000)
    lake.sync(PLAIN, [row(1, "old")], at=T0)
    assert lake.rows() == [(1, "new")]


def test_new_keys_are_added_and_others_stay(lake: Lake) -> None:
    lake.sync(PLAIN, [row(1, "a"), row(2, "b")])
    lake.sync(PLAIN, [row(2, "c"), row(3, "d")])
    assert lake.rows() == [(1, "a"), (2, "c"), (3, "d")]


def test_null_is_a_key_like_any_other(lake: Lake) -> None:
    for v in ("a", "b"):
        lake.sync(PLAIN, [row(None, "x"), row(None, v), row(1, v)])
    assert lake.rows() == [(1, "b"), (None, "b")]


def test_composite_keys(lake: Lake) -> None:
    wanted = spec("append_dedup", key=("id", "k"), k=INTEGER)
    lake.sync(wanted, [row(1, "a", k=1), row(1, "b", k=2), row(1, "c"), row(1, "d", k=2)])
    lake.sync(wanted, [row(1, "e", k=1), row(2, "f", k=1), row(1, "g")])
    assert lake.rows("id", "k", "v") == [(1, 1, "e"), (1, 2, "d"), (1, None, "g"), (2, 1, "f")]


def test_a_column_name_in_need_of_quotes(lake: Lake) -> None:
    wanted = spec("append_dedup", key=("Order",), cursor="Select", Order=INTEGER, Select=INTEGER)
    lake.sync(wanted, [{"Order": 1, "Select": 1, "v": "a"}])
    lake.sync(wanted, [{"Order": 1, "Select": 2, "v": "b"}])
    assert lake.rows("v") == [("b",)]


def test_a_replaced_table(lake: Lake) -> None:
    lake.sync(PLAIN, [row(1, "a"), row(2, "b")])
    writer = lake.open(spec("append_dedup", replaces=True))
    lake.write(writer, [row(2, "c"), row(2, "d"), row(3, "e")])
    assert lake.rows() == [(1, "a"), (2, "b")]
    lake.commit(writer)
    assert lake.rows() == [(1, "a"), (2, "b")]
    writer.finish()
    assert lake.rows() == [(2, "d"), (3, "e")]


def test_a_commit_without_rows(lake: Lake) -> None:
    """Regression: a merge of nothing commits nothing, so its seq was missed."""
    lake.sync(PLAIN, [row(1, "a")])
    lake.sync(PLAIN)
    assert lake.rows() == [(1, "a")]
    assert lake.committed() == lake.seq


def test_one_merge_for_many_checkpoints(lake: Lake) -> None:
    lake.sync(PLAIN, [row(0, "a")])
    writer = lake.open(PLAIN)
    before = int(writer.describe().version)
    for number in range(4):
        lake.write(writer, [row(number, "b")])
        lake.commit(writer)
    assert lake.rows() == [(0, "a")]
    writer.finish()
    assert lake.rows() == [(number, "b") for number in range(4)]
    assert int(writer.describe().version) == before + 1
    writer.finish()
    assert int(writer.describe().version) == before + 1


# An interrupted merge


@pytest.mark.parametrize("exists", [True, False])
def test_the_next_open_merges_what_waits(lake: Lake, exists: bool) -> None:
    if exists:
        lake.sync(PLAIN, [row(1, "a"), row(2, "b")])
    writer = lake.open(PLAIN)
    lake.write(writer, [row(1, "c")])
    lake.commit(writer)
    assert lake.committed() == lake.seq
    again = lake.open(PLAIN)
    assert lake.rows() == ([(1, "c"), (2, "b")] if exists else [(1, "c")])
    lake.write(again, [row(1, "d")])
    lake.commit(again)
    again.finish()
    assert lake.rows() == ([(1, "d"), (2, "b")] if exists else [(1, "d")])


def test_a_merge_whose_changes_were_not_cleared(lake: Lake) -> None:
    """Rows that are merged already must not win over newer ones a second time."""
    writer = lake.open(PLAIN)
    lake.write(writer, [row(1, "a")])
    lake.commit(writer)
    changes = str(lake.root / "_atlas/c/changes/t")
    before = DeltaTable(changes).version()
    writer.finish()
    DeltaTable(changes).restore(before, ignore_missing_files=True)  # the clear, undone
    DeltaTable(lake.destination.table_uri(("c", "t"))).delete()
    lake.open(PLAIN)
    assert lake.rows() == []
    assert DeltaTable(changes).file_uris() == []


def test_a_replacing_merge_is_finished_as_one(lake: Lake) -> None:
    lake.sync(PLAIN, [row(1, "a")])
    writer = lake.open(spec("append_dedup", replaces=True))
    lake.write(writer, [row(2, "b")])
    lake.commit(writer)
    lake.open(PLAIN)
    assert lake.rows() == [(2, "b")]


def test_waiting_changes_without_their_envelope(lake: Lake) -> None:
    writer = lake.open(PLAIN)
    lake.write(writer, [row(1, "a")])
    envelope = lake.commit(writer)
    (lake.root / f"_atlas/c/{envelope.seq}.json").unlink()
    with pytest.raises(DestinationError, match="envelope is gone"):
        lake.open(PLAIN)


# Other modes on the same table


def test_waiting_changes_forbid_another_mode(lake: Lake) -> None:
    writer = lake.open(PLAIN)
    lake.write(writer, [row(1, "a")])
    lake.commit(writer)
    with pytest.raises(DestinationError, match="run it once more as append_dedup"):
        lake.open(spec("append"))


def test_to_append_and_back(lake: Lake) -> None:
    lake.sync(PLAIN, [row(1, "a")])
    lake.sync(spec("append"), [row(1, "b"), row(2, "c")])
    assert lake.committed() == lake.seq
    lake.sync(PLAIN, [row(1, "d")])
    assert lake.rows() == [(1, "d"), (2, "c")]
    assert lake.committed() == lake.seq
