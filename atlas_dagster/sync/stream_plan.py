"""What one sync will do with one stream: into which table, from which state."""

from collections.abc import Mapping

import msgspec
import pyarrow as pa
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import Destination, TablePath, TableSpec
from atlas_dagster.protocol.catalog import CDC_DELETED_AT, ConfiguredStream, FieldPath
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.records.names import assign
from atlas_dagster.records.types import TableSchema
from atlas_dagster.state.reconcile import Resumption
from atlas_dagster.sync.breaking import column_at, refuse_breaking_change
from atlas_dagster.sync.standing import stored_blob


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
        return self.configured.primary_key if self.table.mode == "append_dedup" else ()

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
    """
    known = destination.known_columns(path)
    continues = False
    ours = _is_ours(stream, resumption, root_run_id)
    if resumption.held and ours:
        held = destination.held_columns(connection, path)
        continues = held is not None and held.keys() <= _fields(stream)
        if continues and held is not None:
            known = {**known, **held}
        notice = _told(stream, gone=held is None, continues=continues)
        resumption = msgspec.structs.replace(resumption, notice=notice)
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
    if resumption.envelope is not None and not replaces:
        fields = {field for field, _ in destination.known_columns(path)}
        refuse_breaking_change(stream, resumption.envelope, fields)
    schema = _table_schema(stream, known)
    dedup = stream.destination_sync_mode == "append_dedup"
    table = TableSpec(
        path=path,
        schema=schema,
        mode=stream.destination_sync_mode,
        primary_key=tuple(column_at(schema, stream, key) for key in stream.primary_key)
        if dedup
        else (),
        cursor=column_at(schema, stream, stream.cursor_field)
        if dedup and stream.cursor_field
        else None,
        replaces=replaces,
        deleted_at=schema.column_of(CDC_DELETED_AT) if stream.hard_deletes else None,
    )
    given_up = resumption.held and not continues
    blob = None if given_up else stored_blob(resumption.envelope, stream.descriptor)
    return StreamPlan(stream, table, resumption, blob, continues, done)


def _is_ours(stream: ConfiguredStream, resumption: Resumption, root_run_id: str | None) -> bool:
    """Whether the last commit is of the same reading from the beginning as this sync.

    A full refresh is a snapshot: only a run that is tried again has a part in it.
    """
    if resumption.envelope is None:
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
    why = f"What was held of {name} is gone" if gone else f"The columns of {name} changed meanwhile"
    return f"{why}; it is read again from the beginning."


def _fields(stream: ConfiguredStream) -> set[tuple[str, pa.DataType]]:
    """The stream's fields as columns hold them."""
    schema = TableSchema.from_json_schema(stream.stream.json_schema, nested=stream.nested_fields)
    return {(column.field, column.type.arrow) for column in schema.columns}


def _table_schema(
    stream: ConfiguredStream, known: Mapping[tuple[str, pa.DataType], str]
) -> TableSchema:
    """The stream's columns under the names that are ``known``: those the table already uses.

    A field whose type changed gets a new column named after the type: Delta cannot change one.
    """
    wanted = TableSchema.from_json_schema(stream.stream.json_schema, nested=stream.nested_fields)
    columns = {field: column for (field, _), column in known.items()}
    names = {}
    for field, kind in ((column.field, column.type) for column in wanted.columns):
        if (field, kind.arrow) in known:
            names[field] = known[field, kind.arrow]
        elif field in columns and not stream.replaces:
            name = f"{columns[field]}_{kind.value}"
            names[field] = assign([name], reserved=known.values())[name]
    return TableSchema.from_json_schema(
        stream.stream.json_schema, nested=stream.nested_fields, known_names=names
    )
