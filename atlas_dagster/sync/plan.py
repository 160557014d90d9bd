"""What one sync will do: which streams, into which tables, from which state."""

import re
import time
from collections.abc import Callable, Collection, Mapping

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import Destination, TablePath, TableSpec
from atlas_dagster.errors import AtlasError, BreakingChangeError, DestinationError
from atlas_dagster.protocol.catalog import (
    CDC_DELETED_AT,
    ConfiguredStream,
    FieldPath,
    configured_catalog_json,
)
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.records.names import assign
from atlas_dagster.records.types import TableSchema
from atlas_dagster.state.envelope import Envelope
from atlas_dagster.state.reconcile import Resumption
from atlas_dagster.sync.breaking import column_at, refuse_breaking_change, refuse_new_key_column
from atlas_dagster.sync.standing import StateStore, look, stored_blob

_COLOR = re.compile(r"\x1b\[[0-9;]*m")


class StreamPlan(Struct, frozen=True):
    """One stream of a sync. ``state`` is the blob its last commit stored, None at the start."""

    configured: ConfiguredStream
    table: TableSpec
    resumption: Resumption
    state: Raw | None

    @property
    def at_once(self) -> bool:
        """Whether its rows land in one commit, when the stream is complete.

        A full refresh always starts from the beginning, so half of one must never be appended.
        """
        snapshot = self.configured.sync_mode == "full_refresh" and self.table.mode == "append"
        return self.table.replaces or snapshot

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


class SyncPlan(Struct, frozen=True):
    """One sync. ``state`` goes to the connector; ``last_seq`` is the newest commit so far.

    ``root_run_id``: of the run that this one tries again. ``needed``: the commits of tables whose
    streams are not read now, or start over. ``refused``: streams that cannot be read, and why; the
    others can.
    """

    connection: str
    sync_id: int
    run_id: str | None
    root_run_id: str | None
    streams: tuple[StreamPlan, ...]
    state: ConnectionState
    last_seq: int
    needed: frozenset[int] = frozenset()
    refused: Mapping[StreamDescriptor, AtlasError] = {}

    def files(self) -> dict[str, bytes]:
        """What READ is given beside the config."""
        streams = [plan.configured for plan in self.streams]
        files = {"catalog": configured_catalog_json(streams, sync_id=self.sync_id)}
        if self.state:
            files["state"] = self.state.to_file()
        return files


def make_plan(
    connection: str,
    streams: Collection[ConfiguredStream],
    *,
    selected: Collection[StreamDescriptor],
    tables: Mapping[StreamDescriptor, TablePath],
    destination: Destination,
    store: StateStore,
    run_id: str | None,
    notify: Callable[[str], None],
    root_run_id: str | None = None,
    as_if: Collection[Envelope] | None = None,
) -> SyncPlan:
    """Plan a sync of the ``selected`` of ``streams``.

    A connection whose stored state is GLOBAL or LEGACY cannot be read in part, so there all
    configured streams are planned. ``notify`` is told of anything unusual. ``root_run_id`` is that
    of the run which this one tries again, by default its own. ``as_if``: a plan that is only
    looked at, as if these had been committed; nothing is written.

    Raises, where there is no stream that could be read without the refused ones:
        DestinationError: a table and its state do not belong together, or a table cannot be
            written to.
        ConfigError: a declared key or cursor is not a column.
        BreakingChangeError: only reading a stream, or all of them, again can help.
    """
    paths = {stream.descriptor: tables[stream.descriptor] for stream in streams}
    if as_if is None:
        try:
            destination.recover(connection)
        except OSError as error:
            raise writing_failed(connection, error) from error
    standing = look(connection, paths, destination=destination, store=store)
    standing = standing.after(as_if or ())
    newest, whole = standing.newest, standing.is_whole
    resumptions, refused = standing.resumptions, dict(standing.refused)
    chosen = [stream for stream in streams if whole or stream.descriptor in selected]
    if newest is not None:
        refused |= _switched(connection, newest, chosen, resumptions)
    if newest is not None and whole:
        if refused:
            raise next(iter(refused.values()))
        _refuse_to_leave_out(connection, newest.connection_state, chosen, resumptions)
    if len(chosen) > len(set(selected)):
        notify(
            f"The state of {connection} covers all its streams together, so all "
            f"{len(chosen)} configured streams are read, not only the selected ones."
        )
    refused = {s.descriptor: refused[s.descriptor] for s in chosen if s.descriptor in refused}
    plans = []
    for stream in chosen:
        if stream.descriptor in refused:
            continue
        try:
            plan = plan_stream(stream, resumptions[stream.descriptor], destination, paths)
            if stream.descriptor in standing.changed and not plan.table.replaces:
                raise standing.changed[stream.descriptor]
            if plan.table.mode == "append_dedup" and not plan.table.replaces:
                known = destination.known_columns(plan.table.path)
                refuse_new_key_column(plan.configured, plan.table.schema, known)
        except AtlasError as error:
            if whole:
                raise
            refused[stream.descriptor] = error
            continue
        plans.append(plan)
        if plan.resumption.notice:
            notify(plan.resumption.notice)
    if refused and not plans:
        raise next(iter(refused.values()))
    continued = {plan.descriptor for plan in plans if plan.resumption.envelope is not None}
    return SyncPlan(
        connection=connection,
        sync_id=int(time.time() * 1000),
        run_id=run_id,
        root_run_id=root_run_id or run_id,
        streams=tuple(plans),
        state=_state_to_send(plans, newest if whole else None),
        last_seq=standing.last_seq,
        needed=frozenset(
            seq for name, seq in standing.committed.items() if seq and name not in continued
        ),
        refused=refused,
    )


def writing_failed(connection: str, error: OSError) -> DestinationError:
    """What to raise where the disk is full, or access to it is lost."""
    # delta-rs words its errors over several coloured lines.
    words = " ".join(_COLOR.sub("", str(error)).replace("↳", ":").split())
    return DestinationError(
        f"Writing the tables of {connection} failed ({words}); free space or mend the access, "
        "then sync again: what is committed stays, the rest is read again."
    )


def _switched(
    connection: str,
    newest: Envelope,
    streams: Collection[ConfiguredStream],
    resumptions: Mapping[StreamDescriptor, Resumption],
) -> dict[StreamDescriptor, AtlasError]:
    """Streams left behind when the source went over from one state for all to one for each.

    Or the other way round. Their own last state means nothing to the source any more.
    """
    refused: dict[StreamDescriptor, AtlasError] = {}
    now = newest.connection_state
    for stream in streams:
        name = stream.descriptor
        last = resumptions[name].envelope if name in resumptions else None
        if last is None or stream.sync_mode != "incremental":
            continue
        was = last.connection_state
        if now.type == "STREAM" and was.type != "STREAM":
            refused[name] = BreakingChangeError(
                f"The source now keeps a state for each stream, but the last one stored for "
                f"'{name}' is of all streams together ({was.type}), so it is not known where to "
                f"continue; run `atlas refresh {connection} --stream {name}`."
            )
        own = was.type == "STREAM" and name in was.streams
        if own and now.type != "STREAM" and name not in now.streams:
            refused[name] = BreakingChangeError(
                f"The source now keeps one state for all streams ({now.type}), but the one stored "
                f"is without '{name}', so it is not known where to continue; "
                f"run `atlas refresh {connection}`."
            )
    return refused


def _refuse_to_leave_out(
    connection: str,
    state: ConnectionState,
    streams: Collection[ConfiguredStream],
    resumptions: Mapping[StreamDescriptor, Resumption],
) -> None:
    """One stream cannot start over where the state says nothing of single streams.

    The source would send it only what is new, and that would replace all its rows.
    """
    for stream in streams:
        name = stream.descriptor
        if (
            stream.sync_mode == "incremental"
            and resumptions[name].notice
            and name not in state.streams
        ):
            raise BreakingChangeError(
                f"Stream '{name}' was wiped or its table deleted, but its source keeps one state "
                "for all streams and cannot read this one alone from the beginning; "
                f"to read all of them again, run `atlas refresh {connection}`."
            )


def plan_stream(
    stream: ConfiguredStream,
    resumption: Resumption,
    destination: Destination,
    paths: Mapping[StreamDescriptor, TablePath],
) -> StreamPlan:
    """What a sync that continues ``stream`` from ``resumption`` will do.

    Raises:
        ConfigError: a declared key or cursor is not a column.
    """
    full_refresh = stream.sync_mode == "full_refresh"
    overwrite = stream.destination_sync_mode == "overwrite"
    generation = resumption.generation_id
    if full_refresh and resumption.envelope is not None:
        generation += 1
    if overwrite or (full_refresh and stream.destination_sync_mode == "append_dedup"):
        generation = max(generation, 1)
    replaces = resumption.replaces or overwrite
    stream = msgspec.structs.replace(
        stream,
        generation_id=generation,
        minimum_generation_id=generation if replaces else 0,
    )
    path = paths[stream.descriptor]
    if resumption.envelope is not None and not replaces:
        held = {field for field, _ in destination.known_columns(path)}
        refuse_breaking_change(stream, resumption.envelope, held)
    schema = _table_schema(stream, path, destination)
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
    blob = stored_blob(resumption.envelope, stream.descriptor)
    return StreamPlan(stream, table, resumption, blob)


def _table_schema(
    stream: ConfiguredStream, path: TablePath, destination: Destination
) -> TableSchema:
    """The stream's columns under the names the table already uses.

    A field whose type changed gets a new column named after the type: Delta cannot change one.
    """
    wanted = TableSchema.from_json_schema(stream.stream.json_schema, nested=stream.nested_fields)
    known = destination.known_columns(path)
    held = {field: column for (field, _), column in known.items()}
    names = {}
    for field, kind in ((column.field, column.type) for column in wanted.columns):
        if (field, kind.arrow) in known:
            names[field] = known[field, kind.arrow]
        elif field in held and not stream.replaces:
            name = f"{held[field]}_{kind.value}"
            names[field] = assign([name], reserved=known.values())[name]
    return TableSchema.from_json_schema(
        stream.stream.json_schema, nested=stream.nested_fields, known_names=names
    )


def _state_to_send(plans: Collection[StreamPlan], newest: Envelope | None) -> ConnectionState:
    """The state file. Full-refresh streams start anew each time, so theirs is left out."""
    incremental = {p.descriptor for p in plans if p.configured.sync_mode == "incremental"}
    continued = {p.descriptor for p in plans if p.resumption.envelope} & incremental
    if newest is not None:
        state = newest.connection_state
        kept = {name: blob for name, blob in state.streams.items() if name in continued}
        return msgspec.structs.replace(state, streams=kept)
    return ConnectionState(
        "STREAM",
        {p.descriptor: p.state for p in plans if p.descriptor in continued and p.state is not None},
    )
