"""Removes containers whose owner has ended without removing them.

A killed step, a force-terminated run or a lost machine cannot clean up; whoever starts the next
sync (and a sensor) does. Only containers with our labels and of this deployment are looked at.
"""

from collections.abc import Callable

import docker
import docker.errors

from atlas_dagster.runners.docker import CONNECTION_LABEL

DEPLOYMENT_LABEL = "atlas.deployment"
#: ``run:<Dagster run id>`` or ``command:<host>:<pid>``.
OWNER_LABEL = "atlas.owner"


def reap(
    client: docker.DockerClient, *, deployment: str, has_ended: Callable[[str], bool]
) -> list[str]:
    """Kill and remove the containers of ``deployment`` whose owner ``has_ended``.

    Returns the names of the containers removed.
    """
    removed = []
    labels = [CONNECTION_LABEL, f"{DEPLOYMENT_LABEL}={deployment}"]
    for container in client.containers.list(
        all=True, filters={"label": labels}, ignore_removed=True
    ):
        if has_ended(container.labels.get(OWNER_LABEL, "")):
            try:
                container.remove(force=True, v=True)
            except docker.errors.APIError:
                continue  # someone else is removing it, or it is gone
            removed.append(str(container.name))
    return removed
