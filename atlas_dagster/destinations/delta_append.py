"""Delta tables that rows are added to, or that are replaced as a whole."""

import pyarrow as pa

from atlas_dagster.destinations.base import StreamWriter, TableInfo, TableSpec
from atlas_dagster.destinations.delta_table import LakeTable
from atlas_dagster.destinations.staging import ParquetStage
from atlas_dagster.state.envelope import Envelope, StagedFile


class AppendWriter(StreamWriter):
    """Rows are added; a replacing commit is one atomic swap of all files."""

    def __init__(self, spec: TableSpec, *, table: LakeTable, stage: ParquetStage) -> None:
        self.spec = spec
        self.schema = spec.schema.arrow
        self.table = table
        self._stage = stage

    @property
    def staged_rows(self) -> int:  # type: ignore[override]
        return self._stage.rows

    def write(self, batch: pa.RecordBatch) -> None:
        self._stage.write(batch)

    def rewind(self, rows: int) -> None:
        self._stage.rewind(rows)

    def stage(self) -> tuple[StagedFile, ...]:
        return self._stage.hand_over()

    def commit(self, envelope: Envelope) -> None:
        if not self.spec.replaces:
            self.table.widen(self.schema)
        files = envelope.commit_to(self.spec.path).files
        self.table.add(files, envelope, self.schema, replaces=self.spec.replaces)

    def finish(self) -> None:
        """Everything committed is visible already."""

    def discard(self) -> None:
        self._stage.discard()

    def exists(self) -> bool:
        return self.table.exists

    def describe(self) -> TableInfo:
        return TableInfo(self.table.uri, self.table.row_count, str(self.table.version))
