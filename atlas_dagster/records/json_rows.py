"""Encode rows as JSON objects: times in ISO 8601, objects and arrays as the source wrote them."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa
from msgspec import Raw

from atlas_dagster.records.types import EXTRA, META, TableSchema


class RowEncoder:
    """Encodes rows of one table, with ``columns`` in this order."""

    def __init__(self, schema: TableSchema, columns: Sequence[str]) -> None:
        self._columns = columns
        self._json = {column.name for column in schema.columns if column.type.is_json}
        self._json |= {META, EXTRA}
        names = [f"f{index}" for index in range(len(columns))]
        self._row = msgspec.defstruct(
            "Row", names, rename=dict(zip(names, columns, strict=True)), gc=False
        )
        self._encoder = msgspec.json.Encoder()

    def lines(self, rows: pa.Table | pa.RecordBatch) -> bytes:
        """Return one line for each row."""
        return self._encoder.encode_lines(self._rows(rows))

    def array(self, rows: pa.Table | pa.RecordBatch) -> bytes:
        """Return one JSON array."""
        return self._encoder.encode(self._rows(rows))

    def _rows(self, rows: pa.Table | pa.RecordBatch) -> list[Any]:
        if not self._columns:
            return [self._row() for _ in range(rows.num_rows)]
        return [*map(self._row, *(self._values(rows, name) for name in self._columns))]

    def _values(self, rows: pa.Table | pa.RecordBatch, name: str) -> list[Any]:
        values: list[Any] = rows[name].to_pylist()
        if name in self._json:
            return [None if text is None else Raw(text) for text in values]
        return values
