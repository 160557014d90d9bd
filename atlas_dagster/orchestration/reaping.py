"""When the owner of a connector has ended, as Dagster and this machine know it."""

from contextlib import closing, suppress

import dagster as dg

from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.dead_runs import end_dead_runs
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.runners.engine import connect
from atlas_dagster.runners.owner import process_has_ended
from atlas_dagster.runners.reaper import reap, reap_processes
from atlas_dagster.sync.adhoc import reap_adhoc
from atlas_dagster.sync.connection import Connection

_EVERY_SECONDS = 60


def reap_ended(
    instance: dg.DagsterInstance, atlas: AtlasResource, connection: Connection | None = None
) -> list[str]:
    """Remove what ended runs, commands and requests left behind: processes, and containers.

    Looked at is the deployment's Docker engine, and that of ``connection``. Returns what was
    removed, in words. Where there is no Docker, there is no container.
    """

    def has_ended(owner: str) -> bool:
        kind, _, name = owner.partition(":")
        if kind == "run":
            run = instance.get_run_by_id(name)
            # A run this instance never heard of may be alive in another one.
            return run is not None and run.is_finished
        return process_has_ended(owner)

    deployment = atlas.deployment_label()
    removed = reap_processes(deployment=deployment, has_ended=has_ended)
    executor = atlas.executor_defaults()
    own = executor.overridden_by(connection.executor) if connection else executor
    for engine in {executor.docker_host, own.docker_host}:
        with suppress(AtlasError), closing(connect(engine)) as client:
            removed += reap(client, deployment=deployment, has_ended=has_ended)
    return removed


@dg.sensor(
    name="atlas_reaper",
    minimum_interval_seconds=_EVERY_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Removes connectors whose run was killed before it could do so.",
)
def reaper_sensor(context: dg.SensorEvaluationContext, atlas: AtlasResource) -> dg.SkipReason:
    dead = end_dead_runs(context.instance)
    removed = reap_ended(context.instance, atlas) + reap_adhoc()
    if dead:
        return dg.SkipReason(f"Reported as failed, for their process is gone: {', '.join(dead)}.")
    if removed:
        return dg.SkipReason(f"Removed left-over connectors: {', '.join(removed)}.")
    return dg.SkipReason("No left-over connectors.")
