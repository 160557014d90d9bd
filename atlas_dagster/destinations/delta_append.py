"""Delta tables that rows are added to, or that are replaced as a whole."""

from atlas_dagster.destinations.delta_writer import DeltaWriter
from atlas_dagster.state.envelope import Envelope


class AppendWriter(DeltaWriter):
    """Rows are added; a replacing commit is one atomic swap of all files."""

    def commit(self, envelope: Envelope) -> None:
        schema = self.spec.schema.arrow
        if not self.spec.replaces:
            self.table.widen(schema)
        files = envelope.commit_to(self.spec.path).files
        self.table.add(files, envelope, schema, replaces=self.spec.replaces)

    def finish(self) -> None:
        """Everything committed is visible already."""
