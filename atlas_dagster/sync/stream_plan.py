"""The plan of one stream: its table, its columns, and the state to read from.

After some changes of a source, the stream must be read again: the cursor field is gone, a key field
is gone, or the primary key is another one. The Airbyte platform has the same rules. New, missing
and changed columns need no new read.
"""

from collections.abc import Collection, Mapping

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import TablePath, TableSnapshot, TableSpec
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import BreakingChangeError, ConfigError
from atlas_dagster.protocol.catalog import CDC_DELETED_AT, ConfiguredStream, FieldPath
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.records.columns import TableColumns, fit
from atlas_dagster.records.types import TableSchema, declares
from atlas_dagster.sync.resume import ResumePoint, Target, find_blob

_READ_AGAIN = "refresh the stream to read it again"


class StreamPlan(Struct, frozen=True):
    """The plan of one stream.

    ``snapshot``: the table before the sync. ``table``: the table that the sync needs. ``state``:
    the blob of the last commit; None at the start. ``extends_unpublished``: the sync continues the
    unpublished rows of earlier commits; otherwise it drops them. ``already_read``: the run that
    this one retries has read the whole stream, so this run does not read it again.
    """

    configured: ConfiguredStream
    snapshot: TableSnapshot
    table: TableSpec
    resume_point: ResumePoint
    state: Raw | None
    extends_unpublished: bool = False
    already_read: bool = False

    @property
    def full_refresh(self) -> bool:
        return self.configured.sync_mode == "full_refresh"

    @property
    def resumes(self) -> bool:
        """True if the source continues from the last commit."""
        if self.full_refresh or self.resume_point.unpublished:
            return self.extends_unpublished
        return self.resume_point.envelope is not None

    @property
    def unpublished(self) -> bool:
        """True if the rows stay unpublished until the stream is complete.

        A table therefore never shows half of a full refresh.
        """
        return self.table.replaces or self.full_refresh

    @property
    def resumable(self) -> bool:
        """True if the source can continue from its states."""
        return not self.full_refresh or self.configured.stream.is_resumable

    @property
    def key(self) -> tuple[FieldPath, ...]:
        """The primary key by which the table keeps one row for each value; empty without one."""
        return _choose_merge_key(self.configured)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of the primary key; empty if one of the key's fields has no column."""
        try:
            return tuple(self.table.schema.column_of(*path) for path in self.configured.primary_key)
        except KeyError:  # a nested key field has a column only with append_dedup
            return ()

    @property
    def descriptor(self) -> StreamDescriptor:
        return self.configured.descriptor


def plan_stream(
    target: Target,
    stream: ConfiguredStream,
    resume_point: ResumePoint,
    snapshot: TableSnapshot,
    *,
    root_run_id: str | None = None,
) -> StreamPlan:
    """Plan a sync of ``stream`` from ``resume_point`` into the table of ``snapshot``.

    Raises:
        ConfigError: a declared key or cursor has no column.
        BreakingChangeError: the table cannot follow the source.
        DestinationError: the table cannot take the rows.
    """
    was_synced = resume_point.envelope is not None
    resume_point = _follow_sync_mode(stream, resume_point)
    same_read = _is_same_read(stream, resume_point, root_run_id)
    known = snapshot.columns()
    unmerged = _find_unmerged_columns(stream, resume_point, snapshot)
    extends_unpublished = False
    wanted = TableSchema.of(stream, decimals=target.destination.has_decimals)
    if not resume_point.unpublished:
        # The sync merges the waiting rows into the table before it adds new ones.
        known |= unmerged or TableColumns()
    elif same_read:
        same_cursor = not _has_other_cursor(stream, resume_point.envelope)
        if same_cursor and unmerged is not None and _can_extend(stream, wanted, unmerged):
            extends_unpublished, known = True, known | unmerged
        notice = _describe_retry(
            stream.descriptor, are_gone=unmerged is None, extends_unpublished=extends_unpublished
        )
        why = None if extends_unpublished else "cannot continue where the last attempt ended"
        resume_point = msgspec.structs.replace(resume_point, notice=notice, restarts=why)
    full_refresh = stream.sync_mode == "full_refresh"
    overwrite = stream.destination_sync_mode == "overwrite"
    generation = resume_point.generation_id
    already_read = full_refresh and same_read and not resume_point.unpublished
    starts_generation = (full_refresh or resume_point.unpublished) and not (
        extends_unpublished or already_read
    )
    if starts_generation and resume_point.envelope is not None:
        generation += 1
    if overwrite or (full_refresh and stream.destination_sync_mode == "append_dedup"):
        generation = max(generation, 1)
    replaces = resume_point.replaces or overwrite
    stream = msgspec.structs.replace(
        stream,
        generation_id=generation,
        minimum_generation_id=generation if replaces else 0,
    )
    if resume_point.envelope is not None and not resume_point.unpublished:
        _refuse_other_cursor(target.connection, stream, resume_point.envelope)
    if resume_point.envelope is not None and not replaces:
        _refuse_breaking_change(stream, resume_point.envelope, known.fields)
    if was_synced and not replaces:
        _refuse_new_key_column(stream, wanted, known)
    abandoned = resume_point.unpublished and not extends_unpublished
    blob = None if abandoned else find_blob(resume_point.envelope, stream.descriptor)
    table = _build_table_spec(stream, fit(wanted, known, replaces=replaces), snapshot.path)
    snapshot.require_fit(table)
    return StreamPlan(
        stream, snapshot, table, resume_point, blob, extends_unpublished, already_read
    )


def _build_table_spec(stream: ConfiguredStream, schema: TableSchema, path: TablePath) -> TableSpec:
    cursor = stream.cursor_field if stream.destination_sync_mode == "append_dedup" else ()
    return TableSpec(
        path=path,
        schema=schema,
        mode=stream.destination_sync_mode,
        primary_key=tuple(_find_column(schema, stream, key) for key in _choose_merge_key(stream)),
        cursor=_find_column(schema, stream, cursor) if cursor else None,
        replaces=stream.replaces,
        deleted_at=schema.column_of(CDC_DELETED_AT) if stream.hard_deletes else None,
    )


def _follow_sync_mode(stream: ConfiguredStream, resume_point: ResumePoint) -> ResumePoint:
    """Restart a stream that changed from full refresh to incremental.

    An incremental read cannot continue from the state of a full refresh, so it reads all rows. The
    new rows replace those of the last full refresh, unless full refreshes were appended.
    """
    if (
        resume_point.envelope is None
        or resume_point.unpublished
        or stream.sync_mode == "full_refresh"
    ):
        return resume_point
    last = resume_point.envelope.commit_of(stream.descriptor)
    if not last.full_refresh:
        return resume_point
    rows = "its old rows are replaced when it is complete" if last.replaces else "its rows stay"
    return ResumePoint(
        generation_id=resume_point.generation_id + 1,
        replaces=last.replaces,
        unrecorded=resume_point.unrecorded,
        restarts="was read in full so far and is incremental now",
        wiped_at=resume_point.wiped_at,
        notice=f"Stream '{stream.descriptor}' was read in full so far and is incremental now: it "
        f"is read from the beginning, and {rows}.",
    )


def _find_unmerged_columns(
    stream: ConfiguredStream, resume_point: ResumePoint, snapshot: TableSnapshot
) -> TableColumns | None:
    """Return the columns of unpublished and unmerged rows; None if there are no such rows."""
    if resume_point.envelope is None:
        return None
    last = resume_point.envelope.commit_of(stream.descriptor)
    if not last.unpublished and not last.primary_key:
        return None
    return snapshot.unpublished_columns()


def _is_same_read(
    stream: ConfiguredStream, resume_point: ResumePoint, root_run_id: str | None
) -> bool:
    """Return whether the last commit and this sync belong to the same read from the beginning.

    A full refresh is a snapshot, so only retries of one run may continue it. A commit by a state
    edit does not belong to a read.
    """
    if resume_point.envelope is None or resume_point.envelope.action != "sync":
        return False
    last = resume_point.envelope.commit_of(stream.descriptor)
    if stream.sync_mode == "incremental":
        return not last.full_refresh
    return last.full_refresh and root_run_id is not None and last.started_by_run == root_run_id


def _describe_retry(name: StreamDescriptor, *, are_gone: bool, extends_unpublished: bool) -> str:
    if extends_unpublished:
        return (
            f"Stream '{name}' continues where the last attempt ended; all its rows are published "
            "together when it is complete."
        )
    why = (
        f"The unpublished rows of stream '{name}' are gone"
        if are_gone
        else f"The fields or the cursor of stream '{name}' changed"
    )
    return f"{why}; it is read again from the beginning."


def _choose_merge_key(stream: ConfiguredStream) -> tuple[FieldPath, ...]:
    return stream.primary_key if stream.destination_sync_mode == "append_dedup" else ()


def _can_extend(stream: ConfiguredStream, wanted: TableSchema, unpublished: TableColumns) -> bool:
    """Return whether rows of ``wanted`` can extend unpublished rows: same key, no field removed."""
    found = {c.path or (c.field,): unpublished.find(c) for c in wanted.columns}
    names = {column.name for column in found.values() if column is not None}
    key = [found[path] for path in _choose_merge_key(stream) if path in found]
    return unpublished.of_fields <= names and None not in key


def _refuse_breaking_change(
    stream: ConfiguredStream, last: Envelope, known: Collection[str]
) -> None:
    """Compare ``stream`` with its last commit and the ``known`` fields of its table.

    Raises:
        BreakingChangeError: the stream cannot continue from its last commit.
    """
    name, schema = stream.descriptor, stream.stream.json_schema
    cursor, key = stream.cursor_field, stream.primary_key
    if stream.sync_mode == "incremental" and _is_gone(cursor, schema, known):
        raise BreakingChangeError(
            f"The source no longer has the field '{'.'.join(cursor)}', the cursor of stream "
            f"'{name}', so it is not known where to continue; choose another cursor_field, or "
            f"discover the source again if it is back, and {_READ_AGAIN}.",
            stream=str(name),
        )
    if stream.destination_sync_mode != "append_dedup":
        return
    before = last.commit_of(name).primary_key
    if before and set(before) != set(key):
        raise BreakingChangeError(
            f"Stream '{name}' has a new primary key, {_format_key(key)} instead of "
            f"{_format_key(before)}, so new rows cannot be matched with those in the table; "
            f"{_READ_AGAIN}.",
            stream=str(name),
        )
    for path in key:
        if _is_gone(path, schema, known):
            raise BreakingChangeError(
                f"The source no longer has the field '{'.'.join(path)}', which is in the primary "
                f"key of stream '{name}', so new rows cannot be matched with those in the table; "
                f"choose another primary_key and {_READ_AGAIN}.",
                stream=str(name),
            )


def _has_other_cursor(stream: ConfiguredStream, last: Envelope | None) -> bool:
    """Return whether the stored state belongs to another cursor than the declared one.

    False if the source defines the cursor itself, because it ignores the declared one.
    """
    if last is None or stream.sync_mode != "incremental" or stream.stream.source_defined_cursor:
        return False
    before = last.commit_of(stream.descriptor).cursor_field
    return before is not None and before != stream.cursor_field


def _refuse_other_cursor(connection: str, stream: ConfiguredStream, last: Envelope) -> None:
    """Refuse to continue with another cursor field, because that would skip rows.

    Raises:
        BreakingChangeError: the stored state belongs to another cursor.
    """
    if _has_other_cursor(stream, last):
        before = last.commit_of(stream.descriptor).cursor_field or ()
        raise BreakingChangeError(
            f"Stream '{stream.descriptor}' has cursor_field '{'.'.join(stream.cursor_field)}', but "
            f"its stored state belongs to '{'.'.join(before)}'. Continuing with another cursor "
            "would skip rows: declare the old one again, or read the stream again with "
            f"`atlas refresh {connection} --stream {stream.descriptor}`.",
            stream=str(stream.descriptor),
        )


def _refuse_new_key_column(
    stream: ConfiguredStream, wanted: TableSchema, known: TableColumns
) -> None:
    """Compare the key columns of ``wanted`` with the columns of the table, if it has any.

    Raises:
        BreakingChangeError: the table lacks a key column, so its rows have no key.
    """
    if stream.destination_sync_mode != "append_dedup" or not known.fields:
        return
    columns = {column.name: column for column in wanted.columns}
    for path in stream.primary_key:
        column = columns[_find_column(wanted, stream, path)]
        if known.find(column) is None:
            is_known = column.field in known.fields
            new = "a new type for its key" if is_known else "the new key field"
            raise BreakingChangeError(
                f"Stream '{stream.descriptor}' has {new} '{'.'.join(path)}', so new rows cannot be "
                f"matched with those in the table; {_READ_AGAIN}.",
                stream=str(stream.descriptor),
            )


def _find_column(schema: TableSchema, stream: ConfiguredStream, path: FieldPath) -> str:
    """Return the column of the key or cursor field at ``path``.

    Raises:
        ConfigError: the stream has no such field.
    """
    try:
        return schema.column_of(*path)
    except KeyError:
        raise ConfigError(
            f"Stream '{stream.descriptor}' has no field '{'.'.join(path)}' for its key or "
            f"cursor; its fields are {', '.join(column.field for column in schema.top_level)}."
        ) from None


def _is_gone(path: FieldPath, schema: Mapping[str, object], known: Collection[str]) -> bool:
    return bool(path) and path[0] in known and not declares(schema, path)


def _format_key(key: Collection[FieldPath]) -> str:
    return ", ".join(f"'{'.'.join(path)}'" for path in key)
