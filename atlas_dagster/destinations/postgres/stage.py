"""Staged rows in a temporary table, and unpublished rows in a table beside the stream's."""

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Raw

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.destinations.postgres.columns import ARRIVAL, Column, quote, quote_all
from atlas_dagster.destinations.postgres.commit_tables import CommitTables, TableState
from atlas_dagster.destinations.postgres.connection import Database, ValueRefusedError
from atlas_dagster.records.issues import IssueKind, ValueChange, as_base64
from atlas_dagster.records.types import EXTRA, META

_decode_extra = msgspec.json.Decoder(dict[str, Raw]).decode


class TemporaryStage:
    """Stages batches in a temporary table, which the server drops with the connection.

    Postgres does not log temporary tables, so only the commit writes rows to the log.
    """

    def __init__(self, database: Database, name: str, columns: tuple[Column, ...]) -> None:
        self._database = database
        self._columns = columns
        self._exists = False
        self.name = name
        self.rows = 0

    @property
    def table(self) -> str:
        return quote(self.name)

    def write(self, batch: pa.RecordBatch) -> None:
        if not self._exists:
            self._database.run(
                f"CREATE TEMPORARY TABLE {self.table} "
                f"({', '.join(self._definitions)}, {ARRIVAL} bigint)"
            )
            self._exists = True
        batch = batch.rename_columns([column.name for column in self._columns])
        arrivals = pa.array(np.arange(self.rows, self.rows + batch.num_rows))
        try:
            self._database.copy(batch.append_column(ARRIVAL, arrivals), self.name)
        except ValueRefusedError:
            batch = self._remove_nuls(batch)
            self._database.copy(batch.append_column(ARRIVAL, arrivals), self.name)
        self.rows += batch.num_rows

    def tombstones(self) -> str:
        """Create and return a temporary table, quoted, for the sync's rows that deleted others."""
        self._database.run(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {self._tombstones} "
            f"({', '.join(self._definitions)})"
        )
        return self._tombstones

    @property
    def _tombstones(self) -> str:
        return quote(f"{self.name}_tombstones")

    @property
    def _definitions(self) -> list[str]:
        return [f"{column.quoted} {column.staged_type}" for column in self._columns]

    def rewind(self, rows: int) -> None:
        """Keep only the first ``rows`` rows."""
        if rows < self.rows:
            self._database.run(f"DELETE FROM {self.table} WHERE {ARRIVAL} >= {rows}")
            self.rows = rows

    def clear(self) -> None:
        """Delete all rows, as part of the commit's transaction."""
        if self._exists:
            self._database.run(f"TRUNCATE {self.table}")
        self.rows = 0

    def drop(self) -> None:
        if self._exists:
            self._database.run(f"DROP TABLE IF EXISTS {self.table}, {self._tombstones}")
        self._exists, self.rows = False, 0

    def _remove_nuls(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Remove U+0000, the one character that Postgres text cannot hold.

        Note the change, and keep the bytes of the value.
        """
        for index, column in enumerate(self._columns):
            values = batch.column(index)
            if values.type != pa.string():
                continue
            found = pc.fill_null(pc.match_substring(values, "\0"), False)
            if not pc.any(found, min_count=0).as_py():
                continue
            kept = pc.replace_substring(values, "\0", "")
            batch = batch.set_column(index, batch.schema.field(index), kept)
            place = batch.schema.get_field_index(META)
            noted = _note_change(batch.column(place), column.source)
            metas = pc.if_else(found, noted, batch.column(place))
            batch = batch.set_column(place, batch.schema.field(place), metas)
            place = batch.schema.get_field_index(EXTRA)
            extra = _keep_values(batch.column(place), column.source, values, found)
            batch = batch.set_column(place, batch.schema.field(place), extra)
        return batch


def _keep_values(extra: pa.Array, field: str, values: pa.Array, chosen: pa.Array) -> pa.Array:
    """Return ``_airbyte_extra`` texts with the ``chosen`` values of ``field``, if not yet kept."""
    texts = extra.to_pylist()
    for row in pc.indices_nonzero(chosen).to_pylist():
        kept = _decode_extra(texts[row] or "{}")
        kept.setdefault(field, as_base64(msgspec.json.encode(values[row].as_py())))
        texts[row] = msgspec.json.encode(kept).decode()
    return pa.array(texts, pa.string())


def _note_change(metas: pa.Array, field: str) -> pa.Array:
    """Return ``_airbyte_meta`` texts, which end in a list of changes, with one more."""
    change = msgspec.json.encode(ValueChange(field, *IssueKind.REPAIRED.value)).decode()
    opened = pc.utf8_slice_codeunits(metas, 0, -len("]}"))
    comma = pc.if_else(pc.ends_with(opened, "["), "", ",")
    return pc.binary_join_element_wise(opened, comma, pa.scalar(f"{change}]}}"), "")


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
