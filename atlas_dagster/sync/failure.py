"""The error that explains why a READ failed, in one sentence."""

from collections.abc import Collection, Mapping, Sequence

from atlas_dagster.errors import AtlasError, ConnectorFailedError, FailureType, ReadFailedError
from atlas_dagster.protocol.messages import StreamDescriptor
from atlas_dagster.source.invocation import Invocation
from atlas_dagster.sync.stream import ActiveStream


def explain_failure(
    invocation: Invocation | None,
    streams: Collection[ActiveStream],
    refused: Mapping[StreamDescriptor, AtlasError],
) -> ReadFailedError | None:
    """Return the error to raise at the end of a READ; None if all streams completed.

    ``invocation``: None if there was nothing to read. ``refused``: the streams that Atlas did not
    request, each with the reason.
    """
    failed = [s for s in streams if s.phase != "finished"]
    cause: ConnectorFailedError | None = None
    if invocation is not None and invocation.failed:
        cause = invocation.failure()
    elif invocation is not None and failed and invocation.cut_off:
        cause = ConnectorFailedError(
            f"The connection to the output of {invocation.name} ended before its container did, so "
            "records may be lost; check the network between Atlas and the Docker engine (a proxy, "
            "a tunnel), then sync again.",
            failure_type="transient_error",
        )
    if not failed and not refused and cause is None:
        return None
    reasons = [f"{name}: {error}" for name, error in refused.items()]
    reasons.append(_join_reasons(failed, cause))
    finished = [str(s.descriptor) for s in streams if s.phase == "finished"]
    kept = f" Finished and kept: {', '.join(finished)}." if finished else ""
    lost, total = len(failed) + len(refused), len(streams) + len(refused)
    which = f"{lost} of {total} streams" if total > 1 else "The stream"
    why = " ".join(filter(None, reasons))
    return ReadFailedError(
        f"{which} did not complete. {why}{kept}" if lost else f"All streams completed, but {why}",
        failure_type=_choose_failure_type(
            cause, [*refused.values(), *(s.refusal for s in failed if s.refusal)]
        ),
        stack_trace=cause.stack_trace if cause else None,
    )


def _choose_failure_type(
    cause: ConnectorFailedError | None, refused: Collection[AtlasError]
) -> FailureType:
    if cause is not None:
        return cause.failure_type
    return next((error.failure_type for error in refused), "system_error")


def _join_reasons(failed: Sequence[ActiveStream], cause: ConnectorFailedError | None) -> str:
    reasons = {str(s.descriptor): s.reason for s in failed if s.reason}
    names: dict[str, list[str]] = {}  # by reason: the streams of one commit fail together
    for name, reason in reasons.items():
        names.setdefault(reason.removesuffix("."), []).append(name)
    text = " ".join(f"{', '.join(streams)}: {reason}." for reason, streams in names.items())
    if cause is not None:
        known = any(reason in str(cause) for reason in reasons.values())
        return text if known else f"{text} {cause}".strip()
    if others := [str(s.descriptor) for s in failed if not s.reason]:
        text += f" {', '.join(others)}: the source ended without declaring it COMPLETE."
    return text.strip()
