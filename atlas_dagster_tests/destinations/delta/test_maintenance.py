"""Compaction and vacuum: fewer files, the same rows, the same seq, nothing lost that is needed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.destinations.envelope import WriteMode
from atlas_dagster_tests.destinations.stores import STRING, Lake, spec

T: TablePath = ("c", "t")
A, B = ("c", "a"), ("c", "b")
MODES: list[WriteMode] = ["append", "append_dedup", "overwrite"]
#: What is retained in these tests, and an age beyond it.
RETAIN_HOURS = 24
OLD_SECONDS = 25 * 3600
#: A sync that is killed with rows written, before they are in any commit.
KILLED = """
import os, pathlib, signal, sys
from atlas_dagster_tests.destinations.stores import Lake, spec

lake = Lake(pathlib.Path(sys.argv[1]))
writer = lake.open(spec())
lake.write(writer, [{"id": 2}])
writer.stage()
os.kill(os.getpid(), signal.SIGKILL)
"""


def make_old(lake: Lake) -> None:
    """As if all files there are now had been written before what is retained."""
    then = time.time() - OLD_SECONDS
    for file in lake.root.rglob("*.parquet"):
        os.utime(file, (then, then))


def maintain(lake: Lake, table: TablePath = T) -> tuple[int, int, int]:
    done = lake.destination.maintain(table, retain_hours=RETAIN_HOURS)
    return done.compacted, done.written, done.deleted


def files(lake: Lake, table: TablePath = T) -> set[str]:
    return {file.name for file in lake.root.joinpath(*table).glob("*.parquet")}


def uris(lake: Lake, table: TablePath = T) -> set[str]:
    return {Path(uri).name for uri in DeltaTable(str(lake.root.joinpath(*table))).file_uris()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_rows_seq_and_envelopes_stay(lake: Lake, mode: WriteMode) -> None:
    for number in range(5):
        lake.sync(spec(mode), [{"id": number, "v": str(number)}])
    rows, seq, envelopes = lake.rows(), lake.committed(), lake.envelopes()
    assert seq == lake.seq

    maintain(lake)

    assert (lake.rows(), lake.committed(), lake.envelopes()) == (rows, seq, envelopes)
    assert len(uris(lake)) == 1
    writer = lake.open(spec(mode))
    assert writer.describe().row_count == len(rows)
    # A second time there is nothing to do, and no new version for it.
    before = DeltaTable(str(lake.root / "c/t")).version()
    assert maintain(lake) == (0, 0, 0)
    assert DeltaTable(str(lake.root / "c/t")).version() == before


@pytest.mark.parametrize("mode", MODES)
def test_syncs_go_on_after_it(lake: Lake, mode: WriteMode) -> None:
    for number in range(3):
        lake.sync(spec(mode), [{"id": number, "v": "old"}])
    maintain(lake)

    lake.sync(spec(mode), [{"id": 2, "v": "new"}, {"id": 9, "v": "new"}])

    expected = {
        "append": [(0, "old"), (1, "old"), (2, "new"), (2, "old"), (9, "new")],
        "append_dedup": [(0, "old"), (1, "old"), (2, "new"), (9, "new")],
        "overwrite": [(2, "new"), (9, "new")],
    }
    assert lake.rows() == expected[mode]
    assert lake.committed() == lake.seq


def test_the_seq_outlives_checkpoints_and_the_clean_up_of_the_log(lake: Lake) -> None:
    for number in range(3):
        lake.sync(spec(), [{"id": number}])
    handle = DeltaTable(str(lake.root / "c/t"))
    handle.alter.set_table_properties({"delta.logRetentionDuration": "interval 0 seconds"})
    maintain(lake)
    handle = DeltaTable(str(lake.root / "c/t"))
    handle.create_checkpoint()
    handle.cleanup_metadata()
    assert len(list(lake.root.glob("c/t/_delta_log/*.json"))) <= 1

    maintain(lake)

    assert lake.committed() == lake.seq
    assert lake.rows("id") == [(0,), (1,), (2,)]


def test_compacted_files_are_compressed_like_the_others(lake: Lake) -> None:
    for number in range(2):
        lake.sync(spec(), [{"id": number}])
    assert maintain(lake) == (2, 1, 0)

    (name,) = uris(lake)
    metadata = pq.read_metadata(lake.root / "c/t" / name)
    assert metadata.row_group(0).column(0).compression == "ZSTD"


def test_replaced_files_stay_as_long_as_they_are_retained(lake: Lake) -> None:
    for number in range(3):
        lake.sync(spec(), [{"id": number}])
    make_old(lake)  # they were written long ago, but replaced only now
    assert maintain(lake) == (3, 1, 0)
    assert maintain(lake) == (0, 0, 0)

    assert len(files(lake)) == 4
    past = DeltaTable(str(lake.root / "c/t"), version=1)
    assert all(Path(uri).exists() for uri in past.file_uris())


@pytest.mark.slow
def test_what_a_killed_sync_left_goes_once_it_is_old(lake: Lake) -> None:
    lake.sync(spec(), [{"id": 1}])
    kept = files(lake)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(lake.root)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (orphan,) = files(lake) - kept

    assert maintain(lake) == (0, 0, 0)
    assert orphan in files(lake)
    make_old(lake)
    assert maintain(lake) == (0, 0, 1)

    assert files(lake) == kept
    assert lake.rows("id") == [(1,)]


@pytest.mark.parametrize("mode", ["append", "append_dedup"])
@pytest.mark.parametrize("exists", [True, False], ids=["later sync", "first sync"])
def test_what_recover_needs_survives_however_old(lake: Lake, mode: WriteMode, exists: bool) -> None:
    """A prepared commit that one of two tables has taken: the other takes it in the next sync."""
    if exists:
        lake.sync(spec(mode, table=B), [{"id": 0}])
    first, second = lake.open(spec(mode, table=A)), lake.open(spec(mode, table=B))
    lake.write(first, [{"id": 1}])
    lake.write(second, [{"id": 7}])
    first.commit(lake.prepare(first, second))
    make_old(lake)

    for table in (A, B):
        assert maintain(lake, table)[2] == 0
    lake.destination.recover("c")

    for table in (A, B):
        lake.open(spec(mode, table=table)).merge_committed()
    assert lake.rows("id", table=B) == ([(0,), (7,)] if exists else [(7,)])


def test_changes_that_wait_for_their_merge(lake: Lake) -> None:
    """A dedup sync that died between its checkpoints and the merge."""
    lake.sync(spec("append_dedup"), [{"id": 1, "v": "old"}])
    writer = lake.open(spec("append_dedup"))
    for number in range(3):
        lake.write(writer, [{"id": 1, "v": f"new {number}"}, {"id": 10 + number}])
        lake.commit(writer)
    make_old(lake)

    assert maintain(lake) == (0, 0, 0)

    assert lake.committed() == lake.seq
    lake.open(spec("append_dedup")).merge_committed()
    assert lake.rows() == [(1, "new 2"), (10, None), (11, None), (12, None)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_again_and_again(lake: Lake, mode: WriteMode) -> None:
    """Regression: what the second run deleted was looked for by the third."""
    deleted = []
    for number in range(6):
        lake.sync(spec(mode), [{"id": number, "v": "x"}])
        lake.sync(spec(mode), [{"id": number, "v": "y"}])
        deleted.append(maintain(lake)[2])
        make_old(lake)
        forget_when(lake)
    assert sum(deleted) >= 6
    kept = [(n, v) for n in range(6) for v in (["x", "y"] if mode == "append" else ["y"])]
    assert lake.rows() == (kept if mode != "overwrite" else [(5, "y")])
    assert lake.committed() == lake.seq


def forget_when(lake: Lake) -> None:
    """As if the files that were replaced had been replaced long ago."""
    for log in lake.root.glob("c/t/_delta_log/*.json"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        for action in lines:
            if "remove" in action:
                action["remove"]["deletionTimestamp"] -= OLD_SECONDS * 1000
        log.write_text("".join(json.dumps(action) + "\n" for action in lines))


def test_changes_that_no_commit_lists_go(lake: Lake) -> None:
    lake.sync(spec("append_dedup"), [{"id": 1}])
    orphan = lake.root.joinpath(*T) / "change-000001-of-a-killed-sync.zstd.parquet"
    orphan.write_bytes(b"half written")
    make_old(lake)

    assert maintain(lake)[2] == 1

    assert not orphan.exists()
    assert lake.rows() == [(1, None)]


def test_a_table_in_a_folder_of_another_one(lake: Lake) -> None:
    """A namespace may be named like a stream; Delta's own vacuum takes the inner table's files."""
    inner = (*T, "orders")
    lake.sync(spec(), [{"id": 1}])
    lake.sync(spec(table=inner), [{"id": 2}])
    make_old(lake)

    assert maintain(lake) == (0, 0, 0)

    assert lake.rows("id", table=inner) == [(2,)]


def test_columns_that_came_later(lake: Lake) -> None:
    lake.sync(spec(), [{"id": 1}])
    lake.sync(spec(w=STRING), [{"id": 2, "w": "x"}])
    names = lake.destination.inspect(T).columns()

    maintain(lake)

    assert lake.rows("id", "w") == [(1, None), (2, "x")]
    assert lake.destination.inspect(T).columns() == names


def test_a_table_that_does_not_exist(lake: Lake) -> None:
    assert maintain(lake) == (0, 0, 0)
    assert not any(lake.root.iterdir())
