"""Runs whose process is gone without a word: killed, or its machine restarted.

Dagster's default launcher cannot look after its run workers, and nobody looks after a command. Such
a run would count as running for ever and keep its slot in the pool of its connection, which would
never be synced again, and what the run left behind never be removed.
"""

import multiprocessing
import os

import dagster as dg

from atlas_dagster.runners.owner import identify, process_has_ended

PROCESS_TAG = "atlas/process"
_UNFINISHED = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def note_process(instance: dg.DagsterInstance, run_id: str, pid: int | None = None) -> None:
    """Remember which process carries out a run: ``pid``, or that which this step belongs to."""
    if pid is None:
        run = instance.get_run_by_id(run_id)
        if run is not None and run.tags.get(PROCESS_TAG, "").startswith(run_id):
            return  # by the run itself, which knows best
        # Dagster's other executors give each step a process; the run's own is its parent.
        parent = multiprocessing.parent_process()
        pid = os.getpid() if parent is None or parent.pid is None else parent.pid
    instance.add_run_tags(run_id, process_tag(run_id, pid))


def process_tag(run_id: str, pid: int) -> dict[str, str]:
    """The tag that says which process carries out a run."""
    return {PROCESS_TAG: f"{run_id} {identify(pid)}"}


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Report the runs as failed whose process on this machine has ended; their ids.

    What they, and runs that were reported before, hold of pools is free then.
    """
    ended = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=_UNFINISHED)):
        run = record.dagster_run
        if _is_dead(run):
            instance.report_run_failed(run, "The process of this run has ended without a word.")
            ended.append(run.run_id)
    storage = instance.event_log_storage
    if storage.supports_global_concurrency_limits:
        for run_id in storage.get_concurrency_run_ids():
            holder = instance.get_run_by_id(run_id)
            if holder is not None and holder.is_finished and _is_dead(holder):
                storage.free_concurrency_slots_for_run(run_id)
    return ended


def _is_dead(run: dg.DagsterRun) -> bool:
    # A run that Dagster launches in place of another inherits its tags.
    of_run, _, process = run.tags.get(PROCESS_TAG, "").partition(" ")
    return of_run == run.run_id and process_has_ended(process)
