"""What one sync will do with one stream: into which table, from which state."""

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import Destination, TablePath, TableSpec
from atlas_dagster.protocol.catalog import CDC_DELETED_AT, ConfiguredStream, FieldPath
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.records.columns import TableColumns, fit
from atlas_dagster.records.types import TableSchema
from atlas_dagster.sync.breaking import (
    column_at,
    has_other_cursor,
    refuse_breaking_change,
    refuse_new_key_column,
    refuse_other_cursor,
)
from atlas_dagster.sync.reconcile import ResumePoint
from atlas_dagster.sync.resume import stored_blob


class StreamPlan(Struct, frozen=True):
    """One stream of a sync.

    ``state`` is the blob its last commit stored, None at the start. ``extends_unpublished``: the
    rows that are held of it belong to this sync, too; otherwise they are dropped. ``already_read``:
    the run that this one tries again has read all of it, so it is not read again.
    """

    configured: ConfiguredStream
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
        """Whether the source is to go on from the last commit."""
        if self.full_refresh or self.resume_point.unpublished:
            return self.extends_unpublished
        return self.resume_point.envelope is not None

    @property
    def unpublished(self) -> bool:
        """Whether its rows are shown only once it is complete.

        So that no table ever shows half of what is to replace its rows, or half a full refresh.
        """
        return self.table.replaces or self.full_refresh

    @property
    def resumable(self) -> bool:
        """Whether the source goes on from its states."""
        return not self.full_refresh or self.configured.stream.is_resumable

    @property
    def key(self) -> tuple[FieldPath, ...]:
        """What the table has one row for."""
        return _key(self.configured)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that hold the stream's primary key; none where one of them has no column."""
        try:
            return tuple(self.table.schema.column_of(*path) for path in self.configured.primary_key)
        except KeyError:  # a field in an object gets a column where the key is merged by only
            return ()

    @property
    def descriptor(self) -> StreamDescriptor:
        return self.configured.descriptor


def plan_stream(
    connection: str,
    stream: ConfiguredStream,
    resume_point: ResumePoint,
    destination: Destination,
    path: TablePath,
    *,
    root_run_id: str | None = None,
) -> StreamPlan:
    """What a sync that continues ``stream`` from ``resume_point`` will do.

    Raises:
        ConfigError: a declared key or cursor is not a column.
        BreakingChangeError: its table cannot follow the source.
        DestinationError: its table cannot take the rows.
    """
    is_synced = resume_point.envelope is not None
    resume_point = _changed_over(stream, resume_point)
    ours = _is_ours(stream, resume_point, root_run_id)
    known = destination.known_columns(path)
    waiting = _waiting_columns(connection, stream, resume_point, destination, path)
    extends_unpublished = False
    wanted = TableSchema.of(stream, decimals=destination.has_decimals)
    if not resume_point.unpublished:
        # Changes that wait for their merge are in the table before anything else is.
        known |= waiting or TableColumns()
    elif ours:
        same = not has_other_cursor(stream, resume_point.envelope)
        if same and waiting is not None and _go_on(stream, wanted, waiting):
            extends_unpublished, known = True, known | waiting
        notice = _told(stream, gone=waiting is None, extends_unpublished=extends_unpublished)
        why = None if extends_unpublished else "cannot be gone on with where the try before ended"
        resume_point = msgspec.structs.replace(resume_point, notice=notice, restarts=why)
    full_refresh = stream.sync_mode == "full_refresh"
    overwrite = stream.destination_sync_mode == "overwrite"
    generation = resume_point.generation_id
    already_read = full_refresh and ours and not resume_point.unpublished
    begins = (full_refresh or resume_point.unpublished) and not (
        extends_unpublished or already_read
    )
    if begins and resume_point.envelope is not None:
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
        refuse_other_cursor(connection, stream, resume_point.envelope)
    if resume_point.envelope is not None and not replaces:
        refuse_breaking_change(stream, resume_point.envelope, known.fields)
    if is_synced and not replaces:
        refuse_new_key_column(stream, wanted, known)
    given_up = resume_point.unpublished and not extends_unpublished
    blob = None if given_up else stored_blob(resume_point.envelope, stream.descriptor)
    table = _table(stream, fit(wanted, known, replaces=replaces), path)
    destination.refuse_unfit(connection, table)
    return StreamPlan(stream, table, resume_point, blob, extends_unpublished, already_read)


def _table(stream: ConfiguredStream, schema: TableSchema, path: TablePath) -> TableSpec:
    dedup = stream.destination_sync_mode == "append_dedup"
    keys = stream.primary_key if dedup else ()
    cursor = stream.cursor_field if dedup else ()
    return TableSpec(
        path=path,
        schema=schema,
        mode=stream.destination_sync_mode,
        primary_key=tuple(column_at(schema, stream, key) for key in keys),
        cursor=column_at(schema, stream, cursor) if cursor else None,
        replaces=stream.replaces,
        deleted_at=schema.column_of(CDC_DELETED_AT) if stream.hard_deletes else None,
    )


def _changed_over(stream: ConfiguredStream, resume_point: ResumePoint) -> ResumePoint:
    """``resume_point``, unless the stream was read in full so far and is incremental from now on.

    The state of a full refresh is none that an incremental read goes on from, so that brings all
    rows; those of the last full refresh go, but not where each was appended to the ones before.
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
    rows = "its old rows are replaced once that is complete" if last.replaces else "its rows stay"
    return ResumePoint(
        generation_id=resume_point.generation_id + 1,
        replaces=last.replaces,
        unrecorded=resume_point.unrecorded,
        restarts="was read in full so far and is incremental now",
        wiped_at=resume_point.wiped_at,
        notice=f"Stream '{stream.descriptor}' was read in full so far and is incremental now: it "
        f"is read from the beginning, and {rows}.",
    )


def _waiting_columns(
    connection: str,
    stream: ConfiguredStream,
    resume_point: ResumePoint,
    destination: Destination,
    path: TablePath,
) -> TableColumns | None:
    """The columns of rows that are held, or wait for their merge; None where there are none."""
    if resume_point.envelope is None:
        return None
    last = resume_point.envelope.commit_of(stream.descriptor)
    if not last.unpublished and not last.primary_key:
        return None
    return destination.unpublished_columns(connection, path)


def _is_ours(stream: ConfiguredStream, resume_point: ResumePoint, root_run_id: str | None) -> bool:
    """Whether the last commit is of the same reading from the beginning as this sync.

    A full refresh is a snapshot: only a run that is tried again has a part in it. What a user said
    about the state is part of no reading.
    """
    if resume_point.envelope is None or resume_point.envelope.action != "sync":
        return False
    last = resume_point.envelope.commit_of(stream.descriptor)
    if stream.sync_mode == "incremental":
        return not last.full_refresh
    return last.full_refresh and root_run_id is not None and last.started_by_run == root_run_id


def _told(stream: ConfiguredStream, *, gone: bool, extends_unpublished: bool) -> str:
    name = f"stream '{stream.descriptor}'"
    if extends_unpublished:
        return (
            f"S{name[1:]} goes on where the try before ended; all its rows are shown at once when "
            "it is complete."
        )
    why = (
        f"What was held of {name} is gone"
        if gone
        else f"The fields or the cursor of {name} changed"
    )
    return f"{why}; it is read again from the beginning."


def _key(stream: ConfiguredStream) -> tuple[FieldPath, ...]:
    return stream.primary_key if stream.destination_sync_mode == "append_dedup" else ()


def _go_on(stream: ConfiguredStream, wanted: TableSchema, unpublished: TableColumns) -> bool:
    """Whether rows of ``wanted`` can follow those held: the key is there, and no field is gone."""
    found = {c.path or (c.field,): unpublished.find(c) for c in wanted.columns}
    names = {column.name for column in found.values() if column is not None}
    of_key = [found[path] for path in _key(stream) if path in found]
    return unpublished.of_fields <= names and None not in of_key
