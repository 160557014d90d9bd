"""Keys that their columns do not hold: told apart by what ``_airbyte_extra`` keeps of them.

An integer beyond 64 bits is NULL in its column, and two numbers of many digits can be the same
double. Rows are compared by the text of such values, too, or they would count as one.
"""

from collections.abc import Iterator, Mapping

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw

from atlas_dagster.destinations.data_file import DataFile
from atlas_dagster.records.types import EXTRA

#: A column of no file: the key's values as JSON where their columns do not hold them, else NULL.
EXACT = pa.field("_atlas_exact", pa.string())
_decode = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


def exact_batches(
    file: DataFile, schema: pa.Schema, fields: Mapping[str, str]
) -> Iterator[pa.RecordBatch]:
    """All rows of ``file`` with the columns of ``schema``, which may have :data:`EXACT`.

    ``fields``: the source's name of each key column.
    """
    place = schema.get_field_index(EXACT.name)
    if place < 0:
        yield from file.batches(schema)
        return
    doubtful = any(
        pa.types.is_floating(schema.field(name).type) or file.null_count(name) != 0
        for name in fields
    )
    if not doubtful or file.null_count(EXTRA) == file.rows:
        for batch in file.batches(schema.remove(place)):
            nothing = pa.nulls(batch.num_rows, EXACT.type)
            yield batch.add_column(place, EXACT, nothing)
        return
    for batch in file.batches(schema.set(place, pa.field(EXTRA, EXACT.type))):
        yield batch.set_column(place, EXACT, _exact(batch, fields))


def _exact(batch: pa.RecordBatch, fields: Mapping[str, str]) -> pa.Array:
    extra = batch.column(EXTRA)
    unfit = pa.array([False] * batch.num_rows, pa.bool_())
    for name, field in fields.items():
        kept = pc.match_substring(extra, _encode(field).decode())
        column = batch.column(name)
        if not pa.types.is_floating(column.type):
            kept = pc.and_(kept, column.is_null())
        unfit = pc.or_(unfit, pc.fill_null(kept, False))
    texts: list[str | None] = [None] * batch.num_rows
    for row in pc.indices_nonzero(unfit).to_pylist():
        values = _decode(extra[row].as_py())
        if any(field in values for field in fields.values()):
            texts[row] = _encode([values.get(field) for field in fields.values()]).decode()
    return pa.array(texts, EXACT.type)
