"""What an older Atlas stored is read; what a newer one stored is refused, not misread."""

import json
from pathlib import Path

import pytest

from atlas_dagster.destinations.envelope import VERSION, Envelope
from atlas_dagster.errors import ConfigError
from atlas_dagster.orchestration.step.envelope_text import from_text
from atlas_dagster.protocol.messages import StreamDescriptor
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


def newer(name: str, version: int) -> str:
    content = json.loads((STORED / f"{name}-{version}.json").read_text().replace("1.10e400", "1"))
    return json.dumps(content | {"version": version + 1, "streams": "of another kind"})


def test_what_a_newer_atlas_wrote_is_refused() -> None:
    """Regression: a newer envelope was read with its files missing."""
    words = rf"written by a newer Atlas \(format {VERSION + 1}, .*; upgrade Atlas\.$"
    with pytest.raises(ConfigError, match=words):
        Envelope.decode(newer("envelope", VERSION))
    with pytest.raises(ConfigError, match=words):
        from_text(newer("envelope", VERSION))
    with pytest.raises(ConfigError, match=r"^The cached catalog was written by a newer Atlas"):
        Discovered.decode(newer("catalog", discovered.VERSION).encode())
