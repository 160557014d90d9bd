"""One Delta table and the ``seq`` it holds.

The ``seq`` of the last commit is a Delta application transaction, which survives compaction, vacuum
and log clean-up. A handle is loaded once and kept from commit to commit: Delta refuses a commit
whose handle has not seen another commit of the same application, and that refusal is the fence
against a second writer.
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
from atlas_dagster.destinations.delta.obstacles import obstacles
from atlas_dagster.destinations.envelope import Envelope, StagedFile, now
from atlas_dagster.errors import DestinationError
from atlas_dagster.files import fsync_path


class LakeTable:
    """One Delta table, which may not exist yet.

    Raises:
        ConfigError: its store does not let us look.
        DestinationError: its log is broken.
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
                "log, or move or delete the folder, and the stream is read from the beginning."
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
        """Of the table's files, relative to it and sorted."""
        return sorted(self._files().column("path").to_pylist()) if self.exists else []

    @property
    def files(self) -> list[StagedFile]:
        """As a commit lists them; it need not look into them again."""
        return [_staged(row) for row in self._files().to_pylist()] if self.exists else []

    def files_near(self, other: "LakeTable", columns: Collection[str]) -> list[str]:
        """The files that may hold values of ``columns`` that ``other`` holds, too."""
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
        """Take ``files`` and ``envelope.seq`` in one transaction, making the table if need be.

        The files named in ``removed`` leave the table in the same transaction. With ``unique_by``,
        the table has one row for each value of these columns now.

        Raises:
            DestinationError: another process has committed with our application id.
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
        delta_schema = Schema.from_arrow(_plain(schema))
        try:
            if self.handle is None:
                create_table_with_add_actions(
                    self.uri, delta_schema, actions, mode="error", commit_properties=properties
                )
                self.handle = DeltaTable(self.uri)
            elif replaces and obstacles(self.handle, replaces=False, removes=False):
                self.reload(self.seq)
                create_table_with_add_actions(
                    self.uri, delta_schema, actions, mode="overwrite", commit_properties=properties
                )
            else:
                self._allow_types(schema)
                if replaces:
                    self.reload(self.seq)
                else:
                    self._refuse_misfits(schema)
                self.handle.create_write_transaction(
                    [*actions, *removals],
                    "overwrite" if replaces else "append",
                    delta_schema,
                    commit_properties=properties,
                )
        except (CommitFailedError, DeltaError) as error:
            raise DestinationError(
                f"{self.uri} refused the commit ({reason_of(error)}); if another sync of this "
                "connection is running, let it end and sync again."
            ) from error
        self.reload(envelope.seq)

    def is_unique_by(self, columns: Collection[str]) -> bool:
        """Whether our last commit left one row for each value of ``columns``."""
        assert self.handle is not None
        return self.handle.transaction_version(self._key_id(columns)) == self.seq

    def _key_id(self, columns: Collection[str]) -> str:
        """An application id whose version is the ``seq`` of the last commit that left no twins."""
        identity = "\0".join(sorted(columns)).encode()
        digest = hashlib.sha1(identity, usedforsecurity=False).hexdigest()[:16]
        return f"{self.app_id}/unique/{digest}"

    def reload(self, seq: int) -> None:
        """Load our own commit, and check that it is our last one."""
        assert self.handle is not None
        self.handle.update_incremental()
        self._fsync_log()
        if self.seq != seq:
            raise self._written()

    def _written(self) -> DestinationError:
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
        """Raise :class:`DestinationError` where another sync has committed to the table."""
        if self.exists:
            self.reload(self.seq)
        elif DeltaTable.is_deltatable(self.uri):
            raise self._written()

    def clear(self) -> None:
        """Remove all files from the table."""
        assert self.handle is not None
        seq = self.seq
        self.handle.delete()
        self.reload(seq)

    def require_plain_table(self, *, replaces: bool, removes: bool) -> None:
        """Check that changes made outside of Atlas let us write to the table.

        ``replaces``: the commit replaces the table. ``removes``: it removes files.

        Raises:
            DestinationError: they do not.
        """
        assert self.handle is not None
        found = obstacles(self.handle, replaces=replaces, removes=removes)
        if found:
            raise DestinationError(f"{self.uri} has {' and '.join(found)}.")

    def widen(self, schema: pa.Schema) -> None:
        """Add the columns of ``schema`` that the table lacks; none is ever removed.

        Columns that do not say yet what they were made for say it afterwards.
        """
        if self.handle is None:
            return
        present = {field.name: field for field in self.arrow_schema or ()}
        self._refuse_misfits(schema)
        missing = [f for f in schema if not _says_as_much(present.get(f.name), f)]
        self._allow_types(schema)
        if missing:
            seq = self.seq
            try:
                self.handle.alter.add_columns(Schema.from_arrow(pa.schema(missing)).fields)
            except DeltaError as error:
                raise DestinationError(
                    f"{self.uri} refused new columns ({reason_of(error)}); if another sync of this "
                    "connection is running, let it end and sync again."
                ) from error
            # Looks past the fence, so what it would have stopped must be stopped here.
            self.reload(seq)

    def united(self, schema: pa.Schema) -> pa.Schema:
        """``schema`` with the columns that only the table has."""
        self._refuse_misfits(schema)
        others = (field for field in self.arrow_schema or () if field.name not in schema.names)
        return pa.schema([*schema, *others])

    def _refuse_misfits(self, schema: pa.Schema) -> None:
        """Raise where a column of ``schema`` has the name, in any case, of one that differs.

        With files of such columns, the table would be unreadable.
        """
        present = {field.name.lower(): field for field in self.arrow_schema or ()}
        for field in schema:
            there = present.get(field.name.lower(), field)
            if (there.name, there.type) != (field.name, field.type):
                raise DestinationError(
                    f"{self.uri} has a column {there.name} ({there.type}), and rows with a column "
                    f"{field.name} ({field.type}) cannot be in one table with it; sync again, and "
                    "refresh the stream if that fails, too."
                )

    def _allow_types(self, schema: pa.Schema) -> None:
        """Switch on the table feature that timestamps without zone need."""
        assert self.handle is not None
        used = any(pa.types.is_timestamp(f.type) and f.type.tz is None for f in schema)
        if used and "timestampNtz" not in (self.handle.protocol().writer_features or ()):
            seq = self.seq
            self.handle.alter.add_feature(
                TableFeatures.TimestampWithoutTimezone, allow_protocol_versions_increase=True
            )
            self.reload(seq)


def _plain(schema: pa.Schema) -> pa.Schema:
    """``schema`` without the rules that others may have made for its columns."""
    return pa.schema(
        pa.field(
            field.name,
            field.type,
            metadata={k: v for k, v in (field.metadata or {}).items() if k[:6] != b"delta."},
        )
        for field in schema
    )


def _says_as_much(there: pa.Field | None, wanted: pa.Field) -> bool:
    """Whether a table has the column ``wanted``, and knows what it was made for."""
    return there is not None and (wanted.metadata or {}).keys() <= (there.metadata or {}).keys()


def _staged(row: Mapping[str, Any]) -> StagedFile:
    """A file of a table, from the statistics it was listed with."""

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
