"""What Delta tables do in a way of their own."""

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from stores import Lake, spec

from atlas_dagster.state.envelope import WriteMode

MODES: list[WriteMode] = ["append", "overwrite", "append_dedup"]


def test_rewind_over_several_files(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_dagster.destinations.staging._GROUP_BYTES", 1)
    monkeypatch.setattr("atlas_dagster.destinations.staging._FILE_BYTES", 1)
    writer = lake.open(spec())
    for number in range(0, 8, 2):
        lake.write(writer, [{"id": number}, {"id": number + 1}])
    assert len(lake.parquet_files()) == 4
    writer.rewind(5)
    lake.write(writer, [{"id": 99}])
    lake.commit(writer)
    assert lake.rows("id") == [(0,), (1,), (2,), (3,), (4,), (99,)]


@pytest.mark.parametrize("mode", MODES)
def test_discard_leaves_alone_what_an_envelope_lists(lake: Lake, mode: WriteMode) -> None:
    """A commit that seems to have failed may have come through."""
    writer = lake.open(spec(mode))
    lake.write(writer, [{"id": 1}])
    envelope = lake.prepare(writer)
    writer.discard()
    writer.commit(envelope)
    writer.finish()
    assert lake.rows("id") == [(1,)]


def test_overwrite_swaps_in_one_version(lake: Lake) -> None:
    lake.sync(spec("overwrite"), [{"id": 1}, {"id": 2}])
    before = DeltaTable(lake.destination.table_uri(("c", "t"))).version()
    writer = lake.sync(spec("overwrite"), [{"id": 3}])
    assert lake.rows("id") == [(3,)]
    assert writer.describe().version == str(before + 1)
    lake.sync(spec("overwrite"))
    assert lake.rows("id") == []


def test_statistics_let_readers_skip_files(lake: Lake) -> None:
    lake.sync(spec(), [{"id": 7, "v": "x"}, {"id": -3}, {"id": None}])
    table = DeltaTable(lake.destination.table_uri(("c", "t")))
    (file,) = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    assert (file["num_records"], file["min.id"], file["max.id"]) == (3, -3, 7)
    assert (file["null_count.id"], file["null_count.v"]) == (1, 2)
