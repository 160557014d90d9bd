"""The writer of one stream's Postgres table."""

import contextlib
from collections.abc import Sequence

import msgspec
import pyarrow as pa

from atlas_dagster.destinations.base import StreamWriter, TableInfo, TableSpec
from atlas_dagster.destinations.envelope import Envelope, StagedFile
from atlas_dagster.destinations.postgres.columns import Column, columns_of, index_name, quote_all
from atlas_dagster.destinations.postgres.commit_tables import CommitTables, TableState, TableStates
from atlas_dagster.destinations.postgres.connection import Database, ValueRefusedError
from atlas_dagster.destinations.postgres.json_repair import repair_json
from atlas_dagster.destinations.postgres.merge import Merge
from atlas_dagster.destinations.postgres.newest_rows import KeyedMerge
from atlas_dagster.destinations.postgres.stage import TemporaryStage, UnpublishedRows
from atlas_dagster.errors import AtlasError, DestinationError

_NO_FIELDS = pa.schema([])
#: Metadata key of a table's fields: ``dict[field, whether _airbyte_extra keeps values]``, as JSON.
#: It has known fields only; an append removes it.
_KEPT = b"atlas.kept"
#: Column types that can be changed to numeric.
_NUMBERS = ("bigint", "double precision")


class PostgresWriter(StreamWriter):
    """Stages rows in a temporary table. A commit moves them to the table or the unpublished rows.

    A replacing commit deletes and inserts rows instead of replacing the table: readers see the old
    rows until it is done and never wait, and views, grants and indexes stay. Rows are merged by key
    at each commit, because an upsert costs no more than the rows it touches.
    """

    def __init__(
        self,
        spec: TableSpec,
        states: TableStates,
        *,
        database: Database,
        commit_tables: CommitTables,
        stage_name: str,
    ) -> None:
        self.spec = spec
        self._state = states.main
        self._database = database
        self._commit_tables = commit_tables
        self._columns = columns_of(spec.schema)
        self._stage = TemporaryStage(database, stage_name, self._columns)
        self._unpublished = UnpublishedRows(
            spec.path,
            self._columns,
            states.unpublished,
            database=database,
            commit_tables=commit_tables,
        )

    @property
    def staged_rows(self) -> int:
        return self._stage.rows

    @property
    def unpublished_rows(self) -> int:
        return self._unpublished.rows

    def write(self, batch: pa.RecordBatch) -> None:
        self._stage.write(batch)

    def rewind(self, rows: int) -> None:
        self._stage.rewind(rows)

    def stage(self) -> tuple[StagedFile, ...]:
        if not self._stage.rows:
            return ()
        return (StagedFile(self._stage.name, size=0, rows=self._stage.rows, stats=""),)

    def commit(self, envelope: Envelope) -> None:
        """Part of the transaction of :meth:`PostgresDestination.commit`."""
        part = envelope.commit_to(self.spec.path)
        state = self._locked_state()
        if not part.continues:
            self._unpublished.drop()
        if part.unpublished:
            fields = _merge_fields(
                self._unpublished.state.fields if part.continues else _NO_FIELDS, self._columns
            )
            self._unpublished.take(self._stage, seq=envelope.seq, fields=fields)
        else:
            self._publish(envelope, state)
        self._stage.clear()

    def _publish(self, envelope: Envelope, state: TableState) -> None:
        """Move the staged and the unpublished rows to the table."""
        source, rows = self._stage.table, self._stage.rows
        self._kept = _load_kept(state) if self.spec.primary_key else None
        if self._unpublished.rows:
            self._unpublished.take(
                self._stage, seq=envelope.seq, fields=self._unpublished.state.fields
            )
            source, rows = self._unpublished.table, self._unpublished.rows
        row_count = 0 if self.spec.replaces else state.row_count
        if self.spec.replaces and state.exists:
            self._database.run(f"DELETE FROM {state.relation}")
        types = self._fit_table(state)
        if not self._is_unique(envelope, state):
            row_count -= self._keyed_merge(source, state, types).delete_duplicates()
        if rows:
            row_count += self._move(source, state, types)
        self._unpublished.drop()
        fields = _merge_fields(state.fields, self._columns)
        if self._kept is not None:
            fields = fields.with_metadata({_KEPT: msgspec.json.encode(self._kept)})
        self._state = msgspec.structs.replace(
            state, exists=True, seq=envelope.seq, row_count=row_count, fields=fields
        )
        self._commit_tables.advance(self.spec.path, self._state)

    def merge_committed(self) -> None:
        """Do nothing: commits merge their rows themselves."""

    def discard(self) -> None:
        with contextlib.suppress(AtlasError):  # if the connection broke, the stage is dropped
            self._stage.drop()

    def exists(self) -> bool:
        return self._state.exists

    def describe(self) -> TableInfo:
        uri = f"{self._database.uri}/{self._state.schema}/{self._state.table}"
        return TableInfo(uri, self._state.row_count)

    def _is_unique(self, envelope: Envelope, state: TableState) -> bool:
        """Return whether the table has each key once, or need not."""
        key = envelope.commit_to(self.spec.path).primary_key
        if not key or self.spec.replaces or not state.exists:
            return True
        last = self._commit_tables.envelope(envelope.connection, state.seq)
        return last is not None and set(last.commit_to(self.spec.path).primary_key) == set(key)

    def _locked_state(self) -> TableState:
        """Return the table's state, locked until the commit."""
        found = self._commit_tables.states(self.spec.path, lock=True)
        found.check_fence(TableStates(self._state, self._unpublished.state))
        return found.main

    def _fit_table(self, state: TableState) -> dict[str, str]:
        """Create the table, or add missing columns. Return the types of its columns."""
        run = self._database.run
        wanted = {column.name: column.type for column in self._columns}
        if not state.exists:
            columns = ", ".join(f"{column.quoted} {column.type}" for column in self._columns)
            run(f"CREATE TABLE {state.relation} ({columns})")
            types = wanted
        else:
            types = self._commit_tables.columns(state)
            changes = [
                f"ADD COLUMN {column.quoted} {column.type}"
                for column in self._columns
                if column.name not in types
            ]
            for column in self._columns:
                present = types.get(column.name, column.type)
                if present == column.type:
                    continue
                if self.spec.replaces:
                    types[column.name] = column.type
                    changes.append(f"ALTER COLUMN {column.quoted} TYPE {column.type} USING NULL")
                elif present in _NUMBERS and column.type == "numeric":
                    types[column.name] = column.type
                    decimals = column.as_decimal()
                    changes.append(f"ALTER COLUMN {column.quoted} TYPE numeric USING {decimals}")
                else:
                    self._check_type(state, column, present)
            if changes:
                self._alter(state, changes)
            types = wanted | types
        if self.spec.primary_key:
            run(
                self._merge(self._stage.table, state, types).create_index(
                    index_name(state.table, self.spec.primary_key)
                )
            )
        return types

    def _check_type(self, state: TableState, column: Column, present: str) -> None:
        """Raise DestinationError if the table's column was created for another type."""
        place = state.fields.get_field_index(column.name)
        if place >= 0 and column.field and state.fields.field(place).type != column.field.type:
            raise DestinationError(
                f"{state.relation} has a column {column.name} ({present}), which does not match "
                f"the new type {column.type}; sync again, and refresh the stream if that fails, "
                "too."
            )

    def _alter(self, state: TableState, changes: Sequence[str]) -> None:
        try:
            with self._database.savepoint():
                self._database.run(f"ALTER TABLE {state.relation} {', '.join(changes)}")
        except DestinationError as error:
            views = {*self._commit_tables.viewed_columns(state).values()}
            used = f"; the views {', '.join(sorted(views))} use it" if views else ""
            raise DestinationError(
                f"The columns of {state.relation} cannot be changed: {error} Sync again; if that "
                f"fails, too, drop the objects that use them{used}."
            ) from error

    def _move(self, source: str, state: TableState, types: dict[str, str]) -> int:
        """Move the rows of ``source`` to the table. Return how many rows it gained."""
        try:
            with self._database.savepoint():
                return self._insert(source, state, types)
        except ValueRefusedError:
            repair_json(self._database, source, self._columns)
            return self._insert(source, state, types)

    def _insert(self, source: str, state: TableState, types: dict[str, str]) -> int:
        if self.spec.primary_key:
            # Autovacuum never analyzes temporary tables, and has not analyzed new ones yet.
            self._database.run(f"ANALYZE {source}")
            merge = self._keyed_merge(source, state, types)
            merged = merge.run()
            self._kept = merge.kept
            self.late_rows += merged.late
            return merged.more
        names = quote_all([column.name for column in self._columns])
        values = ", ".join(column.cast(types[column.name]) for column in self._columns)
        return self._database.run(
            f"INSERT INTO {state.relation} ({names}) SELECT {values} FROM {source}"
        )

    def _keyed_merge(self, source: str, state: TableState, types: dict[str, str]) -> KeyedMerge:
        cursor = self.spec.cursor
        merge = self._merge(source, state, types)
        is_new = self.spec.replaces or not state.exists
        kept = dict.fromkeys(merge.fields, False) if is_new else _load_kept(state)
        return KeyedMerge(
            self._database,
            merge,
            kind=self.spec.column(cursor).type if cursor else None,
            kept=kept,
            tombstones=self._stage.tombstones() if self.spec.deleted_at else None,
        )

    def _merge(self, source: str, state: TableState, types: dict[str, str]) -> Merge:
        by_logical = {column.logical: column for column in self._columns}
        cursor = self.spec.cursor
        ours = {column.name for column in self._columns}
        return Merge(
            state.relation,
            source,
            self._columns,
            types,
            keys=[by_logical[key] for key in self.spec.primary_key],
            cursor=by_logical[cursor] if cursor else None,
            deleted_at=by_logical[self.spec.deleted_at] if self.spec.deleted_at else None,
            gone=[name for name in state.fields.names if name in types and name not in ours],
        )


def _load_kept(state: TableState) -> dict[str, bool]:
    """Return whether ``_airbyte_extra`` keeps values of a field, for the fields known."""
    found = (state.fields.metadata or {}).get(_KEPT, b"{}")
    return msgspec.json.decode(found, type=dict[str, bool])


def _merge_fields(known: pa.Schema, columns: tuple[Column, ...]) -> pa.Schema:
    """Return the fields of a table after ``columns`` were added."""
    fields = {field.name: field for field in known}
    fields |= {column.name: column.field for column in columns if column.field is not None}
    return pa.schema(fields.values())
