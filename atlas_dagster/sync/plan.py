"""What one sync will do: which streams, into which tables, from which state."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import Destination, Recovered, TablePath
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import AtlasError
from atlas_dagster.protocol.catalog import ConfiguredStream, configured_catalog_json
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.sync.resume import StateLog, load_resume_points, restore
from atlas_dagster.sync.stream_plan import StreamPlan, plan_stream
from atlas_dagster.sync.whole_state import left_behind, left_out, refuse_to_leave_out


class SyncPlan(Struct, frozen=True):
    """One sync. ``state`` goes to the connector; ``last_seq`` is the newest commit so far.

    ``beside``: states of full refreshes that go on beside a state of all other streams together.
    ``stored_state``: the newest that is committed, also of streams that start anew.
    ``root_run_id``: of the run that this one tries again. ``committed``: the ``seq`` that the table
    of each stream holds. ``stored``: the streams of each envelope that is stored beside the tables,
    by its ``seq``. ``refused``: streams that cannot be read, and why; the others can.
    """

    connection: str
    sync_id: int
    run_id: str | None
    root_run_id: str | None
    streams: tuple[StreamPlan, ...]
    state: ConnectionState
    stored_state: ConnectionState
    last_seq: int
    beside: Mapping[StreamDescriptor, Raw] = {}
    committed: Mapping[StreamDescriptor, int | None] = {}
    stored: Mapping[int, frozenset[StreamDescriptor]] = {}
    refused: Mapping[StreamDescriptor, AtlasError] = {}

    def without(self, refused: Mapping[StreamDescriptor, AtlasError]) -> "SyncPlan":
        """The same without streams that turned out to be ``refused``."""
        streams = tuple(plan for plan in self.streams if plan.descriptor not in refused)
        return msgspec.structs.replace(
            self,
            streams=streams,
            state=self.state.only([plan.descriptor for plan in streams]),
            beside={name: blob for name, blob in self.beside.items() if name not in refused},
            refused={**self.refused, **refused},
        )

    def files(self) -> dict[str, bytes]:
        """What READ is given beside the config."""
        streams = [plan.configured for plan in self.streams if not plan.already_read]
        files = {"catalog": configured_catalog_json(streams, sync_id=self.sync_id)}
        if self.state or self.beside:
            files["state"] = self.state.to_file(self.beside)
        return files


def make_plan(
    connection: str,
    streams: Collection[ConfiguredStream],
    *,
    selected: Collection[StreamDescriptor],
    tables: Mapping[StreamDescriptor, TablePath],
    destination: Destination,
    store: StateLog,
    run_id: str | None,
    notify: Callable[[str], None],
    root_run_id: str | None = None,
    assume: Collection[Envelope] | None = None,
) -> SyncPlan:
    """Plan a sync of the ``selected`` of ``streams``.

    A connection whose stored state is GLOBAL or LEGACY cannot be read in part, so there all
    configured streams are planned. ``notify`` is told of anything unusual. ``root_run_id`` is that
    of the run which this one tries again, by default its own. ``assume``: a plan that is only
    looked at, as if these had been committed; nothing is written.

    Raises, where there is no stream that could be read without the refused ones:
        DestinationError: a table and its state do not belong together, or a table cannot be
            written to.
        ConfigError: a declared key or cursor is not a column.
        BreakingChangeError: only reading a stream, or all of them, again can help.
    """
    paths = {stream.descriptor: tables[stream.descriptor] for stream in streams}
    recovered = Recovered(()) if assume is not None else destination.recover(connection)
    stored = recovered.envelopes
    resume_points = load_resume_points(
        connection, streams, paths, destination=destination, store=store
    )
    resume_points = resume_points.assuming(assume or ())
    if assume is None:
        restore(resume_points, destination, stored)
    newest, whole = resume_points.newest, resume_points.has_shared_state
    resumptions, refused = resume_points.resumptions, dict(resume_points.refused)
    refused |= {n: recovered.refused[p] for n, p in paths.items() if p in recovered.refused}
    chosen = [stream for stream in streams if whole or stream.descriptor in selected]
    if newest is not None:
        resumptions = {**resumptions, **left_out(newest, chosen, resumptions)}
        refused |= left_behind(connection, newest, chosen, resumptions)
    if whole and refused:
        which = ", ".join(f"'{name}'" for name in refused)
        notify(
            f"The source of {connection} keeps one state for all its streams, so none of them is "
            f"read as long as {which} cannot be."
        )
        raise next(iter(refused.values()))
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
            plan = plan_stream(
                connection,
                stream,
                resumptions[stream.descriptor],
                destination,
                paths[stream.descriptor],
                root_run_id=root_run_id or run_id,
            )
            if stream.descriptor in resume_points.changed and not plan.table.replaces:
                raise resume_points.changed[stream.descriptor]
        except AtlasError as error:
            if whole:
                raise
            refused[stream.descriptor] = error
            continue
        plans.append(plan)
        if plan.resume_point.notice:
            notify(plan.resume_point.notice)
    if refused and not plans:
        raise next(iter(refused.values()))
    last_state = newest.connection_state if newest is not None else ConnectionState()
    if whole:
        refuse_to_leave_out(connection, last_state, plans)
    return SyncPlan(
        connection=connection,
        sync_id=int(time.time() * 1000),
        run_id=run_id,
        root_run_id=root_run_id or run_id,
        streams=tuple(plans),
        state=_state_to_send(plans, last_state),
        stored_state=last_state,
        beside=_blobs(plan for plan in plans if whole and plan.full_refresh),
        last_seq=resume_points.last_seq,
        committed=resume_points.committed,
        stored={e.seq: frozenset(commit.stream for commit in e.streams) for e in stored},
        refused=refused,
    )


def _state_to_send(plans: Collection[StreamPlan], stored: ConnectionState) -> ConnectionState:
    """The state file, without what streams that begin anew have stored."""
    if stored.type == "STREAM":
        return ConnectionState("STREAM", _blobs(plans))
    incremental = {plan.descriptor for plan in plans if plan.resumes and not plan.full_refresh}
    kept = {name: blob for name, blob in stored.streams.items() if name in incremental}
    return msgspec.structs.replace(stored, streams=kept)


def _blobs(plans: Iterable[StreamPlan]) -> dict[StreamDescriptor, Raw]:
    """The states of streams that go on."""
    return {
        plan.descriptor: plan.state for plan in plans if plan.resumes and plan.state is not None
    }
