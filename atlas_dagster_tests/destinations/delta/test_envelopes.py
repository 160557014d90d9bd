"""Commits over several Delta tables, rolled forward."""

import pytest

from atlas_dagster.destinations.envelope import WriteMode
from atlas_dagster_tests.destinations.stores import STRING, Lake, spec

A, B = ("c", "a"), ("c", "b")
MODES: list[WriteMode] = ["append", "append_dedup"]


def half_committed(lake: Lake, mode: WriteMode, rows: list[dict[str, object]]) -> None:
    """Of two tables, the first has taken the commit when the process dies."""
    first, second = lake.open(spec(mode, table=A)), lake.open(spec(mode, table=B))
    lake.write(first, [{"id": 1}])
    if rows:
        lake.write(second, rows)
    envelope = lake.prepare(first, second)
    first.commit(envelope)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("rows", [[{"id": 7}, {"id": 8}], []], ids=["rows", "no rows"])
def test_recover_rolls_the_other_table_forward(
    lake: Lake, mode: WriteMode, exists: bool, rows: list[dict[str, object]]
) -> None:
    if exists:
        lake.sync(spec(mode, table=B), [{"id": 0}])
    half_committed(lake, mode, rows)
    lake.destination.recover("c")
    if rows or exists:
        assert lake.committed(*B) == lake.seq
    for table in (A, B):
        lake.open(spec(mode, table=table)).merge_committed()
    assert lake.rows("id", table=A) == [(1,)]
    if rows or exists:
        old = [(0,)] if exists else []
        assert lake.rows("id", table=B) == [*old, *((row["id"],) for row in rows)]
    versions = [version.name for version in sorted(lake.root.rglob("_delta_log/*.json"))]
    lake.destination.recover("c")
    assert [version.name for version in sorted(lake.root.rglob("_delta_log/*.json"))] == versions


def test_recover_ignores_what_no_table_has(lake: Lake) -> None:
    first, second = lake.open(spec(table=A)), lake.open(spec(table=B))
    lake.write(first, [{"id": 1}])
    lake.prepare(first, second)
    lake.destination.recover("c")
    assert (lake.committed(*A), lake.committed(*B)) == (None, None)


def test_recover_adds_the_columns_the_rows_have(lake: Lake) -> None:
    lake.sync(spec(table=B), [{"id": 0}])
    first, second = lake.open(spec(table=A)), lake.open(spec(table=B, w=STRING))
    lake.write(second, [{"id": 7, "w": "new"}])
    first.commit(lake.prepare(first, second))
    lake.destination.recover("c")
    assert lake.rows("id", "w", table=B) == [(0, None), (7, "new")]


def test_recover_without_the_files(lake: Lake) -> None:
    lake.sync(spec(table=B), [{"id": 1}])
    half_committed(lake, "append", [{"id": 7}])
    for file in (lake.root / "c/b").glob("*.parquet"):
        file.unlink()
    (error,) = lake.destination.recover("c").refused.values()
    assert "`atlas refresh c`" in str(error)


def test_half_a_file_is_no_envelope(lake: Lake) -> None:
    lake.sync(spec(), [{"id": 1}])
    (lake.root / "_atlas/c/.99.json").write_text('{"seq": 9')
    assert lake.destination.envelope("c", 99) is None
    lake.destination.recover("c")
    assert lake.committed("c", "t") == lake.seq
