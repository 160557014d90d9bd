"""The two Delta tables of a stream: the published table, and a change log beside it.

The change log lists files that are unmerged or unpublished. They are in the folder of the published
table already, so one commit that lists them there publishes them. They are pending as long as the
log's ``seq`` is ahead of the table's.
"""

from collections.abc import Callable, Iterable

import pyarrow as pa

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.destinations.delta.data_file import DataFile
from atlas_dagster.destinations.delta.table import LakeTable
from atlas_dagster.destinations.envelope import Envelope, StagedFile, StreamCommit


class StreamTables:
    """The published table of a stream, ``main``, and its change log; either may not exist yet.

    ``open_file`` opens a file in the folder of the table.
    """

    def __init__(
        self, main: LakeTable, changes: LakeTable, open_file: Callable[[str], DataFile]
    ) -> None:
        self.main = main
        self.changes = changes
        self.open_file = open_file

    @property
    def seq(self) -> int:
        """The ``seq`` of the last commit; 0 before the first."""
        return max(self.main.seq, self.changes.seq)

    @property
    def is_behind(self) -> bool:
        """Whether changes are pending, with or without rows."""
        return self.changes.seq > self.main.seq

    @property
    def pending_files(self) -> list[DataFile]:
        return [self.open_file(name) for name in self.changes.file_names] if self.is_behind else []

    @property
    def exists(self) -> bool:
        """Whether there is a table, or pending rows for one.

        Dropping a table also deletes the pending files in its folder.
        """
        return self.main.exists or any(file.exists() for file in self.pending_files)

    @property
    def arrow_schema(self) -> pa.Schema | None:
        return self.main.arrow_schema or self.changes.arrow_schema

    def commit(self, envelope: Envelope, part: StreamCommit, schema: pa.Schema) -> None:
        """Commit ``part`` of ``envelope``, whose files have the columns of ``schema``.

        A commit without rows creates a missing table: a log without pending files would mean that
        the table was dropped.

        Raises:
            DestinationError: another sync has committed to one of the tables.
        """
        if envelope.action != "sync":
            self._commit_edit(envelope, part, schema)
        elif part.unpublished or (part.primary_key and (part.files or self.exists)):
            # The log's own fence would miss a commit to the published table only.
            self.main.check_fence()
            self._append_unpublished(envelope, part, schema)
        else:
            self._publish(envelope, part, schema)

    def _commit_edit(self, envelope: Envelope, part: StreamCommit, schema: pa.Schema) -> None:
        """Commit to both tables, so that the fence stops a running sync.

        The log is created if needed, because a sync may be about to create it.
        """
        main = self.main
        in_main = main.exists or not self.changes.exists
        main.check_fence()
        self._append_unpublished(envelope, part, schema)
        if in_main:
            empties = part.replaces and not part.unpublished
            columns = schema if empties else main.arrow_schema or schema
            main.add((), envelope, columns, replaces=empties)

    def _append_unpublished(
        self, envelope: Envelope, part: StreamCommit, schema: pa.Schema
    ) -> None:
        """List the files of ``part`` in the log; drop older ones unless ``part`` continues them."""
        dropped = [] if part.continues else self.changes.file_names
        if part.continues:
            self.changes.widen(schema)
        self.changes.add(part.files, envelope, schema, replaces=not part.continues)
        self._delete({*dropped}.difference(self.main.file_names if dropped else ()))

    def _publish(self, envelope: Envelope, part: StreamCommit, schema: pa.Schema) -> None:
        """Add the files of ``part``, and the pending ones that it continues, to the table."""
        self.changes.check_fence()
        pending: list[StagedFile] = []
        if part.continues:
            pending = self.changes.files
            schema = self.changes.add_own_columns(schema)
        elif self.changes.seq >= envelope.seq:
            # A dropped table starts with a new seq; its old log must not be ahead of it.
            self.changes.add((), envelope, schema, replaces=True)
        if not part.replaces:
            self.main.widen(schema)
        self.main.add([*pending, *part.files], envelope, schema, replaces=part.replaces)
        self.tidy()

    def tidy(self) -> None:
        """Clear the change log if nothing in it is pending, and delete its dropped files."""
        if self.is_behind or not (names := self.changes.file_names):
            return
        self._delete({*names}.difference(self.main.file_names))
        self.changes.clear()

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.open_file(name).delete()


def changes_path(atlas_folder: str, table: TablePath) -> TablePath:
    """Return the path of a table's change log."""
    connection, *rest = table
    return (atlas_folder, connection, "changes", *rest)
