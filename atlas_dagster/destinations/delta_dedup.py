"""Delta tables with one row per primary key.

Checkpoints append to a change table beside the real one, which costs no more than an append. When
the stream ends, its changes are reduced to the newest row of each key and merged in one commit; the
real table then holds the ``seq`` of the last change merged, so a merge that was interrupted is
simply done at the next opportunity.
"""

from collections.abc import Callable, Iterator

import pyarrow as pa
from deltalake import QueryBuilder
from deltalake.exceptions import DeltaError

from atlas_dagster.destinations.base import TableSpec
from atlas_dagster.destinations.delta_table import LakeTable
from atlas_dagster.destinations.delta_writer import DeltaWriter
from atlas_dagster.destinations.staging import ParquetStage
from atlas_dagster.errors import DestinationError
from atlas_dagster.records.types import EXTRACTED_AT
from atlas_dagster.state.envelope import Envelope

#: Order of arrival, the last tie-break between versions of one key; in the change table only.
_ARRIVAL = "_atlas_arrival"


class DedupWriter(DeltaWriter):
    """Appends to the change table, merges at the end."""

    def __init__(
        self,
        spec: TableSpec,
        *,
        table: LakeTable,
        changes: LakeTable,
        open_main_stage: Callable[[pa.Schema], ParquetStage],
        open_changes_stage: Callable[[pa.Schema], ParquetStage],
        find_envelope: Callable[[int], Envelope | None],
    ) -> None:
        self._changes_schema = spec.schema.arrow.append(pa.field(_ARRIVAL, pa.int64()))
        super().__init__(spec, table=table, stage=open_changes_stage(self._changes_schema))
        self.changes = changes
        self._open_main_stage = open_main_stage
        self._find_envelope = find_envelope
        self._arrived = 0
        if self.changes.row_count or (self.table.exists and self.table.seq < self.changes.seq):
            # A dead process left rows, merged already but not cleared or waiting for their merge;
            # or a commit without rows, which may have been to empty the table.
            self._merge()

    def write(self, batch: pa.RecordBatch) -> None:
        arrivals = pa.array(range(self._arrived, self._arrived + batch.num_rows), pa.int64())
        self._arrived += batch.num_rows
        columns = [*batch.columns, arrivals]
        super().write(pa.RecordBatch.from_arrays(columns, schema=self._changes_schema))

    def commit(self, envelope: Envelope) -> None:
        if not self.spec.replaces:
            self.changes.widen(self._changes_schema)
        # A replacing stream commits once, into an empty change table, with only its own columns.
        files = envelope.commit_to(self.spec.path).files
        self.changes.add(files, envelope, self._changes_schema, replaces=self.spec.replaces)

    def finish(self) -> None:
        if self.changes.exists and self.changes.seq != self.table.seq:
            self._merge()

    def _merge(self) -> None:
        """Bring all changes into the table, then empty the change table."""
        seq = self.changes.seq
        if self.table.seq < seq:
            envelope = self._find_envelope(seq)
            if envelope is None:
                raise DestinationError(
                    f"{self.table.uri} has changes of commit {seq} waiting whose envelope is gone "
                    "from the lake's _atlas folder; restore that folder, or refresh the stream."
                )
            replaces = envelope.commit_to(self.spec.path).replaces
            if replaces or not self.table.exists:
                self._rewrite(envelope, replaces=replaces)
            else:
                self._upsert(envelope)
        handle = self.changes.handle
        assert handle is not None
        handle.delete()
        self.changes.reload(seq)

    def _rewrite(self, envelope: Envelope, *, replaces: bool) -> None:
        schema = self._target_schema()
        stage = self._open_main_stage(schema)
        try:
            for batch in self._newest_changes(schema):
                stage.write(batch)
            files = stage.hand_over()
        except BaseException:
            stage.discard()
            raise
        self.table.add(files, envelope, schema, replaces=replaces)

    def _upsert(self, envelope: Envelope) -> None:
        assert self.table.handle is not None
        schema = self._target_schema()
        self.table.widen(schema)
        # In memory: delta-rs cannot read one table lazily while it writes another, and a source it
        # holds whole lets it skip files by their statistics (streamed_exec=False).
        newest = pa.Table.from_batches(self._newest_changes(schema), schema)
        same_key = " AND ".join(
            # Null keys would pile up under "=", and skip no files under the other.
            f"(target.{_quoted(key)} {equals} source.{_quoted(key)})"
            for key in self.spec.primary_key
            for equals in ("IS NOT DISTINCT FROM" if newest.column(key).null_count else "=",)
        )
        columns = {_quoted(field.name): f"source.{_quoted(field.name)}" for field in schema}
        try:
            (
                self.table.handle.merge(
                    newest,
                    same_key,
                    source_alias="source",
                    target_alias="target",
                    streamed_exec=False,
                    commit_properties=self.table.transaction(envelope.seq),
                )
                .when_matched_update(columns, predicate=self._is_newer())
                .when_not_matched_insert(columns)
                .execute()
            )
        except DeltaError as error:
            raise DestinationError(
                f"{self.table.uri} refused the merge of its changes ({error}); they are kept and "
                "merged by the next sync."
            ) from error
        self.table.handle.update_incremental()
        if self.table.seq < envelope.seq:
            # A merge that changes no row commits nothing, not even its seq.
            self.table.add((), envelope, schema, replaces=False)
        self.table.reload(envelope.seq)

    def _is_newer(self) -> str:
        """Whether the source row replaces the target's: by cursor, then by extraction time."""
        later = f"source.{EXTRACTED_AT} >= target.{EXTRACTED_AT}"
        if self.spec.cursor is None:
            return later
        source = f"source.{_quoted(self.spec.cursor)}"
        target = f"target.{_quoted(self.spec.cursor)}"
        return (
            f"({source} > {target}) OR ({target} IS NULL AND {source} IS NOT NULL)"
            f" OR (({source} IS NOT DISTINCT FROM {target}) AND {later})"
        )

    def _target_schema(self) -> pa.Schema:
        """The waiting changes' own columns: they may be older than today's catalog."""
        waiting = self.changes.arrow_schema
        assert waiting is not None
        return pa.schema([field for field in waiting if field.name != _ARRIVAL])

    def _newest_changes(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The newest version of each key among the changes, in batches."""
        order = [f"{EXTRACTED_AT} DESC", f"{_ARRIVAL} DESC"]
        if self.spec.cursor is not None:
            order.insert(0, f"{_quoted(self.spec.cursor)} DESC NULLS LAST")
        columns = ", ".join(_quoted(field.name) for field in schema)
        keys = ", ".join(map(_quoted, self.spec.primary_key))
        handle = self.changes.handle
        assert handle is not None
        reader = (
            QueryBuilder()
            .register("changes", handle)
            .execute(
                f"SELECT {columns} FROM (SELECT *, row_number() OVER "  # noqa: S608 - quoted names
                f"(PARTITION BY {keys} ORDER BY {', '.join(order)}) AS _atlas_rank "
                "FROM changes) WHERE _atlas_rank = 1"
            )
        )
        for batch in pa.RecordBatchReader.from_stream(reader):
            yield batch.cast(schema)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
