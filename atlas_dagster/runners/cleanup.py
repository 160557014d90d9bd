"""Remove containers and processes whose owners ended without removing them.

A killed step, a terminated run or a lost machine cannot clean up, so the next sync or a sensor
does. They consider only containers and processes with the label of their own deployment.
"""

from collections.abc import Callable
from contextlib import suppress

import docker
import docker.errors

from atlas_dagster.runners.docker.engine import API_ERRORS
from atlas_dagster.runners.process import remove_leftovers
from atlas_dagster.runners.process_tags import (
    CONNECTION_LABEL,
    DEPLOYMENT_LABEL,
    OWNER_LABEL,
    kill,
    tag_value,
    tagged_processes,
)


def reap(
    client: docker.DockerClient, *, deployment: str, has_ended: Callable[[str], bool]
) -> list[str]:
    """Kill and remove the containers of ``deployment`` whose owner ``has_ended``.

    Returns their names. If the engine refuses to remove a container, the next call tries again.
    """
    removed: list[str] = []
    labels = [CONNECTION_LABEL, f"{DEPLOYMENT_LABEL}={deployment}"]
    with suppress(*API_ERRORS):
        for container in client.containers.list(
            all=True, filters={"label": labels}, ignore_removed=True
        ):
            if has_ended(container.labels.get(OWNER_LABEL, "")):
                try:
                    container.remove(force=True, v=True)
                except docker.errors.APIError:
                    continue  # the container is gone, or another program is removing it
                removed.append(str(container.name))
    return removed


def is_running(client: docker.DockerClient, container: str) -> bool:
    """Return whether the container is running; True if the engine does not respond."""
    try:
        return str(client.containers.get(container).status) not in ("exited", "dead")
    except docker.errors.NotFound:
        return False
    except API_ERRORS:
        return True


def reap_processes(*, deployment: str, has_ended: Callable[[str], bool]) -> list[str]:
    """Kill the processes of ``deployment`` whose owner ``has_ended``, and remove their files.

    The kernel kills a connector together with Atlas, but not the connector's own children. Returns
    a description of each killed process.
    """
    killed = []
    for pid, found in tagged_processes():
        is_own = tag_value(found, DEPLOYMENT_LABEL) == deployment
        if is_own and has_ended(tag_value(found, OWNER_LABEL)):
            kill(pid)
            killed.append(f"process {pid} of {tag_value(found, CONNECTION_LABEL)}")
    remove_leftovers()
    return killed
