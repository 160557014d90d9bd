"""What Delta tables do in a way of their own."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from atlas_dagster.destinations.base import StreamWriter
from atlas_dagster.destinations.envelope import Envelope, WriteMode
from atlas_dagster.errors import DestinationError
from atlas_dagster_tests.destinations.stores import Lake, spec

MODES: list[WriteMode] = ["append", "overwrite", "append_dedup"]


def test_rewind_over_several_files(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atlas_dagster.destinations.delta.parquet_stage._GROUP_BYTES", 1)
    monkeypatch.setattr("atlas_dagster.destinations.delta.parquet_stage._FILE_BYTES", 1)
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
    writer.merge_committed()
    assert lake.rows("id") == [(1,)]


def succeeds(writer: StreamWriter, envelope: Envelope) -> bool:
    try:
        writer.commit(envelope)
    except DestinationError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["append", "append_dedup"])
def test_of_first_commits_at_once_one_counts(lake: Lake, mode: WriteMode) -> None:
    """Delta by itself makes the table twice, and takes the rows of both."""
    for attempt in range(20):
        wanted = spec(mode, table=("c", f"t{attempt}"))
        writers = [lake.open(wanted) for _ in range(4)]
        for number, writer in enumerate(writers):
            lake.write(writer, [{"id": number}])
        envelopes = [lake.prepare(writer) for writer in writers]
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(succeeds, writers, envelopes))
        assert done.count(True) == 1
        writers[done.index(True)].merge_committed()
        assert lake.rows("id", table=wanted.path) == [(done.index(True),)]


def test_overwrite_swaps_in_one_version(lake: Lake) -> None:
    lake.sync(spec("overwrite"), [{"id": 1}, {"id": 2}])
    before = DeltaTable(lake.destination.table_uri(("c", "t"))).version()
    writer = lake.sync(spec("overwrite"), [{"id": 3}])
    assert lake.rows("id") == [(3,)]
    assert writer.tables.main.version == before + 1
    lake.sync(spec("overwrite"))
    assert lake.rows("id") == []


def test_statistics_let_readers_skip_files(lake: Lake) -> None:
    lake.sync(spec(), [{"id": 7, "v": "x"}, {"id": -3}, {"id": None}])
    table = DeltaTable(lake.destination.table_uri(("c", "t")))
    (file,) = pa.table(table.get_add_actions(flatten=True)).to_pylist()
    assert (file["num_records"], file["min.id"], file["max.id"]) == (3, -3, 7)
    assert (file["null_count.id"], file["null_count.v"]) == (1, 2)


@pytest.mark.parametrize("mode", MODES)
def test_a_commit_survives_a_loss_of_power(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, mode: WriteMode
) -> None:
    """Regression: Delta left it to the operating system when its log reaches the disk."""
    synced: list[Path] = []
    for module in ("files", "destinations.delta.filesystem", "destinations.delta.table"):
        monkeypatch.setattr(
            f"atlas_dagster.{module}.fsync_path", lambda path: synced.append(Path(path))
        )
    for unpublished in (True, False):
        writer = lake.open(spec(mode), continues=not unpublished)
        lake.write(writer, [{"id": 1}])
        envelope = lake.commit(writer, unpublished=unpublished)
        writer.merge_committed()
        assert lake.root / "_atlas/c" in synced
        assert {file.path for file in envelope.streams[0].files} <= {p.name for p in synced}
    commits = {*lake.root.glob("**/_delta_log/*.json")}
    assert len(commits) >= 3
    assert commits <= {*synced}
