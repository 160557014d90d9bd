"""State edits by the user: refresh, clear, reset, set, accept.

Each edit is a commit without rows: an envelope with the new state and a new ``seq``, which the
edited tables take like any other commit. So an edit is durable, it stops a sync that is still
running, and later syncs continue from it.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import msgspec
from msgspec import Raw

from atlas_dagster.destinations.base import Recovered, StreamWriter
from atlas_dagster.destinations.envelope import Action, Envelope, StreamCommit, next_seq, now
from atlas_dagster.errors import (
    BreakingChangeError,
    ConfigError,
    DestinationError,
    UnknownStreamError,
)
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.sync.resume import (
    ResumePoint,
    ResumePoints,
    RunRef,
    Target,
    load_resume_points,
    restore_envelopes,
)
from atlas_dagster.sync.stream_plan import plan_stream

#: Builds one stream's part of an edit's commit.
_BuildCommit = Callable[[ConfiguredStream, ResumePoint], StreamCommit]


class StateEditor:
    """Edits the state of the streams of ``target``, loaded when the editor is created.

    ``assume``: a dry run, as if these envelopes were committed; it writes nothing. Each edit
    returns the envelopes that it committed, or would commit. A stream that was never synced gets
    no envelope.

    Raises:
        BreakingChangeError: the source keeps one state for all streams, and the edit cannot be made
            for one of them alone.
        DestinationError: a table does not match its state, or a sync is running.
    """

    def __init__(
        self, target: Target, run: RunRef, *, assume: Collection[Envelope] | None = None
    ) -> None:
        self._target = target
        self._run = run
        self._is_dry_run = assume is not None
        destination = target.destination
        recovered = Recovered(()) if self._is_dry_run else destination.recover(target.connection)
        self._unrecovered = {
            name: recovered.refused[target.tables[name]]
            for name in target.streams
            if target.tables[name] in recovered.refused
        }
        self.resume_points: ResumePoints = load_resume_points(target).assume_committed(assume or ())
        self._snapshots = dict(self.resume_points.snapshots)
        if not self._is_dry_run:
            restore_envelopes(self.resume_points, destination, recovered.envelopes)

    def refresh(
        self, selected: Collection[StreamDescriptor], *, keep_rows: bool
    ) -> Sequence[Envelope]:
        """Make the next sync read streams from the beginning, as a new generation.

        The new rows replace the old ones when a stream is complete, unless ``keep_rows``. Streams
        that this root run has restarted already are skipped, so a retry continues its read.
        """
        restarted = self.restarted_streams()

        def part(stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
            return StreamCommit(
                stream.descriptor,
                self._target.tables[stream.descriptor],
                resume_point.generation_id + 1,
                replaces=not keep_rows,
                primary_key=_last_key(stream, resume_point),
                unpublished=not keep_rows,
                started_by_run=self._run.root_run_id,
            )

        requested = [name for name in selected if name not in restarted]
        names = self._select_with_table(requested, restarts=True)
        return self._commit("refresh", names, self._remove_from_state(requested), part)

    def clear(self, selected: Collection[StreamDescriptor]) -> Sequence[Envelope]:
        """Remove all rows of the streams' tables, and their state."""

        def part(stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
            return StreamCommit(
                stream.descriptor,
                self._target.tables[stream.descriptor],
                resume_point.generation_id + 1,
                replaces=True,
            )

        names = self._select_with_table(selected, restarts=True)
        return self._commit("clear", names, self._remove_from_state(selected), part)

    def reset(self, selected: Collection[StreamDescriptor]) -> Sequence[Envelope]:
        """Remove the streams' state; rows and generation stay."""
        self._raise_refused(selected)
        names = self._select_with_table(selected)
        return self._commit("reset", names, self._remove_from_state(selected), self._keep_all)

    def set(self, state: ConnectionState) -> Sequence[Envelope]:
        """Make the next sync continue from ``state``. Streams that it does not name keep theirs.

        If this root run has set the state already, this does nothing, so a retry continues its
        read. Missing tables are created, because they store the state.

        Raises:
            UnknownStreamError: ``state`` has a stream that the connection does not sync.
            ConfigError: ``state`` is only of streams that each sync reads in full.
        """
        streams = self._target.streams
        for name in state.streams.keys() - streams.keys():
            raise UnknownStreamError(
                f"The state has a stream '{name}', which connection '{self._target.connection}' "
                f"does not sync; its streams are {', '.join(map(str, streams))}."
            )
        requested = state.streams if state.type == "STREAM" else streams
        names = [n for n in self._incremental if n in requested]
        if self.resume_points.has_shared_state and set(names) != set(self._incremental):
            raise self._shared_state_error(names)
        if not names:
            raise self._no_incremental_stream_error()
        return self._set(names, state)

    def set_stream(self, name: StreamDescriptor, blob: Raw) -> Sequence[Envelope]:
        """Set the state of one stream, also inside a GLOBAL state. See :meth:`set`.

        Raises:
            ConfigError: each sync reads the stream in full.
        """
        current = self.resume_points.state
        if current.type == "LEGACY":
            raise self._shared_state_error([name])
        if current.type == "STREAM":
            return self.set(ConnectionState("STREAM", {name: blob}))
        if self._target.streams[name].sync_mode != "incremental":
            raise self._no_incremental_stream_error()
        state = msgspec.structs.replace(current, streams={**current.streams, name: blob})
        return self._set([name], state)

    def _set(self, names: Sequence[StreamDescriptor], state: ConnectionState) -> Sequence[Envelope]:
        if self.restarted_streams().issuperset(names):
            return []
        self._raise_refused(names)

        def part(stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
            started_by_run = self._run.root_run_id or resume_point.started_by_run
            return msgspec.structs.replace(
                self._keep_rows(stream, resume_point), started_by_run=started_by_run
            )

        return self._commit("set", names, state, part)

    def restarted_streams(self) -> frozenset[StreamDescriptor]:
        """Return the streams that this root run has refreshed or set already."""
        root, points = self._run.root_run_id, self.resume_points.by_stream
        return frozenset(n for n, point in points.items() if root and point.started_by_run == root)

    def accept(self, selected: Collection[StreamDescriptor]) -> Sequence[Envelope]:
        """Accept external changes of tables, unless the next sync replaces their rows anyway."""
        names = [
            name
            for name in self._select_with_table(selected)
            if name in self.resume_points.changed and not self._is_replaced(name)
        ]

        def part(stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
            kept = self._keep_rows(stream, resume_point)
            if resume_point.envelope is None:
                return kept
            last = resume_point.envelope.commit_of(stream.descriptor)
            return msgspec.structs.replace(kept, full_refresh=last.full_refresh)

        return self._commit("accept", names, self.resume_points.state, part)

    def _is_replaced(self, name: StreamDescriptor) -> bool:
        """Return whether the next sync replaces all rows."""
        stream = self._target.streams[name]
        snapshot = stream.sync_mode == "full_refresh"
        overwritten = snapshot and stream.destination_sync_mode == "overwrite"
        return overwritten or self.resume_points.by_stream[name].replaces

    def _keep_rows(self, stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
        """Return a commit that keeps rows and generation."""
        return StreamCommit(
            stream.descriptor,
            self._target.tables[stream.descriptor],
            resume_point.generation_id,
            replaces=False,
            primary_key=_last_key(stream, resume_point),
            started_by_run=resume_point.started_by_run,
        )

    def _keep_all(self, stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
        """Return a commit that keeps rows and generation, and a replacement that is pending."""
        part = self._keep_rows(stream, resume_point)
        replaces = resume_point.replaces
        return msgspec.structs.replace(part, replaces=replaces, unpublished=replaces)

    @property
    def _incremental(self) -> list[StreamDescriptor]:
        return [n for n, s in self._target.streams.items() if s.sync_mode == "incremental"]

    def _select_with_table(
        self, names: Iterable[StreamDescriptor], *, restarts: bool = False
    ) -> list[StreamDescriptor]:
        """Return the streams of ``names`` that have a table, changed externally or not.

        Raises:
            AtlasError: a stream has no usable resume point, and the edit does not restart it.
        """
        found = list(names)
        for name in found:
            reason = self.resume_points.refused.get(name)
            if reason is not None and not (restarts and name in self.resume_points.by_stream):
                raise reason
        snapshots = self.resume_points.snapshots
        return [name for name in found if snapshots[name].seq is not None]

    def _raise_refused(self, names: Iterable[StreamDescriptor]) -> None:
        for name in names:
            for reasons in (self.resume_points.refused, self.resume_points.changed):
                if name in reasons:
                    raise reasons[name]

    def _remove_from_state(self, names: Collection[StreamDescriptor]) -> ConnectionState:
        """Return the state without ``names``.

        Raises:
            BreakingChangeError: the state has no parts for single streams.
        """
        state = self.resume_points.state
        kept = {name: blob for name, blob in state.streams.items() if name not in names}
        if state.type == "STREAM":
            return ConnectionState("STREAM", kept)
        removed = [name for name in self._incremental if name in names]
        if removed == self._incremental:
            return ConnectionState()
        if removed and not state.streams:
            # Otherwise the source would read a stream without a part from the beginning.
            raise self._shared_state_error(removed)
        return msgspec.structs.replace(state, streams=kept)

    def _no_incremental_stream_error(self) -> ConfigError:
        return ConfigError(
            f"The state has no incremental stream of connection '{self._target.connection}'. "
            "Each sync reads the other streams in full, so they have no state."
        )

    def _shared_state_error(self, names: Collection[StreamDescriptor]) -> BreakingChangeError:
        which = ", ".join(f"'{name}'" for name in names)
        return BreakingChangeError(
            f"The source of connection '{self._target.connection}' keeps one state for all streams "
            f"({self.resume_points.state.type}), so this cannot be done for {which} alone; do it "
            "for the whole connection."
        )

    def _commit(
        self,
        action: Action,
        names: Sequence[StreamDescriptor],
        state: ConnectionState,
        build: _BuildCommit,
    ) -> Sequence[Envelope]:
        """Commit ``state``: one envelope if it is or was shared, else one for each stream."""
        destination = self._target.destination
        for name, error in self._unrecovered.items():
            # Only a refresh or clear of the stream, and of those that share its state, can help.
            if name not in names or action not in ("refresh", "clear"):
                raise error
        is_shared = self.resume_points.has_shared_state or state.type != "STREAM"
        groups = [list(names)] if is_shared else [[name] for name in names]
        last = self.resume_points.last_seq
        done: list[Envelope] = []
        for group in filter(None, groups):
            last = next_seq(last)
            parts = [self._build_part(action, build, name) for name in group]
            envelope = Envelope(
                seq=last,
                sync_id=int(now() * 1000),
                connection=self._target.connection,
                streams=tuple(parts),
                state=Raw(state.only(group).to_file()),
                prepared_at=now(),
                run_id=self._run.run_id,
                action=action,
                covers=self._find_covered(action) if is_shared else (),
            )
            done.append(envelope)
            if self._is_dry_run:
                continue
            if action in ("clear", "set"):
                writers = [self._open_writer(each) for each in parts]
                destination.commit(envelope, writers)
                for writer in writers:
                    writer.merge_committed()
            else:
                # Opening merges waiting rows. A refresh replaces them, so a failure is no problem.
                unmerged = [DestinationError] if action == "refresh" else []
                for each in parts:
                    with contextlib.suppress(*unmerged):
                        self._open_writer(each)
                snapshots = [self.resume_points.snapshots[each.stream] for each in parts]
                destination.commit_without_rows(envelope, {s.path: s.seq for s in snapshots})
        return done

    def _find_covered(self, action: Action) -> tuple[StreamDescriptor, ...]:
        """Return the streams that a shared state covers after ``action``."""
        newest = self.resume_points.newest
        if action == "set":
            return tuple(self._incremental)
        return () if newest is None else newest.covers

    def _build_part(
        self, action: Action, build: _BuildCommit, name: StreamDescriptor
    ) -> StreamCommit:
        resume_point, stream = self.resume_points.by_stream[name], self._target.streams[name]
        part = build(stream, resume_point)
        cursor = stream.cursor_field if stream.sync_mode == "incremental" else None
        last = resume_point.envelope
        if action == "accept" and last is not None:
            cursor = last.commit_of(name).cursor_field
        part = msgspec.structs.replace(part, cursor_field=cursor, wiped_at=resume_point.wiped_at)
        # An accepted table has other rows than the last commit, so it does not follow that commit.
        return part if action == "accept" else part.following(last)

    def _open_writer(self, part: StreamCommit) -> StreamWriter:
        """Return a writer without rows; its commit empties, creates or keeps the table."""
        stream = self._target.streams[part.stream]
        if not part.replaces and stream.destination_sync_mode == "overwrite":
            stream = msgspec.structs.replace(stream, destination_sync_mode="append")
        resume_point = ResumePoint(part.generation_id, replaces=part.replaces)
        snapshot = self._snapshots.pop(part.stream, None)
        if snapshot is None:
            snapshot = self._target.destination.inspect(part.table)
        plan = plan_stream(self._target, stream, resume_point, snapshot)
        return snapshot.open(msgspec.structs.replace(plan.table, replaces=part.replaces))


def _last_key(stream: ConfiguredStream, resume_point: ResumePoint) -> tuple[tuple[str, ...], ...]:
    """Return the primary key of the rows in the table."""
    last = resume_point.envelope
    return () if last is None else last.commit_of(stream.descriptor).primary_key


def find_streams(
    connection: str, streams: Collection[ConfiguredStream], names: Collection[str]
) -> Iterator[StreamDescriptor]:
    """Find the streams called ``names``; all of them if ``names`` is empty.

    Raises:
        UnknownStreamError: the connection has no stream of that name.
    """
    known = {str(stream.descriptor): stream.descriptor for stream in streams}
    for name in names or known:
        if name not in known:
            raise UnknownStreamError(
                f"Connection '{connection}' has no stream '{name}'; it has {', '.join(known)}."
            )
        yield known[name]
