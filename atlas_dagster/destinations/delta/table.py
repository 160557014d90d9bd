"""One Delta table and the ``seq`` it holds.

The ``seq`` of the last commit is a Delta application transaction, which survives compaction, vacuum
and log clean-up. A handle is loaded once and reused for all commits. Delta refuses a commit whose
handle has not loaded another commit of the same application: this is the fence against a second
writer.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Schema, TableFeatures, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from atlas_dagster.destinations.delta.filesystem import reason_of, unusable
from atlas_dagster.destinations.delta.obstacles import find_obstacles
from atlas_dagster.destinations.envelope import Envelope, StagedFile, now
from atlas_dagster.errors import DestinationError
from atlas_dagster.files import fsync_path


class LakeTable:
    """One Delta table, which may not exist yet.

    Raises:
        ConfigError: its store denies access.
        DestinationError: its log is damaged.
        TransientError: its store does not answer.
    """

    def __init__(self, uri: str, connection: str) -> None:
        self.uri = uri
        self.app_id = f"atlas/{connection}"
        self.handle: DeltaTable | None
        try:
            self.handle = DeltaTable(self.uri)
        except TableNotFoundError:
            self.handle = None
        except OSError as error:
            raise unusable(self.uri, error) from error
        except DeltaError as error:
            raise DestinationError(
                f"{self.uri} cannot be read as a Delta table ({reason_of(error)}); restore its "
                "log, or move or delete the folder; the stream is then read from the beginning."
            ) from error
        self._synced_version = self.version

    @property
    def exists(self) -> bool:
        return self.handle is not None

    @property
    def seq(self) -> int:
        """The ``seq`` of the last commit; 0 before the first."""
        return 0 if self.handle is None else self.handle.transaction_version(self.app_id) or 0

    @property
    def row_count(self) -> int:
        return sum(self._files().column("num_records").to_pylist()) if self.exists else 0

    @property
    def file_names(self) -> list[str]:
        """The names of the table's files, relative to its folder and sorted."""
        return sorted(self._files().column("path").to_pylist()) if self.exists else []

    @property
    def files(self) -> list[StagedFile]:
        """The table's files as a commit lists them, with the statistics of the log."""
        return [_staged(row) for row in self._files().to_pylist()] if self.exists else []

    def files_near(self, other: "LakeTable", columns: Collection[str]) -> list[str]:
        """Return the files that may have values of ``columns`` in common with ``other``."""
        mine, others = self._files(), other._files()
        near = pa.array([others.num_rows > 0] * mine.num_rows, pa.bool_())
        for column in columns:
            least, most, nulls = (f"{bound}.{column}" for bound in ("min", "max", "null_count"))
            if not {least, most, nulls} <= {*mine.column_names} & {*others.column_names}:
                continue
            if not pa.types.is_integer(others[least].type) or others[least].null_count:
                continue
            apart = pc.or_(
                pc.greater(mine[least], pc.max(others[most])),
                pc.less(mine[most], pc.min(others[least])),
            )
            if pc.sum(others[nulls]).as_py() != 0:
                apart = pc.and_(apart, pc.equal(mine[nulls], 0))
            near = pc.and_(near, pc.invert(pc.fill_null(apart, False)))
        return list(mine.column("path").filter(near).to_pylist())

    def _files(self) -> pa.Table:
        """One row per file, with its statistics."""
        assert self.handle is not None
        return pa.table(self.handle.get_add_actions(flatten=True))

    @property
    def version(self) -> int:
        return -1 if self.handle is None else self.handle.version()

    @property
    def arrow_schema(self) -> pa.Schema | None:
        return None if self.handle is None else pa.schema(self.handle.schema().to_arrow())

    def add(
        self,
        files: Iterable[StagedFile],
        envelope: Envelope,
        schema: pa.Schema,
        *,
        replaces: bool,
        removed: Iterable[str] = (),
        unique_by: Collection[str] = (),
    ) -> None:
        """Add ``files`` and set ``envelope.seq`` in one transaction; create a missing table.

        The same transaction removes the files named in ``removed``. ``unique_by``: the table then
        has one row for each value of these columns.

        Raises:
            DestinationError: another process has committed with this application id.
        """
        actions = [
            AddAction(file.path, file.size, {}, int(envelope.prepared_at * 1000), True, file.stats)
            for file in files
        ]
        note = {"atlas.sync_id": str(envelope.sync_id), "atlas.run_id": envelope.run_id or ""}
        removals = [RemoveAction(name, True, int(now() * 1000)) for name in removed]
        properties = CommitProperties(
            app_transactions=[
                Transaction(app_id, envelope.seq)
                for app_id in (self.app_id, *([self._key_id(unique_by)] if unique_by else []))
            ],
            custom_metadata=note,
            # No retry: Delta would remove files that a compaction has just replaced, and rows would
            # be doubled. It would also create a table twice that another process has just created.
            max_commit_retries=0 if replaces or removals or not self.exists else None,
        )
        delta_schema = Schema.from_arrow(_without_rules(schema))
        try:
            if self.handle is None:
                create_table_with_add_actions(
                    self.uri, delta_schema, actions, mode="error", commit_properties=properties
                )
                self.handle = DeltaTable(self.uri)
            elif replaces and find_obstacles(self.handle, replaces=False, removes=False):
                self.reload(self.seq)
                create_table_with_add_actions(
                    self.uri, delta_schema, actions, mode="overwrite", commit_properties=properties
                )
            else:
                self._enable_features(schema)
                if replaces:
                    self.reload(self.seq)
                else:
                    self._check_columns(schema)
                self.handle.create_write_transaction(
                    [*actions, *removals],
                    "overwrite" if replaces else "append",
                    delta_schema,
                    commit_properties=properties,
                )
        except (CommitFailedError, DeltaError) as error:
            raise DestinationError(
                f"{self.uri} refused the commit ({reason_of(error)}); if another sync of this "
                "connection is running, wait until it has ended, then sync again."
            ) from error
        self.reload(envelope.seq)

    def is_unique_by(self, columns: Collection[str]) -> bool:
        """Return whether Atlas's last commit left one row for each value of ``columns``."""
        assert self.handle is not None
        return self.handle.transaction_version(self._key_id(columns)) == self.seq

    def _key_id(self, columns: Collection[str]) -> str:
        """Return the application id for the ``seq`` of the last commit without duplicate keys."""
        identity = "\0".join(sorted(columns)).encode()
        digest = hashlib.sha1(identity, usedforsecurity=False).hexdigest()[:16]
        return f"{self.app_id}/unique/{digest}"

    def reload(self, seq: int) -> None:
        """Load new versions; raise a DestinationError if the last ``seq`` is not ``seq``."""
        assert self.handle is not None
        self.handle.update_incremental()
        self._fsync_log()
        if self.seq != seq:
            raise self._fence_error()

    def _fence_error(self) -> DestinationError:
        return DestinationError(
            f"{self.uri} was written by another sync of this connection at the same time; "
            "this one stops. Sync again once the other has ended."
        )

    def _fsync_log(self) -> None:
        """Flush new versions of the log to the disk, which Delta itself does not do.

        After a loss of power, a commit file could be empty, and the table unreadable.
        """
        log = f"{self.uri}/_delta_log"
        for version in range(self._synced_version + 1, self.version + 1):
            self._synced_version = version
            if "://" not in self.uri:
                with contextlib.suppress(FileNotFoundError):  # others may have cleaned up theirs
                    fsync_path(f"{log}/{version:020}.json")
                fsync_path(log)

    def check_fence(self) -> None:
        """Raise :class:`DestinationError` if another sync has committed to the table."""
        if self.exists:
            self.reload(self.seq)
        elif DeltaTable.is_deltatable(self.uri):
            raise self._fence_error()

    def clear(self) -> None:
        """Remove all files from the table."""
        assert self.handle is not None
        seq = self.seq
        self.handle.delete()
        self.reload(seq)

    def require_plain_table(self, *, replaces: bool, removes: bool) -> None:
        """Raise :class:`DestinationError` if the table has features that Atlas cannot write to.

        ``replaces``: the commit recreates the table. ``removes``: it removes files.
        """
        assert self.handle is not None
        found = find_obstacles(self.handle, replaces=replaces, removes=removes)
        if found:
            raise DestinationError(f"{self.uri} has {' and '.join(found)}.")

    def widen(self, schema: pa.Schema) -> None:
        """Add the columns of ``schema`` that the table lacks, and missing metadata of columns.

        No column is ever removed.
        """
        if self.handle is None:
            return
        present = {field.name: field for field in self.arrow_schema or ()}
        self._check_columns(schema)
        missing = [f for f in schema if not _has_metadata_of(present.get(f.name), f)]
        self._enable_features(schema)
        if missing:
            seq = self.seq
            try:
                self.handle.alter.add_columns(Schema.from_arrow(pa.schema(missing)).fields)
            except DeltaError as error:
                raise DestinationError(
                    f"{self.uri} refused new columns ({reason_of(error)}); if another sync of this "
                    "connection is running, wait until it has ended, then sync again."
                ) from error
            # Loading new versions disarms Delta's fence, so reload checks the seq instead.
            self.reload(seq)

    def add_own_columns(self, schema: pa.Schema) -> pa.Schema:
        """Return ``schema`` with the columns that only the table has."""
        self._check_columns(schema)
        others = (field for field in self.arrow_schema or () if field.name not in schema.names)
        return pa.schema([*schema, *others])

    def _check_columns(self, schema: pa.Schema) -> None:
        """Raise if the table has a column of the same name, in any case, that differs.

        Files with such columns would make the table unreadable.
        """
        present = {field.name.lower(): field for field in self.arrow_schema or ()}
        for field in schema:
            there = present.get(field.name.lower(), field)
            if (there.name, there.type) != (field.name, field.type):
                raise DestinationError(
                    f"{self.uri} has a column {there.name} ({there.type}), which does not match "
                    f"the new column {field.name} ({field.type}); sync again, and refresh the "
                    "stream if that fails, too."
                )

    def _enable_features(self, schema: pa.Schema) -> None:
        """Enable the table feature that timestamps without time zone need."""
        assert self.handle is not None
        used = any(pa.types.is_timestamp(f.type) and f.type.tz is None for f in schema)
        if used and "timestampNtz" not in (self.handle.protocol().writer_features or ()):
            seq = self.seq
            self.handle.alter.add_feature(
                TableFeatures.TimestampWithoutTimezone, allow_protocol_versions_increase=True
            )
            self.reload(seq)


def _without_rules(schema: pa.Schema) -> pa.Schema:
    """Return ``schema`` without Delta's rules for columns, which other programs may have added."""
    return pa.schema(
        pa.field(
            field.name,
            field.type,
            metadata={k: v for k, v in (field.metadata or {}).items() if k[:6] != b"delta."},
        )
        for field in schema
    )


def _has_metadata_of(there: pa.Field | None, wanted: pa.Field) -> bool:
    """Return whether the column exists and has all metadata keys of ``wanted``."""
    return there is not None and (wanted.metadata or {}).keys() <= (there.metadata or {}).keys()


def _staged(row: Mapping[str, Any]) -> StagedFile:
    """Return a file of a table, from its row in the log's list of files."""

    def of(bound: str) -> dict[str, Any]:
        return {
            name.removeprefix(bound): value
            for name, value in row.items()
            if name.startswith(bound) and value is not None
        }

    statistics = {
        "numRecords": row["num_records"],
        "minValues": of("min."),
        "maxValues": of("max."),
        "nullCount": of("null_count."),
    }
    stats = msgspec.json.encode(statistics).decode()
    return StagedFile(row["path"], row["size_bytes"], row["num_records"], stats)
