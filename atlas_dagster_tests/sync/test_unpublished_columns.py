"""The source's fields change while rows wait beside the table, in columns that it does not have."""

from typing import Any

import pytest

from atlas_dagster.destinations.delta.writer import DedupWriter
from atlas_dagster.errors import BreakingChangeError
from atlas_dagster.protocol.catalog import ConfiguredStream, Stream, configure
from atlas_dagster.sync.resume import RunRef
from atlas_dagster.sync.state_edits import StateEditor
from atlas_dagster_tests.sync.fake_source import EAGER, Lake, incremental, line, state, status

INTEGER, STRING = {"type": "integer"}, {"type": "string"}


class Crash(BaseException):
    """The process is gone."""


def merged(**columns: Any) -> ConfiguredStream:
    return incremental("a", "append_dedup", **columns)


def row(id: Any, **data: Any) -> bytes:
    return line("RECORD", record={"stream": "a", "data": {"id": id, **data}, "emitted_at": 1})


def die_before_the_merge(lake: Lake, stream: ConfiguredStream, *rows: bytes) -> None:
    def die(self: DedupWriter) -> None:
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DedupWriter, "merge_committed", die)
        with pytest.raises(Crash):
            lake.sync([stream], *rows, state("a", {"at": 1}), status("a"))


def upkeep(lake: Lake, stream: ConfiguredStream) -> StateEditor:
    return StateEditor(lake.target([stream]), RunRef())


@pytest.mark.parametrize("exists", [True, False], ids=["later merge", "first load"])
def test_a_new_type_for_a_column_that_waits(delta_lake: Lake, exists: bool) -> None:
    """Regression: both were written into one column, and nobody could read the table any more."""
    if exists:
        delta_lake.sync([merged()], row(0), state("a", {"at": 0}), status("a"))
    die_before_the_merge(delta_lake, merged(x=INTEGER), row(1, x=5))

    done = delta_lake.sync([merged(x=STRING)], row(2, x="t"), state("a", {"at": 2}), status("a"))

    assert done.failure is None
    found = delta_lake.rows("a", columns="id, x, x_string")
    assert found == [*([(0, None, None)] if exists else []), (1, 5, None), (2, None, "t")]


def test_a_new_type_for_a_key_that_waits(delta_lake: Lake) -> None:
    die_before_the_merge(delta_lake, merged(), row(1))
    changed = merged(id=STRING)
    with pytest.raises(BreakingChangeError, match=r"'a' .*key 'id'"):
        delta_lake.prepare([changed])
    upkeep(delta_lake, changed).refresh([changed.descriptor], keep_rows=False)
    delta_lake.sync([changed], row("k"), state("a", {"at": 2}), status("a"))
    assert delta_lake.rows("a", columns="id") == [("k",)]


def keyed(*key: str) -> ConfiguredStream:
    properties = {"id": INTEGER, "v": STRING, "o": {"type": "object", "properties": {"k": STRING}}}
    offered = line(
        "", name="a", json_schema={"properties": properties}, supported_sync_modes=["incremental"]
    )
    return configure(
        Stream.from_raw(offered),
        destination_sync_mode="append_dedup",
        cursor_field=("id",),
        primary_key=(key,),
    )


def test_a_new_key_for_rows_that_are_held(lake: Lake) -> None:
    """Regression: rows without the new key's column all passed for one row."""
    output = [row(n, o={"k": str(n)}) + state("a", {"at": n}) for n in (1, 2, 3)]
    lake.sync([keyed("id")], *output, status("a"))
    upkeep(lake, keyed("id")).refresh([keyed("id").descriptor], keep_rows=False)
    lake.sync([keyed("id")], *output[:2], 1, **EAGER)

    done = lake.sync([keyed("o", "k")], *output, status("a"))

    assert done.file("state") is None
    assert done.notices == [
        "The fields or the cursor of stream 'a' changed; it is read again from the beginning."
    ]
    assert lake.rows("a", columns="id") == [(1,), (2,), (3,)]
