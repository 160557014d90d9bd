"""Commits, and checks outside of their step's own, as Dagster's event log keeps them."""

from collections.abc import Iterator

import dagster as dg

from atlas_dagster.destinations.envelope import Action, Envelope, StreamCommit
from atlas_dagster.orchestration.definitions.connection_assets import ConnectionAssets
from atlas_dagster.orchestration.step.metadata import (
    checkpoint_metadata,
    is_shared,
    shared_state_metadata,
)

_TOLD: dict[Action, str] = {
    "refresh": "Refresh: to be read again from the beginning.",
    "clear": "Cleared: no rows, no state.",
    "reset": "State reset: to be read from the beginning, rows kept.",
    "set": "State set.",
    "accept": "Accepted as someone else left it.",
}


def observations(defined: ConnectionAssets, envelope: Envelope) -> Iterator[dg.AssetObservation]:
    """The events that remember ``envelope``: one for each stream of it."""
    if is_shared(envelope):
        # First, for the events of its streams refer to it.
        yield dg.AssetObservation(
            asset_key=defined.source_key,
            description=f"Checkpoint of {len(envelope.streams)} streams.",
            metadata=shared_state_metadata(envelope),
        )
    state = envelope.connection_state
    for commit in envelope.streams:
        blob = state.blob_of(commit.stream)
        yield dg.AssetObservation(
            asset_key=defined.key(commit.table),
            description=_told(envelope, commit),
            metadata=checkpoint_metadata(envelope, blob),
        )


def check_evaluation(key: dg.AssetCheckKey, result: dg.AssetCheckResult) -> dg.AssetCheckEvaluation:
    """The event that says ``result`` of a check that is no output of the step which made it."""
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=result.passed,
        severity=result.severity,
        description=result.description,
        metadata=result.metadata,
    )


def _told(envelope: Envelope, commit: StreamCommit) -> str:
    shown = ", shown once the stream is complete" if commit.unpublished else ""
    return _TOLD.get(envelope.action, f"Checkpoint: {commit.rows:,} rows committed{shown}.")
