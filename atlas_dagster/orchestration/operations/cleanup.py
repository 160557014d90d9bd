"""Clean-up after runs whose process was killed: ends these runs and removes their connectors."""

import datetime as dt
import multiprocessing
import os
from contextlib import closing, suppress

import dagster as dg

from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.definitions.resource import AtlasResource
from atlas_dagster.reading.ad_hoc import reap_adhoc
from atlas_dagster.runners.cleanup import is_running, reap, reap_processes
from atlas_dagster.runners.docker.engine import connect
from atlas_dagster.runners.owner import (
    find_container,
    identify,
    process_has_ended,
    split_run_and_process,
    this_container,
)
from atlas_dagster.source.connection import Connection

PROCESS_TAG = "atlas/process"
_UNFINISHED = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def note_process(instance: dg.DagsterInstance, run_id: str, pid: int | None = None) -> None:
    """Tag a run with its process: ``pid``, or the process that this step belongs to."""
    if pid is None:
        run = instance.get_run_by_id(run_id)
        if run is not None and run.tags.get(PROCESS_TAG, "").startswith(run_id):
            return  # the run itself has set the tag
        # Dagster's other executors start a process for each step; its parent is the run's process.
        parent = multiprocessing.parent_process()
        pid = os.getpid() if parent is None or parent.pid is None else parent.pid
    instance.add_run_tags(run_id, process_tag(run_id, pid))


def process_tag(run_id: str, pid: int) -> dict[str, str]:
    """Return the tag with the process of a run."""
    return {PROCESS_TAG: f"{run_id} {identify(pid)}"}


def end_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Report runs as failed whose process on this machine has ended. Return their ids.

    Dagster's default launcher does not watch its processes. Without this, such a run would keep
    its slot in the pool of its connection for ever. The slots of all dead runs are freed.
    """
    ended = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=_UNFINISHED)):
        run = record.dagster_run
        if _is_dead(run):
            instance.report_run_failed(run, "The process of this run was killed.")
            ended.append(run.run_id)
    storage = instance.event_log_storage
    if storage.supports_global_concurrency_limits:
        for run_id in storage.get_concurrency_run_ids():
            holder = instance.get_run_by_id(run_id)
            if holder is not None and holder.is_finished and _is_dead(holder):
                storage.free_concurrency_slots_for_run(run_id)
    return ended


def _is_dead(run: dg.DagsterRun) -> bool:
    # A retried run inherits the tags of the first one.
    of_run, _, process = run.tags.get(PROCESS_TAG, "").partition(" ")
    return of_run == run.run_id and process_has_ended(process)


_EVERY_SECONDS = 60
#: At most this many runs that ended since the last tick are read.
_MOST_RUNS = 100


def reap_ended(
    instance: dg.DagsterInstance, atlas: AtlasResource, connection: Connection | None = None
) -> list[str]:
    """Remove processes and containers of runs, commands and requests that have ended.

    Looks at the deployment's Docker engine and that of ``connection``; an engine that cannot be
    reached is skipped. Returns a description of each thing that was removed.
    """

    def has_ended(owner: str) -> bool:
        run_id, process = split_run_and_process(owner)
        run = None if run_id is None else instance.get_run_by_id(run_id)
        if run is not None:
            return run.is_finished
        # The run was deleted, or belongs to another instance, so its process decides.
        container = find_container(process)
        return process_has_ended(process) or (container is not None and _is_gone(container))

    deployment = atlas.deployment_label()
    removed = reap_processes(deployment=deployment, has_ended=has_ended)
    executor = atlas.executor_defaults()
    own = executor.overridden_by(connection.executor) if connection else executor
    for engine in {executor.docker_host, own.docker_host}:
        with suppress(AtlasError), closing(connect(engine)) as client:
            removed += reap(client, deployment=deployment, has_ended=has_ended)
    return removed


def _is_gone(container: str) -> bool:
    """Return whether another container on the engine of this process's container has ended.

    Return False if this process does not run in a container: ``container`` may be on another
    engine.
    """
    with suppress(AtlasError), closing(connect(None)) as client:
        return is_running(client, this_container()) and not is_running(client, container)
    return False


@dg.op(name="atlas_remove_left_over")
def _remove_leftovers(context: dg.OpExecutionContext, atlas: AtlasResource) -> None:
    removed = reap_ended(context.instance, atlas)
    context.log.info(f"Removed: {', '.join(removed) or 'nothing'}.")


@dg.job(
    name="atlas_reap",
    description="Removes connectors whose run was killed. The sensor atlas_reaper requests it if "
    "runs are on other machines.",
)
def reap_job() -> None:
    _remove_leftovers()


@dg.sensor(
    name="atlas_reaper",
    job=reap_job,
    minimum_interval_seconds=_EVERY_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Removes connectors whose run was killed.",
)
def reaper_sensor(
    context: dg.SensorEvaluationContext, atlas: AtlasResource
) -> dg.SkipReason | dg.SensorResult:
    if not isinstance(context.instance.run_launcher, dg.DefaultRunLauncher):
        return _request_clean_up(context)
    dead = end_dead_runs(context.instance)
    removed = reap_ended(context.instance, atlas) + reap_adhoc()
    if dead:
        return dg.SkipReason(
            f"Reported as failed, because their process was killed: {', '.join(dead)}."
        )
    if removed:
        return dg.SkipReason(f"Removed connectors of killed runs: {', '.join(removed)}.")
    return dg.SkipReason("There are no connectors of killed runs.")


def _request_clean_up(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Request a run that cleans up, if a run has failed or was canceled.

    Runs and their Docker engine are on other machines. Successful runs clean up themselves.
    """
    since = dt.datetime.fromisoformat(context.cursor) if context.cursor else None
    now = dt.datetime.now(dt.UTC).isoformat()
    ended = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED], updated_after=since
    )
    found = context.instance.get_runs(ended, limit=_MOST_RUNS) if since else []
    if all(run.job_name == reap_job.name for run in found):
        return dg.SensorResult(skip_reason="No run has failed or was canceled.", cursor=now)
    return dg.SensorResult(run_requests=[dg.RunRequest(run_key=now)], cursor=now)
