"""What a state of all streams together (GLOBAL, LEGACY) does not allow for single ones."""

from collections.abc import Collection, Mapping

from atlas_dagster.destinations.envelope import Envelope
from atlas_dagster.errors import AtlasError, BreakingChangeError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.sync.reconcile import ResumePoint
from atlas_dagster.sync.stream_plan import StreamPlan


def left_out(
    newest: Envelope,
    streams: Collection[ConfiguredStream],
    resumptions: Mapping[StreamDescriptor, ResumePoint],
) -> dict[StreamDescriptor, ResumePoint]:
    """Streams that were not selected while the position of all others (GLOBAL) moved on.

    What changed in them meanwhile is lost to them, so they start over. A LEGACY state is one blob,
    in which a source keeps a position for each stream.
    """
    found = {}
    for stream in streams:
        name = stream.descriptor
        last = resumptions[name].envelope if name in resumptions else None
        if last is None or stream.sync_mode != "incremental" or last.seq >= newest.seq:
            continue
        shared = last.connection_state.type == newest.connection_state.type == "GLOBAL"
        if shared and newest.covers and name not in newest.covers:
            why = "was not selected for a while, in which its source went on without it"
            found[name] = resumptions[name].over(name, why)
    return found


def left_behind(
    connection: str,
    newest: Envelope,
    streams: Collection[ConfiguredStream],
    resumptions: Mapping[StreamDescriptor, ResumePoint],
) -> dict[StreamDescriptor, AtlasError]:
    """Streams left behind when the source went over from one state for all to one for each.

    Or the other way round. Their own last state means nothing to the source any more.
    """
    refused: dict[StreamDescriptor, AtlasError] = {}
    now = newest.connection_state
    for stream in streams:
        name = stream.descriptor
        last = resumptions[name].envelope if name in resumptions else None
        if last is None or stream.sync_mode != "incremental":
            continue
        was = last.connection_state
        if now.type == "STREAM" and was.type != "STREAM":
            refused[name] = BreakingChangeError(
                f"The source now keeps a state for each stream, but the last one stored for "
                f"'{name}' is of all streams together ({was.type}), so it is not known where to "
                f"continue; run `atlas refresh {connection} --stream {name}`."
            )
        own = was.type == "STREAM" and name in was.streams
        if own and now.type != "STREAM" and name not in now.streams:
            only = f" --stream {name}" if now.streams else ""
            refused[name] = BreakingChangeError(
                f"The source now keeps one state for all streams ({now.type}), but the one stored "
                f"is without '{name}', so it is not known where to continue; "
                f"run `atlas refresh {connection}{only}`."
            )
    return refused


def refuse_to_leave_out(
    connection: str, state: ConnectionState, plans: Collection[StreamPlan]
) -> None:
    """One stream cannot start over where the state has no parts for single streams.

    The source would send it only what is new, and that would replace all its rows. Where there are
    parts, it reads a stream without one from the beginning.
    """
    for plan in plans:
        why = plan.resume_point.restarts
        if why and not (plan.full_refresh or plan.resumes or state.streams):
            raise BreakingChangeError(
                f"Stream '{plan.descriptor}' {why}, but its source keeps one state for all streams "
                f"({state.type}) and cannot read this one alone from the beginning; to read all of "
                f"them again, run `atlas refresh {connection}`."
            )
