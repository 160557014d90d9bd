"""The seam between a sync and the store of its tables.

:meth:`Destination.inspect` returns a :class:`TableSnapshot`, from which a :class:`StreamWriter` is
opened. The writer stages rows, which stay invisible. :meth:`Destination.commit` adds the staged
rows of one or more streams to their tables, together with the envelope's ``seq``: in one
transaction for each table, or in one for all.

An envelope may mark a stream's rows as unpublished. They are durable then, but beside the table.
The first commit that continues them and is not unpublished publishes all of them at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa
from msgspec import Struct

from atlas_dagster.destinations.envelope import Envelope, StagedFile, WriteMode
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.records.columns import TableColumns
from atlas_dagster.records.types import Column, TableSchema

#: The connection, the namespace if the stream has one, and the stream.
TablePath = tuple[str, ...]


class TableSpec(Struct, frozen=True):
    """The table that a sync needs for a stream. Keys and cursor are column names.

    ``deleted_at``: the column with the time of a row's deletion. If it is given, deleted rows are
    not stored: they delete the older row of their key.
    """

    path: TablePath
    schema: TableSchema
    mode: WriteMode
    primary_key: tuple[str, ...] = ()
    cursor: str | None = None
    replaces: bool = False
    deleted_at: str | None = None

    def column(self, name: str) -> Column:
        """Return the column called ``name``."""
        return next(column for column in self.schema.columns if column.name == name)


class TableInfo(Struct, frozen=True):
    """The address and the row count of a table."""

    uri: str
    row_count: int


class Recovered(Struct, frozen=True):
    """All stored envelopes, and the tables that cannot take their part of one, with the error.

    Only a refresh of the streams of ``refused`` helps.
    """

    envelopes: Sequence[Envelope]
    refused: Mapping[TablePath, AtlasError] = {}


class StreamWriter(ABC):
    """Writes the rows of one stream. Not thread-safe."""

    #: Rows that lost to an earlier row of their key, because it has a greater cursor.
    late_rows: int = 0

    @property
    @abstractmethod
    def staged_rows(self) -> int:
        """Rows staged since the last commit."""

    @property
    @abstractmethod
    def unpublished_rows(self) -> int:
        """Rows of earlier commits that are not in the table yet."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Stage a batch; its rows stay invisible."""

    @abstractmethod
    def rewind(self, rows: int) -> None:
        """Drop all but the first ``rows`` rows staged since the last commit."""

    @abstractmethod
    def stage(self) -> tuple[StagedFile, ...]:
        """Finish staging, and return the staged files for the envelope.

        From now on they belong to the envelope, and :meth:`discard` keeps them: a commit that
        seems to fail may have succeeded, or the next sync may finish it.
        """

    @abstractmethod
    def commit(self, envelope: Envelope) -> None:
        """Make the staged rows durable together with ``envelope.seq``.

        Called by :meth:`Destination.commit` only.

        Raises:
            DestinationError: another writer has committed to this table.
        """

    @abstractmethod
    def merge_committed(self) -> None:
        """Merge committed rows into the table, unless they are unpublished."""

    @abstractmethod
    def discard(self) -> None:
        """Delete staged rows that belong to no envelope."""

    @abstractmethod
    def describe(self) -> TableInfo:
        """Return address and row count of the table, which must exist."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether the table exists."""


class TableSnapshot(ABC):
    """One table as :meth:`Destination.inspect` found it; it need not exist.

    A writer opened from it commits only if no other writer has committed since. Open only one.
    """

    path: TablePath
    #: The ``seq`` of the last commit; None if the table does not exist.
    seq: int | None

    @abstractmethod
    def find_external_change(self) -> str | None:
        """Describe the newest change of rows made outside of Atlas since the last commit, if any.

        A destination that cannot detect them returns None.

        Raises:
            DestinationError: a table that Atlas did not create has this path.
        """

    @abstractmethod
    def columns(self) -> TableColumns:
        """Return the table's columns; none if it does not exist."""

    @abstractmethod
    def unpublished_columns(self) -> TableColumns | None:
        """Return the columns of unpublished or unmerged rows; None if some of the rows are gone."""

    @abstractmethod
    def require_fit(self, spec: TableSpec) -> None:
        """Check, before anything is read, that the table can take the rows of ``spec``.

        Raises:
            DestinationError: it cannot, because of a limit or of changes made outside of Atlas.
        """

    @abstractmethod
    def open(self, spec: TableSpec) -> StreamWriter:
        """Open a writer.

        Raises:
            DestinationError: another sync has committed to the table since the snapshot.
        """


class Destination(ABC):
    """A store of tables."""

    #: Dagster's storage kind.
    kind: str
    #: Whether tables store decimals exactly; otherwise they store doubles.
    has_decimals: bool = False

    @abstractmethod
    def inspect(self, table: TablePath) -> TableSnapshot:
        """Look at a table, to plan a commit to it.

        Raises:
            AtlasError: the table cannot be read, or the store does not answer.
        """

    @abstractmethod
    def claim_ownership(self, connection: str, deployment: str) -> str:
        """Make ``deployment`` the owner of the connection's tables if they have none.

        Returns the owner. If several deployments claim at once, one of them becomes the owner.
        """

    @abstractmethod
    def transfer_ownership(self, connection: str, deployment: str) -> None:
        """Make ``deployment`` the owner of the connection's tables."""

    def commit(self, envelope: Envelope, writers: Sequence[StreamWriter]) -> None:
        """Make the staged rows of ``writers`` durable, as ``envelope`` lists them.

        If each table has a transaction of its own and the process dies between two of them,
        :meth:`recover` finishes the commit.

        Raises:
            DestinationError: another sync has committed to one of the tables.
        """
        self.prepare(envelope)
        for writer in writers:
            writer.commit(envelope)

    @abstractmethod
    def prepare(self, envelope: Envelope) -> None:
        """Store ``envelope``; it takes effect when a table takes its ``seq``."""

    @abstractmethod
    def commit_without_rows(
        self, envelope: Envelope, expected_seqs: Mapping[TablePath, int | None]
    ) -> None:
        """Commit an ``envelope`` without rows; the rows of its tables stay.

        Raises:
            DestinationError: a table does not hold its ``expected_seqs``; a sync has committed.
        """

    @abstractmethod
    def envelope(self, connection: str, seq: int) -> Envelope | None:
        """Return the stored envelope of commit ``seq``."""

    @abstractmethod
    def recover(self, connection: str) -> Recovered:
        """Finish commits that a dead process made to some of their tables only."""

    @abstractmethod
    def prune_envelopes(self, connection: str, seqs: Collection[int]) -> None:
        """Delete the stored envelopes of the commits ``seqs``; some may be gone already."""

    @abstractmethod
    def table_uri(self, table: TablePath) -> str:
        """Return the address of a table, existing or not, without any password."""

    @abstractmethod
    def read(self, table: TablePath, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        """Read the published rows, in no order; all columns, or ``columns``.

        Raises:
            ConfigError: the table does not exist, or has no such column.
        """

    @abstractmethod
    def count_duplicates(self, spec: TableSpec, key: Sequence[str]) -> int:
        """Count rows beyond the first of each value of the ``key`` columns, in one pass.

        Rows without a value in a key column are not counted. The table must exist.
        """

    @abstractmethod
    def preview(self, table: TablePath, rows: int) -> pa.Table:
        """Return a few rows of a table that exists, in no order."""

    @abstractmethod
    def close(self) -> None:
        """Close connections. The destination opens them again if it is used again."""


class StoresTables(ABC):
    """A destination that also stores tables of no connection."""

    @abstractmethod
    def store(self, table: TablePath, rows: pa.RecordBatchReader) -> TableInfo:
        """Replace all rows and columns of ``table`` by ``rows``, in one transaction.

        Raises:
            ConfigError: the table is a connection's, or cannot hold such columns.
        """


class Maintained(Struct, frozen=True):
    """The numbers of files that maintenance compacted, wrote and deleted."""

    compacted: int = 0
    written: int = 0
    deleted: int = 0

    def __add__(self, other: "Maintained") -> "Maintained":
        return Maintained(
            self.compacted + other.compacted,
            self.written + other.written,
            self.deleted + other.deleted,
        )


class Maintainable(ABC):
    """A destination whose tables need to be rewritten now and then."""

    @abstractmethod
    def maintain(self, table: TablePath, *, retain_hours: int) -> Maintained:
        """Compact the files of ``table``, and delete files unused for ``retain_hours``.

        Keeps its rows, its ``seq`` and all files that :meth:`Destination.recover` may need. No sync
        of the connection may run. A table that does not exist is skipped.

        Raises:
            DestinationError: something else has written to the table.
        """


def read_columns(
    columns: Sequence[str] | None, *, present: Sequence[str], where: str
) -> Sequence[str]:
    """Return the columns to read.

    Raises:
        ConfigError: one of ``columns`` is not ``present``.
    """
    for column in columns or ():
        if column not in present:
            known = ", ".join(present)
            raise ConfigError(f"The table {where} has no column '{column}'; it has {known}.")
    return columns or present
