"""Records in, rows out: what the tests of batches share."""

import json
from typing import Any

from msgspec import Raw

from atlas_dagster.protocol.messages import ABSENT, Record
from atlas_dagster.records.batches import BatchBuilder
from atlas_dagster.records.types import TableSchema

TYPE = ("NULLED", "DESTINATION_SERIALIZATION_ERROR")
SIZE = ("NULLED", "DESTINATION_FIELD_SIZE_LIMITATION")
ROUNDED = ("TRUNCATED", "DESTINATION_FIELD_SIZE_LIMITATION")
REPAIRED = ("TRUNCATED", "DESTINATION_SERIALIZATION_ERROR")
COLUMNS: dict[str, dict[str, Any]] = {
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "date": {"type": "string", "format": "date"},
    "moment": {"type": "string", "format": "date-time"},
    "local": {
        "type": "string",
        "format": "date-time",
        "airbyte_type": "timestamp_without_timezone",
    },
    "time": {"type": "string", "format": "time"},
    "object": {"type": "object"},
    "array": {"type": "array"},
    "any": {"type": ["string", "integer"]},
}


def build(*data: bytes, columns: dict[str, Any] | None = None, **record: Any) -> list[Any]:
    schema = TableSchema.from_json_schema({"properties": COLUMNS if columns is None else columns})
    builder = BatchBuilder(schema, sync_id=7, generation_id=3)
    for each in data:
        fields = {"emitted_at": 1_700_000_000_123, "meta": ABSENT} | record
        builder.extend([Record("s", Raw(each), **fields)], len(each))
    assert (len(builder), builder.bytes) == (len(data), sum(map(len, data)))
    batch = builder.build()
    assert (len(builder), builder.bytes) == (0, 0)
    assert batch.schema == schema.arrow
    batch.validate(full=True)
    return list(batch.to_pylist())


def changes(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Field, change and reason of each entry in ``_airbyte_meta``."""
    meta = json.loads(row["_airbyte_meta"])
    assert meta["sync_id"] == 7
    return [(c["field"], c["change"], c["reason"]) for c in meta["changes"]]
