"""When the owner of a container has ended, as Dagster and this machine know it."""

import os
import socket
from contextlib import closing

import dagster as dg

from atlas_dagster.errors import AtlasError
from atlas_dagster.orchestration.resource import AtlasResource
from atlas_dagster.runners.engine import connect
from atlas_dagster.runners.reaper import reap

_EVERY_SECONDS = 60


def reap_ended(instance: dg.DagsterInstance, atlas: AtlasResource) -> list[str]:
    """Remove what ended runs and commands left behind; nothing where there is no Docker."""

    def has_ended(owner: str) -> bool:
        kind, _, name = owner.partition(":")
        if kind == "run":
            run = instance.get_run_by_id(name)
            # A run this instance never heard of may be alive in another one.
            return run is not None and run.is_finished
        host, _, pid = name.partition(":")
        return kind == "command" and host == socket.gethostname() and not _is_alive(int(pid))

    try:
        client = connect()
    except AtlasError:
        return []
    with closing(client):
        return reap(client, deployment=atlas.deployment_label(), has_ended=has_ended)


@dg.sensor(
    name="atlas_reaper",
    minimum_interval_seconds=_EVERY_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Removes connector containers whose run was killed before it could do so.",
)
def reaper_sensor(context: dg.SensorEvaluationContext, atlas: AtlasResource) -> dg.SkipReason:
    removed = reap_ended(context.instance, atlas)
    if removed:
        return dg.SkipReason(f"Removed left-over containers: {', '.join(removed)}.")
    return dg.SkipReason("No left-over containers.")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
