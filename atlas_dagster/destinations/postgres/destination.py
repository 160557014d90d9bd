"""Postgres tables: rows, state and merge of all streams of a commit in one transaction.

Tables stand in the schema of their connection, as ``stream`` or ``namespace__stream``, beside what
Atlas itself keeps there (:mod:`~atlas_dagster.destinations.postgres.commit_tables`).
"""

from collections.abc import Collection, Mapping, Sequence

import pyarrow as pa

from atlas_dagster.destinations.base import (
    Destination,
    Recovered,
    StreamWriter,
    TablePath,
    TableSpec,
    read_columns,
)
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.destinations.postgres.columns import MOST_COLUMNS, columns_of, readable
from atlas_dagster.destinations.postgres.commit_tables import CommitTables, TableStates
from atlas_dagster.destinations.postgres.connection import Database
from atlas_dagster.destinations.postgres.merge import Merge
from atlas_dagster.destinations.postgres.writer import PostgresWriter
from atlas_dagster.errors import ConfigError, DestinationError
from atlas_dagster.records.columns import TableColumns
from atlas_dagster.records.types import METADATA_FIELDS


class PostgresDestination(Destination):
    """A Postgres database, with a schema per connection.

    Args:
        address: ``postgresql://user:password@host:port/database``.
    """

    kind = "postgres"
    has_decimals = True

    def __init__(self, address: str) -> None:
        self._database = Database(address)
        self._bookkeeping = CommitTables(self._database)
        self._opened = 0
        # As seen when a sync was planned, for its writers: what comes between is refused, too.
        self._planned: dict[TablePath, TableStates] = {}

    def table_uri(self, table: TablePath) -> str:
        state = self._bookkeeping.find(table)
        return f"{self._database.uri}/{state.schema}/{state.table}"

    def committed(self, connection: str, table: TablePath) -> int | None:  # noqa: ARG002
        found = self._planned[table] = self._bookkeeping.states(table)
        return found.seq or None if found.exists else None

    def external_change(self, connection: str, table: TablePath) -> str | None:  # noqa: ARG002
        """Rows changed by hand leave no trace here; of a table in the way, ``committed`` tells."""
        return None

    def claim_ownership(self, connection: str, deployment: str) -> str:
        return self._bookkeeping.claim_ownership(connection, deployment)

    def transfer_ownership(self, connection: str, deployment: str) -> None:
        self._bookkeeping.transfer_ownership(connection, deployment)

    def known_columns(self, table: TablePath) -> TableColumns:
        state = self._bookkeeping.find(table)
        if not state.exists:
            return TableColumns()
        names = self._bookkeeping.columns(state).keys()
        ours = {*state.fields.names, *(field.name for field in METADATA_FIELDS)}
        return TableColumns.of(
            pa.schema(field for field in state.fields if field.name in names),
            names=names,
            lasting=self._bookkeeping.viewed_columns(state).keys() | names - ours,
            widens=True,
        )

    def unpublished_columns(
        self,
        connection: str,  # noqa: ARG002
        table: TablePath,
    ) -> TableColumns | None:
        unpublished = self._bookkeeping.find_unpublished(table)
        return TableColumns.of(unpublished.fields) if unpublished.exists else None

    def refuse_unfit(self, connection: str, spec: TableSpec) -> None:  # noqa: ARG002
        columns = columns_of(spec.schema)
        state = self._bookkeeping.find(spec.path)
        count = len(columns) + 1  # rows are numbered while they are staged
        if state.exists:
            present = self._bookkeeping.columns(state).keys()
            # Columns that were dropped count for ever.
            added = sum(column.name not in present for column in columns)
            count = max(count, self._bookkeeping.column_count(state) + added)
        if count > MOST_COLUMNS:
            raise DestinationError(
                f"{state.relation} would need {count:,} columns, and a table in Postgres has at "
                f"most {MOST_COLUMNS:,}: leave the stream out, or send this connection to a lake, "
                "whose tables have no such limit; columns of fields that are gone go where you "
                "drop the table, and the stream is read from the beginning."
            )

    def open(self, connection: str, spec: TableSpec) -> StreamWriter:  # noqa: ARG002
        self._opened += 1
        self._bookkeeping.register(spec.path)
        states = self._bookkeeping.states(spec.path)
        states.check_fence(self._planned.pop(spec.path, states))
        return PostgresWriter(
            spec,
            states,
            database=self._database,
            commit_tables=self._bookkeeping,
            stage_name=f"_atlas_stage_{self._opened}",
        )

    def commit(self, envelope: Envelope, writers: Sequence[StreamWriter]) -> None:
        with self._database.transaction():
            super().commit(envelope, writers)

    def prepare(self, envelope: Envelope) -> None:
        self._bookkeeping.store(envelope)

    def commit_without_rows(
        self, envelope: Envelope, since: Mapping[TablePath, int | None]
    ) -> None:
        with self._database.transaction():
            self.prepare(envelope)
            for commit in envelope.streams:
                state = self._bookkeeping.find(commit.table, lock=True)
                committed = self.committed(envelope.connection, commit.table)
                self._planned.pop(commit.table)
                if committed != since[commit.table]:
                    raise DestinationError(
                        f"{state.relation} was written by a sync of this connection, or dropped, "
                        "meanwhile; do it again."
                    )
                self._bookkeeping.commit_without_rows(commit.table, envelope.seq)

    def envelope(self, connection: str, seq: int) -> Envelope | None:
        return self._bookkeeping.envelope(connection, seq)

    def recover(self, connection: str) -> Recovered:
        """A commit is one transaction: there are no halves."""
        return Recovered(self._bookkeeping.envelopes(connection))

    def prune_envelopes(self, connection: str, seqs: Collection[int]) -> None:
        self._bookkeeping.prune_envelopes(connection, seqs)

    def read(self, table: TablePath, columns: Sequence[str] | None = None) -> pa.RecordBatchReader:
        state = self._bookkeeping.find(table)
        uri = self.table_uri(table)
        if not state.exists:
            raise ConfigError(f"There is no table {uri} yet; materialize {'/'.join(table)}.")
        types = self._bookkeeping.columns(state)
        chosen = read_columns(columns, present=[*types], where=uri)
        selected = ", ".join(readable(name, types[name]) for name in chosen)
        return self._database.batches(f"SELECT {selected} FROM {state.relation}")

    def count_duplicates(self, spec: TableSpec, key: Sequence[str]) -> int:
        state = self._bookkeeping.find(spec.path)
        columns = columns_of(spec.schema)
        keys = [column for column in columns if column.logical in key]
        merge = Merge(state.relation, "", columns, self._bookkeeping.columns(state), keys=keys)
        (found,) = self._database.rows(merge.duplicates())
        return int(found["duplicates"])

    def preview(self, table: TablePath, rows: int) -> pa.Table:
        state = self._bookkeeping.find(table)
        columns = self._bookkeeping.columns(state).items()
        selected = ", ".join(readable(name, type_) for name, type_ in columns)
        return self._database.table(f"SELECT {selected} FROM {state.relation} LIMIT {rows}")

    def close(self) -> None:
        self._database.close()
