"""From what the event log remembers and what the destination holds: where to continue.

Pure. The destination's ``seq`` is the truth, because it changed in the same transaction as the
rows; the event log and the stored envelopes are two places to find the state that belongs to it.
"""

from collections.abc import Callable

from msgspec import Struct

from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import AtlasError, DestinationError
from atlas_dagster.protocol.messages import StreamDescriptor


class LoggedState(Struct, frozen=True):
    """What the event log knows of one stream: its newest envelope, and when it was wiped.

    ``wiped_at`` is epoch seconds; None when it never was.
    """

    envelope: Envelope | None = None
    wiped_at: float | None = None


class ResumePoint(Struct, frozen=True):
    """How one stream goes on.

    ``envelope`` is its last commit, None when it starts from the beginning. ``replaces``: rows the
    table still holds belong to a past that was given up and go when the stream is complete.
    ``unpublished``: the last commit is of a reading that is not complete and not shown yet.
    ``started_by_run``: the root run that began to read it from the beginning. ``unrecorded``: the
    table's last commit, where the event log lacks it. ``notice`` tells a user of anything unusual.
    ``restarts``: why the stream, which was read before, is read from the beginning. ``wiped_at``:
    when its asset was wiped last. ``problem``: why it is not known how it goes on; it can only be
    read anew.
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

    def over(self, stream: StreamDescriptor, why: str) -> "ResumePoint":
        """From the beginning instead, as ``why`` says; the old rows go once that is complete."""
        return ResumePoint(
            generation_id=self.generation_id + 1,
            replaces=True,
            notice=f"Stream '{stream}' {why}; it is read again from the beginning and its old rows "
            "are replaced once that is complete.",
            unrecorded=self.unrecorded,
            restarts=why,
            wiped_at=self.wiped_at,
        )


def reconcile(
    stream: StreamDescriptor,
    last_logged: LoggedState,
    committed: int | None,
    stored: Callable[[int], Envelope | None],
) -> ResumePoint:
    """Decide how ``stream`` continues.

    Args:
        stream: the stream.
        remembered: from the event log.
        committed: the ``seq`` its table holds; None when there is no table.
        stored: looks up an envelope stored beside the data.

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
    envelope = last if last is not None and recorded else stored(committed)
    if envelope is not None and envelope.is_reference:
        envelope = stored(committed)
    if envelope is None:
        problem = DestinationError(
            f"The table of stream '{stream}' holds commit {committed}, which neither Dagster's "
            "event log nor what Atlas keeps beside the tables (_atlas) knows, so it is not known "
            "where to continue: restore one of them, or read the stream again with "
            "`atlas refresh`."
        )
        generation = 0 if last is None else last.commit_of(stream).generation_id
        return ResumePoint(generation, wiped_at=wiped_at, problem=problem)
    last_commit = envelope.commit_of(stream)
    generation = last_commit.generation_id
    unrecorded = None if recorded else envelope
    if not envelope.has_heeded(wiped_at, stream):
        return ResumePoint(generation, wiped_at=wiped_at).over(stream, "was wiped in Dagster")
    if last_commit.unpublished and envelope.action != "sync":
        return ResumePoint(
            generation_id=generation,
            replaces=True,
            started_by_run=last_commit.started_by_run,
            unrecorded=unrecorded,
            notice=f"Stream '{stream}' is refreshed: it is read again from the beginning and its "
            "old rows are replaced once that is complete.",
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
