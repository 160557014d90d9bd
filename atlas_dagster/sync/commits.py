"""Commits of a sync: staged rows and the state that covers them, in one envelope."""

from collections.abc import Collection, Sequence

from msgspec import Raw

from atlas_dagster.destinations.base import Destination
from atlas_dagster.destinations.envelope import Envelope, next_seq, now
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState, same_blob
from atlas_dagster.sync.events import Checkpoint
from atlas_dagster.sync.plan import SyncPlan
from atlas_dagster.sync.stream import ActiveStream
from atlas_dagster.sync.stream_plan import StreamPlan


class Commits:
    """The commits of one sync, and the last commit of each of its streams.

    A full refresh is committed alone, even if its source shares a state among streams: its state,
    if it has one, is useless once it is complete, and no shared state includes it.
    """

    def __init__(self, plan: SyncPlan, destination: Destination) -> None:
        self._plan = plan
        self._destination = destination
        self._seq = plan.last_seq
        self._last: dict[StreamDescriptor, Envelope] = {}
        # The streams of each stored envelope, by its seq: those from before the sync and its own.
        self._stored = dict(plan.stored)
        # The seq that the table of each stream holds.
        self._committed = dict(plan.committed)
        #: The newest state of the connection, and the newest that is committed.
        self.state = plan.state
        self._committed_state = plan.stored_state

    def open(self, plan: StreamPlan) -> ActiveStream:
        """Open a writer for a stream.

        Raises:
            DestinationError: its table cannot be written, or was written since the plan.
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
        """The streams that a shared state covers: all of the plan that are incremental."""
        return tuple(plan.descriptor for plan in self._plan.streams if not plan.full_refresh)

    def last(self, stream: ActiveStream) -> Envelope | None:
        return self._last.get(stream.descriptor)

    def share_state(self, stream: ActiveStream) -> bool:
        """Return whether the stream shares its state with others (GLOBAL, LEGACY)."""
        return self.shares_state(stream.plan)

    def shares_state(self, plan: StreamPlan) -> bool:
        return self.state.type != "STREAM" and not plan.full_refresh

    @property
    def state_has_moved(self) -> bool:
        """Whether the newest state differs from the committed one."""
        return not same_blob(Raw(self.state.to_file()), Raw(self._committed_state.to_file()))

    def commit(
        self, streams: Sequence[ActiveStream], *, complete: Collection[ActiveStream] = ()
    ) -> Checkpoint:
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
                stream.stage(complete=stream in complete).following(self.last(stream))
                for stream in streams
            ),
            state=Raw(self._state_of(streams, complete).to_file()),
            prepared_at=now(),
            run_id=self._plan.run.run_id,
            covers=self._covers if any(map(self.share_state, streams)) else (),
        )
        self._destination.commit(envelope, [stream.writer for stream in streams])
        for stream in streams:
            if self.share_state(stream):
                self._committed_state = self.state
            self._last[stream.descriptor] = envelope
            self._committed[stream.descriptor] = envelope.seq
        self._stored[envelope.seq] = frozenset(s.descriptor for s in streams)
        sizes = tuple(s.committed(envelope.commit_of(s.descriptor)) for s in streams)
        return Checkpoint(envelope, tuple(stream.plan for stream in streams), sizes)

    def prune_envelopes(self) -> None:
        """Delete stored envelopes if each of their tables has taken a newer one.

        Envelopes that another sync has stored since, or with unknown tables, are kept.
        """
        past = [
            seq
            for seq, streams in self._stored.items()
            if all((self._committed.get(stream) or 0) > seq for stream in streams)
        ]
        self._destination.prune_envelopes(self._plan.connection, past)
        for seq in past:
            del self._stored[seq]

    def _state_of(
        self, streams: Sequence[ActiveStream], complete: Collection[ActiveStream]
    ) -> ConnectionState:
        if any(map(self.share_state, streams)):
            return self.state
        blobs = {s.descriptor: s.state if s in complete else s.checkpoint for s in streams}
        return ConnectionState("STREAM", {n: blob for n, blob in blobs.items() if blob is not None})
