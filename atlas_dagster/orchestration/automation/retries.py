"""When a sync that failed for a reason that may pass is tried again.

The platform's own pattern: 10 s times 3 to the power of the tries without progress, half an hour at
most; few tries without progress, more with some. The first tries happen inside the run, for two
minutes at most; later ones are runs of their own, requested by the connection's schedule. A run
that somebody terminates is never tried again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dagster as dg
from msgspec import Struct

from atlas_dagster.errors import AtlasError, ConnectorFailedError

#: On a failed run: the failure type; whether it committed anything; tries before it, in all and
#: since the last one that did.
FAILURE_TAG = "atlas/failure_type"
PROGRESS_TAG = "atlas/progress"
TRIES_TAG = "atlas/tries"
IDLE_TRIES_TAG = "atlas/tries_without_progress"
#: On a run that the schedule requests to try another one again: the first of them.
ROOT_RUN_TAG = "atlas/root_run"

_FIRST_SECONDS = 10.0
_LONGEST_SECONDS = 30 * 60.0
_INSIDE_A_RUN_SECONDS = 120.0
_MOST_IDLE_TRIES = 5
_MOST_TRIES = 20
#: Waits that the failed run itself has gone through already.
_TRIES_INSIDE = 2


def wait_seconds(tries: int) -> float:
    """Seconds to wait after ``tries`` tries without progress."""
    return float(min(_FIRST_SECONDS * 3**tries, _LONGEST_SECONDS))


class RetryBudget:
    """Counts the tries inside one run."""

    def __init__(self) -> None:
        self._tries = 0
        self._idle_tries = 0
        self._waited = 0.0
        #: Whether anything was committed in this run.
        self.progressed = False

    def note_progress(self) -> None:
        self.progressed = True
        self._idle_tries = 0
        self._waited = 0.0

    def wait_after(self, error: AtlasError) -> float | None:
        """Seconds to wait before the next try; None where there shall be none."""
        wait = wait_seconds(self._idle_tries)
        self._waited += wait
        self._tries += 1
        self._idle_tries += 1
        worthwhile = error.failure_type == "transient_error" and self._tries <= _MOST_TRIES
        return wait if worthwhile and self._waited <= _INSIDE_A_RUN_SECONDS else None


def tag_failure(
    instance: dg.DagsterInstance, run_id: str, error: AtlasError, patience: RetryBudget
) -> None:
    """Tell the schedule, which may try again later."""
    progress = "yes" if patience.progressed else "no"
    instance.add_run_tags(run_id, {FAILURE_TAG: error.failure_type, PROGRESS_TAG: progress})


def root_run_id(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """The first of the runs that ``run`` tries again, whoever asked for that; else its own.

    A run that succeeded is not tried again but executed anew.
    """
    while run.parent_run_id is not None:
        parent = instance.get_run_by_id(run.parent_run_id)
        if parent is None or parent.is_success:
            return run.run_id
        run = parent
    return run.tags.get(ROOT_RUN_TAG) or run.run_id


class NextTry(Struct, frozen=True):
    """A run to request ``after`` seconds from the end of the failed one."""

    after: float
    tries: int
    idle_tries: int

    @property
    def tags(self) -> dict[str, str]:
        return {TRIES_TAG: str(self.tries), IDLE_TRIES_TAG: str(self.idle_tries)}


def next_try(tags: Mapping[str, str]) -> NextTry | None:
    """What follows a failed run with these tags; None where nothing does."""
    if tags.get(FAILURE_TAG) != "transient_error":
        return None
    tries = int(tags.get(TRIES_TAG, 0)) + 1
    progressed = tags.get(PROGRESS_TAG) == "yes"
    idle_tries = 1 if progressed else int(tags.get(IDLE_TRIES_TAG, 0)) + 1
    if tries > _MOST_TRIES or idle_tries > _MOST_IDLE_TRIES:
        return None
    return NextTry(wait_seconds(_TRIES_INSIDE + idle_tries - 1), tries, idle_tries)


@contextmanager
def explained_failure() -> Iterator[None]:
    """Turn an error Atlas raises on purpose into a Failure with its one sentence.

    The connector's stack trace, if there is one, is in the metadata. Dagster itself never retries
    it: what may be retried, and when, is for Atlas to say.
    """
    try:
        yield
    except AtlasError as error:
        metadata: dict[str, dg.RawMetadataValue] = {"atlas/failure_type": error.failure_type}
        if isinstance(error, ConnectorFailedError) and error.stack_trace:
            metadata["atlas/stack_trace"] = text_block(error.stack_trace)
        raise dg.Failure(
            description=str(error),
            metadata=metadata,
            allow_retries=False,
        ) from None


def text_block(text: str) -> dg.MarkdownMetadataValue:
    """``text`` of several lines, as it is."""
    fenced = text.replace("```", "` ` `")
    return dg.MetadataValue.md(f"```\n{fenced}\n```")
