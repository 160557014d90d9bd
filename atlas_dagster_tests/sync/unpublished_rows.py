"""Streams whose rows are held back, in pieces that a test can stop between."""

from typing import Any

import pytest

from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    Outcome,
    Warehouse,
    incremental,
    records,
    state,
    status,
)

A, B = incremental("a"), incremental("b")
MERGED = incremental("a", "append_dedup")
NAME, OTHER = A.descriptor, B.descriptor
BOTH = status("a") + status("b")
MODES = pytest.mark.parametrize("mode", ["overwrite", "append", "append_dedup"])
KINDS = pytest.mark.parametrize("stream", [A, MERGED], ids=["append", "dedup"])


def pieces(*ids: int) -> bytes:
    """Rows with a state after each."""
    return b"".join(records("a", [id]) + state("a", {"at": id}, count=1) for id in ids)


def begin(lake: Lake, stream: ConfiguredStream, *ids: int, **options: Any) -> Outcome:
    """A sync that dies behind ``ids`` and one more row."""
    done = lake.sync([stream], pieces(*ids), records("a", [99]), 1, **EAGER, **options)
    assert "exit code 1" in str(done.failure)
    return done


def end(lake: Lake, stream: ConfiguredStream, *ids: int, **options: Any) -> Outcome:
    done = lake.sync([stream], pieces(*ids), status("a"), **EAGER, **options)
    assert done.failure is None
    return done


def sent(done: Outcome) -> Any:
    """The state of the stream ``a`` that the source was given."""
    given = done.file("state")
    return None if given is None else given[0]["stream"]["stream_state"]


def generation(done: Outcome) -> tuple[int, int]:
    stream = done.file("catalog")["streams"][0]
    return stream["generation_id"], stream["minimum_generation_id"]


def exists(lake: Lake) -> bool:
    return bool(lake.destination.inspect(("c", "a")).columns().names)


def unpublished(lake: Lake) -> list[Any]:
    """What there is of held rows: a table of them, or files that were never the table's."""
    if isinstance(lake, Warehouse):
        found = lake.ask("SELECT relname FROM pg_class WHERE relname LIKE '\\_atlas\\_held%'")
        return list(found.column(0).to_pylist())
    return list(lake.untracked("a"))
