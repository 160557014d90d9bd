"""One Parquet file of a table, read in batches of 16,384 rows."""

import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from atlas_dagster.destinations.envelope import StagedFile

_BATCH_ROWS = 16_384
#: Bytes read ahead for one column, so that a big row group is never in memory whole.
_READ_AHEAD = 1024 * 1024


class DataFile:
    """The Parquet file ``name`` in ``folder``, written by Atlas or by others."""

    def __init__(self, filesystem: pafs.FileSystem, folder: str, name: str) -> None:
        self.name = name
        self.path = f"{folder}/{name}"
        self._filesystem = filesystem

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        with self._filesystem.open_input_file(self.path) as source:
            return pq.read_metadata(source)

    @property
    def rows(self) -> int:
        return int(self.metadata.num_rows)

    def null_count(self, name: str) -> int | None:
        """Return the number of NULLs in column ``name``; None if the file has no statistics."""
        names = self.metadata.schema.names
        if name not in names:
            return self.rows
        found = _column_statistics(self.metadata, names.index(name))
        return None if found is None else sum(s.null_count for s in found)

    def holds_text(self, name: str, part: str) -> bool:
        """Return whether a value of the text column ``name`` may contain ``part``.

        This is fast for a column with few distinct values.
        """
        names = self.metadata.schema.names
        if name not in names:
            return False
        found = _column_statistics(self.metadata, names.index(name))
        if found is not None and all(s.has_min_max and s.min == s.max for s in found):
            return any(part in s.min for s in found)
        with (
            self._filesystem.open_input_file(self.path) as source,
            pq.ParquetFile(source, read_dictionary=[name], buffer_size=_READ_AHEAD) as reader,
        ):
            return any(
                pc.any(pc.match_substring(batch.column(0).dictionary, part), min_count=0).as_py()
                for batch in reader.iter_batches(_BATCH_ROWS, columns=[name])
            )

    def staged(self) -> StagedFile:
        """Return the file as a commit lists it."""
        size = self._filesystem.get_file_info(self.path).size
        return StagedFile(self.name, int(size), self.rows, _statistics(self.metadata))

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, with the columns of ``schema``; missing columns are null."""
        with (
            self._filesystem.open_input_file(self.path) as source,
            pq.ParquetFile(source, buffer_size=_READ_AHEAD) as reader,
        ):
            present = set(reader.schema_arrow.names)
            columns = [name for name in schema.names if name in present]
            for group in range(reader.num_row_groups):
                for batch in reader.iter_batches(_BATCH_ROWS, [group], columns):
                    yield _conform(batch, schema)

    def exists(self) -> bool:
        return bool(self._filesystem.get_file_info(self.path).type == pafs.FileType.File)

    def delete(self) -> None:
        try:
            self._filesystem.delete_file(self.path)
        except FileNotFoundError:
            return


def _conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    present = set(batch.schema.names)
    arrays = [
        batch.column(field.name).cast(field.type)
        if field.name in present
        else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _column_statistics(metadata: pq.FileMetaData, index: int) -> list[pq.Statistics] | None:
    """Return the column's statistics for each row group; None if a row group has none."""
    groups = range(metadata.num_row_groups)
    found = [metadata.row_group(group).column(index).statistics for group in groups]
    return None if any(s is None or not s.has_null_count for s in found) else found


def _statistics(metadata: pq.FileMetaData) -> str:
    """Return Delta's statistics of a file as JSON; readers skip files by minima and maxima."""
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for index in range(metadata.num_columns):
        name = metadata.schema.column(index).path
        found = _column_statistics(metadata, index)
        if found is None:
            continue
        nulls[name] = sum(s.null_count for s in found)
        bounded = [s for s in found if s.has_min_max]
        # Text bounds would have to be truncated; the keys that help to skip files are integers.
        if len(bounded) == len(found) and all(type(s.min) is int for s in bounded):
            least[name] = min(s.min for s in bounded)
            most[name] = max(s.max for s in bounded)
    return json.dumps(
        {
            "numRecords": metadata.num_rows,
            "minValues": least,
            "maxValues": most,
            "nullCount": nulls,
        }
    )
