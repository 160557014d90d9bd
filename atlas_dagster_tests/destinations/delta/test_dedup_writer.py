"""Changes that wait in a table of their own, and the merge that ends a sync."""

from typing import Any

import pytest
from deltalake import DeltaTable

from atlas_dagster.errors import DestinationError
from atlas_dagster_tests.destinations.stores import Lake, spec

PLAIN = spec("append_dedup")


def row(id: int | None, v: str, **rest: Any) -> dict[str, Any]:
    return {"id": id, "v": v, **rest}


def test_a_replacing_commit_is_seen_at_the_end(lake: Lake) -> None:
    lake.sync(PLAIN, [row(1, "a"), row(2, "b")])
    writer = lake.open(spec("append_dedup", replaces=True))
    lake.write(writer, [row(2, "c"), row(2, "d"), row(3, "e")])
    assert lake.rows() == [(1, "a"), (2, "b")]
    lake.commit(writer)
    assert lake.rows() == [(1, "a"), (2, "b")]
    writer.merge_committed()
    assert lake.rows() == [(2, "d"), (3, "e")]


def test_one_merge_for_many_checkpoints(lake: Lake) -> None:
    lake.sync(PLAIN, [row(0, "a")])
    writer = lake.open(PLAIN)
    before = writer.tables.main.version
    for number in range(4):
        lake.write(writer, [row(number, "b")])
        lake.commit(writer)
    assert lake.rows() == [(0, "a")]
    writer.merge_committed()
    assert lake.rows() == [(number, "b") for number in range(4)]
    assert writer.tables.main.version == before + 1
    writer.merge_committed()
    assert writer.tables.main.version == before + 1


def test_a_merge_whose_changes_were_not_cleared(lake: Lake) -> None:
    """Rows that are merged already must not win over newer ones a second time."""
    writer = lake.open(PLAIN)
    lake.write(writer, [row(1, "a")])
    lake.commit(writer)
    changes = str(lake.root / "_atlas/c/changes/t")
    before = DeltaTable(changes).version()
    writer.merge_committed()
    DeltaTable(changes).restore(before, ignore_missing_files=True)  # the clear, undone
    DeltaTable(lake.destination.table_uri(("c", "t"))).delete()
    lake.open(PLAIN)
    assert lake.rows() == []
    assert DeltaTable(changes).file_uris() == []


def test_waiting_changes_without_their_envelope(lake: Lake) -> None:
    writer = lake.open(PLAIN)
    lake.write(writer, [row(1, "a")])
    envelope = lake.commit(writer)
    (lake.root / f"_atlas/c/{envelope.seq}.json").unlink()
    with pytest.raises(DestinationError, match="envelope is missing"):
        lake.open(PLAIN)


# Other modes on the same table


def test_waiting_changes_forbid_another_mode(lake: Lake) -> None:
    writer = lake.open(PLAIN)
    lake.write(writer, [row(1, "a")])
    lake.commit(writer)
    with pytest.raises(DestinationError, match="append_dedup"):
        lake.open(spec("append"))
