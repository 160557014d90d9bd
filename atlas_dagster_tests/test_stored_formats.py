"""What an older Atlas stored is read; what a newer one stored is refused, not misread."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from atlas_dagster.config.renewal import DeclarationHash, Renewal
from atlas_dagster.destinations.envelope import VERSION, Envelope
from atlas_dagster.errors import ConfigError
from atlas_dagster.interfaces.python.state import TableStates
from atlas_dagster.orchestration.step.metadata import from_text
from atlas_dagster.projections import ProjectionWriter, SyncStats
from atlas_dagster.projections.database import HEAD
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.registry import catalogue
from atlas_dagster.source import discovered_catalog as discovered
from atlas_dagster.source.discovered_catalog import Discovered

STORED = Path(__file__).parent / "stored"
ORDERS, USERS = StreamDescriptor("orders", "shop"), StreamDescriptor("users")
VERSIONS = pytest.mark.parametrize("version", range(1, VERSION + 1))


def check(envelope: Envelope, version: int, *, files: int) -> None:
    assert (envelope.seq, envelope.connection, envelope.version) == (12, "c", VERSION)
    orders, users = envelope.commit_of(ORDERS), envelope.commit_of(USERS)
    assert (orders.generation_id, orders.replaces, orders.unpublished, orders.continues) == (
        3,
        *[True] * 3,
    )
    assert (orders.primary_key, orders.data_seq) == ((("id",), ("region",)), 7)
    assert (len(orders.files), users.full_refresh) == (files, True)
    state = envelope.connection_state
    assert bytes(state.shared or b"") == b'{"lsn": 1.10e400}'
    assert bytes(state.streams[ORDERS]) == b'{"n":123456789012345678901}'
    if version == 1:
        assert (orders.cursor_field, envelope.covers) == (None, ())
        assert envelope.has_heeded(1700000000.0, ORDERS)
        assert not envelope.has_heeded(1700000001.0, ORDERS)
    else:
        assert (orders.cursor_field, envelope.covers) == (("at",), (ORDERS,))
        assert envelope.has_heeded(1700000000.25, ORDERS)
        assert not envelope.has_heeded(1700000000.0, ORDERS)


@VERSIONS
def test_envelopes(version: int) -> None:
    envelope = Envelope.decode((STORED / f"envelope-{version}.json").read_bytes())
    check(envelope, version, files=1)
    assert Envelope.decode(envelope.encode()) == envelope


@VERSIONS
@pytest.mark.parametrize("kind", ["event", "event-compressed"])
def test_texts_of_events(version: int, kind: str) -> None:
    check(from_text((STORED / f"{kind}-{version}.txt").read_text()), version, files=0)


@pytest.mark.parametrize("version", range(1, discovered.VERSION + 1))
def test_cached_catalogs(version: int) -> None:
    found = Discovered.decode((STORED / f"catalog-{version}.json").read_bytes())
    assert found.connector == "airbyte/source-x:1.2.3"
    (stream,) = found.catalog.streams
    assert stream.source_defined_primary_key == (("id",),)
    assert found.table_paths == {ORDERS: ("c", "shop", "orders")}
    assert [change.stream for change in found.pending] == [ORDERS]


def test_renewals() -> None:
    declared = {"start": "2020-01-01", "credentials": {"refresh_token": "declared-token"}}
    edited = {"start": "2020-01-01", "credentials": {"refresh_token": "edited"}}
    renewed = Renewal.decode((STORED / "renewal-1.json").read_bytes())
    assert renewed.apply_to(declared)["credentials"] == {
        "refresh_token": "second-token",
        "expires": 1.5,
    }
    assert renewed.apply_to(edited) == edited
    kept = DeclarationHash.decode((STORED / "renewal-hash-1.json").read_bytes())
    assert (kept.is_in(declared), kept.is_in(edited)) == (True, False)
    assert renewed.encode() + b"\n" == (STORED / "renewal-1.json").read_bytes()


def test_states_of_the_adapter(tmp_path: Path) -> None:
    stored = (STORED / "adapter-state-1.json").read_bytes()
    states = TableStates(STORED / "adapter-state-1.json")
    assert set(states.as_json()) == {"users", "shop.orders"}
    states.save(tmp_path / "state.json")
    assert (tmp_path / "state.json").read_bytes() == stored
    newer = tmp_path / "newer.json"
    newer.write_text('{"version": 2, "tables": {}}')
    with pytest.raises(ConfigError, match="newer Atlas"):
        TableStates(newer)


def test_a_table_may_be_called_version() -> None:
    state = {"version": json.loads((STORED / "adapter-state-1.json").read_bytes())["users"]}
    assert set(TableStates(state).as_json()) == {"version"}


def store_registry(monkeypatch: pytest.MonkeyPatch, folder: Path, content: bytes) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    catalogue.refreshed_path().parent.mkdir(parents=True, exist_ok=True)
    catalogue.refreshed_path().write_bytes(content)
    catalogue.clear_cache()


def test_registry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = (STORED / "registry-1.json").read_bytes()
    try:
        store_registry(monkeypatch, tmp_path, stored)
        known = catalogue.listing()
        assert [(info.name, info.cpu_limit) for info in known.connectors] == [("source-x", 0.5)]
        assert known.encode() == stored
        store_registry(monkeypatch, tmp_path, b'{"version": 2, "connectors": {}}')
        assert catalogue.listing() == catalogue.shipped_listing()
        assert "newer Atlas" in caplog.text
    finally:
        monkeypatch.undo()
        catalogue.clear_cache()


def test_sql_tables(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript((STORED / f"projections-{HEAD}.sql").read_text())
    url = sa.URL.create("sqlite", database=str(path))
    warnings: list[str] = []
    stats = [SyncStats(USERS, "succeeded")]
    ProjectionWriter(url, warnings.append).write_stats("c", stats, run_id=None, connector=None)
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT connection FROM airbyte_sync_stats ORDER BY id")
        assert [row[0] for row in rows] == ["shop", "c"]
        database.execute("UPDATE alembic_version SET version_num = '9999'")
        database.commit()
    assert warnings == []
    ProjectionWriter(url, warnings.append).write_stats("c", stats, run_id=None, connector=None)
    assert ["newer Atlas" in warning for warning in warnings] == [True]


def newer(name: str, version: int) -> str:
    content = json.loads((STORED / f"{name}-{version}.json").read_text().replace("1.10e400", "1"))
    return json.dumps(content | {"version": version + 1, "streams": "of another kind"})


def test_what_a_newer_atlas_wrote_is_refused() -> None:
    """Regression: a newer envelope was read with its files missing."""
    words = rf"newer Atlas \(format {VERSION + 1};"
    with pytest.raises(ConfigError, match=words):
        Envelope.decode(newer("envelope", VERSION))
    with pytest.raises(ConfigError, match=words):
        from_text(newer("envelope", VERSION))
    with pytest.raises(ConfigError, match=r"cached catalog .* newer Atlas"):
        Discovered.decode(newer("catalog", discovered.VERSION).encode())
    for stored in ("renewal-1.json", "renewal-hash-1.json"):
        content = json.loads((STORED / stored).read_bytes()) | {"version": 2, "salt": 1}
        kind: type[Renewal | DeclarationHash] = DeclarationHash if "hash" in stored else Renewal
        with pytest.raises(ConfigError, match=r"renewed config .* newer Atlas"):
            kind.decode(json.dumps(content).encode())
