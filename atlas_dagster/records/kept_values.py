"""Values that ``_airbyte_extra`` keeps, because their columns do not hold them exactly.

:mod:`atlas_dagster.records.issues` writes them.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw

from atlas_dagster.records.types import EXTRA, META, Column

Mask = npt.NDArray[np.bool_]
_decode_extra = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


def note_of(column: Column) -> str:
    """Return the first characters of an entry about ``column`` in ``_airbyte_meta.changes``."""
    return f'{{"field":{_encode(column.field).decode()},'


def kept_values(rows: pa.RecordBatch, column: Column) -> pa.Array:
    """Return the JSON that is kept of ``column`` in each of ``rows``; null where the column holds
    the value."""
    noted = pc.fill_null(pc.match_substring(rows.column(META), note_of(column)), False)
    texts: list[str | None] = [None] * rows.num_rows
    for row in pc.indices_nonzero(noted).to_pylist():
        extra = rows.column(EXTRA)[row].as_py()
        value = _decode_extra(extra).get(column.field) if extra else None
        if value is not None:
            texts[row] = bytes(value).decode()
    return pa.array(texts, pa.string())


def is_valid(column: pa.Array) -> Mask:
    """Return which rows are not null."""
    valid: Mask = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def count_rows_without_key(batch: pa.RecordBatch, key: Sequence[Column]) -> int:
    """Count the rows without a value in a column of ``key``. A kept value is a value."""
    if not any(batch.column(column.name).null_count for column in key):
        return 0
    filled = np.ones(batch.num_rows, np.bool_)
    for column in key:
        filled &= is_valid(batch.column(column.name)) | is_valid(kept_values(batch, column))
    return int(np.sum(~filled))
