"""From what the event log remembers and what the destination holds: where to continue.

Pure. The destination's ``seq`` is the truth, because it changed in the same transaction as the
rows; the event log and the stored envelopes are two places to find the state that belongs to it.
"""

from collections.abc import Callable

from msgspec import Struct

from atlas_dagster.errors import UnknownCommitError
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.state.envelope import Envelope


class Remembered(Struct, frozen=True):
    """What the event log knows of one stream: its newest envelope, and when it was wiped.

    ``wiped_at`` is epoch seconds; None when it never was.
    """

    envelope: Envelope | None = None
    wiped_at: float | None = None


class Resumption(Struct, frozen=True):
    """How one stream goes on.

    ``envelope`` is its last commit, None when it starts from the beginning. ``replaces``: rows the
    table still holds belong to a past that was given up and go when the stream is complete.
    ``held``: the last commit is of a reading that is not complete and not shown yet. ``begun_by``:
    the root run that began to read it from the beginning. ``unrecorded``: the table's last commit,
    where the event log lacks it. ``notice`` tells a user of anything unusual.
    """

    generation_id: int = 0
    envelope: Envelope | None = None
    replaces: bool = False
    held: bool = False
    begun_by: str | None = None
    unrecorded: Envelope | None = None
    notice: str | None = None


def reconcile(
    stream: StreamDescriptor,
    remembered: Remembered,
    committed: int | None,
    stored: Callable[[int], Envelope | None],
) -> Resumption:
    """Decide how ``stream`` continues.

    Args:
        stream: the stream.
        remembered: from the event log.
        committed: the ``seq`` its table holds; None when there is no table.
        stored: looks up an envelope stored beside the data.

    Raises:
        UnknownCommitError: the table holds a commit that nobody remembers.
    """
    last = remembered.envelope
    if committed is None:
        if last is None:
            return Resumption()
        return Resumption(
            generation_id=last.commit_of(stream).generation_id + 1,
            notice=f"The table of stream '{stream}' is gone; it is read again from the beginning.",
        )
    recorded = last is not None and last.seq == committed
    envelope = last if last is not None and recorded else stored(committed)
    if envelope is not None and envelope.is_reference:
        envelope = stored(committed)
    if envelope is None:
        raise UnknownCommitError(
            f"The table of stream '{stream}' holds commit {committed}, which neither Dagster's "
            "event log nor what Atlas keeps beside the tables (_atlas) knows, so it is not known "
            "where to continue: restore one of them, or read the stream again with "
            "`atlas refresh`.",
            0 if last is None else last.commit_of(stream).generation_id,
        )
    last_commit = envelope.commit_of(stream)
    generation = last_commit.generation_id
    unrecorded = None if recorded else envelope
    if remembered.wiped_at is not None and remembered.wiped_at > envelope.prepared_at:
        return Resumption(
            generation_id=generation + 1,
            replaces=True,
            notice=f"Stream '{stream}' was wiped in Dagster; it is read again from the beginning "
            "and its old rows are replaced once that is complete.",
        )
    if last_commit.held and envelope.action != "sync":
        return Resumption(
            generation_id=generation,
            replaces=True,
            begun_by=last_commit.begun_by,
            unrecorded=unrecorded,
            notice=f"Stream '{stream}' is refreshed: it is read again from the beginning and its "
            "old rows are replaced once that is complete.",
        )
    return Resumption(
        generation_id=generation,
        envelope=envelope,
        replaces=last_commit.held and last_commit.replaces,
        held=last_commit.held,
        begun_by=last_commit.begun_by,
        unrecorded=unrecorded,
    )
