"""What all writers of Delta tables share: rows staged as files in a table's own folder."""

import pyarrow as pa

from atlas_dagster.destinations.base import StreamWriter, TableInfo, TableSpec
from atlas_dagster.destinations.delta_table import LakeTable
from atlas_dagster.destinations.staging import ParquetStage
from atlas_dagster.state.envelope import StagedFile


class DeltaWriter(StreamWriter):
    """Stages rows of ``table``, the one readers see; how they get there is for subclasses."""

    def __init__(self, spec: TableSpec, *, table: LakeTable, stage: ParquetStage) -> None:
        self.spec = spec
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

    def discard(self) -> None:
        self._stage.discard()

    def exists(self) -> bool:
        return self.table.exists

    def describe(self) -> TableInfo:
        return TableInfo(self.table.uri, self.table.row_count)
