import json
from typing import Any

import pytest

from atlas_dagster.errors import ConfigError, ProtocolError
from atlas_dagster.protocol.catalog import Catalog, Stream, configure, configured_catalog_json
from atlas_dagster.protocol.messages import StreamDescriptor

BOTH = ["full_refresh", "incremental"]
DEFINED: dict[str, Any] = {
    "source_defined_cursor": True,
    "default_cursor_field": ["at"],
    "source_defined_primary_key": [["id"]],
}


def stream(**fields: Any) -> Stream:
    content = {"name": "s", "json_schema": {}, "supported_sync_modes": BOTH} | fields
    return Stream.from_raw(json.dumps(content).encode())


@pytest.mark.parametrize(
    ("offered", "chosen", "modes"),
    [
        # The platform's defaults
        (DEFINED, {}, "incremental append_dedup"),
        ({**DEFINED, "source_defined_primary_key": []}, {}, "full_refresh overwrite"),
        ({**DEFINED, "source_defined_cursor": False}, {}, "full_refresh overwrite"),
        ({}, {}, "full_refresh overwrite"),
        ({**DEFINED, "supported_sync_modes": ["full_refresh"]}, {}, "full_refresh overwrite"),
        ({"supported_sync_modes": []}, {}, "full_refresh overwrite"),
        ({"supported_sync_modes": None}, {}, "full_refresh overwrite"),
        (
            {"supported_sync_modes": ["incremental"], "source_defined_cursor": True},
            {},
            "incremental append",
        ),
        # A part of it chosen
        (DEFINED, {"sync_mode": "full_refresh"}, "full_refresh overwrite"),
        (DEFINED, {"destination_sync_mode": "overwrite"}, "full_refresh overwrite"),
        (DEFINED, {"destination_sync_mode": "append"}, "incremental append"),
        ({}, {"cursor_field": ("at",)}, "incremental append"),
        ({}, {"cursor_field": ("at",), "primary_key": (("id",),)}, "incremental append_dedup"),
        ({}, {"destination_sync_mode": "append"}, "full_refresh append"),
        (
            {"supported_sync_modes": ["full_refresh"]},
            {"destination_sync_mode": "append_dedup", "primary_key": (("id",),)},
            "full_refresh append_dedup",
        ),
    ],
)
def test_modes(offered: dict[str, Any], chosen: dict[str, Any], modes: str) -> None:
    found = configure(stream(**offered), **chosen)
    assert f"{found.sync_mode} {found.destination_sync_mode}" == modes


def test_a_declared_key_counts_and_a_declared_cursor_only_where_the_source_has_none() -> None:
    """Regression: rows of two regions became one, for the source's own key counted."""
    found = configure(
        stream(**DEFINED), cursor_field=("other",), primary_key=(("id",), ("region",))
    )
    assert (found.cursor_field, found.primary_key) == (("at",), (("id",), ("region",)))
    key, cursor = found.differences
    assert "primary key is `id`" in key
    assert "cursor_field `other` has no effect" in cursor
    assert "`at`" in cursor
    assert configure(stream(**DEFINED)).primary_key == (("id",),)
    same = configure(stream(**DEFINED), cursor_field=("at",), primary_key=(("id",),))
    assert same.differences == ()
    found = configure(stream(default_cursor_field=["at"]), cursor_field=("other",))
    assert found.cursor_field == ("other",)


@pytest.mark.parametrize(
    ("offered", "chosen", "sentence"),
    [
        (
            {"supported_sync_modes": ["full_refresh"]},
            {"sync_mode": "incremental"},
            "does not support sync_mode incremental; it supports full_refresh.",
        ),
        (
            DEFINED,
            {"sync_mode": "incremental", "destination_sync_mode": "overwrite"},
            "cannot be incremental and overwrite",
        ),
        ({}, {"sync_mode": "incremental"}, "needs a cursor_field to be incremental"),
        (
            {},
            {"cursor_field": ("at",), "destination_sync_mode": "append_dedup"},
            "needs a primary_key for append_dedup",
        ),
        (DEFINED, {"hard_deletes": True}, "cdc_deletes hard, but no field _ab_cdc_deleted_at"),
        (
            {"json_schema": {"properties": {"_ab_cdc_deleted_at": {}}}},
            {"hard_deletes": True},
            "cdc_deletes hard, which needs destination_sync_mode append_dedup; overwrite never",
        ),
    ],
)
def test_choices_that_cannot_work(
    offered: dict[str, Any], chosen: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        configure(stream(namespace="n", **offered), **chosen)


def test_the_catalog_file_sends_streams_back_untouched() -> None:
    raw = b'{"name":"s",  "json_schema":{"x":1.10},"unknown":[null],"default_cursor_field":["at"]}'
    configured = configure(Stream.from_raw(raw))
    sent = configured_catalog_json([configured], sync_id=7)
    assert raw in sent
    (entry,) = json.loads(sent)["streams"]
    assert entry.pop("stream")["unknown"] == [None]
    assert entry == {
        "sync_mode": "full_refresh",
        "destination_sync_mode": "overwrite",
        "cursor_field": ["at"],
        "primary_key": [],
        "generation_id": 0,
        "minimum_generation_id": 0,
        "sync_id": 7,
    }


def test_a_cached_catalog_is_the_same() -> None:
    catalog = Catalog((stream(**DEFINED, namespace="", extra={"a": 1}), stream(name="t")))
    again = Catalog.from_raw([each.raw for each in catalog.streams])
    assert again == catalog
    first = again.streams[0]
    assert first.descriptor == StreamDescriptor("s")
    assert first.source_defined_primary_key == (("id",),)


@pytest.mark.parametrize("schema", ["true", "null", "[]", '"text"', "5"])
def test_a_schema_that_is_no_object(schema: str) -> None:
    """Regression: it made DISCOVER fail for all streams."""
    stream = Stream.from_raw(f'{{"name":"s","json_schema":{schema}}}'.encode())
    assert (stream.json_schema, stream.has_fields) == ({}, False)


@pytest.mark.parametrize("raw", [b"5", b"{}", b'{"name":null}'])
def test_what_is_no_stream(raw: bytes) -> None:
    with pytest.raises(ProtocolError, match="catalog contains a stream"):
        Stream.from_raw(raw)
