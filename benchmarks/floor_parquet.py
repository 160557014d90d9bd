"""The floor of tables: the bytes of a READ parsed by polars and written to zstd Parquet.

No state, no commit, nothing checked: a value that does not fit ends it. The columns are those that
Atlas writes.
"""

from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from atlas_dagster.records.batches import random_uuids
from atlas_dagster.records.types import TableSchema

_CHUNK_BYTES = 8 << 20
_EMITTED_AT = b',"emitted_at":'
_UTC = pa.timestamp("us", tz="UTC")
#: Date-times as text: polars parses them seven times slower inside JSON.
_POLARS = {
    "integer": pl.Int64,
    "number": pl.Float64,
    **dict.fromkeys(("string", "object", "array"), pl.String),
}


def parse_to_parquet(
    output: Iterable[bytes], streams: Sequence[dict[str, Any]], folder: Path
) -> int:
    """Write a file per stream to ``folder``; the number of rows."""
    schemas = {stream["name"]: stream["json_schema"] for stream in streams}
    tables = {name: TableSchema.from_json_schema(schema).arrow for name, schema in schemas.items()}
    fields = {
        name: {field: _POLARS[kind["type"]] for field, kind in schema["properties"].items()}
        for name, schema in schemas.items()
    }
    paths = {name: folder / f"{name}.parquet" for name in tables}
    writers = {
        name: pq.ParquetWriter(paths[name], table, compression="zstd", compression_level=1)
        for name, table in tables.items()
    }
    for lines in _whole_lines(output):
        for name, table in tables.items():
            rows, emitted = _records_of(name, lines)
            if rows:
                parsed = pl.read_ndjson(BytesIO(b"\n".join(rows)), schema=fields[name])
                writers[name].write_table(_typed(parsed, emitted, table))
    for writer in writers.values():
        writer.close()
    return sum(pq.read_metadata(path).num_rows for path in paths.values())


def _records_of(stream: str, lines: list[bytes]) -> tuple[list[bytes], list[int]]:
    """``data`` and ``emitted_at``, cut out where the recording has them: no JSON is cheaper."""
    prefix = f'{{"type":"RECORD","record":{{"stream":"{stream}","data":'.encode()
    start = len(prefix)
    rows, emitted = [], []
    for line in lines:
        if line.startswith(prefix):
            end = line.rindex(_EMITTED_AT)
            rows.append(line[start:end])
            emitted.append(int(line[end + len(_EMITTED_AT) : -2]))
    return rows, emitted


def _whole_lines(output: Iterable[bytes]) -> Iterator[list[bytes]]:
    pending, size = [], 0
    for content in output:
        pending.append(content)
        size += len(content)
        if size >= _CHUNK_BYTES:
            lines, _, rest = b"".join(pending).rpartition(b"\n")
            yield lines.split(b"\n")
            pending, size = [rest], len(rest)
    yield b"".join(pending).split(b"\n")


def _typed(rows: pl.DataFrame, emitted: list[int], schema: pa.Schema) -> pa.Table:
    count = len(emitted)
    columns: list[Any] = [
        _timestamps(column) if field.type == _UTC else column.cast(field.type)
        for column, field in zip(rows.to_arrow().columns, schema, strict=False)
    ]
    columns += [
        random_uuids(count),
        pc.multiply(pa.array(emitted), 1000).cast(_UTC),
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
