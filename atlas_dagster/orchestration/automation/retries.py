"""Retries of syncs with a transient failure, and failures as Dagster shows them.

The delays are those of Airbyte's platform: 10 s times 3 to the power of the attempts without
progress, at most half an hour. The first retries happen inside the run, for at most two minutes;
the connection's schedule requests later ones as new runs. A terminated run is never retried.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg
from msgspec import Struct

from atlas_dagster.errors import AtlasError, ConnectorFailedError

#: Tags of a failed run: its failure type, whether it committed anything, and the number of earlier
#: attempts, in all and without progress.
FAILURE_TAG = "atlas/failure_type"
PROGRESS_TAG = "atlas/progress"
ATTEMPTS_TAG = "atlas/tries"
IDLE_ATTEMPTS_TAG = "atlas/tries_without_progress"
#: Tag of a retry that the schedule requests: the id of the first run in the chain of retries.
ROOT_RUN_TAG = "atlas/root_run"

_FIRST_SECONDS = 10.0
_LONGEST_SECONDS = 30 * 60.0
_INSIDE_A_RUN_SECONDS = 120.0
_MOST_IDLE_ATTEMPTS = 5
_MOST_ATTEMPTS = 20
#: The number of retries inside of a run, before the schedule requests more.
_RETRIES_INSIDE_A_RUN = 2


def wait_seconds(attempts: int) -> float:
    """Return the delay after this many ``attempts`` without progress."""
    return float(min(_FIRST_SECONDS * 3**attempts, _LONGEST_SECONDS))


class RetryBudget:
    """The retries inside one run."""

    def __init__(self) -> None:
        self._attempts = 0
        self._idle_attempts = 0
        self._waited = 0.0
        #: True if this run has committed anything.
        self.progressed = False

    def note_progress(self) -> None:
        self.progressed = True
        self._idle_attempts = 0
        self._waited = 0.0

    def wait_after(self, error: AtlasError) -> float | None:
        """Return the seconds to wait before the next attempt; None if there is to be none."""
        wait = wait_seconds(self._idle_attempts)
        self._waited += wait
        self._attempts += 1
        self._idle_attempts += 1
        worthwhile = error.failure_type == "transient_error" and self._attempts <= _MOST_ATTEMPTS
        return wait if worthwhile and self._waited <= _INSIDE_A_RUN_SECONDS else None


def tag_failure(
    instance: dg.DagsterInstance, run_id: str, error: AtlasError, budget: RetryBudget
) -> None:
    """Tag a failed run, so that the schedule can retry it."""
    progress = "yes" if budget.progressed else "no"
    instance.add_run_tags(run_id, {FAILURE_TAG: error.failure_type, PROGRESS_TAG: progress})


def root_run_id(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """Return the id of the first run that ``run`` retries, or its own id.

    A run after a successful one is not a retry.
    """
    while run.parent_run_id is not None:
        parent = instance.get_run_by_id(run.parent_run_id)
        if parent is None or parent.is_success:
            return run.run_id
        run = parent
    return run.tags.get(ROOT_RUN_TAG) or run.run_id


class NextRetry(Struct, frozen=True):
    """A retry to request ``after`` seconds from the end of the failed run."""

    after: float
    attempts: int
    idle_attempts: int

    @property
    def tags(self) -> dict[str, str]:
        return {ATTEMPTS_TAG: str(self.attempts), IDLE_ATTEMPTS_TAG: str(self.idle_attempts)}


def plan_retry(tags: Mapping[str, str]) -> NextRetry | None:
    """Return the retry of a failed run with these tags; None if it must not be retried."""
    if tags.get(FAILURE_TAG) != "transient_error":
        return None
    attempts = int(tags.get(ATTEMPTS_TAG, 0)) + 1
    progressed = tags.get(PROGRESS_TAG) == "yes"
    idle_attempts = 1 if progressed else int(tags.get(IDLE_ATTEMPTS_TAG, 0)) + 1
    if attempts > _MOST_ATTEMPTS or idle_attempts > _MOST_IDLE_ATTEMPTS:
        return None
    return NextRetry(
        wait_seconds(_RETRIES_INSIDE_A_RUN + idle_attempts - 1), attempts, idle_attempts
    )


@contextmanager
def explain_failure() -> Iterator[None]:
    """Turn an AtlasError of the block into a dagster.Failure with its message.

    Its metadata has the connector's stack trace, if there is one. Dagster does not retry it,
    because Atlas decides about retries.
    """
    try:
        yield
    except AtlasError as error:
        metadata: dict[str, dg.RawMetadataValue] = {"atlas/failure_type": error.failure_type}
        if isinstance(error, ConnectorFailedError) and error.stack_trace:
            metadata["atlas/stack_trace"] = format_text_block(error.stack_trace)
        raise dg.Failure(
            description=str(error),
            metadata=metadata,
            allow_retries=False,
        ) from None


def format_text_block(text: str) -> dg.MarkdownMetadataValue:
    """Return ``text`` as a block of Markdown that keeps its lines."""
    fenced = text.replace("```", "` ` `")
    return dg.MetadataValue.md(f"```\n{fenced}\n```")
