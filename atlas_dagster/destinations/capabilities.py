"""What a destination may be able to do beyond taking syncs."""

from abc import ABC, abstractmethod

import pyarrow as pa

from atlas_dagster.destinations.base import TableInfo, TablePath


class StoresTables(ABC):
    """Stores tables that come from no connection."""

    @abstractmethod
    def store(self, table: TablePath, rows: pa.RecordBatchReader) -> TableInfo:
        """Make ``rows``, whatever their columns, all that ``table`` holds, in one transaction.

        Raises:
            ConfigError: the table is a connection's, or cannot hold such columns.
        """
