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
from atlas_dagster.sync.reconcile import Resumption
from atlas_dagster.sync.resume import stored_blob


class StreamPlan(Struct, frozen=True):
    """One stream of a sync.

    ``state`` is the blob its last commit stored, None at the start. ``continues``: the rows that
    are held of it belong to this sync, too; otherwise they are dropped. ``done``: the run that this
    one tries again has read all of it, so it is not read again.
    """

    configured: ConfiguredStream
    table: TableSpec
    resumption: Resumption
    state: Raw | None
    continues: bool = False
    done: bool = False

    @property
    def full_refresh(self) -> bool:
        return self.configured.sync_mode == "full_refresh"

    @property
    def goes_on(self) -> bool:
        """Whether the source is to go on from the last commit."""
        if self.full_refresh or self.resumption.held:
            return self.continues
        return self.resumption.envelope is not None

    @property
    def held(self) -> bool:
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
    resumption: Resumption,
    destination: Destination,
    path: TablePath,
    *,
    root_run_id: str | None = None,
) -> StreamPlan:
    """What a sync that continues ``stream`` from ``resumption`` will do.

    Raises:
        ConfigError: a declared key or cursor is not a column.
        BreakingChangeError: its table cannot follow the source.
        DestinationError: its table cannot take the rows.
    """
    is_synced = resumption.envelope is not None
    resumption = _changed_over(stream, resumption)
    ours = _is_ours(stream, resumption, root_run_id)
    known = destination.known_columns(path)
    waiting = _waiting_columns(connection, stream, resumption, destination, path)
    continues = False
    wanted = TableSchema.of(stream, decimals=destination.has_decimals)
    if not resumption.held:
        # Changes that wait for their merge are in the table before anything else is.
        known |= waiting or TableColumns()
    elif ours:
        same = not has_other_cursor(stream, resumption.envelope)
        if same and waiting is not None and _go_on(stream, wanted, waiting):
            continues, known = True, known | waiting
        notice = _told(stream, gone=waiting is None, continues=continues)
        why = None if continues else "cannot be gone on with where the try before ended"
        resumption = msgspec.structs.replace(resumption, notice=notice, starts_over=why)
    full_refresh = stream.sync_mode == "full_refresh"
    overwrite = stream.destination_sync_mode == "overwrite"
    generation = resumption.generation_id
    done = full_refresh and ours and not resumption.held
    begins = (full_refresh or resumption.held) and not (continues or done)
    if begins and resumption.envelope is not None:
        generation += 1
    if overwrite or (full_refresh and stream.destination_sync_mode == "append_dedup"):
        generation = max(generation, 1)
    replaces = resumption.replaces or overwrite
    stream = msgspec.structs.replace(
        stream,
        generation_id=generation,
        minimum_generation_id=generation if replaces else 0,
    )
    if resumption.envelope is not None and not resumption.held:
        refuse_other_cursor(connection, stream, resumption.envelope)
    if resumption.envelope is not None and not replaces:
        refuse_breaking_change(stream, resumption.envelope, known.fields)
    if is_synced and not replaces:
        refuse_new_key_column(stream, wanted, known)
    given_up = resumption.held and not continues
    blob = None if given_up else stored_blob(resumption.envelope, stream.descriptor)
    table = _table(stream, fit(wanted, known, replaces=replaces), path)
    destination.refuse_unfit(connection, table)
    return StreamPlan(stream, table, resumption, blob, continues, done)


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


def _changed_over(stream: ConfiguredStream, resumption: Resumption) -> Resumption:
    """``resumption``, unless the stream was read in full so far and is incremental from now on.

    The state of a full refresh is none that an incremental read goes on from, so that brings all
    rows; those of the last full refresh go, but not where each was appended to the ones before.
    """
    if resumption.envelope is None or resumption.held or stream.sync_mode == "full_refresh":
        return resumption
    last = resumption.envelope.commit_of(stream.descriptor)
    if not last.full_refresh:
        return resumption
    rows = "its old rows are replaced once that is complete" if last.replaces else "its rows stay"
    return Resumption(
        generation_id=resumption.generation_id + 1,
        replaces=last.replaces,
        unrecorded=resumption.unrecorded,
        starts_over="was read in full so far and is incremental now",
        wiped_at=resumption.wiped_at,
        notice=f"Stream '{stream.descriptor}' was read in full so far and is incremental now: it "
        f"is read from the beginning, and {rows}.",
    )


def _waiting_columns(
    connection: str,
    stream: ConfiguredStream,
    resumption: Resumption,
    destination: Destination,
    path: TablePath,
) -> TableColumns | None:
    """The columns of rows that are held, or wait for their merge; None where there are none."""
    if resumption.envelope is None:
        return None
    last = resumption.envelope.commit_of(stream.descriptor)
    if not last.held and not last.primary_key:
        return None
    return destination.held_columns(connection, path)


def _is_ours(stream: ConfiguredStream, resumption: Resumption, root_run_id: str | None) -> bool:
    """Whether the last commit is of the same reading from the beginning as this sync.

    A full refresh is a snapshot: only a run that is tried again has a part in it. What a user said
    about the state is part of no reading.
    """
    if resumption.envelope is None or resumption.envelope.action != "sync":
        return False
    last = resumption.envelope.commit_of(stream.descriptor)
    if stream.sync_mode == "incremental":
        return not last.full_refresh
    return last.full_refresh and root_run_id is not None and last.begun_by == root_run_id


def _told(stream: ConfiguredStream, *, gone: bool, continues: bool) -> str:
    name = f"stream '{stream.descriptor}'"
    if continues:
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


def _go_on(stream: ConfiguredStream, wanted: TableSchema, held: TableColumns) -> bool:
    """Whether rows of ``wanted`` can follow those held: the key is there, and no field is gone."""
    found = {c.path or (c.field,): held.find(c) for c in wanted.columns}
    names = {column.name for column in found.values() if column is not None}
    of_key = [found[path] for path in _key(stream) if path in found]
    return held.of_fields <= names and None not in of_key
