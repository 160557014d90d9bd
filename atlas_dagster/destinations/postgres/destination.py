"""Postgres tables: rows, state and merge of all streams of a commit in one transaction.

A table is ``stream`` or ``namespace__stream`` in the schema of its connection, beside the commit
tables (:mod:`~atlas_dagster.destinations.postgres.commit_tables`).
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow as pa

from atlas_dagster.destinations.base import (
    Destination,
    Recovered,
    StreamWriter,
    TablePath,
    TableSnapshot,
    TableSpec,
    read_columns,
)
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.destinations.postgres.columns import MOST_COLUMNS, columns_of, select_readable
from atlas_dagster.destinations.postgres.commit_tables import CommitTables, TableStates
from atlas_dagster.destinations.postgres.connection import Database
from atlas_dagster.destinations.postgres.merge import Merge
from atlas_dagster.destinations.postgres.writer import PostgresWriter
from atlas_dagster.errors import ConfigError, DestinationError
from atlas_dagster.records.columns import TableColumns
from atlas_dagster.records.types import METADATA_FIELDS


class PostgresSnapshot(TableSnapshot):
    """The ``states`` of a table and of its unpublished rows."""

    def __init__(
        self,
        path: TablePath,
        states: TableStates,
        *,
        database: Database,
        commit_tables: CommitTables,
        stage_numbers: Iterator[int],
    ) -> None:
        self.path = path
        self.seq = states.seq or None if states.exists else None
        self._states = states
        self._database = database
        self._commit_tables = commit_tables
        self._stage_numbers = stage_numbers

    def find_external_change(self) -> None:
        """Return None: Postgres keeps no log of changes."""

    def columns(self) -> TableColumns:
        state = self._states.main
        if not state.exists:
            return TableColumns()
        names = self._commit_tables.columns(state).keys()
        ours = {*state.fields.names, *(field.name for field in METADATA_FIELDS)}
        return TableColumns.of(
            pa.schema(field for field in state.fields if field.name in names),
            names=names,
            fixed=self._commit_tables.viewed_columns(state).keys() | names - ours,
            widens=True,
        )

    def unpublished_columns(self) -> TableColumns | None:
        unpublished = self._states.unpublished
        return TableColumns.of(unpublished.fields) if unpublished.exists else None

    def require_fit(self, spec: TableSpec) -> None:
        columns, state = columns_of(spec.schema), self._states.main
        count = len(columns) + 1  # the stage adds the column ARRIVAL
        if state.exists:
            present = self._commit_tables.columns(state).keys()
            # Postgres counts dropped columns, too.
            added = sum(column.name not in present for column in columns)
            count = max(count, self._commit_tables.column_count(state) + added)
        if count > MOST_COLUMNS:
            raise DestinationError(
                f"{state.relation} would need {count:,} columns, but a table in Postgres has at "
                f"most {MOST_COLUMNS:,}. Leave the stream out, or send this connection to a lake, "
                "whose tables have no such limit. If many columns are of removed fields, drop the "
                "table: the stream is then read from the beginning."
            )

    def open(self, spec: TableSpec) -> StreamWriter:
        self._commit_tables.register(self.path)
        states = self._commit_tables.states(self.path)
        states.check_fence(self._states)
        return PostgresWriter(
            spec,
            states,
            database=self._database,
            commit_tables=self._commit_tables,
            stage_name=f"_atlas_stage_{next(self._stage_numbers)}",
        )


class PostgresDestination(Destination):
    """A Postgres database, with a schema per connection.

    Args:
        address: ``postgresql://user:password@host:port/database``.
    """

    kind = "postgres"
    has_decimals = True

    def __init__(self, address: str) -> None:
        self._database = Database(address)
        self._commit_tables = CommitTables(self._database)
        self._stage_numbers = itertools.count(1)

    def table_uri(self, table: TablePath) -> str:
        state = self._commit_tables.find(table)
        return f"{self._database.uri}/{state.schema}/{state.table}"

    def inspect(self, table: TablePath) -> TableSnapshot:
        states = self._commit_tables.states(table)
        return PostgresSnapshot(
            table,
            states,
            database=self._database,
            commit_tables=self._commit_tables,
            stage_numbers=self._stage_numbers,
        )

    def claim_ownership(self, connection: str, deployment: str) -> str:
        return self._commit_tables.claim_ownership(connection, deployment)

    def transfer_ownership(self, connection: str, deployment: str) -> None:
        self._commit_tables.transfer_ownership(connection, deployment)

    def commit(self, envelope: Envelope, writers: Sequence[StreamWriter]) -> None:
        with self._database.transaction():
            super().commit(envelope, writers)

    def prepare(self, envelope: Envelope) -> None:
        self._commit_tables.store(envelope)

    def commit_without_rows(
        self, envelope: Envelope, expected_seqs: Mapping[TablePath, int | None]
    ) -> None:
        with self._database.transaction():
            self.prepare(envelope)
            for commit in envelope.streams:
                state = self._commit_tables.find(commit.table, lock=True)
                if self.inspect(commit.table).seq != expected_seqs[commit.table]:
                    raise DestinationError(
                        f"A sync of this connection has written to {state.relation} meanwhile, "
                        "or it was dropped; try again."
                    )
                self._commit_tables.commit_without_rows(commit.table, envelope.seq)

    def envelope(self, connection: str, seq: int) -> Envelope | None:
        return self._commit_tables.envelope(connection, seq)

    def recover(self, connection: str) -> Recovered:
        """Return the stored envelopes. A commit is one transaction; there is nothing to finish."""
        return Recovered(self._commit_tables.envelopes(connection))

    def prune_envelopes(self, connection: str, seqs: Collection[int]) -> None:
        self._commit_tables.prune_envelopes(connection, seqs)

    def read(self, table: TablePath, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        state = self._commit_tables.find(table)
        uri = self.table_uri(table)
        if not state.exists:
            raise ConfigError(f"There is no table {uri} yet; materialize {'/'.join(table)}.")
        types = self._commit_tables.columns(state)
        chosen = read_columns(columns, present=[*types], where=uri)
        selected = ", ".join(select_readable(name, types[name]) for name in chosen)
        return self._database.batches(f"SELECT {selected} FROM {state.relation}")

    def count_duplicates(self, spec: TableSpec, key: Sequence[str]) -> int:
        state = self._commit_tables.find(spec.path)
        columns = columns_of(spec.schema)
        keys = [column for column in columns if column.logical in key]
        merge = Merge(state.relation, "", columns, self._commit_tables.columns(state), keys=keys)
        (found,) = self._database.rows(merge.count_duplicates())
        return int(found["duplicates"])

    def preview(self, table: TablePath, rows: int) -> pa.Table:
        state = self._commit_tables.find(table)
        columns = self._commit_tables.columns(state).items()
        selected = ", ".join(select_readable(name, type_) for name, type_ in columns)
        return self._database.table(f"SELECT {selected} FROM {state.relation} LIMIT {rows}")

    def close(self) -> None:
        self._database.close()
