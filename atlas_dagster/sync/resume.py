"""Resume points: where each stream of a connection continues.

The ``seq`` in a table decides, because it changed in the same transaction as the rows. The state
that belongs to this ``seq`` is in the event log and in the envelopes beside the tables.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import msgspec
from msgspec import Raw, Struct

from atlas_dagster.destinations.base import Destination, TablePath, TableSnapshot
from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import AtlasError, ConfigError, DestinationError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState


class LoggedState(Struct, frozen=True):
    """The newest envelope of a stream in the event log.

    ``wiped_at``: when the stream's asset was wiped, in epoch seconds; None if never.
    """

    envelope: Envelope | None = None
    wiped_at: float | None = None


class StateLog(Protocol):
    """Envelopes logged outside the destination: Dagster's event log."""

    def last_logged(
        self,
        tables: Mapping[StreamDescriptor, TablePath],
        committed: Mapping[StreamDescriptor, int | None],
    ) -> Mapping[StreamDescriptor, LoggedState]:
        """Return the logged state of each stream.

        ``committed`` is the ``seq`` that each table holds. If the newest materialization has
        another ``seq``, the log is searched further.
        """

    def find(self, table: TablePath, seq: int) -> Envelope | None:
        """Search the whole log for commit ``seq`` of ``table``. This is slow."""


class Target(Struct, frozen=True):
    """The tables that a connection syncs into, and the log of their commits.

    ``tables`` has the table of every stream in ``streams``; it may have more.
    """

    connection: str
    streams: Mapping[StreamDescriptor, ConfiguredStream]
    tables: Mapping[StreamDescriptor, TablePath]
    destination: Destination
    log: StateLog


class RunRef(Struct, frozen=True):
    """The run that commits. ``root_run_id`` is the first run of a chain of retries."""

    run_id: str | None = None
    root_run_id: str | None = None


class ResumePoint(Struct, frozen=True):
    """The point from which one stream continues.

    ``envelope``: the last commit; None if the stream starts from the beginning. ``replaces``: the
    rows in the table belong to an abandoned generation; the sync removes them when the stream is
    complete. ``unpublished``: the last commit is part of an incomplete read; its rows are not in
    the table. ``started_by_run``: the root run that started to read the stream from the beginning.
    ``unrecorded``: the table's last commit, if the event log lacks it. ``notice``: a warning for
    the user. ``restarts``: why a stream that was synced before starts from the beginning.
    ``wiped_at``: when the asset was last wiped. ``problem``: why the stream cannot continue and
    must be read again.
    """

    generation_id: int = 0
    envelope: Envelope | None = None
    replaces: bool = False
    unpublished: bool = False
    started_by_run: str | None = None
    unrecorded: Envelope | None = None
    notice: str | None = None
    restarts: str | None = None
    wiped_at: float | None = None
    problem: AtlasError | None = None

    def restart(self, stream: StreamDescriptor, why: str) -> "ResumePoint":
        """Return a resume point at the beginning, to replace the old rows when complete."""
        return ResumePoint(
            generation_id=self.generation_id + 1,
            replaces=True,
            notice=f"Stream '{stream}' {why}; it is read again from the beginning, and its old "
            "rows are replaced when it is complete.",
            unrecorded=self.unrecorded,
            restarts=why,
            wiped_at=self.wiped_at,
        )


class ResumePoints(Struct, frozen=True):
    """The resume points of a connection's streams. Syncs and state edits start from here.

    ``snapshots``: the readable tables. ``refused``: streams without a usable resume point, and why.
    ``changed``: streams whose rows were changed outside of Atlas; an error unless the sync replaces
    the rows. ``last_seq``: the highest ``seq`` so far, committed or not. ``incremental``: the
    streams whose state outlives a sync.
    """

    snapshots: Mapping[StreamDescriptor, TableSnapshot]
    by_stream: Mapping[StreamDescriptor, ResumePoint]
    refused: Mapping[StreamDescriptor, AtlasError]
    changed: Mapping[StreamDescriptor, AtlasError]
    last_seq: int
    incremental: Collection[StreamDescriptor]

    @property
    def committed(self) -> dict[StreamDescriptor, int | None]:
        """The ``seq`` that each table holds."""
        return {name: snapshot.seq for name, snapshot in self.snapshots.items()}

    @property
    def newest(self) -> Envelope | None:
        """The newest commit that an incremental stream continues from."""
        last = ((n, r.envelope) for n, r in self.by_stream.items() if n in self.incremental)
        lasting = (each for name, each in last if each and not each.commit_of(name).full_refresh)
        return max(lasting, key=lambda envelope: envelope.seq, default=None)

    @property
    def has_shared_state(self) -> bool:
        """True if one state covers all streams: GLOBAL or LEGACY."""
        return self.newest is not None and self.newest.connection_state.type != "STREAM"

    @property
    def state(self) -> ConnectionState:
        """The state that the connector would receive if it read all streams."""
        if self.newest is not None and self.has_shared_state:
            return self.newest.connection_state
        blobs = {name: find_blob(r.envelope, name) for name, r in self.by_stream.items()}
        return ConnectionState("STREAM", {n: blob for n, blob in blobs.items() if blob is not None})

    def assume_committed(self, envelopes: Collection[Envelope]) -> "ResumePoints":
        """Return the resume points as if ``envelopes``, which have no rows, were committed."""
        by_stream, changed = dict(self.by_stream), dict(self.changed)
        for envelope in envelopes:
            for commit in envelope.streams:
                changed.pop(commit.stream, None)
                by_stream[commit.stream] = reconcile(
                    commit.stream,
                    LoggedState(envelope, commit.wiped_at),
                    envelope.seq,
                    lambda _: None,
                )
        return msgspec.structs.replace(self, by_stream=by_stream, changed=changed)


def load_resume_points(target: Target) -> ResumePoints:
    """Compare the tables of ``target`` with its log, and decide where each stream continues."""
    connection, destination = target.connection, target.destination
    tables = {name: target.tables[name] for name in target.streams}
    refused: dict[StreamDescriptor, AtlasError] = {}
    snapshots: dict[StreamDescriptor, TableSnapshot] = {}
    for name, path in tables.items():
        try:
            snapshots[name] = destination.inspect(path)
        except AtlasError as error:
            refused[name] = error
    seqs = {name: snapshot.seq for name, snapshot in snapshots.items()}
    last_logged = target.log.last_logged(tables, seqs)
    by_stream: dict[StreamDescriptor, ResumePoint] = {}
    changed: dict[StreamDescriptor, AtlasError] = {}
    for name, snapshot in snapshots.items():
        try:
            change = snapshot.find_external_change()
            if change is not None:
                changed[name] = _change_error(connection, name, change)
            by_stream[name] = found = reconcile(
                name,
                last_logged.get(name, LoggedState()),
                snapshot.seq,
                lambda seq, path=snapshot.path: (  # type: ignore[misc]
                    destination.envelope(connection, seq) or target.log.find(path, seq)
                ),
            )
            if found.problem is not None:
                refused[name] = found.problem
        except AtlasError as error:
            refused[name] = error
    return ResumePoints(
        snapshots,
        by_stream,
        refused,
        changed,
        # Includes wiped streams: the seq of a table never decreases.
        last_seq=max(
            *(seq or 0 for seq in seqs.values()),
            *(known.envelope.seq for known in last_logged.values() if known.envelope),
            0,
        ),
        incremental={n for n, s in target.streams.items() if s.sync_mode == "incremental"},
    )


def reconcile(
    stream: StreamDescriptor,
    last_logged: LoggedState,
    committed: int | None,
    find_envelope: Callable[[int], Envelope | None],
) -> ResumePoint:
    """Decide where ``stream`` continues, without I/O except ``find_envelope``.

    Args:
        stream: the stream.
        last_logged: its state in the event log.
        committed: the ``seq`` that its table holds; None if there is no table.
        find_envelope: finds an envelope by its ``seq``, beside the tables or in the log.

    """
    last, wiped_at = last_logged.envelope, last_logged.wiped_at
    if committed is None:
        if last is None:
            return ResumePoint(wiped_at=wiped_at)
        return ResumePoint(
            generation_id=last.commit_of(stream).generation_id + 1,
            notice=f"The table of stream '{stream}' is gone; it is read again from the beginning.",
            restarts="has lost its table",
            wiped_at=wiped_at,
        )
    recorded = last is not None and last.seq == committed
    envelope = last if last is not None and recorded else find_envelope(committed)
    if envelope is not None and envelope.is_reference:
        envelope = find_envelope(committed)
    if envelope is None:
        problem = DestinationError(
            f"The table of stream '{stream}' holds commit {committed}, but neither Dagster's event "
            "log nor the _atlas data beside the tables has its state: restore one of them, or read "
            "the stream again with `atlas refresh`."
        )
        generation = 0 if last is None else last.commit_of(stream).generation_id
        return ResumePoint(generation, wiped_at=wiped_at, problem=problem)
    last_commit = envelope.commit_of(stream)
    generation = last_commit.generation_id
    unrecorded = None if recorded else envelope
    if not envelope.has_heeded(wiped_at, stream):
        return ResumePoint(generation, wiped_at=wiped_at).restart(stream, "was wiped in Dagster")
    if last_commit.unpublished and envelope.action != "sync":
        return ResumePoint(
            generation_id=generation,
            replaces=True,
            started_by_run=last_commit.started_by_run,
            unrecorded=unrecorded,
            notice=f"Stream '{stream}' is refreshed: it is read again from the beginning, and its "
            "old rows are replaced when it is complete.",
            restarts="is refreshed",
            wiped_at=wiped_at,
        )
    return ResumePoint(
        generation_id=generation,
        envelope=envelope,
        replaces=last_commit.unpublished and last_commit.replaces,
        unpublished=last_commit.unpublished,
        started_by_run=last_commit.started_by_run,
        unrecorded=unrecorded,
        wiped_at=wiped_at,
    )


def restore_envelopes(
    resume_points: ResumePoints, destination: Destination, stored: Collection[Envelope]
) -> None:
    """Store envelopes beside the tables again if only the event log still has them.

    An event lists no files, so this skips an envelope that a table does not hold yet.
    """
    present, committed = {envelope.seq for envelope in stored}, resume_points.committed
    for resume_point in resume_points.by_stream.values():
        envelope = resume_point.envelope
        if envelope is None or envelope.seq in present:
            continue
        seqs = [committed.get(commit.stream) or 0 for commit in envelope.streams]
        if min(seqs) >= envelope.seq:
            present.add(envelope.seq)
            destination.prepare(envelope)


def claim_ownership(destination: Destination, connection: str, deployment: str) -> None:
    """Make ``deployment`` the owner of the tables of ``connection``, if they have no owner yet.

    Raises:
        ConfigError: another deployment owns them. Two deployments that sync into the same tables
            would each continue from their own state.
    """
    owner = destination.claim_ownership(connection, deployment)
    if owner != deployment:
        raise ConfigError(
            f"The tables of connection '{connection}' belong to the deployment '{owner}', and this "
            f"one is '{deployment}': give this one another destination, or, if the other has "
            f"ended, take them over with `atlas state adopt {connection}`."
        )


def find_blob(envelope: Envelope | None, stream: StreamDescriptor) -> Raw | None:
    """Return the state of ``stream`` in a commit: its own, or the one it shares with others."""
    if envelope is None:
        return None
    return envelope.connection_state.blob_of(stream)


def _change_error(connection: str, name: StreamDescriptor, change: str) -> DestinationError:
    return DestinationError(
        f"The table of stream '{name}' was changed outside of Atlas ({change}), so its rows may "
        "not match the stored state: read it again with "
        f"`atlas refresh {connection} --stream {name}`, or continue with its rows as they are with "
        f"`atlas state accept {connection} --stream {name}`."
    )
