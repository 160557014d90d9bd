"""Parquet files written ahead of the commit that adds them to a table."""

import contextlib
import uuid
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from atlas_dagster.destinations.delta.data_file import DataFile
from atlas_dagster.destinations.delta.filesystem import Store
from atlas_dagster.destinations.envelope import StagedFile

#: Arrow bytes after which a new file starts.
_FILE_BYTES = 256 * 1024 * 1024
#: Arrow bytes of a row group, so that small batches share one.
_GROUP_BYTES = 8 * 1024 * 1024
#: Arrow bytes that all tables of a sync together may buffer for their row groups.
_BUFFERED_BYTES = 24 * 1024 * 1024
#: Largest dictionary of a column chunk. With Arrow's limit of 1 MB, columns of unique values get
#: a dictionary, which takes two thirds more CPU and half as much space again.
_DICTIONARY_BYTES = 32 * 1024


class RowGroupBudget:
    """The memory that all stages of one destination share for unfinished row groups."""

    def __init__(self) -> None:
        self._bytes: dict[ParquetStage, int] = {}

    def note(self, stage: "ParquetStage", size: int) -> None:
        """Note ``size`` Arrow bytes in ``stage``; over the limit, write the largest group."""
        self._bytes[stage] = size
        if not size:
            del self._bytes[stage]
        while sum(self._bytes.values()) > _BUFFERED_BYTES:
            max(self._bytes, key=self._bytes.__getitem__).write_group()


class ParquetStage:
    """Stages batches of one table as Parquet files in the table's own folder.

    The file names sort in the order of writing, and behind the names ``after``.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        schema: pa.Schema,
        *,
        budget: RowGroupBudget,
        after: Iterable[str] = (),
    ) -> None:
        self._store = store
        self._folder = folder
        self._schema = schema
        self._budget = budget
        self._last_number = max((int(name.split("-")[1]) for name in after), default=0)
        self._files: list[StagedFile] = []
        self._writer: pq.ParquetWriter | None = None
        self._file: DataFile
        self._group: list[pa.RecordBatch] = []
        self._group_bytes = 0
        self._file_bytes = 0
        self.rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        self._group.append(batch)
        self._group_bytes += batch.nbytes
        self.rows += batch.num_rows
        self._budget.note(self, self._group_bytes)
        if self._group_bytes >= _GROUP_BYTES:
            self.write_group()

    def close(self) -> tuple[StagedFile, ...]:
        """Finish the open file, and return all files staged since the last :meth:`take_files`."""
        self.write_group()
        self._close_file()
        return tuple(self._files)

    def take_files(self) -> tuple[StagedFile, ...]:
        """Finish and return the files. They now belong to the caller."""
        files = self.close()
        self._files = []
        self.rows = 0
        return files

    def discard(self) -> None:
        """Delete all files staged since the last :meth:`take_files`."""
        self._clear_group()
        if self._writer is not None:
            # On a full disk, closing the file fails; the file is deleted anyway.
            with contextlib.suppress(OSError, pa.ArrowException):
                self._writer.close()
            self._writer, self._file_bytes = None, 0
            self._file.delete()
        for file in self._files:
            self._open(file.path).delete()
        self._files = []
        self.rows = 0

    def rewind(self, rows: int) -> None:
        """Drop all but the first ``rows`` rows."""
        files, self._files = self.close(), []
        self.rows = 0
        for file in files:
            wanted = min(rows, file.rows)
            rows -= wanted
            if wanted == file.rows:
                self._files.append(file)
                self.rows += file.rows
                continue
            for batch in self._open(file.path).batches(self._schema):
                if wanted:
                    self.write(batch.slice(0, wanted))
                wanted -= min(wanted, batch.num_rows)
            self.close()
            self._open(file.path).delete()

    def write_group(self) -> None:
        """Write the buffered batches as a row group, however small."""
        if not self._group:
            return
        if self._writer is None:
            self._last_number += 1
            self._file = self._open(f"part-{self._last_number:06}-{uuid.uuid4()}.zstd.parquet")
            self._store.make_folder(self._folder)
            self._writer = pq.ParquetWriter(
                self._file.path,
                self._schema,
                filesystem=self._store.filesystem,
                compression="zstd",
                compression_level=1,
                dictionary_pagesize_limit=_DICTIONARY_BYTES,
            )
        self._writer.write_table(pa.Table.from_batches(self._group, self._schema))
        self._file_bytes += self._group_bytes
        self._clear_group()
        if self._file_bytes >= _FILE_BYTES:
            self._close_file()

    def _clear_group(self) -> None:
        self._group, self._group_bytes = [], 0
        self._budget.note(self, 0)

    def _close_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._store.fsync(self._file.path)
        self._writer, self._file_bytes = None, 0
        self._files.append(self._file.staged())

    def _open(self, name: str) -> DataFile:
        return DataFile(self._store.filesystem, self._folder, name)
