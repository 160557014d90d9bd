"""What a user does about state: refresh, clear, reset, set, accept.

Each is a commit without rows: an envelope with the new state under a new ``seq``, taken by the
tables it is about like any other commit. So it is durable, fenced against a sync that is still
running, and reconciled at every later start; nothing else has to remember it.
"""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import msgspec
from msgspec import Raw

from atlas_dagster.destinations.base import Destination, Recovered, StreamWriter, TablePath
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
from atlas_dagster.sync.reconcile import ResumePoint
from atlas_dagster.sync.resume import ResumePoints, StateLog, load_resume_points, restore
from atlas_dagster.sync.stream_plan import plan_stream

#: What becomes of a stream's part of the state.
_Change = Callable[[ConfiguredStream, ResumePoint], StreamCommit]


class StateEditor:
    """The state of one connection's ``streams``, as it stands when this is made.

    With ``assume``, it is pretended that these were committed, and nothing is. Every method returns
    the envelopes it committed, or would commit, none for streams that were never synced, and
    raises:
        BreakingChangeError: the source keeps one state for all streams, and what is asked for
            cannot be done for one of them alone.
        DestinationError: a table and its state do not belong together; or a sync is running.
    """

    def __init__(
        self,
        connection: str,
        streams: Collection[ConfiguredStream],
        *,
        tables: Mapping[StreamDescriptor, TablePath],
        destination: Destination,
        store: StateLog,
        run_id: str | None = None,
        root_run_id: str | None = None,
        assume: Collection[Envelope] | None = None,
    ) -> None:
        self._connection = connection
        self._streams = {stream.descriptor: stream for stream in streams}
        self._tables = {name: tables[name] for name in self._streams}
        self._destination = destination
        self._run_id = run_id
        self._root_run_id = root_run_id or run_id
        self._pretend = assume is not None
        recovered = Recovered(()) if self._pretend else destination.recover(connection)
        self._unrecovered = {
            name: recovered.refused[path]
            for name, path in self._tables.items()
            if path in recovered.refused
        }
        self.resume_points: ResumePoints = load_resume_points(
            connection, streams, self._tables, destination=destination, store=store
        ).assuming(assume or ())
        if not self._pretend:
            restore(self.resume_points, destination, recovered.envelopes)

    def refresh(
        self, selected: Collection[StreamDescriptor], *, keep_rows: bool
    ) -> Sequence[Envelope]:
        """Have streams read again from the beginning, as a new generation.

        Their old rows go once that is complete, or stay. Streams that this root run has begun to
        read from the beginning already are left alone, so a run that is tried again continues.
        """
        begun = self.begun()

        def part(stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
            return StreamCommit(
                stream.descriptor,
                self._tables[stream.descriptor],
                resume_point.generation_id + 1,
                replaces=not keep_rows,
                primary_key=_key(stream, resume_point),
                unpublished=not keep_rows,
                started_by_run=self._root_run_id,
            )

        asked = [name for name in selected if name not in begun]
        names = self._synced(asked, anew=True)
        return self._commit("refresh", names, self._without(asked), part)

    def clear(self, selected: Collection[StreamDescriptor]) -> Sequence[Envelope]:
        """Remove all rows of tables, and what is known of where their streams continue."""

        def part(stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
            return StreamCommit(
                stream.descriptor,
                self._tables[stream.descriptor],
                resume_point.generation_id + 1,
                replaces=True,
            )

        names = self._synced(selected, anew=True)
        return self._commit("clear", names, self._without(selected), part)

    def reset(self, selected: Collection[StreamDescriptor]) -> Sequence[Envelope]:
        """Forget where streams continue; rows and generation stay."""
        self._raise_refused(selected)
        names = self._synced(selected)
        return self._commit("reset", names, self._without(selected), self._as_it_is)

    def set(self, state: ConnectionState) -> Sequence[Envelope]:
        """Have the next sync continue from ``state``; other streams keep theirs.

        Streams that this root run has set already are left alone, so a run that is tried again
        continues. Tables that do not exist yet are made, for there is no other place to keep it.

        Raises:
            UnknownStreamError: ``state`` speaks of a stream that the connection does not sync.
            ConfigError: it is of streams that are always read in full.
        """
        for name in state.streams.keys() - self._streams.keys():
            raise UnknownStreamError(
                f"The state is of a stream '{name}', which connection '{self._connection}' does "
                f"not sync; it has {', '.join(map(str, self._streams))}."
            )
        asked = state.streams if state.type == "STREAM" else self._streams
        names = [n for n in self._incremental if n in asked]
        if self.resume_points.has_shared_state and set(names) != set(self._incremental):
            raise self._cannot_divide(names)
        if not names:
            raise self._no_cursor()
        return self._set(names, state)

    def set_stream(self, name: StreamDescriptor, blob: Raw) -> Sequence[Envelope]:
        """:meth:`set` the part of one stream, whatever the type of the stored state.

        Raises:
            ConfigError: the stream is always read in full.
        """
        current = self.resume_points.state
        if current.type == "LEGACY":
            raise self._cannot_divide([name])
        if current.type == "STREAM":
            return self.set(ConnectionState("STREAM", {name: blob}))
        if self._streams[name].sync_mode != "incremental":
            raise self._no_cursor()
        whole = msgspec.structs.replace(current, streams={**current.streams, name: blob})
        return self._set([name], whole)

    def _set(self, names: Sequence[StreamDescriptor], state: ConnectionState) -> Sequence[Envelope]:
        if self.begun().issuperset(names):
            return []
        self._raise_refused(names)

        def part(stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
            started_by_run = self._root_run_id or resume_point.started_by_run
            return msgspec.structs.replace(
                self._going_on(stream, resume_point), started_by_run=started_by_run
            )

        return self._commit("set", names, state, part)

    def begun(self) -> frozenset[StreamDescriptor]:
        """The streams whose beginning this root run has set."""
        ours, resumptions = self._root_run_id, self.resume_points.resumptions
        return frozenset(n for n, r in resumptions.items() if ours and r.started_by_run == ours)

    def accept(self, selected: Collection[StreamDescriptor]) -> Sequence[Envelope]:
        """Go on with tables as someone else left them, unless their rows are replaced anyway."""
        names = [
            name
            for name in self._synced(selected)
            if name in self.resume_points.changed and not self._is_replaced(name)
        ]

        def part(stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
            going_on = self._going_on(stream, resume_point)
            if resume_point.envelope is None:
                return going_on
            last = resume_point.envelope.commit_of(stream.descriptor)
            return msgspec.structs.replace(going_on, full_refresh=last.full_refresh)

        return self._commit("accept", names, self.resume_points.state, part)

    def _is_replaced(self, name: StreamDescriptor) -> bool:
        """Whether the next sync replaces the rows, whatever they are."""
        stream = self._streams[name]
        snapshot = stream.sync_mode == "full_refresh"
        overwritten = snapshot and stream.destination_sync_mode == "overwrite"
        return overwritten or self.resume_points.resumptions[name].replaces

    def _going_on(self, stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
        """The rows stay, and the next ones belong to them."""
        return StreamCommit(
            stream.descriptor,
            self._tables[stream.descriptor],
            resume_point.generation_id,
            replaces=False,
            primary_key=_key(stream, resume_point),
            started_by_run=resume_point.started_by_run,
        )

    def _as_it_is(self, stream: ConfiguredStream, resume_point: ResumePoint) -> StreamCommit:
        """The same, but rows that are to be replaced still are."""
        part = self._going_on(stream, resume_point)
        replaces = resume_point.replaces
        return msgspec.structs.replace(part, replaces=replaces, unpublished=replaces)

    @property
    def _incremental(self) -> list[StreamDescriptor]:
        return [n for n, stream in self._streams.items() if stream.sync_mode == "incremental"]

    def _synced(
        self, names: Iterable[StreamDescriptor], *, anew: bool = False
    ) -> list[StreamDescriptor]:
        """Those of ``names`` that have a table; someone else may have changed it.

        Raises AtlasError where it is not known what the table holds, unless that does not matter
        because it is read ``anew``.
        """
        found = list(names)
        for name in found:
            reason = self.resume_points.refused.get(name)
            if reason is not None and not (anew and name in self.resume_points.resumptions):
                raise reason
        return [name for name in found if self.resume_points.committed[name] is not None]

    def _raise_refused(self, names: Iterable[StreamDescriptor]) -> None:
        for name in names:
            for reasons in (self.resume_points.refused, self.resume_points.changed):
                if name in reasons:
                    raise reasons[name]

    def _without(self, names: Collection[StreamDescriptor]) -> ConnectionState:
        """The state that forgets ``names``; raises where it cannot forget them alone."""
        state = self.resume_points.state
        kept = {name: blob for name, blob in state.streams.items() if name not in names}
        if state.type == "STREAM":
            return ConnectionState("STREAM", kept)
        forgotten = [name for name in self._incremental if name in names]
        if forgotten == self._incremental:
            return ConnectionState()
        if forgotten and not state.streams:
            # Where there are parts, a stream without one is read from the beginning.
            raise self._cannot_divide(forgotten)
        return msgspec.structs.replace(state, streams=kept)

    def _no_cursor(self) -> ConfigError:
        return ConfigError(
            f"The state is of no incremental stream of connection '{self._connection}'; the others "
            "are read in full each time and continue from nowhere."
        )

    def _cannot_divide(self, names: Collection[StreamDescriptor]) -> BreakingChangeError:
        which = ", ".join(f"'{name}'" for name in names)
        return BreakingChangeError(
            f"The source of connection '{self._connection}' keeps one state for all its streams "
            f"({self.resume_points.state.type}), so this cannot be done for {which} alone; do it "
            "for the whole connection."
        )

    def _commit(
        self,
        action: Action,
        names: Sequence[StreamDescriptor],
        state: ConnectionState,
        part: _Change,
    ) -> Sequence[Envelope]:
        """Commit ``state``, in one envelope where it is, or was, of all streams together."""
        for name, error in self._unrecovered.items():
            # Reading it again is the way out of that, together with those that share its state.
            if name not in names or action not in ("refresh", "clear"):
                raise error
        together = self.resume_points.has_shared_state or state.type != "STREAM"
        groups = [list(names)] if together else [[name] for name in names]
        last = self.resume_points.last_seq
        done: list[Envelope] = []
        for group in filter(None, groups):
            last = next_seq(last)
            parts = [self._part(action, part, n) for n in group]
            envelope = Envelope(
                seq=last,
                sync_id=int(now() * 1000),
                connection=self._connection,
                streams=tuple(parts),
                state=Raw(state.only(group).to_file()),
                prepared_at=now(),
                run_id=self._run_id,
                action=action,
                covers=self._covers(action) if together else (),
            )
            done.append(envelope)
            if self._pretend:
                continue
            if action in ("clear", "set"):
                writers = [self._open(each) for each in parts]
                self._destination.commit(envelope, writers)
                for writer in writers:
                    writer.merge_committed()
            else:
                # Opening merges what waits. For a stream that is read again, it need not succeed.
                unmerged = [DestinationError] if action == "refresh" else []
                for each in parts:
                    with contextlib.suppress(*unmerged):
                        self._open(each)
                since = {each.table: self.resume_points.committed[each.stream] for each in parts}
                self._destination.commit_without_rows(envelope, since)
        return done

    def _covers(self, action: Action) -> tuple[StreamDescriptor, ...]:
        """The streams that the state of all streams covers after ``action``: as before it."""
        newest = self.resume_points.newest
        if action == "set":
            return tuple(self._incremental)
        return () if newest is None else newest.covers

    def _part(self, action: Action, part: _Change, name: StreamDescriptor) -> StreamCommit:
        resume_point, stream = self.resume_points.resumptions[name], self._streams[name]
        made = part(stream, resume_point)
        cursor = stream.cursor_field if stream.sync_mode == "incremental" else None
        last = resume_point.envelope
        if action == "accept" and last is not None:
            cursor = last.commit_of(name).cursor_field
        made = msgspec.structs.replace(made, cursor_field=cursor, wiped_at=resume_point.wiped_at)
        # What is accepted are rows that someone else has changed.
        return made if action == "accept" else made.following(last)

    def _open(self, part: StreamCommit) -> StreamWriter:
        """A writer of no rows, with which the table is emptied, made, or stays as it is."""
        stream = self._streams[part.stream]
        if not part.replaces and stream.destination_sync_mode == "overwrite":
            stream = msgspec.structs.replace(stream, destination_sync_mode="append")
        resume_point = ResumePoint(part.generation_id, replaces=part.replaces)
        path = self._tables[part.stream]
        plan = plan_stream(self._connection, stream, resume_point, self._destination, path)
        spec = msgspec.structs.replace(plan.table, replaces=part.replaces)
        return self._destination.open(self._connection, spec)


def _key(stream: ConfiguredStream, resume_point: ResumePoint) -> tuple[tuple[str, ...], ...]:
    """The key that the rows in the table have."""
    last = resume_point.envelope
    return () if last is None else last.commit_of(stream.descriptor).primary_key


def find_streams(
    connection: str, streams: Collection[ConfiguredStream], names: Collection[str]
) -> Iterator[StreamDescriptor]:
    """The streams called ``names``, or all where there are none.

    Raises:
        UnknownStreamError: there is no stream of that name.
    """
    known = {str(stream.descriptor): stream.descriptor for stream in streams}
    for name in names or known:
        if name not in known:
            raise UnknownStreamError(
                f"Connection '{connection}' has no stream '{name}'; it has {', '.join(known)}."
            )
        yield known[name]
