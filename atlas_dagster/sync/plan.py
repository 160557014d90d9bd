"""The plan of one sync: streams, tables, and the state to read from."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import Recovered
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import AtlasError, BreakingChangeError
from atlas_dagster.protocol.catalog import ConfiguredStream, configured_catalog_json
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.sync.resume import (
    ResumePoint,
    RunRef,
    Target,
    load_resume_points,
    restore_envelopes,
)
from atlas_dagster.sync.stream_plan import StreamPlan, plan_stream


class SyncPlan(Struct, frozen=True):
    """The plan of one sync.

    ``state`` is sent to the connector. ``full_refresh_states`` are sent together with a shared
    state: they resume full refreshes, which a shared state does not cover. ``stored_state``: the
    newest committed state, including streams that restart. ``last_seq``: the highest ``seq`` so
    far. ``committed``: the ``seq`` that each table holds. ``stored``: the streams of each envelope
    beside the tables, by ``seq``. ``refused``: streams that cannot be read, and why.
    """

    connection: str
    sync_id: int
    run: RunRef
    streams: tuple[StreamPlan, ...]
    state: ConnectionState
    stored_state: ConnectionState
    last_seq: int
    full_refresh_states: Mapping[StreamDescriptor, Raw] = {}
    committed: Mapping[StreamDescriptor, int | None] = {}
    stored: Mapping[int, frozenset[StreamDescriptor]] = {}
    refused: Mapping[StreamDescriptor, AtlasError] = {}

    def without(self, refused: Mapping[StreamDescriptor, AtlasError]) -> "SyncPlan":
        """Return the plan without the ``refused`` streams."""
        streams = tuple(plan for plan in self.streams if plan.descriptor not in refused)
        states = self.full_refresh_states
        return msgspec.structs.replace(
            self,
            streams=streams,
            state=self.state.only([plan.descriptor for plan in streams]),
            full_refresh_states={n: blob for n, blob in states.items() if n not in refused},
            refused={**self.refused, **refused},
        )

    def files(self) -> dict[str, bytes]:
        """Return the files that READ gets besides the config."""
        streams = [plan.configured for plan in self.streams if not plan.already_read]
        files = {"catalog": configured_catalog_json(streams, sync_id=self.sync_id)}
        if self.state or self.full_refresh_states:
            files["state"] = self.state.to_file(self.full_refresh_states)
        return files


def make_plan(
    target: Target,
    selected: Collection[StreamDescriptor],
    run: RunRef,
    *,
    warn: Callable[[str], None],
    assume: Collection[Envelope] | None = None,
) -> SyncPlan:
    """Plan a sync of the ``selected`` streams of ``target``.

    If the stored state is GLOBAL or LEGACY, the plan includes all streams, because the connection
    cannot be read in part. ``assume``: plan a dry run, which writes nothing, as if these envelopes
    were committed.

    An error of one stream goes into ``refused``. It is raised only if no other stream can be read.

    Raises:
        DestinationError: a table does not match its state, or cannot be written.
        ConfigError: a declared key or cursor has no column.
        BreakingChangeError: a stream, or all of them, must be read again from the beginning.
    """
    connection, destination = target.connection, target.destination
    recovered = Recovered(()) if assume is not None else destination.recover(connection)
    resume_points = load_resume_points(target).assume_committed(assume or ())
    if assume is None:
        restore_envelopes(resume_points, destination, recovered.envelopes)
    newest, is_shared = resume_points.newest, resume_points.has_shared_state
    by_stream, refused = resume_points.by_stream, dict(resume_points.refused)
    for name in target.streams:
        if (error := recovered.refused.get(target.tables[name])) is not None:
            refused[name] = error
    streams = [stream for name, stream in target.streams.items() if is_shared or name in selected]
    if newest is not None:
        by_stream = {**by_stream, **_restart_unselected(newest, streams, by_stream)}
        refused |= _refuse_other_state_types(connection, newest, streams, by_stream)
    if is_shared and refused:
        which = ", ".join(f"'{name}'" for name in refused)
        warn(
            f"The source of {connection} keeps one state for all its streams, so no stream can be "
            f"read as long as {which} cannot be read."
        )
        raise next(iter(refused.values()))
    if len(streams) > len(set(selected)):
        warn(
            f"The state of {connection} covers all its streams together, so all "
            f"{len(streams)} configured streams are read, not only the selected ones."
        )
    refused = {s.descriptor: refused[s.descriptor] for s in streams if s.descriptor in refused}
    plans = []
    for stream in streams:
        name = stream.descriptor
        if name in refused:
            continue
        try:
            snapshot = resume_points.snapshots[name]
            plan = plan_stream(
                target, stream, by_stream[name], snapshot, root_run_id=run.root_run_id
            )
            if name in resume_points.changed and not plan.table.replaces:
                raise resume_points.changed[name]
        except AtlasError as error:
            if is_shared:
                raise
            refused[name] = error
            continue
        plans.append(plan)
        if plan.resume_point.notice:
            warn(plan.resume_point.notice)
    if refused and not plans:
        raise next(iter(refused.values()))
    last_state = newest.connection_state if newest is not None else ConnectionState()
    if is_shared:
        _refuse_restarts(connection, last_state, plans)
    return SyncPlan(
        connection=connection,
        sync_id=int(time.time() * 1000),
        run=run,
        streams=tuple(plans),
        state=_select_state(plans, last_state),
        stored_state=last_state,
        full_refresh_states=_find_blobs(p for p in plans if is_shared and p.full_refresh),
        last_seq=resume_points.last_seq,
        committed=resume_points.committed,
        stored={e.seq: frozenset(c.stream for c in e.streams) for e in recovered.envelopes},
        refused=refused,
    )


def _select_state(plans: Collection[StreamPlan], stored: ConnectionState) -> ConnectionState:
    """Return the ``stored`` state without the streams that start from the beginning."""
    if stored.type == "STREAM":
        return ConnectionState("STREAM", _find_blobs(plans))
    incremental = {plan.descriptor for plan in plans if plan.resumes and not plan.full_refresh}
    kept = {name: blob for name, blob in stored.streams.items() if name in incremental}
    return msgspec.structs.replace(stored, streams=kept)


def _find_blobs(plans: Iterable[StreamPlan]) -> dict[StreamDescriptor, Raw]:
    """Return the states of the streams that resume."""
    return {
        plan.descriptor: plan.state for plan in plans if plan.resumes and plan.state is not None
    }


def _restart_unselected(
    newest: Envelope,
    streams: Collection[ConfiguredStream],
    by_stream: Mapping[StreamDescriptor, ResumePoint],
) -> dict[StreamDescriptor, ResumePoint]:
    """Restart streams that were not selected while the shared position (GLOBAL) advanced.

    These streams missed the changes in between. A LEGACY state is different: the source keeps a
    position for each stream in its one blob, so no stream misses changes.
    """
    found = {}
    for stream in streams:
        name = stream.descriptor
        last = by_stream[name].envelope if name in by_stream else None
        if last is None or stream.sync_mode != "incremental" or last.seq >= newest.seq:
            continue
        is_shared = last.connection_state.type == newest.connection_state.type == "GLOBAL"
        if is_shared and newest.covers and name not in newest.covers:
            why = "was not selected while the source advanced the shared state of its streams"
            found[name] = by_stream[name].restart(name, why)
    return found


def _refuse_other_state_types(
    connection: str,
    newest: Envelope,
    streams: Collection[ConfiguredStream],
    by_stream: Mapping[StreamDescriptor, ResumePoint],
) -> dict[StreamDescriptor, AtlasError]:
    """Refuse streams whose last state has another type than the source's newest state.

    The source changed from one state for all streams to one state for each stream, or back. It
    can no longer read the old state.
    """
    refused: dict[StreamDescriptor, AtlasError] = {}
    now = newest.connection_state
    for stream in streams:
        name = stream.descriptor
        last = by_stream[name].envelope if name in by_stream else None
        if last is None or stream.sync_mode != "incremental":
            continue
        was = last.connection_state
        if now.type == "STREAM" and was.type != "STREAM":
            refused[name] = BreakingChangeError(
                f"The source now keeps a state for each stream, but the last state of '{name}' "
                f"is shared by all streams ({was.type}), so Atlas does not know where to "
                f"continue; run `atlas refresh {connection} --stream {name}`."
            )
        own = was.type == "STREAM" and name in was.streams
        if own and now.type != "STREAM" and name not in now.streams:
            only = f" --stream {name}" if now.streams else ""
            refused[name] = BreakingChangeError(
                f"The source now keeps one state for all streams ({now.type}), but the stored "
                f"state lacks '{name}', so Atlas does not know where to continue; "
                f"run `atlas refresh {connection}{only}`."
            )
    return refused


def _refuse_restarts(
    connection: str, state: ConnectionState, plans: Collection[StreamPlan]
) -> None:
    """Refuse to restart one stream if the shared state has no parts for single streams.

    The source would send only new rows, and these would replace all rows of the table. If the state
    has parts for single streams, the source reads a stream without a part from the beginning.
    """
    for plan in plans:
        why = plan.resume_point.restarts
        if why and not (plan.full_refresh or plan.resumes or state.streams):
            raise BreakingChangeError(
                f"Stream '{plan.descriptor}' {why}, but its source keeps one state for all streams "
                f"({state.type}) and cannot read this one alone from the beginning; to read all of "
                f"them again, run `atlas refresh {connection}`."
            )
