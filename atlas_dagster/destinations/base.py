"""The seam between a sync and the store its rows land in.

A :class:`Destination` opens one :class:`StreamWriter` per stream. Rows are staged as they come and
stay invisible; :meth:`Destination.commit` makes those of one or more streams part of their tables
together with the envelope's ``seq``, in one transaction per table or one for all.

The envelope may say that the rows of a stream are held: they are durable then, beside their table,
and the first commit that is not held and continues them shows all of them at once.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa
from msgspec import Struct

from atlas_dagster.destinations.envelope import Envelope, StagedFile, WriteMode
from atlas_dagster.errors import AtlasError, ConfigError
from atlas_dagster.records.columns import TableColumns
from atlas_dagster.records.types import Column, TableSchema

TablePath = tuple[str, ...]


class TableSpec(Struct, frozen=True):
    """What a stream's table must become. Keys and cursor are column names.

    ``deleted_at``: the column that says when a row was deleted. Where it is given, such rows are
    not kept: they delete an older row of their key.
    """

    path: TablePath
    schema: TableSchema
    mode: WriteMode
    primary_key: tuple[str, ...] = ()
    cursor: str | None = None
    replaces: bool = False
    deleted_at: str | None = None

    def column(self, name: str) -> Column:
        """The column called ``name``."""
        return next(column for column in self.schema.columns if column.name == name)


class TableInfo(Struct, frozen=True):
    """What a table is now."""

    uri: str
    row_count: int


class Recovered(Struct, frozen=True):
    """All stored ``envelopes``, and the tables that ``refused`` their part of one, with the reason.

    Only reading the streams of those again can help.
    """

    envelopes: Sequence[Envelope]
    refused: Mapping[TablePath, AtlasError] = {}


class StreamWriter(ABC):
    """Writes one stream's rows; used by one thread."""

    #: Rows staged since the last commit.
    staged_rows: int = 0
    #: Rows of earlier commits that are not shown yet.
    unpublished_rows: int = 0
    #: Versions that lost to one that had come before them, for it has a greater cursor.
    late_rows: int = 0

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Stage a batch; nothing of it is visible yet."""

    @abstractmethod
    def rewind(self, rows: int) -> None:
        """Forget all but the first ``rows`` rows staged since the last commit."""

    @abstractmethod
    def stage(self) -> tuple[StagedFile, ...]:
        """Finish writing what is staged and say what it is, for the envelope.

        From here on it belongs to the envelope: :meth:`discard` leaves it alone, because a commit
        that seems to have failed may have come through, or be rolled forward by the next sync.
        """

    @abstractmethod
    def commit(self, envelope: Envelope) -> None:
        """Make the staged rows durable together with ``envelope.seq``.

        A part of :meth:`Destination.commit`, which is what to call.

        Raises:
            DestinationError: another writer has committed to this table meanwhile.
        """

    @abstractmethod
    def merge_committed(self) -> None:
        """Bring all that is committed and not held into the table that readers see (a merge)."""

    @abstractmethod
    def discard(self) -> None:
        """Delete what is written and in no envelope yet."""

    @abstractmethod
    def describe(self) -> TableInfo:
        """What the table is now; it must exist."""

    @abstractmethod
    def exists(self) -> bool:
        """Whether the table that readers see exists."""


def read_columns(
    columns: Sequence[str] | None, *, present: Sequence[str], where: str
) -> Sequence[str]:
    """The columns to read. Raises ConfigError for one that is not ``present``."""
    for column in columns or ():
        if column not in present:
            known = ", ".join(present)
            raise ConfigError(f"The table {where} has no column '{column}'; it has {known}.")
    return columns or present


class Destination(ABC):
    """A store of tables."""

    #: Dagster's storage kind.
    kind: str
    #: Whether tables hold numbers digit by digit, and not as doubles.
    has_decimals: bool = False

    @abstractmethod
    def committed(self, connection: str, table: TablePath) -> int | None:
        """The ``seq`` of the last commit to ``table``; None for a table that does not exist.

        The next writer of ``table`` is based on it: a commit by another sync between the two is
        refused like one while the writer is open.
        """

    @abstractmethod
    def external_change(self, connection: str, table: TablePath) -> str | None:
        """What someone else did to the rows since the last commit, where that can be told.

        Raises:
            DestinationError: a table that is not Atlas's stands in the place of this one.
        """

    @abstractmethod
    def claim_ownership(self, connection: str, deployment: str) -> str:
        """Which deployment the tables of ``connection`` belong to: this one, unless another does.

        Of several that claim them at once, one becomes the owner.
        """

    @abstractmethod
    def transfer_ownership(self, connection: str, deployment: str) -> None:
        """Make ``deployment`` the owner of the tables of ``connection``."""

    @abstractmethod
    def known_columns(self, table: TablePath) -> TableColumns:
        """The columns of a table; none where it does not exist."""

    @abstractmethod
    def unpublished_columns(self, connection: str, table: TablePath) -> TableColumns | None:
        """:meth:`known_columns` of the rows held for a table; None where some of them are gone."""

    @abstractmethod
    def refuse_unfit(self, connection: str, spec: TableSpec) -> None:
        """Ask before anything is read whether a table can take what ``spec`` is to bring.

        Raises:
            DestinationError: it cannot, be it for its limits or for what others made of it.
        """

    @abstractmethod
    def open(self, connection: str, spec: TableSpec) -> StreamWriter:
        """A writer for one stream.

        Raises:
            DestinationError: another sync has committed to the table since :meth:`committed`.
        """

    def commit(self, envelope: Envelope, writers: Sequence[StreamWriter]) -> None:
        """Make what ``envelope`` lists of ``writers`` durable: all of it, sooner or later.

        Where the tables share no transaction, :meth:`recover` finishes what a death leaves undone.

        Raises:
            DestinationError: another sync has committed to one of the tables meanwhile.
        """
        self.prepare(envelope)
        for writer in writers:
            writer.commit(envelope)

    @abstractmethod
    def prepare(self, envelope: Envelope) -> None:
        """Store ``envelope``; it counts once a table has taken its ``seq``."""

    @abstractmethod
    def commit_without_rows(
        self, envelope: Envelope, since: Mapping[TablePath, int | None]
    ) -> None:
        """Commit ``envelope``, which is without rows, to tables that stay as they are.

        ``since``: the ``seq`` that each of them holds now.

        Raises:
            DestinationError: a sync has committed to one of the tables meanwhile.
        """

    @abstractmethod
    def envelope(self, connection: str, seq: int) -> Envelope | None:
        """The stored envelope of one commit."""

    @abstractmethod
    def recover(self, connection: str) -> "Recovered":
        """Finish commits that a dead process left half-way: some of their tables done, some not.

        Where a commit is one transaction, there are none.
        """

    @abstractmethod
    def prune_envelopes(self, connection: str, seqs: Collection[int]) -> None:
        """Remove the stored envelopes of the commits ``seqs``; some may be gone already."""

    @abstractmethod
    def table_uri(self, table: TablePath) -> str:
        """Where a table is, whether or not it exists; without any password."""

    @abstractmethod
    def read(self, table: TablePath, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        """The rows that readers see now, in no order, batch by batch; all columns, or ``columns``.

        Raises:
            ConfigError: the table does not exist, or has no such column.
        """

    @abstractmethod
    def count_duplicates(self, spec: TableSpec, key: Sequence[str]) -> int:
        """Rows beyond the first of each key. One pass over the ``key`` columns.

        Rows without a value in a field of the key have none that could be the same.

        ``spec``: of a table that exists. ``key``: columns of its schema.
        """

    @abstractmethod
    def preview(self, table: TablePath, rows: int) -> pa.Table:
        """A few rows of a table that exists, in no order."""

    @abstractmethod
    def close(self) -> None:
        """Let go of connections; it can still be used."""
