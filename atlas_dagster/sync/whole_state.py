"""What a state of all streams together (GLOBAL, LEGACY) does not allow for single ones."""

from collections.abc import Collection, Mapping

from atlas_dagster.errors import AtlasError, BreakingChangeError
from atlas_dagster.protocol.catalog import ConfiguredStream
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.protocol.state import ConnectionState
from atlas_dagster.state.envelope import Envelope
from atlas_dagster.state.reconcile import Resumption
from atlas_dagster.sync.stream_plan import StreamPlan


def left_behind(
    connection: str,
    newest: Envelope,
    streams: Collection[ConfiguredStream],
    resumptions: Mapping[StreamDescriptor, Resumption],
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
            refused[name] = BreakingChangeError(
                f"The source now keeps one state for all streams ({now.type}), but the one stored "
                f"is without '{name}', so it is not known where to continue; "
                f"run `atlas refresh {connection}`."
            )
    return refused


def refuse_to_leave_out(
    connection: str,
    state: ConnectionState,
    plans: Collection[StreamPlan],
    resumptions: Mapping[StreamDescriptor, Resumption],
) -> None:
    """One stream cannot start over where the state says nothing of single streams.

    The source would send it only what is new, and that would replace all its rows. One that was
    read in full so far is as good as new to a state that has parts for the others.
    """
    for plan in plans:
        starts_over = plan.resumption.notice or plan.resumption.held
        if plan.full_refresh or plan.goes_on or not starts_over:
            continue
        last = resumptions[plan.descriptor].envelope
        is_new = last is not None and last.commit_of(plan.descriptor).full_refresh
        if plan.descriptor not in state.streams and not (is_new and state.streams):
            raise BreakingChangeError(
                f"Stream '{plan.descriptor}' was wiped, its table deleted or its mode changed, but "
                "its source keeps one state for all streams and cannot read this one alone from "
                f"the beginning; to read all of them again, run `atlas refresh {connection}`."
            )
