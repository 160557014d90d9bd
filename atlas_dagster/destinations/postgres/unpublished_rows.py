"""Unpublished rows, in a table of their own beside the stream's table."""

import msgspec
import pyarrow as pa

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.destinations.postgres.columns import ARRIVAL, Column, quote_all
from atlas_dagster.destinations.postgres.commit_tables import CommitTables, TableState
from atlas_dagster.destinations.postgres.connection import Database
from atlas_dagster.destinations.postgres.stage import TemporaryStage


class UnpublishedRows:
    """The unpublished rows of one table, as they were staged: JSON as text, in order of arrival.

    Unlike the stage, their table outlives the database connection. It exists while there are rows.
    """

    def __init__(
        self,
        path: TablePath,
        columns: tuple[Column, ...],
        state: TableState,
        *,
        database: Database,
        commit_tables: CommitTables,
    ) -> None:
        self._path = path
        self._columns = columns
        self._database = database
        self._commit_tables = commit_tables
        self.state = state

    @property
    def table(self) -> str:
        return self.state.relation

    @property
    def rows(self) -> int:
        return self.state.row_count if self.state.exists else 0

    def take(self, stage: TemporaryStage, *, seq: int, fields: pa.Schema) -> None:
        """Add the rows of ``stage``, as part of the transaction of commit ``seq``."""
        state = self._commit_tables.register_unpublished(self._path)
        run = self._database.run
        columns = [f"{column.quoted} {column.staged_type}" for column in self._columns]
        if not state.exists:
            run(f"CREATE TABLE {state.relation} ({', '.join(columns)}, {ARRIVAL} bigint)")
            state = msgspec.structs.replace(state, exists=True, row_count=0)
        else:
            added = ", ".join(f"ADD COLUMN IF NOT EXISTS {column}" for column in columns)
            run(f"ALTER TABLE {state.relation} {added}")
        if stage.rows:
            names = quote_all([column.name for column in self._columns])
            run(
                f"INSERT INTO {state.relation} ({names}, {ARRIVAL}) "
                f"SELECT {names}, {ARRIVAL} + {state.row_count} FROM {stage.table}"
            )
        self.state = msgspec.structs.replace(
            state, seq=seq, row_count=state.row_count + stage.rows, fields=fields
        )
        self._commit_tables.advance_unpublished(self._path, self.state)

    def drop(self) -> None:
        self._commit_tables.drop_unpublished(self._path, self.state)
        self.state = self._commit_tables.find_unpublished(self._path)
