"""Upgrades, rollbacks and both releases at once, over tables and states that another one wrote.

The tables under ``stored`` were written by Atlas at 78a494b. A release after this one is played by
:func:`next_release`: it stores envelopes in a format of its own.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atlas_dagster.destinations.envelope import VERSION, Envelope
from atlas_dagster.destinations.postgres import commit_tables
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster_tests.sync.fake_source import (
    EAGER,
    Lake,
    Warehouse,
    incremental,
    records,
    resumable,
    state,
    status,
)

STORED = Path(__file__).parents[1] / "stored"
USERS, ORDERS, ITEMS = (
    incremental("users", "append_dedup"),
    incremental("orders"),
    resumable("items"),
)


@contextmanager
def next_release() -> Iterator[None]:
    """The next release of Atlas, which reads both formats, and writes the newer one."""
    encode, decode = Envelope.encode, Envelope.decode

    def encode_newer(envelope: Envelope) -> bytes:
        content = encode(envelope).decode()
        return json.dumps(
            {"version": VERSION + 1, "commit": json.loads(content), "streams": "elsewhere"}
        ).encode()

    def decode_both(content: bytes | str) -> Envelope:
        known = json.loads(content)
        if known["version"] == VERSION + 1:
            content = json.dumps(known["commit"])
        return decode(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Envelope, "encode", encode_newer)
        patch.setattr(Envelope, "decode", decode_both)
        yield


def restore(lake: Lake) -> None:
    """Put the tables and events in place that 78a494b left."""
    kind = "postgres" if isinstance(lake, Warehouse) else "lake"
    if isinstance(lake, Warehouse):
        for command in (STORED / "postgres-2.sql").read_text().split(";\n"):
            if command:
                lake.do(command)
    else:
        with tarfile.open(STORED / "lake-2.tar.gz") as archive:
            archive.extractall(lake.root, filter="data")
    events: Mapping[str, Any] = json.loads((STORED / f"{kind}-2-events.json").read_text())
    lake.store.envelopes = {
        StreamDescriptor(name): Envelope.decode(text) for name, text in events.items()
    }
    lake.runs = 1


def stored_files(lake: Lake) -> dict[str, Any]:
    """All that the destination stores, to see that it did not change."""
    if isinstance(lake, Warehouse):
        found = {}
        for table in ("_atlas_state", "_atlas_envelopes", "users", "orders"):
            if lake.ask(f"SELECT 1 WHERE to_regclass('c.{table}') IS NOT NULL").num_rows:
                found[table] = sorted(map(str, lake.ask(f"SELECT t::text FROM c.{table} t")[0]))
        return found
    return {
        str(path.relative_to(lake.root)): path.read_bytes()
        for path in lake.root.rglob("*")
        if path.is_file()
    }


def sync_users(lake: Lake, *ids: int) -> AtlasError | None:
    output = (records("users", ids), state("users", {"id": ids[-1]}), status("users"))
    return lake.sync([USERS], *output).failure


def test_tables_of_the_release_before_are_continued(lake: Lake) -> None:
    restore(lake)
    found = lake.sync(
        [USERS, ORDERS],
        records("users", [2, 3]) + state("users", {"id": 3}) + status("users"),
        records("orders", [4]) + state("orders", {"id": 4}) + status("orders"),
    )
    assert found.failure is None
    given = {entry["stream"]["stream_descriptor"]["name"]: entry for entry in found.file("state")}
    assert given["users"]["stream"]["stream_state"] == {"id": 2}
    assert (lake.ids("users"), lake.ids("orders")) == ([1, 2, 3], [1, 2, 3, 4])
    # A full refresh that had broken off goes on: its rows were held back until now.
    items = lake.sync([ITEMS], records("items", [3]) + status("items"), root="run 1")
    assert items.failure is None
    assert [entry["stream"]["stream_state"] for entry in items.file("state")] == [{"page": 2}]
    assert lake.ids("items") == [1, 2, 3]


def test_a_rollback_is_refused_without_harm(lake: Lake) -> None:
    assert sync_users(lake, 1) is None
    with next_release():
        assert sync_users(lake, 2) is None
        stored = [event.envelope for event in lake.sync([ORDERS], status("orders")).commits]
    assert stored
    before, known = stored_files(lake), dict(lake.store.envelopes)
    for forgotten in (False, True):  # whether the event log is lost, too
        lake.store.envelopes = {} if forgotten else dict(known)
        with pytest.raises(ConfigError, match=f"newer Atlas .*format {VERSION + 1}"):
            sync_users(lake, 3)
        assert stored_files(lake) == before
    lake.store.envelopes = known
    with next_release():
        assert sync_users(lake, 3) is None
    assert lake.ids("users") == [1, 2, 3]


@pytest.mark.parametrize("older_commits_first", [True, False])
def test_a_rolling_upgrade_keeps_each_row_once(lake: Lake, older_commits_first: bool) -> None:
    """A process of this release and one of the next sync the same stream at the same time."""
    assert sync_users(lake, 1) is None
    other = lake.beside()

    def messages(*ids: int) -> bytes:
        return records("users", ids) + state("users", {"id": ids[-1]}) + status("users")

    older, _ = lake.prepare([USERS], messages(2), **EAGER)
    with next_release():
        newer, _ = other.prepare([USERS], messages(2, 3), **EAGER)
    if older_commits_first:
        for event in older.run():
            lake.store.note(event)
        with next_release(), pytest.raises(AtlasError, match="sync"):
            list(newer.run())
    else:
        with next_release():
            for event in newer.run():
                other.store.note(event)
        with pytest.raises(AtlasError):
            list(older.run())
    other.store.envelopes = dict(lake.store.envelopes)
    with next_release():
        assert sync_users(other, 2, 3, 4) is None
    assert lake.ids("users") == [1, 2, 3, 4]


@pytest.mark.postgres
def test_tables_in_postgres_of_a_newer_atlas_are_refused(warehouse: Warehouse) -> None:
    restore(warehouse)
    newer = f"atlas format {commit_tables.VERSION + 1}"
    warehouse.do(f"COMMENT ON TABLE c._atlas_envelopes IS '{newer}'")
    before = stored_files(warehouse)
    with pytest.raises(ConfigError, match=r"schema c, .* newer Atlas"):
        sync_users(warehouse, 2)
    assert stored_files(warehouse) == before
    warehouse.do("COMMENT ON TABLE c._atlas_envelopes IS 'do not touch'")
    assert sync_users(warehouse, 2, 3) is None
