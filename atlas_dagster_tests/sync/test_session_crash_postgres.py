"""The connection to Postgres dies at any statement of a sync; the next one makes the tables whole.

The server ends the session, which is all that a killed process leaves it to do, and the process
goes no further either.
"""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pytest

from atlas_dagster.destinations.postgres.connection import Database
from atlas_dagster.errors import TransientError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Warehouse,
    global_state,
    incremental,
    record,
    resumable,
    state,
    status,
    upkeep,
)

pytestmark = pytest.mark.postgres


class Crash(BaseException):
    """The process is gone."""


class Killer:
    """Ends the session of a warehouse's destination at its ``at``-th statement.

    ``only``: statements that count; all by default. ``after``: it is executed still.
    """

    def __init__(self, at: int, *, only: str = "", after: bool = False) -> None:
        self.at = at
        self.only = only
        self.after = after
        self.died_at: str | None = None

    @contextmanager
    def patched(self, monkeypatch: pytest.MonkeyPatch, warehouse: Warehouse) -> Iterator[None]:
        with monkeypatch.context() as patch:
            for name in ("run", "table", "copy"):
                patch.setattr(Database, name, self._watched(getattr(Database, name), warehouse))
            yield

    def _watched(self, original: Callable[..., Any], warehouse: Warehouse) -> Callable[..., Any]:
        def watched(database: Database, statement: Any, *arguments: Any) -> Any:
            if self.only not in str(statement):
                return original(database, statement, *arguments)
            self.at -= 1
            if self.at or self.after:
                result = original(database, statement, *arguments)
            if self.at:
                return result
            self.died_at = str(statement)
            kill(warehouse)
            raise Crash

        return watched


def kill(warehouse: Warehouse) -> None:
    warehouse.do(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'atlas'"
    )


def per_stream(at: int) -> list[bytes]:
    """The rows up to 2, and a new version of row 1 each time; a STATE after each."""
    each = [
        record("a", 1, f"version {n}") + record("a", n) + state("a", {"at": n}, count=2)
        for n in range(at + 1, 3)
    ]
    return [*each, status("a")]


def shared(at: int) -> list[bytes]:
    """The same for two streams with one state."""
    each = [
        record("a", 1, f"version {n}") + record("b", n) + global_state({"at": n}, {}, count=2)
        for n in range(at + 1, 3)
    ]
    return [*each, status("a") + status("b")]


def sync(warehouse: Warehouse, streams: Sequence[ConfiguredStream]) -> None:
    """As a real source would: from the state it is given."""
    _, outcome = warehouse.prepare(streams)
    given = outcome.plan.state
    blob = given.shared if len(streams) > 1 else given.streams.get(streams[0].descriptor)
    at = 0 if blob is None else int(bytes(blob).split(b":")[1].strip(b" }"))
    done = warehouse.sync(streams, *(shared if len(streams) > 1 else per_stream)(at), **EAGER)
    assert done.failure is None


CASES = [
    pytest.param("a", "append_dedup", id="one row per key"),
    pytest.param("ab", "append", id="one state for two streams"),
    pytest.param("a", "overwrite", id="a full refresh"),
    pytest.param("a", "snapshots", id="full refreshes added"),
    pytest.param("a", "refresh append_dedup", id="a refresh by key"),
    pytest.param("ab", "refresh append", id="a refresh of two streams with one state"),
]
ALL = [(1, "version 1"), (1, "version 2"), (1, None), (2, None)]
NEWEST = [(1, "version 2"), (2, None)]
A, B = [(1, "version 1"), (1, "version 2")], [(1, None), (2, None)]
#: The rows of each table in the end.
WANTED = {
    ("a", "append_dedup"): [NEWEST],
    ("ab", "append"): [A, B],
    ("a", "overwrite"): [ALL],
    ("a", "snapshots"): [[(0, None), *ALL]],
    ("a", "refresh append_dedup"): [NEWEST],
    ("ab", "refresh append"): [A, B],
}


def of_mode(name: str, mode: str) -> ConfiguredStream:
    if mode in ("overwrite", "snapshots"):
        return resumable(name, "append" if mode == "snapshots" else mode)
    return incremental(name, mode.rpartition(" ")[2])


@pytest.mark.parametrize(("names", "mode"), CASES)
def test_at_any_statement(
    postgres_url: dict[str, Any], monkeypatch: pytest.MonkeyPatch, names: str, mode: str
) -> None:
    """A few moments each time: the first is random and printed, and so is each after it."""
    seed = int(os.environ.get("ATLAS_CRASH_SEED") or random.randrange(2**32))
    print(f"ATLAS_CRASH_SEED={seed}")
    chosen = random.Random(seed)
    at = chosen.randint(1, 9)
    while disturbed(postgres_url, monkeypatch, names, mode, Killer(at)) is not None:
        at += chosen.randint(5, 9)
    assert at > 40


@pytest.mark.parametrize(("names", "mode"), CASES)
@pytest.mark.parametrize("at", [1, 2])
def test_between_commit_and_event(
    postgres_url: dict[str, Any], monkeypatch: pytest.MonkeyPatch, names: str, mode: str, at: int
) -> None:
    killer = Killer(at, only="COMMIT", after=True)
    assert disturbed(postgres_url, monkeypatch, names, mode, killer) == "COMMIT"


def disturbed(
    server: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    names: str,
    mode: str,
    killer: Killer,
) -> str | None:
    """Sync, die, sync again, compare; the statement it died at, None where it did not.

    What is held back until its stream is complete is not seen before.
    """
    streams = [of_mode(name, mode) for name in names]
    wanted = WANTED[names, mode]
    with closing(Warehouse(server)) as first:
        if unpublished := mode not in ("append", "append_dedup"):
            old = b"".join(record(name, 0) for name in names)
            blob = global_state({"at": 0}, {}) if len(names) > 1 else state("a", {"at": 0})
            first.sync(streams, old, blob, *map(status, names))
        if mode.startswith("refresh"):
            upkeep(first, *streams).refresh([s.descriptor for s in streams], keep_rows=False)
        before = [[(0, None)] for _ in names]
        try:
            with killer.patched(monkeypatch, first):
                sync(first, streams)
        except Crash:
            with closing(Warehouse.again(first, server)) as second:
                if unpublished:
                    for name, *allowed in zip(names, before, wanted, strict=True):
                        assert second.rows(name) in allowed, f"died at {killer.died_at}"
                sync(second, streams)
                rows = [second.rows(name) for name in names]
            assert rows == wanted, f"died at {killer.died_at}"
            return killer.died_at
    return None


def test_a_lost_connection_is_an_error_that_may_pass(
    warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = incremental("a")
    original = Database.copy

    def cut(database: Database, *arguments: Any) -> None:
        kill(warehouse)
        original(database, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Database, "copy", cut)
        done = warehouse.sync([stream], *per_stream(0))
    assert isinstance(done.failure, TransientError)
    assert "broke off" in str(done.failure)
    deadline = time.monotonic() + 10
    while warehouse.staged():  # the server drops them as it ends the session
        assert time.monotonic() < deadline
        time.sleep(0.01)
