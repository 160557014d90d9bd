"""What a destination may be able to do beyond taking syncs."""

from abc import ABC, abstractmethod

import pyarrow as pa
from msgspec import Struct

from atlas_dagster.destinations.base import TableInfo, TablePath


class StoresTables(ABC):
    """Stores tables that come from no connection."""

    @abstractmethod
    def store(self, table: TablePath, rows: pa.RecordBatchReader) -> TableInfo:
        """Make ``rows``, whatever their columns, all that ``table`` holds, in one transaction.

        Raises:
            ConfigError: the table is a connection's, or cannot hold such columns.
        """


class Maintained(Struct, frozen=True):
    """What maintenance did to a table, in files."""

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
    """Has tables that get better by rewriting them now and then."""

    @abstractmethod
    def maintain(self, connection: str, table: TablePath, *, retain_hours: int) -> Maintained:
        """Compact the files of ``table`` and delete those unused for ``retain_hours``.

        Its rows and its ``seq`` stay, and what :meth:`Destination.recover` may need. No sync of
        ``connection`` may run meanwhile. A table that does not exist is left alone.

        Raises:
            DestinationError: something else has written to the table meanwhile.
        """
