"""Why a READ failed, in one sentence."""

from collections.abc import Collection, Mapping, Sequence

from atlas_dagster.errors import AtlasError, ConnectorFailedError, FailureType, ReadFailedError
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.source.invocation import Invocation
from atlas_dagster.sync.stream import ActiveStream


def failure_of(
    conversation: Invocation | None,
    streams: Collection[ActiveStream],
    refused: Mapping[StreamDescriptor, AtlasError],
) -> ReadFailedError | None:
    """What to raise at the end of a READ; None where all is well.

    ``refused``: streams that were not even asked for, and why. ``conversation``: None where there
    was nothing to ask for.
    """
    failed = [s for s in streams if s.phase != "finished"]
    cause: ConnectorFailedError | None = None
    if conversation is not None and conversation.failed:
        cause = conversation.failure()
    elif conversation is not None and failed and conversation.cut_off:
        cause = ConnectorFailedError(
            f"The connection to the output of {conversation.name} ended before its container "
            "did, so records may be lost; see what lies between Atlas and the Docker engine "
            "(a proxy, a tunnel), then sync again.",
            failure_type="transient_error",
        )
    if not failed and not refused and cause is None:
        return None
    reasons = [f"{name}: {error}" for name, error in refused.items()]
    reasons.append(_reasons(failed, cause))
    finished = [str(s.descriptor) for s in streams if s.phase == "finished"]
    kept = f" Finished and kept: {', '.join(finished)}." if finished else ""
    lost, total = len(failed) + len(refused), len(streams) + len(refused)
    which = f"{lost} of {total} streams" if total > 1 else "The stream"
    why = " ".join(filter(None, reasons))
    return ReadFailedError(
        f"{which} did not complete. {why}{kept}" if lost else f"All streams completed, but {why}",
        failure_type=_failure_type(
            cause, [*refused.values(), *(s.refusal for s in failed if s.refusal)]
        ),
        stack_trace=cause.stack_trace if cause else None,
    )


def _failure_type(
    cause: ConnectorFailedError | None, refused: Collection[AtlasError]
) -> FailureType:
    if cause is not None:
        return cause.failure_type
    return next((error.failure_type for error in refused), "system_error")


def _reasons(failed: Sequence[ActiveStream], cause: ConnectorFailedError | None) -> str:
    said = {s.descriptor: s.reason for s in failed}
    told = {name: reason for name, reason in said.items() if reason}
    names: dict[str, list[str]] = {}  # several streams of one commit fail for one reason
    for name, reason in told.items():
        names.setdefault(reason.removesuffix("."), []).append(str(name))
    text = " ".join(f"{', '.join(those)}: {reason}." for reason, those in names.items())
    silent = [str(name) for name in said if name not in told]
    if cause is not None:
        known = any(reason in str(cause) for reason in told.values())
        return text if known else f"{text} {cause}".strip()
    if silent:
        text += f" {', '.join(silent)}: the source ended without declaring it COMPLETE."
    return text.strip()
