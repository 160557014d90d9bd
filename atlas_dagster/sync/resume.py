"""Where the streams of a connection stand: what their tables hold and what is remembered."""

from collections.abc import Collection, Mapping
from typing import Protocol

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import Destination, TablePath
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import AtlasError, ConfigError, DestinationError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.sync.reconcile import LoggedState, ResumePoint, reconcile


class StateLog(Protocol):
    """Where envelopes are remembered outside the destination: Dagster's event log."""

    def last_logged(
        self,
        tables: Mapping[StreamDescriptor, TablePath],
        committed: Mapping[StreamDescriptor, int | None],
    ) -> Mapping[StreamDescriptor, LoggedState]:
        """What is known of each stream, all in one call.

        ``committed`` is what the tables hold: only where the newest materialization says otherwise
        need more be looked at.
        """

    def find(self, table: TablePath, seq: int) -> Envelope | None:
        """The commit ``seq`` of ``table``, however old; asked for where nothing else knows it."""


class ResumePoints(Struct, frozen=True):
    """What a sync, or a user's word about the state, starts from.

    ``committed``: the ``seq`` each table holds. ``refused``: streams of which it is not known where
    they stand, and why. ``changed``: those whose rows someone else changed, which matters unless
    they are replaced. ``last_seq``: the newest commit so far, or one that came to nothing.
    ``incremental``: the streams whose state outlives a sync.
    """

    committed: Mapping[StreamDescriptor, int | None]
    resumptions: Mapping[StreamDescriptor, ResumePoint]
    refused: Mapping[StreamDescriptor, AtlasError]
    changed: Mapping[StreamDescriptor, AtlasError]
    last_seq: int
    incremental: Collection[StreamDescriptor]

    @property
    def newest(self) -> Envelope | None:
        """The newest commit that an incremental stream continues from."""
        last = ((n, r.envelope) for n, r in self.resumptions.items() if n in self.incremental)
        lasting = (each for name, each in last if each and not each.commit_of(name).full_refresh)
        return max(lasting, key=lambda envelope: envelope.seq, default=None)

    @property
    def has_shared_state(self) -> bool:
        """Whether one state covers all streams: GLOBAL or LEGACY."""
        return self.newest is not None and self.newest.connection_state.type != "STREAM"

    @property
    def state(self) -> ConnectionState:
        """What the connector would be sent if it were to read all streams."""
        if self.newest is not None and self.has_shared_state:
            return self.newest.connection_state
        blobs = {name: stored_blob(r.envelope, name) for name, r in self.resumptions.items()}
        return ConnectionState("STREAM", {n: blob for n, blob in blobs.items() if blob is not None})

    def assuming(self, envelopes: Collection[Envelope]) -> "ResumePoints":
        """How it would be once ``envelopes``, which are without rows, were committed."""
        resumptions, changed = dict(self.resumptions), dict(self.changed)
        for envelope in envelopes:
            for commit in envelope.streams:
                changed.pop(commit.stream, None)
                resumptions[commit.stream] = reconcile(
                    commit.stream,
                    LoggedState(envelope, commit.wiped_at),
                    envelope.seq,
                    lambda _: None,
                )
        return msgspec.structs.replace(self, resumptions=resumptions, changed=changed)


def load_resume_points(
    connection: str,
    streams: Collection[ConfiguredStream],
    tables: Mapping[StreamDescriptor, TablePath],
    *,
    destination: Destination,
    store: StateLog,
) -> ResumePoints:
    """Find out where each of ``streams`` stands; ``tables`` are theirs."""
    refused: dict[StreamDescriptor, AtlasError] = {}
    committed: dict[StreamDescriptor, int | None] = dict.fromkeys(tables)
    for name, path in tables.items():
        try:
            committed[name] = destination.committed(connection, path)
        except AtlasError as error:
            refused[name] = error
    last_logged = store.last_logged(tables, committed)
    resumptions: dict[StreamDescriptor, ResumePoint] = {}
    changed: dict[StreamDescriptor, AtlasError] = {}
    for name in tables.keys() - refused.keys():
        try:
            change = destination.external_change(connection, tables[name])
            if change is not None:
                changed[name] = _changed(connection, name, change)
            path = tables[name]
            resumptions[name] = found = reconcile(
                name,
                last_logged.get(name, LoggedState()),
                committed[name],
                lambda seq, path=path: (  # type: ignore[misc]
                    destination.envelope(connection, seq) or store.find(path, seq)
                ),
            )
            if found.problem is not None:
                refused[name] = found.problem
        except AtlasError as error:
            refused[name] = error
    return ResumePoints(
        committed,
        resumptions,
        refused,
        changed,
        # Wiped streams count too: a table never goes back to a smaller number.
        last_seq=max(
            *(seq or 0 for seq in committed.values()),
            *(known.envelope.seq for known in last_logged.values() if known.envelope),
            0,
        ),
        incremental={s.descriptor for s in streams if s.sync_mode == "incremental"},
    )


def restore(
    resume_points: ResumePoints, destination: Destination, stored: Collection[Envelope]
) -> None:
    """Store the envelopes that only the event log has, beside the tables again.

    An event names no files, so none from which a table could still take its part.
    """
    there = {envelope.seq for envelope in stored}
    for resume_point in resume_points.resumptions.values():
        envelope = resume_point.envelope
        if envelope is None or envelope.seq in there:
            continue
        unpublished = [
            resume_points.committed.get(commit.stream) or 0 for commit in envelope.streams
        ]
        if min(unpublished) >= envelope.seq:
            there.add(envelope.seq)
            destination.prepare(envelope)


def _changed(connection: str, name: StreamDescriptor, change: str) -> DestinationError:
    return DestinationError(
        f"The table of stream '{name}' was changed by someone else ({change}), so its rows may "
        "not be those that the stored state stands for: read it again with "
        f"`atlas refresh {connection} --stream {name}`, or go on with it as it is with "
        f"`atlas state accept {connection} --stream {name}`."
    )


def claim_ownership(destination: Destination, connection: str, deployment: str) -> None:
    """Make sure that the tables of ``connection`` are this deployment's; take free ones.

    Raises:
        ConfigError: they are another's. Two that sync into the same tables would each continue
            from states of their own.
    """
    owner = destination.claim_ownership(connection, deployment)
    if owner != deployment:
        raise ConfigError(
            f"The tables of connection '{connection}' belong to the deployment '{owner}', and this "
            f"one is '{deployment}': give this one another destination, or, if the other has "
            f"ended, take them over with `atlas state adopt {connection}`."
        )


def stored_blob(envelope: Envelope | None, stream: StreamDescriptor) -> Raw | None:
    """The part of a commit's state that is ``stream``'s, or what it shares with the others."""
    if envelope is None:
        return None
    state = envelope.connection_state
    return state.streams.get(stream) or state.shared
