"""The two Delta tables of a stream: the one readers see, and a log of changes beside it.

The log lists files that wait: for their merge by key, or, held, for the rest of their stream. They
stand in the real table's folder already, so to show them is one commit that lists them there. They
wait as long as the log's ``seq`` is ahead of the real table's.
"""

from collections.abc import Callable, Iterable

import pyarrow as pa

from atlas_dagster.destinations.base import TablePath
from atlas_dagster.destinations.delta.data_file import DataFile
from atlas_dagster.destinations.delta.table import LakeTable
from atlas_dagster.destinations.envelope import Envelope, StagedFile, StreamCommit


class StreamTables:
    """The table of one stream, ``main``, and its log of ``changes``; either may not exist yet.

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
        """Whether changes wait; there may be commits without rows among them."""
        return self.changes.seq > self.main.seq

    @property
    def waiting(self) -> list[DataFile]:
        return [self.open_file(name) for name in self.changes.file_names] if self.is_behind else []

    @property
    def exists(self) -> bool:
        """Whether there is a table, or rows that wait to be in one.

        Who drops a table drops the files that wait in its folder, too.
        """
        return self.main.exists or any(file.exists() for file in self.waiting)

    @property
    def arrow_schema(self) -> pa.Schema | None:
        return self.main.arrow_schema or self.changes.arrow_schema

    def take(self, envelope: Envelope, part: StreamCommit, schema: pa.Schema) -> None:
        """Commit ``part`` of ``envelope``, whose files have the columns of ``schema``.

        One without rows makes a table that is not there yet: a log alone, without files that wait,
        is what a dropped table leaves.

        Raises:
            DestinationError: another sync has committed to one of the tables meanwhile.
        """
        if envelope.action != "sync":
            self._mark(envelope, part, schema)
        elif part.unpublished or (part.primary_key and (part.files or self.exists)):
            # The log alone would not tell of a commit that only the real table has taken.
            self.main.check_fence()
            self._append_unpublished(envelope, part, schema)
        else:
            self._publish(envelope, part, schema)

    def _mark(self, envelope: Envelope, part: StreamCommit, schema: pa.Schema) -> None:
        """Take a commit without rows in both tables, so that a sync which is running is refused.

        The log is made if need be: a sync may be about to make it for its first changes.
        """
        main = self.main
        shown = main.exists or not self.changes.exists
        main.check_fence()
        self._append_unpublished(envelope, part, schema)
        if shown:
            empties = part.replaces and not part.unpublished
            columns = schema if empties else main.arrow_schema or schema
            main.add((), envelope, columns, replaces=empties)

    def _append_unpublished(
        self, envelope: Envelope, part: StreamCommit, schema: pa.Schema
    ) -> None:
        """List the files of ``part`` in the log, and no longer those that it does not continue."""
        dropped = [] if part.continues else self.changes.file_names
        if part.continues:
            self.changes.widen(schema)
        self.changes.add(part.files, envelope, schema, replaces=not part.continues)
        self._delete({*dropped}.difference(self.main.file_names if dropped else ()))

    def _publish(self, envelope: Envelope, part: StreamCommit, schema: pa.Schema) -> None:
        """Make the files of ``part`` files of the table, and those that it continues."""
        self.changes.check_fence()
        waiting: list[StagedFile] = []
        if part.continues:
            waiting = self.changes.files
            schema = self.changes.united(schema)
        elif self.changes.seq >= envelope.seq:
            # A table that was dropped counts anew; its log must not seem to be ahead.
            self.changes.add((), envelope, schema, replaces=True)
        if not part.replaces:
            self.main.widen(schema)
        self.main.add([*waiting, *part.files], envelope, schema, replaces=part.replaces)
        self.tidy()

    def tidy(self) -> None:
        """Let go of changes that wait no longer."""
        if self.is_behind or not (names := self.changes.file_names):
            return
        self._delete({*names}.difference(self.main.file_names))
        self.changes.clear()

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            self.open_file(name).delete()


def changes_path(commit_tables: str, table: TablePath) -> TablePath:
    """Where the changes of a table wait."""
    connection, *rest = table
    return (commit_tables, connection, "changes", *rest)
