"""The floor of tables: the bytes of a READ parsed by polars and written to zstd Parquet.

No state, no commit, nothing checked: a value that does not fit ends it. The columns are those that
Atlas writes.
"""

import tempfile
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from recording import catalog_streams

from atlas_dagster.records.batches import random_uuids
from atlas_dagster.records.types import METADATA_FIELDS, TableSchema

_CHUNK_BYTES = 8 << 20
_UTC = pa.timestamp("us", tz="UTC")
#: Date-times as text: polars parses them seven times slower inside JSON.
_POLARS = {"integer": pl.Int64, "string": pl.String, "object": pl.String}


def parse_to_parquet(output: Iterable[bytes], records: int) -> None:
    streams = {stream["name"]: stream["json_schema"] for stream in catalog_streams()}
    tables = {name: TableSchema.from_json_schema(schema).arrow for name, schema in streams.items()}
    fields = {
        name: _POLARS[declared["type"]]
        for schema in streams.values()
        for name, declared in schema["properties"].items()
    }
    record = {"stream": pl.String, "data": pl.Struct(fields), "emitted_at": pl.Int64}
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        paths = {name: Path(folder) / f"{name}.parquet" for name in tables}
        writers = {
            name: pq.ParquetWriter(paths[name], table, compression="zstd", compression_level=1)
            for name, table in tables.items()
        }
        for lines in _whole_lines(output):
            parsed = pl.read_ndjson(lines, schema={"record": pl.Struct(record)})
            rows = parsed.drop_nulls().unnest("record")
            for (name,), part in rows.group_by("stream"):
                writers[str(name)].write_table(_typed(part, tables[str(name)]))
        for writer in writers.values():
            writer.close()
        written = sum(pq.read_metadata(path).num_rows for path in paths.values())
        assert written == records, f"{written} rows instead of {records}"


def _whole_lines(output: Iterable[bytes]) -> Iterator[BytesIO]:
    pending, size = [], 0
    for content in output:
        pending.append(content)
        size += len(content)
        if size >= _CHUNK_BYTES:
            lines, _, rest = b"".join(pending).rpartition(b"\n")
            yield BytesIO(lines)
            pending, size = [rest], len(rest)
    if size:
        yield BytesIO(b"".join(pending))


def _typed(part: pl.DataFrame, schema: pa.Schema) -> pa.Table:
    own = {field.name for field in METADATA_FIELDS}
    declared = [field for field in schema if field.name not in own]
    data = part.select(pl.col("data").struct.unnest()).to_arrow()
    columns: list[Any] = [
        _timestamps(data[field.name]) if field.type == _UTC else data[field.name].cast(field.type)
        for field in declared
    ]
    count = part.height
    emitted = part["emitted_at"].to_arrow().cast(pa.timestamp("ms")).cast(pa.timestamp("us"))
    columns += [
        random_uuids(count),
        emitted.cast(_UTC),
        pa.repeat(pa.scalar('{"sync_id":1,"changes":[]}'), count),
        pa.repeat(pa.scalar(0, pa.int64()), count),
        pa.nulls(count, pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _timestamps(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return pc.cast(texts.cast(pa.string()), _UTC)
    except pa.ArrowInvalid:  # without a zone
        return pc.cast(texts.cast(pa.string()), pa.timestamp("us")).cast(_UTC)
