"""Parquet files written ahead of the commit that makes them part of a table."""

import json
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from atlas_dagster.state.envelope import StagedFile

#: Arrow bytes after which a new file is begun.
_FILE_BYTES = 256 * 1024 * 1024
#: Row groups are at least this big, so that many small batches do not make many of them.
_GROUP_BYTES = 8 * 1024 * 1024


class ParquetStage:
    """Stages batches of one table as Parquet files in the table's own folder."""

    def __init__(self, filesystem: pafs.FileSystem, folder: str, schema: pa.Schema) -> None:
        self._filesystem = filesystem
        self._folder = folder
        self._schema = schema
        self._files: list[StagedFile] = []
        self._writer: pq.ParquetWriter | None = None
        self._name = ""
        self._metadata: list[pq.FileMetaData] = []
        self._group: list[pa.RecordBatch] = []
        self._group_bytes = 0
        self._file_bytes = 0
        self.rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._group.append(batch)
        self._group_bytes += batch.nbytes
        self.rows += batch.num_rows
        if self._group_bytes >= _GROUP_BYTES:
            self._write_group()
        if self._file_bytes >= _FILE_BYTES:
            self._close_file()

    def close(self) -> tuple[StagedFile, ...]:
        """Finish the open file and return all files staged since the last :meth:`hand_over`."""
        self._write_group()
        self._close_file()
        return tuple(self._files)

    def hand_over(self) -> tuple[StagedFile, ...]:
        """Finish the files and let go of them: whoever takes them decides what becomes of them."""
        files = self.close()
        self._files = []
        self.rows = 0
        return files

    def discard(self) -> None:
        """Delete all files staged since the last :meth:`hand_over`."""
        self._group, self._group_bytes = [], 0
        self._close_file()
        for file in self._files:
            self._delete(file)
        self._files = []
        self.rows = 0

    def rewind(self, rows: int) -> None:
        """Keep the first ``rows`` rows only."""
        kept: list[StagedFile] = []
        for file in self.close():
            if rows >= file.rows:
                kept.append(file)
            else:
                if rows:
                    with self._filesystem.open_input_file(self._path(file.path)) as source:
                        table = pq.read_table(source, schema=self._schema)
                    self._files = []
                    for batch in table.slice(0, rows).to_batches():
                        self.write(batch)
                    kept += self.close()
                self._delete(file)
            rows = max(0, rows - file.rows)
        self._files = kept
        self.rows = sum(file.rows for file in kept)

    def _write_group(self) -> None:
        if not self._group:
            return
        if self._writer is None:
            self._name = f"part-{uuid.uuid4()}.zstd.parquet"
            self._metadata = []
            self._filesystem.create_dir(self._folder, recursive=True)
            self._writer = pq.ParquetWriter(
                self._path(self._name),
                self._schema,
                filesystem=self._filesystem,
                compression="zstd",
                compression_level=1,
                metadata_collector=self._metadata,
            )
        self._writer.write_table(pa.Table.from_batches(self._group, self._schema))
        self._file_bytes += self._group_bytes
        self._group, self._group_bytes = [], 0

    def _close_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer, self._file_bytes = None, 0
        size = self._filesystem.get_file_info(self._path(self._name)).size
        metadata = self._metadata[0]
        self._files.append(
            StagedFile(self._name, int(size or 0), metadata.num_rows, _statistics(metadata))
        )

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _delete(self, file: StagedFile) -> None:
        self._filesystem.delete_file(self._path(file.path))


def _statistics(metadata: pq.FileMetaData) -> str:
    """Delta's statistics of a file; with minima and maxima, so that merges can skip files."""
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    for index in range(metadata.num_columns):
        name = metadata.schema.column(index).path
        found = [
            metadata.row_group(g).column(index).statistics for g in range(metadata.num_row_groups)
        ]
        if any(s is None or not s.has_null_count for s in found):
            continue
        nulls[name] = sum(s.null_count for s in found)
        bounded = [s for s in found if s.has_min_max]
        # Text bounds would have to be cut and rounded; keys that matter for skipping are numbers.
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
