"""Removes containers and processes whose owner has ended without removing them.

A killed step, a force-terminated run or a lost machine cannot clean up; whoever starts the next
sync (and a sensor) does. Only what carries our labels, of this deployment, is looked at.
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

    Returns the names of the containers removed; what the engine does not do now, is left to the
    next time.
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
                    continue  # someone else is removing it, or it is gone
                removed.append(str(container.name))
    return removed


def is_running(client: docker.DockerClient, container: str) -> bool:
    """Whether the engine has the container, and it has not ended; True where it does not say."""
    try:
        return str(client.containers.get(container).status) not in ("exited", "dead")
    except docker.errors.NotFound:
        return False
    except API_ERRORS:
        return True


def reap_processes(*, deployment: str, has_ended: Callable[[str], bool]) -> list[str]:
    """Kill the processes of ``deployment`` whose owner ``has_ended``.

    The kernel kills a connector together with Atlas, but not what the connector has started.
    Their private files go too. Returns the processes killed, in words.
    """
    killed = []
    for pid, found in tagged_processes():
        ours = tag_value(found, DEPLOYMENT_LABEL) == deployment
        if ours and has_ended(tag_value(found, OWNER_LABEL)):
            kill(pid)
            killed.append(f"process {pid} of {tag_value(found, CONNECTION_LABEL)}")
    remove_leftovers()
    return killed
