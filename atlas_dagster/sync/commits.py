"""Commits of a sync: staged rows and the state that covers them, in one envelope."""

from collections.abc import Collection, Sequence

from msgspec import Raw

from atlas_dagster.destinations.base import Destination
from atlas_dagster.destinations.envelope import Envelope, next_seq, now
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState, same_blob
from atlas_dagster.sync.events import StreamsCommitted
from atlas_dagster.sync.plan import SyncPlan
from atlas_dagster.sync.stream import ActiveStream
from atlas_dagster.sync.stream_plan import StreamPlan


class Commits:
    """The commits of one sync, and the last commit of each of its streams.

    A full refresh has a commit of its own, even if the source shares a state among streams: no
    shared state includes it, and its own state, if any, is useless when it is complete.
    """

    def __init__(self, plan: SyncPlan, destination: Destination) -> None:
        self._plan = plan
        self._destination = destination
        self._seq = plan.last_seq
        self._last: dict[StreamDescriptor, Envelope] = {}
        # The streams of all stored envelopes, older ones included, by seq.
        self._stored = dict(plan.stored)
        # The seq that the table of each stream holds.
        self._committed = dict(plan.committed)
        #: The newest state of the connection, committed or not.
        self.state = plan.state
        self._committed_state = plan.stored_state

    def open(self, plan: StreamPlan) -> ActiveStream:
        """Open a writer for a stream.

        Raises:
            DestinationError: the table cannot be written, or has changed since the plan was made.
        """
        if plan.resume_point.envelope is not None:
            self._last[plan.descriptor] = plan.resume_point.envelope
        return ActiveStream(
            plan,
            plan.snapshot.open(plan.table),
            sync_id=self._plan.sync_id,
            root_run_id=self._plan.run.root_run_id,
        )

    @property
    def _covers(self) -> tuple[StreamDescriptor, ...]:
        """The streams that a shared state covers: the incremental streams of the plan."""
        return tuple(plan.descriptor for plan in self._plan.streams if not plan.full_refresh)

    def last_commit(self, stream: ActiveStream) -> Envelope | None:
        return self._last.get(stream.descriptor)

    def shares_state(self, stream: ActiveStream) -> bool:
        """Return whether the stream shares its state with others (GLOBAL, LEGACY)."""
        return self.plan_shares_state(stream.plan)

    def plan_shares_state(self, plan: StreamPlan) -> bool:
        return self.state.type != "STREAM" and not plan.full_refresh

    @property
    def has_new_state(self) -> bool:
        """True if the newest state differs from the committed one."""
        return not same_blob(Raw(self.state.to_file()), Raw(self._committed_state.to_file()))

    def commit(
        self, streams: Sequence[ActiveStream], *, complete: Collection[ActiveStream] = ()
    ) -> StreamsCommitted:
        """Commit the staged rows of ``streams`` under one envelope.

        Unpublished rows of ``complete`` streams are published.

        Raises:
            DestinationError: another sync has committed to one of the tables.
        """
        self._seq = next_seq(self._seq)
        envelope = Envelope(
            seq=self._seq,
            sync_id=self._plan.sync_id,
            connection=self._plan.connection,
            streams=tuple(
                stream.stage(complete=stream in complete).following(self.last_commit(stream))
                for stream in streams
            ),
            state=Raw(self._build_state(streams, complete).to_file()),
            prepared_at=now(),
            run_id=self._plan.run.run_id,
            covers=self._covers if any(map(self.shares_state, streams)) else (),
        )
        self._destination.commit(envelope, [stream.writer for stream in streams])
        for stream in streams:
            if self.shares_state(stream):
                self._committed_state = self.state
            self._last[stream.descriptor] = envelope
            self._committed[stream.descriptor] = envelope.seq
        self._stored[envelope.seq] = frozenset(s.descriptor for s in streams)
        numbers = tuple(s.mark_committed(envelope.commit_of(s.descriptor)) for s in streams)
        return StreamsCommitted(envelope, numbers)

    def prune_envelopes(self) -> None:
        """Delete each stored envelope whose tables all hold a newer ``seq``.

        Envelopes of unknown tables, and those that another sync has stored since, are kept.
        """
        outdated = [
            seq
            for seq, streams in self._stored.items()
            if all((self._committed.get(stream) or 0) > seq for stream in streams)
        ]
        self._destination.prune_envelopes(self._plan.connection, outdated)
        for seq in outdated:
            del self._stored[seq]

    def _build_state(
        self, streams: Sequence[ActiveStream], complete: Collection[ActiveStream]
    ) -> ConnectionState:
        if any(map(self.shares_state, streams)):
            return self.state
        blobs = {s.descriptor: s.state if s in complete else s.resumable_state for s in streams}
        return ConnectionState("STREAM", {n: blob for n, blob in blobs.items() if blob is not None})
